"""The data of a report's page: one JSON document with every operating point, its trial, and the figures.

The document stands in the page as data, never as code: every `<`, `>` and `&` of it is written as an
escape, so that no name can end the element that holds it. Points are columns of numbers with indices into
lists of trials and knobs, which keeps 50,000 of them near two megabytes.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from search.report import style
from search.units import knobs_text, parsed

if TYPE_CHECKING:
    from search.report.record import Report

MOST_POINTS = 100_000
"""More than so many points are thinned, but for the front and the curves of its trials."""
_COLUMNS = (
    "point_id",
    "trial",
    "epoch",
    "method",
    "variant",
    "network",
    "knobs",
    "accuracy",
    "macs",
    "correct",
    "count",
)


def document(report: Report, figures: Mapping[str, Any]) -> dict[str, Any]:
    """The page's data; `figures` are plotly's by the name of the element that shows them."""
    table = shown_points(report.points, report.front)
    trials, rows = _trials(report, table)
    codes, knobs = _knobs(table)
    place = {name: index for index, name in enumerate(table["point_id"].to_pylist())}
    front = [row for row in sorted(report.front, key=lambda r: r["macs"]) if _id(row) in place]
    (left, right), (bottom, top) = style.window(style.drawn(report.points, 20_000), front)
    axes = report.axes
    name = str(report.study.get("name", "study"))
    return {
        "name": name,
        "total": len(report.points),
        "cloud": {
            "t": rows,
            "e": table["epoch"].to_pylist(),
            "a": np.round(table["accuracy"].to_numpy(), 6).tolist(),
            "m": np.round(table["macs"].to_numpy(), 1).tolist() if axes.usual else table["macs"].to_pylist(),
            "k": codes,
            "i": [int(text.rsplit("-", 1)[-1]) if text.rsplit("-", 1)[-1].isdigit() else 0 for text in place],
            "c": table["correct"].to_pylist(),
            "n": _one_or_all(table["count"].to_pylist()),
        },
        "trials": trials,
        "knobs": knobs,
        "front": [place[_id(row)] for row in front],
        "sure": [{key: row.get(key) for key in ("membership", "evidence", "seeds")} for row in front],
        "styles": {m: [style.style(m)[0], style.style(m)[2]] for m in dict.fromkeys(t["method"] for t in trials)},
        "papers": [
            {"name": p.name, "a": p.accuracy, "m": p.macs, "cited": p.cited, "cost": p.cost}
            for p in report.published
            if p.macs is not None
        ],
        "window": [[math.log10(left), math.log10(right)], [bottom, top]],
        "ticks": style.cost_ticks(axes, left, right, 6),
        "axes": None
        if axes.usual
        else {
            **axes.objective.record(),
            "merits": style.merit_ticks(axes, bottom, top),
            "titles": [axes.merit_title, axes.cost_title],
        },
        "promote": f"routefront promote {shlex.quote(name)}{report.command_more}",
        "figures": {key: json.loads(figure.to_json()) for key, figure in figures.items()},
    }


def _id(row: Mapping[str, Any]) -> str:
    return str(row["point_id"])


def shown_points(points: pa.Table, front: Sequence[Mapping[str, Any]]) -> pa.Table:
    """The validation points that a page holds: all, or so many that are told from each other, and the front whole."""
    if "split" in points.column_names:
        points = points.filter(pc.field("split") != "test")
    table = points.select([name for name in _COLUMNS if name in points.column_names])
    if len(table) <= MOST_POINTS:
        return table
    codes = table["trial"].combine_chunks().dictionary_encode()
    leading = {str(row["trial"]) for row in front}
    ours = np.array([name in leading for name in codes.dictionary.to_pylist()], dtype=bool)
    keep = ours[codes.indices.to_numpy()]
    keep[:: -(-len(table) // MOST_POINTS)] = True
    return table.filter(pa.array(keep))


def _trials(report: Report, table: pa.Table) -> tuple[list[dict[str, Any]], list[int]]:
    """Facts of every trial that has points, and the index of each point's trial."""
    codes = table["trial"].combine_chunks().dictionary_encode()
    rows = codes.indices.to_numpy()
    _, first = np.unique(rows, return_index=True)
    heads = table.take(pa.array(first)).select(["trial", "method", "variant", "network"]).to_pylist()
    known = {str(row["trial"]): row for row in report.trials}
    configs = _configs(report, {row["trial"] for row in heads if "config" not in known.get(row["trial"], {})})
    trials = []
    for row in heads:
        more = known.get(row["trial"], {})
        trials.append(
            {
                "id": row["trial"],
                "method": row["method"],
                "variant": row["variant"] or "",
                "network": row["network"] or "",
                "config": more.get("config") or configs.get(row["trial"], {}),
                "state": str(more.get("state", "")),
                "reason": str(more.get("reason") or ""),
                "kept": sorted(report.kept.get(row["trial"], ())),
            }
        )
    return trials, rows.tolist()


def _configs(report: Report, trials: set[str]) -> dict[str, Any]:
    """Configurations from the points, of trials whose row does not have one."""
    if not trials:
        return {}
    table = report.points.filter(pc.field("trial").isin(pa.array(sorted(trials), pa.string())))
    pairs = table.select(["trial", "config"]).group_by("trial").aggregate([("config", "min")])
    return {row["trial"]: parsed(row["config_min"] or "{}") for row in pairs.to_pylist()}


def _knobs(table: pa.Table) -> tuple[list[int], list[str]]:
    codes = table["knobs"].combine_chunks().dictionary_encode()
    texts = [knobs_text(text or "{}") for text in codes.dictionary.to_pylist()]
    return codes.indices.to_pylist(), texts


def _one_or_all(counts: list[int | None]) -> int | list[int | None] | None:
    """One number where all have the same."""
    return counts if len(set(counts)) > 1 else (counts[0] if counts else None)


def as_data(value: Any) -> str:
    """JSON that may stand in a script element: nothing in it can end the element, infinities are null."""
    text = json.dumps(_finite(value), separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
