"""The picture of a question's answer: the joint front with intervals, each method's own, the papers' points."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.errors import InputError
from search.front import FrontPoint
from search.front_files import dataset_name, printable
from search.fronts import Front
from search.plots import add_legend, log_ticks, style
from search.units import show_count


def draw_front(front: Front, points: Sequence[FrontPoint], path: Path) -> None:
    """Draw `points` of a front as a PNG of 1200 x 800 pixels: accuracy with 95 % intervals against MACs (log).

    Thin stairs are the fronts of single methods; hollow markers what papers printed for this data set.
    """
    figure = Figure(figsize=(7.5, 5), dpi=160, layout="constrained")
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
                x, y, drawstyle="steps-post", color=color, linewidth=1, alpha=0.7, label=label,
                marker=marker, markersize=4, markeredgewidth=0, markevery=range(len(own)),
            )  # fmt: skip
    first = [p for p in points if p.layer == 0]
    if len(first) > 1:
        x, y = [*(p.macs for p in first), right], [*(p.accuracy for p in first), first[-1].accuracy]
        axes.plot(x, y, drawstyle="steps-post", color="#30363D", linewidth=1.6, label="frontier")
    for name in dict.fromkeys(p.method for p in points):
        mine = [p for p in points if p.method == name]
        color, marker, _ = style(name)
        y = np.array([p.accuracy for p in mine])
        bounds = np.array([p.interval or (p.accuracy, p.accuracy) for p in mine])
        spread = np.abs(np.stack((y - bounds[:, 0], bounds[:, 1] - y)))
        axes.errorbar([p.macs for p in mine], y, spread, fmt="none", ecolor=color, elinewidth=1, alpha=0.5, zorder=2)
        axes.scatter(
            [p.macs for p in mine], y, 52, color, marker=marker, edgecolors="white", linewidths=0.8, zorder=3,
            label=name,
        )  # fmt: skip
    if printed:
        x, y = zip(*printed, strict=True)
        axes.scatter(x, y, 40, facecolors="none", edgecolors="#6A737D", linewidths=1.1, label="papers (test split)")
    axes.set(xscale="log", xlim=(left, right))
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(left, right)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    axes.set_xlabel("MACs per image (log scale)", fontsize=12)
    axes.set_ylabel("validation accuracy, 95 % interval", fontsize=12)
    named = f"{', '.join(front.studies)} on {dataset_name(front.dataset)}"
    axes.set_title(printable(named), fontsize=13, loc="left", parse_math=False)
    axes.tick_params(labelsize=11)
    axes.grid(color="#DDE1E6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    add_legend(figure, axes)
    try:
        figure.savefig(path, format="png", metadata={"Software": "routefront"})
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
