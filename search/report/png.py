"""What the PNG pictures of a report share."""

from __future__ import annotations

from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#7C8591"
"""Legible on white and on near-black."""

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
