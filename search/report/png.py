"""What the PNG pictures of a report share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.plots import log_ticks, style
from search.units import show_count
from search.variant_plots import Front, variant_styles, variants_window

WIDTH = 7.5
"""Inches."""
DASHES: dict[str, Literal["-", "--", ":", "-."]] = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}
"""Dashes of plotly in words of matplotlib."""


def white(height: float) -> Figure:
    """An empty figure, `height` inches high."""
    return Figure(figsize=(WIDTH, height), layout="constrained")


def plain(axes: Axes) -> None:
    """A light grid, no frame above and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#DDE1E6", linewidth=0.7)
    axes.set_axisbelow(True)


def titled(axes: Axes, title: str) -> None:
    """A heading on the left; what users named is no formula."""
    axes.set_title(title, fontsize=10, loc="left", parse_math=False)


def fronts_picture(fronts: Sequence[Front], title: str) -> Figure:
    """See `search.variant_plots.fronts_figure`."""
    figure = white(5)
    axes = figure.add_subplot()
    styles = variant_styles(fronts)
    for (method, _, costs, accuracy), (label, colour, dash) in zip(fronts, styles, strict=True):
        axes.plot(costs, accuracy, DASHES[dash], color=colour, marker=style(method)[1], markersize=5, label=label)
    low, high, floor, top = variants_window(fronts)
    axes.set(xscale="log", xlim=(low, high), ylim=(floor, top), xlabel=title, ylabel="validation accuracy")
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    plain(axes)
    axes.legend(loc="lower right", fontsize=9)
    return figure
