"""The page of a report: one HTML file that needs nothing but itself.

The page is made of a plain record (`search.report.record`), so it can be drawn from a running study, a finished one
or several. It carries plotly.js inside (4.8 MB), states a content security policy that forbids every load
from outside and every script but its own (by their digests, so that an attribute of an element can
run nothing either), and works from a file. Whatever a user named is escaped. The interactive parts are
drawn by `page.js` from one JSON document (`search.report.document`); what is said in words stands in the page.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from search.pareto.confidence import wilson
from search.report.cascades import cascades_section
from search.report.document import as_data, document
from search.report.frontier_png import draw_png
from search.report.html import STYLE, method_name, scripts_of_ours, table
from search.report.record import Report
from search.report.sections import path_sections
from search.report.study import figures as study_figures
from search.report.study import section as study_section
from search.units import AxesText, knobs_text, parsed, show_count, show_seconds, show_share

SCRIPT = Path(__file__).with_name("page.js")


def frontier_png(report: Report, path: str | Path) -> None:
    """Write the picture of the frontier: validation accuracy against MACs per image (log), 1200 x 800."""
    named = [str(report.study[key]) for key in ("name", "dataset") if report.study.get(key)]
    draw_png(report.points, report.front, " on ".join(named), path, report.axes)


def report_html(report: Report, path: str | Path) -> None:
    """Write the page: facts, frontier, how it was found, the paths of the best trials, tables."""
    Path(path).write_text(page_html(report), encoding="utf-8")


def page_html(report: Report, *, live: float | None = None, tag: str = "") -> str:
    """The page as text; with `live` it asks its server for what is new every so many seconds, knowing `tag`."""
    from plotly.offline import get_plotlyjs

    name = escape(str(report.study.get("name", "study")))
    figures, sections = _parts(report)
    body = [
        f"<h1>{name}: {_headline(report.axes)}</h1>",
        '<p id="live" role="status" class="note">live</p>' if live else "",
        f'<div id="facts">{sections["facts"]}</div>',
        _frontier(report),
        _CHOSEN,
        *(f'<div id="{key}">{html}</div>' for key, html in sections.items() if key != "facts"),
        *(path_sections(report.points, report.paths) if report.axes.usual else ()),
    ]
    plotly, ours = get_plotlyjs(), SCRIPT.read_text(encoding="utf-8")
    data = f'<script type="application/json" id="data">{as_data(document(report, figures))}</script>'
    content, drawing = scripts_of_ours("\n".join(body))
    following = f' data-live="{live:g}" data-tag="{escape(tag)}"' if live else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy([plotly, ours, *drawing], bool(live))}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{name} - routefront</title><style>{STYLE}</style><script>{plotly}</script></head>\n"
        f"<body{following}><main>\n{content}\n</main>{data}<script>{ours}</script></body></html>\n"
    )


def _headline(axes: AxesText) -> str:
    if axes.usual:
        return f"{axes.merit_title} for every compute budget"
    return f"{escape(axes.objective.merit.name)} for every budget of {escape(axes.objective.cost.name)}"


def fresh_parts(report: Report) -> dict[str, Any]:
    """What a live page takes over: {document, sections}, the paths of trials left as they are."""
    figures, sections = _parts(report)
    return {"document": document(report, figures), "sections": sections}


def _policy(scripts: Sequence[str], live: bool) -> str:
    """The content security policy: nothing from outside, no script but these, by their digests."""
    digests = {base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in scripts}
    allowed = " ".join(f"'sha256-{digest}'" for digest in sorted(digests))
    connect = " connect-src 'self';" if live else ""
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;{connect}"
        " form-action 'none'; base-uri 'none'"
    )


def _parts(report: Report) -> tuple[dict[str, Any], dict[str, str]]:
    """The figures that `page.js` draws, and the sections that stand in the page, in their order."""
    figures: dict[str, Any] = {}
    if report.history:
        figures["hypervolume"] = study_figures.hypervolume_figure(report.history)
    if any(row.get("begin") is not None for row in report.trials):
        figures["timeline"] = study_figures.timeline_figure(report.trials)
    told = [found for found in report.importances if found.explained > 0]
    figures |= {f"importance-{i}": study_figures.importance_figure(found) for i, found in enumerate(told)}
    axes = study_figures.parallel_axes(report.results, report.importances)
    if len(report.results) > 1 and axes:
        figures["parallel"] = study_figures.parallel_figure(report.results, axes)
    sections = {
        "facts": _facts(report),
        "front-table": _front_table(report.front, report.axes),
        "papers-table": study_section.papers_section(report.published),
        "cascades": cascades_section(report.cascades),
        "history": study_section.history_section(report.history),
        "importances": study_section.importances_section(report.importances, told),
        "parallels": study_section.parallel_section(report.results, axes) if "parallel" in figures else "",
        "cluster": study_section.cluster_section(report.cluster),
        "times": study_section.timeline_section(report.trials) if "timeline" in figures else "",
        "trials": study_section.trials_section(report.trials, report.axes),
        "configs": _configs(report.front),
    }
    return figures, sections


_CHOSEN = (
    '<section id="chosen" aria-live="polite" aria-labelledby="chosen-title" hidden><h2 id="chosen-title">Point</h2>'
    '<dl id="chosen-facts"></dl><p id="chosen-why" class="note"></p>'
    '<div id="command-box"><p class="note">To promote it to the model registry (NAME is the model\'s name there):</p>'
    '<p class="command"><code id="command"></code> <button type="button" data-copy>Copy</button></p></div>'
    '<p id="command-none" class="note" hidden>Its checkpoint was not kept (kept are those of the first two fronts'
    " and of each method's own), so it cannot be promoted.</p><h3>Curves of its trial by epoch</h3>"
    '<figure aria-label="Accuracy against MACs of the trial at every epoch that was evaluated"><div id="trial"></div>'
    "</figure>"
    '<details><summary>Configuration</summary><pre id="chosen-config"></pre></details></section>'
)


def _facts(report: Report) -> str:
    study = dict(report.study)
    study.pop("name", None)
    reference = study.pop("reference", None)
    facts = {"state": study.pop("state", "-"), "data set": study.pop("dataset", "-")}
    trials = study.pop("trials", len(report.trials))
    if isinstance(trials, Mapping):
        shown = [f"{count} {state}" for state, count in trials.items() if state != "total" and count]
        trials = ", ".join(shown) or "none"
    facts["trials"] = trials
    facts["operating points"] = f"{len(report.points):,}"
    facts["points on the front"] = len(report.front)
    facts["cost"] = f"{study.pop('epochs', 0):g} epochs in {show_seconds(study.pop('seconds', 0))}"
    facts["hypervolume"] = f"{study.pop('hypervolume', 0.0):.4f}"
    if reference is not None:
        error, macs = (reference["error"], reference["macs"]) if isinstance(reference, Mapping) else reference
        axes = report.axes
        facts["reference"] = (
            f"error {show_share(error)}, {show_count(macs)} MACs"
            if axes.usual
            else f"{axes.objective.merit.name} {axes.merit(1.0 - error)}, {axes.objective.cost.name} {axes.cost(macs)}"
        )
    facts |= {key.replace("_", " "): value for key, value in study.items()}
    cells = [f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items()]
    return f"<dl>{''.join(cells)}</dl>"


def _frontier(report: Report) -> str:
    with tempfile.TemporaryDirectory() as folder:
        frontier_png(report, Path(folder) / "frontier.png")
        picture = base64.b64encode((Path(folder) / "frontier.png").read_bytes()).decode()
    axes = report.axes
    drawn = (
        f"Validation {axes.merit_title} against MACs per image"
        if axes.usual
        else f"{axes.merit_title} against {axes.cost_title}"
    )
    timing = axes.objective.timing
    measured = "as the trainables measured them" if timing is None else f"as the workers measured it ({timing})"
    label = f"{drawn}; {len(report.front)} points on the front, listed in the table"
    what = (
        f"{axes.merit_title.capitalize()} is that of the validation split. MACs are multiply-accumulates per image,"
        " counted where they were executed."
        if axes.usual
        else f"{drawn}, {measured}: better upwards, cheaper to the left."
    )
    papers = " Hollow circles are what papers printed for this data set, on its test split." if report.published else ""
    return (
        '<section aria-labelledby="frontier-title"><h2 id="frontier-title">Frontier</h2>'
        f'<p class="note">{escape(what)} Faint dots are operating points, the steps what a budget buys, bars 95 %'
        f' intervals.{papers} <span id="drawn"></span></p>'
        f'<figure aria-label="{escape(label)}"><div id="frontier-box" tabindex="0" role="application"'
        ' aria-roledescription="chart" aria-describedby="frontier-keys" aria-label="Points of the frontier, cheapest'
        ' first"><div id="frontier"></div></div></figure>'
        '<p id="frontier-keys" class="note">Click a point, or walk along the frontier with the arrow keys, to see its'
        " configuration and its trial's curves below.</p>"
        f'<noscript><img alt="{escape(label)}" src="data:image/png;base64,{picture}"></noscript></section>'
    )


def _accuracy(row: Mapping[str, Any], axes: AxesText) -> str:
    if not row.get("count") or row.get("correct") is None:
        return axes.merit(row["accuracy"])
    low, high = wilson(row["correct"], row["count"])
    return f"{axes.merit(row['accuracy'])} <small>({axes.between(low, high, ' to ')})</small>"


def _front_table(front: Sequence[Mapping[str, Any]], axes: AxesText) -> str:
    rows = [
        (
            _button(row),
            axes.cost(row["macs"]),
            show_share((row.get("counted_macs") or row["macs"]) / row["macs_full"]) if row.get("macs_full") else "-",
            _accuracy(row, axes),
            "-" if row.get("membership") is None else f"{row['membership']:.2f}",
            method_name(row),
            escape(str(row.get("network", "-"))),
            escape(knobs_text(row.get("knobs") or {})),
            show_count(row["params"]) if row.get("params") else "-",
        )
        for row in sorted(front, key=lambda row: row["macs"])
    ]
    cost, merit = ("MACs", axes.merit_title.capitalize()) if axes.usual else (axes.cost_title, axes.merit_title)
    heads = (
        "Point",
        f"#{escape(cost)}",
        "#of full" if axes.objective.timing is None else "#MACs of full",
        f"#{escape(merit)}",
        "#P(front)",
        "Method",
        "Network",
        "~Knobs",
        "#Parameters",
    )
    of = "images" if axes.usual else "examples"
    about = (
        "Cheapest first; a point is named by its trial, epoch and place in the curve. In brackets the 95 % interval"
        f" that the number of validation {of} allows. P(front): how often the point is still on the front when the"
        f" measurement is made again on resampled {of} and seeds."
    )
    note = f'<p class="note">{about}</p>' if any(row.get("count") for row in front) else ""
    return f"<section><h2>Points of the frontier</h2>{note}{table('Points of the frontier', heads, rows)}</section>"


def _button(row: Mapping[str, Any]) -> str:
    name = escape(str(row["point_id"]))
    return f'<button type="button" data-point="{name}" aria-label="Show point {name}">{name}</button>'


def _configs(front: Sequence[Mapping[str, Any]]) -> str:
    """The configuration of each trial on the front, once."""
    members = {str(row["trial"]): row for row in front if row.get("config")}
    parts = []
    for trial, row in members.items():
        config = parsed(row["config"]) if isinstance(row["config"], str) else dict(row["config"])
        text = escape(json.dumps(config, indent=2, sort_keys=True, default=str))
        about = f"{method_name(row)}, {escape(str(row.get('network', '')))}, trial {escape(trial)}"
        parts.append(f"<details><summary>{about}</summary><pre>{text}</pre></details>")
    if not parts:
        return ""
    return f"<section><h2>Configurations on the front</h2>{''.join(parts)}</section>"
