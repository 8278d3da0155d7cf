"""Dataflow drawings of networks with exits: circles where images leave, lines along which they go on.

M. McGill, P. Perona, "Deciding how to decide", ICML 2017, figures 6 and 7: the area of a circle is the share
of the images that are classified there; its colour is the accuracy on them, or it is divided by their classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.report.exits.data import exit_labels, exit_parents, is_chain, reached, tree_places
from search.report.paths.data import TrialPaths
from search.report.style import CLASS_COLOURS, layout, mixed
from search.units import show_share

_LINE = "#7C8591"  # legible on white and on near-black
_NARROW = 326  # pixels that a panel has on a telephone
_WIDEST, _ROW = 64, 44
_LABELS = 54  # pixels below a chain


@dataclass(frozen=True, slots=True)
class Flow:
    """One trial's exits on paper: `places` (K, 2), columns and rows; `through` and `left`: shares of the images."""

    places: np.ndarray
    parents: list[int]
    left: list[float]
    through: list[float]
    labels: list[str]
    chain: bool

    @classmethod
    def of(cls, trial: TrialPaths) -> Flow:
        """The drawing of a trial."""
        parents, left = exit_parents(trial.record), list(trial.record["exit_frac"])
        labels = exit_labels(trial.record)
        return cls(tree_places(parents), parents, left, reached(parents, left), labels, is_chain(trial.record))

    @property
    def columns(self) -> int:
        """Exits one behind the other."""
        return int(self.places[:, 0].max()) + 1

    @property
    def rows(self) -> int:
        """Exits one above the other."""
        return int(self.places[:, 1].max()) + 1

    def diameters(self, widest: float, largest: float) -> np.ndarray:
        """Of every circle, where the share `largest` is `widest` wide."""
        return widest * np.sqrt(np.array(self.left) / largest)

    def says(self, trial: TrialPaths) -> list[str]:
        """What is to be read at each exit."""
        given = trial.record["exit_acc_given_exit"]
        return [
            f"exit {name}: {show_share(left)} leave here, {show_share(through)} come here"
            + (f"<br>accuracy on those that leave {show_share(right)}" if right is not None else "")
            for name, left, through, right in zip(map(escape, self.labels), self.left, self.through, given, strict=True)
        ]


def largest_shares(trials: Sequence[TrialPaths]) -> dict[str, float]:
    """The share of the largest circle by trial; drawings of one shape have one measure."""
    shapes = {trial.trial: (Flow.of(trial).columns, Flow.of(trial).rows) for trial in trials}
    most: dict[tuple[int, int], float] = {}
    for trial in trials:
        shape = shapes[trial.trial]
        most[shape] = max(most.get(shape, 0.0), *trial.record["exit_frac"])
    return {trial.trial: most[shapes[trial.trial]] for trial in trials}


def accuracy_range(trials: Sequence[TrialPaths]) -> tuple[float, float]:
    """Limits of the accuracy on those that leave, over all drawings; at least five points apart."""
    rights = [right for trial in trials for right in trial.record["exit_acc_given_exit"] if right is not None]
    low, high = min(rights, default=0.0), max(rights, default=1.0)
    return max(0.0, min(low, high - 0.05)), high


def _measures(flow: Flow) -> tuple[float, float]:
    """(pixels of the widest circle, of the height of the drawing itself) on the narrowest page."""
    widest = min(_WIDEST, 0.94 * _NARROW / flow.columns)
    if flow.rows == 1:
        return widest, widest + 12
    return min(widest, 0.94 * _ROW), flow.rows * _ROW


def _canvas(flow: Flow, inside: float, below: float) -> go.Figure:
    """Lines as wide as what flows along them; the vertical axis counts pixels of `inside`."""
    figure = go.Figure()
    x, y = flow.places[:, 0], inside * (1 - (flow.places[:, 1] + 0.5) / flow.rows)
    line = {"color": _LINE, "simplify": False}
    quiet: dict[str, Any] = {"mode": "lines", "hoverinfo": "skip", "showlegend": False, "opacity": 0.6}
    for i, parent in enumerate(flow.parents):
        width = round(1 + 7 * flow.through[i], 2)
        begin = (x[parent], y[parent]) if parent >= 0 else (x[i] - 0.46, y[i])
        xs, ys = [float(begin[0]), float(x[i])], [float(begin[1]), float(y[i])]
        dash = "solid" if flow.through[i] else "dot"
        figure.add_scatter(x=xs, y=ys, line={**line, "width": width, "dash": dash}, **quiet)
    layout(figure, round(inside + below + 8), "", "", top=4)
    figure.update_layout(margin={"l": 4, "r": 4, "t": 4, "b": round(below) + 4}, showlegend=False)
    plain = {"showgrid": False, "showticklabels": False, "automargin": False, "fixedrange": True, "title": None}
    figure.update_xaxes(range=[-0.5, flow.columns - 0.5], **plain)
    figure.update_yaxes(range=[0, inside], **plain)
    return figure


