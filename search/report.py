"""The report of a study: `frontier.png` and one HTML page that needs nothing but itself.

The input is a plain record, so a report can be drawn from a running study, a finished one or several.
The page carries plotly.js inside (4.8 MB), states a content security policy that forbids every load
from outside, and works from a file. Whatever a user named is escaped.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import pyarrow as pa

from search import plots
from search.page_parts import STYLE, method_name, plot, table
from search.path_section import path_sections
from search.paths import Paths
from search.units import knobs_text, show_count, show_seconds, show_share, wilson

_TRIAL_ROWS = 2_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a report is drawn from.

    `study`: name, state, dataset, trials (counts by state), epochs, seconds, hypervolume, reference
    ({error, macs} or a pair), seed; anything else that is there is shown as it is. `points`: all
    operating points (`search.points.SCHEMA`). `front`: the rows of the front, as mappings with the
    columns of `points` (knobs, setting and config as mappings or JSON). `history`: {seconds, epochs,
    trials, hypervolume} in the order of time. `trials`: {trial, method, network, state, epoch,
    best_accuracy, min_macs, reason}; accuracy and MACs may be None. `paths`: what `search.paths` found.
    """

    study: Mapping[str, Any]
    points: pa.Table
    front: Sequence[Mapping[str, Any]]
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)
    trials: Sequence[Mapping[str, Any]] = field(default_factory=list)
    paths: Paths = field(default_factory=Paths)


def frontier_png(report: Report, path: str | Path) -> None:
    """Write the picture of the frontier: validation accuracy against MACs per image (log), 1200 x 800."""
    named = [str(report.study[key]) for key in ("name", "dataset") if report.study.get(key)]
    plots.draw_png(report.points, report.front, " on ".join(named), path)


def report_html(report: Report, path: str | Path) -> None:
    """Write the page: facts, frontier, hypervolume against cost, trials, configurations of the front."""
    name = escape(str(report.study.get("name", "study")))
    sections = [
        f"<h1>{name}: accuracy for every compute budget</h1>",
        _facts(report),
        _frontier(report),
        _front_table(report.front),
        *path_sections(report.points, report.paths),
        _history(report.history),
        _trials(report.trials),
        _configs(report.front),
    ]
    # The policy turns "no requests" from a habit into something that the browser enforces.
    policy = (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline';"
        " img-src data: blob:; form-action 'none'; base-uri 'none'"
    )
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{name} - routefront</title><style>{STYLE}</style></head>\n<body><main>\n"
        + "\n".join(sections)
        + "\n</main></body></html>\n"
    )
    Path(path).write_text(page, encoding="utf-8")


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
        facts["reference"] = f"error {show_share(error)}, {show_count(macs)} MACs"
    facts |= {key.replace("_", " "): value for key, value in study.items()}
    cells = [f"<div><dt>{escape(str(k))}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items()]
    return f"<dl>{''.join(cells)}</dl>"


def _frontier(report: Report) -> str:
    figure, shown = plots.frontier_figure(report.points, report.front)
    total = len(report.points)
    cloud = "all of them are drawn" if shown == total else f"{shown:,} of {total:,} are drawn"
    with tempfile.TemporaryDirectory() as folder:
        frontier_png(report, Path(folder) / "frontier.png")
        picture = base64.b64encode((Path(folder) / "frontier.png").read_bytes()).decode()
    label = f"Validation accuracy against MACs per image; {len(report.front)} points on the front, listed in the table"
    return (
        '<section aria-labelledby="frontier-title"><h2 id="frontier-title">Frontier</h2>'
        '<p class="note">Accuracy is that of the validation split. MACs are multiply-accumulates per image,'
        " counted where they were executed. Faint dots are operating points"
        f" ({cloud}), thin lines the whole curves of trials on the front, the steps what a budget buys.</p>"
        + plot(figure, "frontier", label, first=True)
        + f'<noscript><img alt="{escape(label)}" src="data:image/png;base64,{picture}"></noscript></section>'
    )


def _accuracy(row: Mapping[str, Any]) -> str:
    if not row.get("count") or row.get("correct") is None:
        return show_share(row["accuracy"])
    low, high = wilson(row["correct"], row["count"])
    return f"{show_share(row['accuracy'])} <small>({100 * low:.1f} to {100 * high:.1f})</small>"


def _front_table(front: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            show_count(row["macs"]),
            show_share(row["macs"] / row["macs_full"]) if row.get("macs_full") else "-",
            _accuracy(row),
            method_name(row),
            escape(str(row.get("network", "-"))),
            escape(str(row["trial"])),
            str(row["epoch"]),
            escape(knobs_text(row.get("knobs") or {})),
            show_count(row["params"]) if row.get("params") else "-",
        )
        for row in sorted(front, key=lambda row: row["macs"])
    ]
    heads = ("#MACs", "#of full", "#Accuracy", "Method", "Network", "Trial", "#Epoch", "~Knobs", "#Parameters")
    about = "Cheapest first. In brackets the 95 % interval that the number of validation images allows."
    note = f'<p class="note">{about}</p>' if any(row.get("count") for row in front) else ""
    return f"<section><h2>Points of the frontier</h2>{note}{table('Points of the frontier', heads, rows)}</section>"


def _history(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    last = history[-1]
    label = f"Hypervolume against cost: {last['hypervolume']:.4f} after {last['epochs']:g} epochs"
    return (
        '<section><h2>Hypervolume against cost</h2><p class="note">The area that the front covers up to the'
        " study's fixed reference, in error times decades of MACs. More is better.</p>"
        f"{plot(plots.hypervolume_figure(history), 'hypervolume', label)}</section>"
    )


def _trials(trials: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            escape(str(row["trial"])),
            method_name(row),
            escape(str(row.get("network") or "-")),
            escape(str(row["state"])),
            str(row.get("epoch", "-")),
            "-" if row.get("best_accuracy") is None else show_share(row["best_accuracy"]),
            "-" if row.get("min_macs") is None else show_count(row["min_macs"]),
            escape(str(row.get("reason") or "")),
        )
        for row in trials[:_TRIAL_ROWS]
    ]
    heads = ("Trial", "Method", "Network", "State", "#Epoch", "#Best accuracy", "#Least MACs", "~Why it ended")
    hidden = len(trials) - len(rows)
    note = f'<p class="note">The first {len(rows):,} of {len(trials):,} trials.</p>' if hidden else ""
    return f"<section><h2>Trials</h2>{note}{table('Trials', heads, rows)}</section>"


def _configs(front: Sequence[Mapping[str, Any]]) -> str:
    """The configuration of each trial on the front, once."""
    members = {str(row["trial"]): row for row in front if row.get("config")}
    parts = []
    for trial, row in members.items():
        config = json.loads(row["config"]) if isinstance(row["config"], str) else dict(row["config"])
        text = escape(json.dumps(config, indent=2, sort_keys=True, default=str))
        about = f"{method_name(row)}, {escape(str(row.get('network', '')))}, trial {escape(trial)}"
        parts.append(f"<details><summary>{about}</summary><pre>{text}</pre></details>")
    if not parts:
        return ""
    return f"<section><h2>Configurations on the front</h2>{''.join(parts)}</section>"
