"""What the pictures of a report share (colours, axes, layout), and the frontier as a PNG.

Drawn from plain values: a table of operating points (`search.points.SCHEMA`) and rows of the front.
Accuracy is that of the validation split; MACs are multiply-accumulates per image. A method has the
same colour and marker in every picture. The colours keep a distance of 18 (CIE 1976) from each other
for normal, protan and deutan sight, and enough contrast on white and on near-black.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.units import show_count

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
}
_FRONT = "#7C8591"  # legible on white and on near-black
_PNG_POINTS = 20_000
_CORNER_HOLDS = 8
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


def _ordered(methods: Sequence[str] | np.ndarray) -> list[str]:
    return sorted({str(m) for m in methods}, key=lambda m: (list(STYLES).index(m) if m in STYLES else 99, m))


def _by_macs(front: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(front, key=lambda row: float(row["macs"]))


def draw_png(points: pa.Table, front: Sequence[Mapping[str, Any]], title: str, path: str | Path) -> None:
    """Draw accuracy against MACs per image (log) as a PNG of 1200 x 800 pixels."""
    cloud, rows = drawn(points, _PNG_POINTS), _by_macs(front)
    (left, right), (bottom, top) = window(cloud, rows)
    figure = Figure(figsize=(7.5, 5), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)  # no pyplot: nothing global, works without a display
    axes = figure.add_subplot()
    for method in _ordered(cloud["method"]):
        mine = cloud["method"] == method
        size, alpha = (9, 0.35) if len(mine) < 2000 else (4, 0.18)
        axes.scatter(cloud["macs"][mine], cloud["accuracy"][mine], size, style(method)[0], alpha=alpha, linewidths=0)
    for method, macs, accuracy in curves(points, rows):
        axes.plot(macs, accuracy, color=style(method)[0], linewidth=0.9, alpha=0.65)
    _draw_front(axes, rows, right)
    for method in _ordered(cloud["method"]):
        if all(row["method"] != method for row in rows):  # a legend names every colour
            axes.scatter([], [], 24, style(method)[0], alpha=0.6, linewidths=0, label=method)
    axes.set(
        xscale="log", xlim=(left, right), ylim=(bottom, top + 0.015 * (top - bottom))
    )  # markers at the top stay whole
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(left, right)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    axes.set_xlabel("MACs per image (log scale)", fontsize=12)
    axes.set_ylabel("validation accuracy", fontsize=12)
    axes.set_title(title, fontsize=13, loc="left", parse_math=False)
    axes.tick_params(labelsize=11)
    axes.grid(color="#DDE1E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, axes)
    figure.savefig(path, format="png", metadata={"Software": "routefront"})


def add_legend(figure: Figure, axes: Axes) -> None:
    """Name what is drawn: in the corner that fronts leave free, or below the axes where that would cover curves."""
    entries = len(axes.get_legend_handles_labels()[0])
    if entries >= _CORNER_HOLDS:
        figure.legend(loc="outside lower center", ncols=5, fontsize=10, frameon=False, columnspacing=1.2)
    elif entries:
        axes.legend(title="accuracy against MACs", title_fontsize=10, loc="lower right", framealpha=0.9, fontsize=11)


def _draw_front(axes: Axes, rows: Sequence[Mapping[str, Any]], right: float) -> None:
    if not rows:
        return
    macs, accuracy = [float(r["macs"]) for r in rows], [float(r["accuracy"]) for r in rows]
    stairs = ([*macs, right], [*accuracy, accuracy[-1]])
    axes.plot(*stairs, drawstyle="steps-post", color="#30363D", linewidth=1.6, label="frontier")
    for method in _ordered([str(r["method"]) for r in rows]):
        mine = [i for i, r in enumerate(rows) if r["method"] == method]
        color, marker, _ = style(method)
        axes.scatter(
            [macs[i] for i in mine],
            [accuracy[i] for i in mine],
            58,
            color,
            marker=marker,
            edgecolors="white",
            linewidths=0.8,
            zorder=3,
            label=method,
        )


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