def _name_exits(figure: go.Figure, flow: Flow, given: Sequence[float | None]) -> None:
    """Below a chain: the exit, the share that leaves there, the accuracy on those."""
    small = flow.columns > 7
    for i in range(len(flow.left)):
        right = given[i]
        percent = "%" if small else " %"
        texts = [flow.labels[i] if small else f"exit {flow.labels[i]}", f"{100 * flow.left[i]:.0f}{percent}"]
        texts.append("" if right is None else f"<b>{100 * right:.0f}{percent}</b>")
        figure.add_annotation(
            x=float(flow.places[i, 0]),
            y=0,
            yshift=-4,
            yanchor="top",
            showarrow=False,
            text="<br>".join(texts),
            font={"size": 11 if small else 12},
        )


def accuracy_flow(trial: TrialPaths, largest: float, limits: tuple[float, float]) -> go.Figure:
    """Circles coloured by the accuracy on the images that leave there."""
    flow, given = Flow.of(trial), trial.record["exit_acc_given_exit"]
    widest, inside = _measures(flow)
    figure = _canvas(flow, inside, _LABELS if flow.chain else 0)
    diameters = flow.diameters(widest, largest)
    y = inside * (1 - (flow.places[:, 1] + 0.5) / flow.rows)
    figure.add_scatter(
        x=flow.places[:, 0].tolist(),
        y=y.tolist(),
        mode="markers",
        text=flow.says(trial),
        hovertemplate="%{text}<extra></extra>",
        showlegend=False,
        marker={
            # an exit that nobody takes is a dot
            "size": np.maximum(diameters, 4).round(1).tolist(),
            "color": _colours(given, limits),
            "opacity": 1,
            "line": {"width": 0},
        },
    )
    if flow.chain:
        _name_exits(figure, flow, given)
    return figure


def _colours(given: Sequence[float | None], limits: tuple[float, float]) -> list[str]:
    low, high = limits
    return [_LINE if right is None else mixed((right - low) / (high - low)) for right in given]


def class_flow(trial: TrialPaths, largest: float, names: Sequence[str]) -> go.Figure | None:
    """Circles divided by the classes of the images that leave there; None where classes outnumber colours."""
    if len(names) > len(CLASS_COLOURS):
        return None
    flow = Flow.of(trial)
    widest, inside = _measures(flow)
    figure = _canvas(flow, inside, _LABELS if flow.chain else 0)
    counts = np.array(trial.record["class_by_exit"]).T
    labels = [escape(str(name)) for name in names]
    for i, diameter in enumerate(flow.diameters(widest, largest)):
        column, row = flow.places[i]
        across = (column + 0.5) / flow.columns
        up = 1 - (row + 0.5) / flow.rows
        half = max(float(diameter), 4.0) / inside / 2
        some = np.flatnonzero(counts[i])
        figure.add_pie(
            values=counts[i][some].tolist() or [1],
            labels=[labels[c] for c in some] or ["nobody"],
            marker={"colors": [CLASS_COLOURS[c] for c in some] or [_LINE], "line": {"width": 0}},
            domain={
                "x": [max(0.0, across - 0.5 / flow.columns), min(1.0, across + 0.5 / flow.columns)],
                "y": [up - half, up + half],
            },
            sort=False,
            direction="clockwise",
            textinfo="none",
            showlegend=False,
            hovertemplate=f"exit {escape(flow.labels[i])}, %{{label}}: %{{value}} images<extra></extra>",
        )
    if flow.chain:
        _name_exits(figure, flow, trial.record["exit_acc_given_exit"])
    return figure
