"""What the pictures of a report share: colours, axes, scales, layout.

Accuracy is that of the validation split; MACs are multiply-accumulates per image. A method has the
same colour and marker in every picture. The colours keep a distance of 15 (CIE 1976; the first
twelve of 18) from each other for normal, protan and deutan sight, and enough contrast on white and on near-black.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc

from search.units import AxesText

CLASS_COLOURS = (
    "#4E79A7", "#F28E2B", "#E15759", "#76B7B2", "#59A14F", "#D9B036", "#B07AA1", "#FF9DA7", "#9C755F", "#8F8A86",
)  # fmt: skip
LENGTH_SCALE = ((0.0, "#2C7BE5"), (0.5, "#A8A29A"), (1.0, "#D9480F"))
ACCURACY_SCALE = [(1 - stop, colour) for stop, colour in reversed(LENGTH_SCALE)]
"""Orange is wrong, blue is right."""
_SPARE = ("skipnet", "codinet", "aig", "blockdrop", "imta", "decide", "sact", "sdv", "act", "static")
DASHES = ("solid", "dash", "dot", "dashdot")
MOST_CLASSES = 20

# method: colour, marker of matplotlib, symbol of plotly
STYLES = {
    "static": ("#5A695A", "o", "circle"),
    "skipnet": ("#0078B4", "s", "square"),
    "codinet": ("#D25A00", "D", "diamond"),
    "aig": ("#2DB43C", "^", "triangle-up"),
    "blockdrop": ("#780FFF", "v", "triangle-down"),
    "sdv": ("#5AA5B4", "P", "cross"),
    "imta": ("#875A2D", "X", "x"),
    "decide": ("#B487F0", "<", "triangle-left"),
    "act": ("#6969F0", ">", "triangle-right"),
    "sact": ("#5AA587", "p", "pentagon"),
    "multipath": ("#87A569", "h", "hexagon"),
    "ensemble": ("#695A78", "*", "star"),
    "exits": ("#4B4BB4", "d", "diamond-tall"),
    "blocks": ("#A5A5E1", "H", "hexagon2"),
}
_FRONT = "#7C8591"  # legible on white and on near-black
_COLUMNS = ("trial", "epoch", "method", "knobs", "accuracy", "macs")


def style(method: str) -> tuple[str, str, str]:
    """(colour, matplotlib marker, plotly symbol) of a method; a plug-in's follows from its name."""
    named = list(STYLES.values())
    return STYLES.get(method) or named[zlib.crc32(method.encode()) % len(named)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """At most `most` round MACs between `low` and `high`, even on the log scale where that is possible."""
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]
        if len(ticks) <= most:
            return ticks if len(ticks) >= 2 else [low, high]
    return ticks[:: -(-len(ticks) // most)]


def cost_ticks(axes: AxesText, low: float, high: float, most: int = 7) -> tuple[list[float], list[str]]:
    """Where an axis of costs between two MACs has ticks, and what is written there: round figures of its own."""
    objective = axes.objective
    if axes.usual or not (objective.cost.maximise or not objective.cost.log):
        places = log_ticks(low, high, most)
    else:
        ends = sorted((objective.cost_at(low), objective.cost_at(high)))
        own = log_ticks(ends[0], ends[1], most) if objective.cost.log else even_ticks(ends[0], ends[1], most)
        places = sorted(objective.macs_of(value) for value in own)
    return places, [axes.cost(place) for place in places]


def merit_ticks(axes: AxesText, low: float, high: float, most: int = 7) -> tuple[list[float], list[str]]:
    """As `cost_ticks`, of an axis of merit between two accuracies."""
    merit = axes.objective.merit
    ends = sorted((merit.at(1.0 - max(0.0, low)), merit.at(1.0 - min(1.0, high))))
    own = log_ticks(ends[0], ends[1], most) if merit.log else even_ticks(ends[0], ends[1], most)
    places = sorted(1.0 - merit.place(value) for value in own)
    return places, [axes.merit(place) for place in places]


def even_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """At most `most` round numbers between two, evenly spaced."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** np.floor(np.log10(span / most))
    step = next(s * power for s in (1, 2, 5, 10, 20) if span / (s * power) <= most - 1)
    first = np.ceil(low / step - 1e-9)
    return [float((first + i) * step) for i in range(most) if (first + i) * step <= high + 1e-9 * step] or [low, high]


def drawn(points: pa.Table, limit: int) -> dict[str, np.ndarray]:
    """Columns to draw, at most about `limit` rows taken evenly; points of a test split are left out."""
    if "split" in points.column_names:
        points = points.filter(pc.field("split") != "test")
    step = max(1, -(-len(points) // limit))
    rows = points.take(pa.array(np.arange(0, len(points), step))) if step > 1 else points
    return {name: rows[name].to_numpy() for name in _COLUMNS}


def curves(points: pa.Table, front: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(method, MACs, accuracies) of the whole curve of every (trial, epoch) on the front, by MACs."""
    trials = pa.array(sorted({str(row["trial"]) for row in front}), pa.string())
    near = drawn(points.filter(pc.field("trial").isin(trials)), max(1, len(points)))
    for trial, epoch in sorted({(str(row["trial"]), int(row["epoch"])) for row in front}):
        rows = np.flatnonzero((near["trial"] == trial) & (near["epoch"] == epoch))
        rows = rows[np.argsort(near["macs"][rows])]
        if len(rows):
            yield str(near["method"][rows[0]]), near["macs"][rows], near["accuracy"][rows]


def window(cloud: Mapping[str, np.ndarray], front: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Limits of MACs and accuracy: the whole front, and the cloud without its worst tenth."""
    macs = np.concatenate((cloud["macs"], [float(row["macs"]) for row in front]))
    best = np.array([float(row["accuracy"]) for row in front])
    if not len(macs):
        return [1e5, 1e7], [0.0, 1.0]
    floor = np.quantile(cloud["accuracy"], 0.1) if len(cloud["accuracy"]) else 1.0
    low, high = min([floor, *best]), max([*best, *cloud["accuracy"]])
    # The top of the front is what is looked at: the rest gets at most three times its height.
    if len(best) > 1:
        low = max(low, high - 4 * max(high - np.median(best), 0.02))
        low = min(low, *best)
    margin = max(0.06 * (high - low), 0.005)
    # a marker at 100 % is to be seen whole
    return [macs.min() / 1.15, macs.max() * 1.15], [max(0.0, low - margin), min(1.0 + margin / 3, high + margin)]


def layout(figure: go.Figure, height: int, x: str, y: str, top: int = 40) -> go.Figure:
    """The look that all figures of a page share; axis titles x and y; `top` pixels for the buttons."""
    axis: dict[str, Any] = {"zeroline": False, "gridcolor": "#C8CED6", "automargin": True}
    figure.update_layout(
        height=height,
        template=go.layout.Template(),  # plotly's own would weigh seven kilobytes a figure
        margin={"l": 8, "r": 12, "t": top, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        hoverlabel={"bgcolor": "#1F242B", "font": {"color": "#FFFFFF"}, "align": "left"},
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": _FRONT, "activecolor": _FRONT},
        hovermode="closest",
        xaxis={**axis, "title": {"text": x}},
        yaxis={**axis, "title": {"text": y}},
    )
    return figure


def mixed(place: float) -> str:
    """The colour of a place in [0, 1] on the scale of accuracy."""
    stops = [stop for stop, _ in ACCURACY_SCALE]
    rgb = [[int(colour[i : i + 2], 16) for _, colour in ACCURACY_SCALE] for i in (1, 3, 5)]
    return "#" + "".join(f"{round(float(np.interp(place, stops, channel))):02X}" for channel in rgb)


def distinct(methods: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, dash) of lines by their methods: a method's first line has its colour, its others have
    colours of methods that are not here, as long as there are some; dashes tell them apart too.
    """
    spare = [style(name)[0] for name in _SPARE if name not in methods]
    seen: dict[str, int] = {}
    found = []
    for method in methods:
        turn = seen[method] = seen.get(method, -1) + 1
        colour = style(method)[0]
        if turn:
            colour = spare.pop(0) if spare else _shade(colour, turn)
        found.append((colour, DASHES[turn % len(DASHES)]))
    return found


def _shade(colour: str, turn: int) -> str:
    """The colour mixed with grey, which shows on white and on near-black."""
    part = (0.6, 0.45, 0.25)[turn % 3]
    return "#" + "".join(f"{round((1 - part) * int(colour[i : i + 2], 16) + part * 150):02X}" for i in (1, 3, 5))
