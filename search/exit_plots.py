"""The interactive pictures of networks with exits: who leaves where, and how right they are."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from search.path_plots import LENGTH_SCALE, MOST_CLASSES
from search.paths import TrialPaths
from search.plots import layout, style
from search.units import show_share


def exit_figure(trial: TrialPaths) -> go.Figure:
    """Bars: the share that leaves at each exit; lines: its accuracy on all images and on those that leave there."""
    record = trial.record
    count = len(record["exit_frac"])
    exits = [str(i) for i in range(1, count + 1)]
    figure = go.Figure()
    hover = "exit %{x}: %{y:.1%}<extra></extra>"
    color = style(trial.method)[0]
    bars = {"color": color, "opacity": 0.45}
    figure.add_bar(x=exits, y=record["exit_frac"], name="leave here", marker=bars, hovertemplate=hover)
    for name, key, dash in (
        ("accuracy, all images", "exit_acc", "solid"),
        ("accuracy, those that leave", "exit_acc_given_exit", "dot"),
    ):
        line = {"color": color, "dash": dash, "width": 2}
        figure.add_scatter(x=exits, y=record[key], name=name, mode="lines+markers", line=line, hovertemplate=hover)
    layout(figure, 320, "exit", "share of images", top=8)
    figure.update_xaxes(type="category", showgrid=False)
    figure.update_yaxes(range=[0, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def exit_shares(trial: TrialPaths, names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(classes, shares (classes, K)), those that leave latest first; at most `MOST_CLASSES`, taken evenly."""
    counts = np.array(trial.record["class_by_exit"], dtype=float)
    some = np.flatnonzero(counts.sum(axis=1)).tolist()
    shares = counts[some] / counts[some].sum(axis=1, keepdims=True)
    order = np.argsort(-(shares @ np.arange(shares.shape[1])), kind="stable")
    if len(order) > MOST_CLASSES:
        order = order[np.linspace(0, len(order) - 1, MOST_CLASSES).round().astype(int)]
    return [str(names[some[i]]) for i in order.tolist()], shares[order]


def exit_colours(count: int) -> list[str]:
    """One colour for each exit, from the first to the last."""
    stops = np.array([[int(c[i : i + 2], 16) for i in (1, 3, 5)] for _, c in LENGTH_SCALE], dtype=float)
    at = np.linspace(0, 1, max(count, 2))[:count]
    mixed = [[np.interp(place, [s for s, _ in LENGTH_SCALE], stops[:, i]) for i in range(3)] for place in at]
    return ["#" + "".join(f"{round(value):02X}" for value in rgb) for rgb in mixed]


def class_exit_figure(trial: TrialPaths, names: Sequence[str]) -> go.Figure:
    """Stacked bars: where the images of each class leave; the classes that leave first are on top."""
    classes, shares = exit_shares(trial, names)
    labels = [escape(name if len(name) <= 16 else name[:15] + "…") for name in classes]
    figure = go.Figure()
    for i, color in enumerate(exit_colours(shares.shape[1])):
        texts = [f"{escape(name)}: {show_share(share)}" for name, share in zip(classes, shares[:, i], strict=True)]
        figure.add_bar(
            y=list(range(len(classes))),
            x=shares[:, i].round(4).tolist(),
            name=f"exit {i + 1}",
            orientation="h",
            marker={"color": color},
            text=texts,
            textposition="none",
            hovertemplate=f"%{{text}} at exit {i + 1}<extra></extra>",
        )
    layout(figure, 110 + 21 * len(classes), "share of the class", "", top=8)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(tickvals=list(range(len(classes))), ticktext=labels, showgrid=False)
    figure.update_xaxes(range=[0, 1.03], tickformat=".0%", dtick=0.25)
    return figure
