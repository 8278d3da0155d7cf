"""The frontier as a picture: PNG, PDF or SVG.

One picture is of a study's report, drawn from plain values: a table of operating points (`search.points.schema.SCHEMA`)
and rows of the front. The other is of a question's answer: the joint front with intervals, each method's own, the
papers' points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator

from search.errors import InputError
from search.frontier.answer import Front
from search.frontier.point import FrontPoint
from search.report.style import STYLES, cost_ticks, curves, drawn, merit_ticks, style, window
from search.units import AxesText, dataset_name, printable

_PNG_POINTS = 20_000
_CORNER_HOLDS = 8


FORMATS = ("png", "pdf", "svg")


@dataclass(frozen=True, slots=True)
class Look:
    """How a picture looks: inches, dots an inch of PNGs, points of its letters, and how large markers and lines are."""

    size: tuple[float, float]
    dpi: int
    letters: float
    scale: float
    titled: bool = True
    family: str = "sans-serif"


LOOKS = {
    "screen": Look((7.5, 5.0), 160, 11.0, 1.0),
    "paper": Look((3.35, 2.5), 600, 7.0, 0.6, titled=False, family="serif"),
    "paper-wide": Look((6.9, 3.4), 600, 8.0, 0.75, titled=False, family="serif"),
}
"""``paper`` is as wide as a column of a page in two columns, ``paper-wide`` as the page. Methods differ by colour, told
apart by colour-blind eyes (`search.report.style`), and by marker."""


def draw_front(front: Front, points: Sequence[FrontPoint], path: Path, look: str = "screen") -> None:
    """Draw `points` of a front as .png, .pdf or .svg: accuracy with 95 % intervals against MACs (log).

    Thin stairs are the fronts of single methods; hollow markers what papers printed for this data set. Fonts are
    embedded in a PDF (TrueType), letters are outlines in an SVG. `look`: one of `LOOKS`. Raises `InputError` for
    another suffix, and where the file cannot be written.
    """
    kind = path.suffix.lower().removeprefix(".")
    if kind not in FORMATS:
        raise InputError(f"--plot {path}: a picture is {', '.join(f'.{each}' for each in FORMATS)}")
    # the file says who made it and not when: the same front gives the same bytes
    metadata = {"png": {"Software": "routefront"}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}[kind]
    settings: dict[Any, Any] = {
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "svg.hashsalt": "routefront",
        "axes.unicode_minus": False,
    }
    how = LOOKS[look]
    settings["font.family"] = how.family
    with rc_context(settings):
        figure = _figure(front, points, how)
        try:
            figure.savefig(path, format=kind, metadata=metadata)
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None


def _figure(front: Front, points: Sequence[FrontPoint], how: Look) -> Figure:
    letters, scale = how.letters, how.scale
    figure = Figure(figsize=how.size, dpi=how.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    printed = [(p.macs, p.accuracy) for p in front.published if p.macs is not None]
    everything = [*points, *(p for own in front.methods.values() for p in own)]
    macs = [p.macs for p in everything] + [macs for macs, _ in printed]
    left, right = (min(macs) / 1.15, max(macs) * 1.15) if macs else (1e5, 1e7)
    for name, own in front.methods.items():
        if own:
            x, y = [*(p.macs for p in own), right], [*(p.accuracy for p in own), own[-1].accuracy]
            label = None if any(p.method == name for p in points) else name
            color, marker, _ = style(name)
            axes.plot(
                x, y, drawstyle="steps-post", color=color, linewidth=scale, alpha=0.7, label=label,
                marker=marker, markersize=4 * scale, markeredgewidth=0, markevery=range(len(own)),
            )  # fmt: skip
    first = [p for p in points if p.layer == 0]
    if len(first) > 1:
        x, y = [*(p.macs for p in first), right], [*(p.accuracy for p in first), first[-1].accuracy]
        axes.plot(x, y, drawstyle="steps-post", color="#30363D", linewidth=1.6 * scale, label="frontier")
    for name in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == name]
        color, marker, _ = style(name)
        y = np.array([p.accuracy for p in mine])
        bounds = np.array([p.interval or (p.accuracy, p.accuracy) for p in mine])
        spread = np.abs(np.stack((y - bounds[:, 0], bounds[:, 1] - y)))
        axes.errorbar(
            [p.macs for p in mine], y, spread, fmt="none", ecolor=color, elinewidth=scale, alpha=0.5, zorder=2
        )
        axes.scatter(
            [p.macs for p in mine], y, 52 * scale**2, color, marker=marker, edgecolors="white", linewidths=0.8 * scale,
            zorder=3,
            label=name,
        )  # fmt: skip
    if printed:
        x, y = zip(*printed, strict=True)
        axes.scatter(
            x, y, 40 * scale**2, facecolors="none", edgecolors="#6A737D", linewidths=1.1, label="papers (test split)"
        )
    axes.set(xscale="log", xlim=(left, right))
    _tick(axes, front.axes, (left, right), letters + scale)
    interval = ", 95 % interval" if how.titled and any(p.interval for p in points) else ""  # a caption says the rest
    said = f"validation {front.axes.merit_title}" if front.axes.usual else front.axes.merit_title
    axes.set_ylabel(f"{said}{interval}", fontsize=letters + scale)
    if how.titled:
        named = f"{', '.join(front.studies)} on {dataset_name(front.dataset)}"
        axes.set_title(printable(named), fontsize=letters + 2, loc="left", parse_math=False)
    axes.tick_params(labelsize=letters)
    axes.grid(color="#DDE1E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if how.titled:
        add_legend(figure, axes, _legend(front.axes))
    elif axes.get_legend_handles_labels()[0]:  # below: a column has no corner to spare
        columns = 3 if how.size[0] < 5 else 5
        figure.legend(loc="outside lower center", ncols=columns, fontsize=letters, frameon=False, columnspacing=1.0)
    return figure


def _ordered(methods: Sequence[str] | np.ndarray) -> list[str]:
    return sorted({str(m) for m in methods}, key=lambda m: (list(STYLES).index(m) if m in STYLES else 99, m))


def _by_macs(front: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(front, key=lambda row: float(row["macs"]))


def _tick(axes: Axes, shown: AxesText, costs: tuple[float, float], size: float = 12) -> None:
    """Ticks and titles of both axes, in the study's own figures; the limits of merit are set already."""
    places, texts = cost_ticks(shown, *costs)
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(texts))
    if shown.usual:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
        axes.set_xlabel("MACs per image (log scale)", fontsize=size)
        axes.set_ylabel(f"validation {shown.merit_title}", fontsize=size)
        return
    places, texts = merit_ticks(shown, *axes.get_ylim())
    axes.yaxis.set_major_locator(FixedLocator(places))
    axes.yaxis.set_major_formatter(FixedFormatter(texts))
    way = " (log scale)" if shown.objective.cost.log else ""
    axes.set_xlabel(f"{shown.cost_title}{way}, cheaper to the left", fontsize=size)
    axes.set_ylabel(f"{shown.merit_title}, better upwards", fontsize=size)


def draw_png(
    points: pa.Table,
    front: Sequence[Mapping[str, Any]],
    title: str,
    path: str | Path,
    shown: AxesText | None = None,
) -> None:
    """Draw merit against cost, accuracy against MACs per image (log) by default, as a PNG of 1200 x 800 pixels."""
    shown = shown or AxesText()
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
    _tick(axes, shown, (left, right))
    axes.set_title(title, fontsize=13, loc="left", parse_math=False)
    axes.tick_params(labelsize=11)
    axes.grid(color="#DDE1E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, axes, _legend(shown))
    figure.savefig(path, format="png", metadata={"Software": "routefront"})


def add_legend(figure: Figure, axes: Axes, title: str = "accuracy against MACs") -> None:
    """Name what is drawn: in the corner that fronts leave free, or below the axes where that would cover curves."""
    entries = len(axes.get_legend_handles_labels()[0])
    if entries >= _CORNER_HOLDS:
        figure.legend(loc="outside lower center", ncols=5, fontsize=10, frameon=False, columnspacing=1.2)
    elif entries:
        axes.legend(title=title, title_fontsize=10, loc="lower right", framealpha=0.9, fontsize=11)


def _legend(shown: AxesText) -> str:
    if shown.usual:
        return f"{shown.merit_title} against MACs"
    return f"{shown.objective.merit.name} against {shown.objective.cost.name}"


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
