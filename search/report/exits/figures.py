"""Interactive pictures of networks with exits: images by exit, accuracy of each exit, both over the training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from search.report.exits.data import AGREE, Ranks, budget, by_epoch, exit_labels, is_chain, routing
from search.report.paths.data import TrialPaths
from search.report.paths.figures import looks
from search.report.style import LENGTH_SCALE, MOST_CLASSES, layout, log_ticks, style
from search.units import show_count, show_share

SHARES = ("rgba(44,123,229,0)", "rgba(44,123,229,1)")
"""From no image to the most: ink of a light and of a dark page is legible on both."""
MOST_EXITS = 10
"""Pictures with a panel, a colour or a label for every exit have at most so many."""
AGREE_STYLES = (("#4E79A7", "circle", "o"), ("#2DB43C", "triangle-up", "^"),
                ("#D9A400", "triangle-down", "v"), ("#D9480F", "x", "X"))  # fmt: skip
"""(colour, symbol of plotly, marker of matplotlib) of each of `AGREE`."""


def exit_figure(trial: TrialPaths) -> go.Figure:
    """Bars: the share that leaves at each exit; lines: its accuracy on all images and on those that leave there."""
    record, chain = trial.record, is_chain(trial.record)
    exits = exit_labels(record)
    figure = go.Figure()
    hover = "exit %{x}: %{y:.1%}<extra></extra>"
    color = style(trial.method)[0]
    bars = {"color": color, "opacity": 0.45}
    figure.add_bar(x=exits, y=record["exit_frac"], name="leave here", marker=bars, hovertemplate=hover)
    for name, key, dash, symbol in (
        ("accuracy, all images", "exit_acc", "solid", "circle"),
        ("accuracy, those that leave", "exit_acc_given_exit", "dot", "circle-open"),
    ):
        line = {"color": color, "dash": dash, "width": 2}
        mode = "lines+markers" if chain else "markers"  # branches of a tree do not follow each other
        marker = {"symbol": symbol, "size": 7}
        figure.add_scatter(
            x=exits, y=record[key], name=name, mode=mode, line=line, marker=marker, hovertemplate=hover
        )  # fmt: skip
    layout(figure, 320, "exit", "share of images", top=8)
    every = -(-len(exits) // 16)
    figure.update_xaxes(type="category", showgrid=False, tickvals=exits[::every], range=[-0.6, len(exits) - 0.4])
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
    exits = exit_labels(trial.record)
    for i, color in enumerate(exit_colours(shares.shape[1])):
        texts = [f"{escape(name)}: {show_share(share)}" for name, share in zip(classes, shares[:, i], strict=True)]
        figure.add_bar(
            y=list(range(len(classes))),
            x=shares[:, i].round(4).tolist(),
            name=f"exit {escape(exits[i])}",
            orientation="h",
            marker={"color": color},
            text=texts,
            textposition="none",
            hovertemplate=f"%{{text}} at exit {escape(exits[i])}<extra></extra>",
        )
    layout(figure, 110 + 21 * len(classes), "share of the class", "", top=8)
    figure.update_layout(barmode="stack", legend={"traceorder": "normal"})
    figure.update_yaxes(tickvals=list(range(len(classes))), ticktext=labels, showgrid=False)
    figure.update_xaxes(range=[0, 1.03], tickformat=".0%", dtick=0.25)
    return figure


def budget_window(trials: Sequence[TrialPaths]) -> tuple[float, float, float, float]:
    """Limits of MACs and accuracy that hold all curves and exits."""
    both = [pair for trial in trials for part in (budget(trial).points, budget(trial).anytime) for pair in part]
    macs, right = [pair[0] for pair in both], [pair[1] for pair in both]
    margin = max(0.05 * (max(right) - min(right)), 0.004)
    return min(macs) / 1.12, max(macs) * 1.12, max(0.0, min(right) - margin), min(1 + margin / 2, max(right) + margin)


def budget_figure(trials: Sequence[TrialPaths]) -> go.Figure:
    """Lines: the accuracy that an average budget buys; open circles: each exit alone, answering every image."""
    figure = go.Figure()
    for trial in trials:
        color, dash = looks(trials)[trial.trial]
        found, label = budget(trial), escape(trial.label)
        for what, pairs, mode, marker in (
            ("on average", found.points, "lines+markers", {"symbol": "circle", "size": 6}),
            ("exit alone", found.anytime, "markers", {"symbol": "circle-open", "size": 10, "line": {"width": 2}}),
        ):
            figure.add_scatter(
                x=[macs for macs, _ in pairs],
                y=[right for _, right in pairs],
                mode=mode,
                line={"color": color, "dash": dash, "width": 2},
                marker={**marker, "color": color},
                text=[f"{show_share(right)} at {show_count(macs)} MACs" for macs, right in pairs],
                hovertemplate=f"{label}, {what}<br>%{{text}}<extra></extra>",
                showlegend=False,
            )
    layout(figure, 340, "MACs per image (log scale)", "validation accuracy", top=8)
    low, high, floor, top = budget_window(trials)
    ticks = log_ticks(low, high, 5)
    texts = [show_count(tick) for tick in ticks]
    figure.update_xaxes(type="log", range=np.log10([low, high]).tolist(), tickvals=ticks, ticktext=texts)
    figure.update_yaxes(range=[floor, top], tickformat=".3~p")
    return figure


def exit_accuracy_figure(trials: Sequence[TrialPaths], styles: Mapping[str, tuple[str, str]]) -> go.Figure:
    """A line a trial, (colour, dash) by `styles`: the accuracy of each exit of a chain on all images."""
    figure = go.Figure()
    for trial in trials:
        color, dash = styles[trial.trial]
        figure.add_scatter(
            x=list(range(1, len(trial.record["exit_acc"]) + 1)),
            y=trial.record["exit_acc"],
            mode="lines+markers",
            line={"color": color, "dash": dash, "width": 2},
            marker={"size": 6},
            hovertemplate=f"{escape(trial.label)}<br>exit %{{x}}: %{{y:.1%}}<extra></extra>",
            showlegend=False,
        )
    layout(figure, 340, "exit", "validation accuracy", top=8)
    most = max(len(trial.record["exit_acc"]) for trial in trials)
    figure.update_xaxes(dtick=1, tick0=1, range=[0.7, most + 0.3])
    figure.update_yaxes(range=list(accuracy_window([r for trial in trials for r in trial.record["exit_acc"]])))
    figure.update_yaxes(tickformat=".3~p")
    return figure


def accuracy_window(values: Sequence[float]) -> tuple[float, float]:
    """Limits that hold accuracies, at least two points apart."""
    low, high = min(values), max(values)
    margin = max(0.06 * (high - low), 0.01)
    return max(0.0, low - margin), min(1 + margin / 2, high + margin)


def epochs_by_exit(trials: Sequence[TrialPaths]) -> dict[int, dict[str, list[tuple[int, float]]]]:
    """{exit, from 1: {trial: [(epoch, accuracy)]}}; of more than `MOST_EXITS` exits so many, taken evenly."""
    found: dict[int, dict[str, list[tuple[int, float]]]] = {}
    for trial in trials:
        for i, line in by_epoch(trial).items():
            found.setdefault(i, {})[trial.trial] = line
    exits = sorted(found)
    if len(exits) > MOST_EXITS:
        exits = [exits[i] for i in np.linspace(0, len(exits) - 1, MOST_EXITS).round().astype(int)]
    return {i: found[i] for i in exits}


def epochs_window(
    found: Mapping[int, Mapping[str, Sequence[tuple[int, float]]]],
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Limits of the epochs and the accuracies of all panels."""
    pairs = [pair for lines in found.values() for line in lines.values() for pair in line]
    last = max(epoch for epoch, _ in pairs)
    return (0.0, 1.03 * last), accuracy_window([right for _, right in pairs])


def epochs_figure(
    trials: Sequence[TrialPaths],
    lines: Mapping[str, Sequence[tuple[int, float]]],
    window: tuple[tuple[float, float], tuple[float, float]],
) -> go.Figure:
    """The accuracy of one exit on all images against the epochs trained, a line a trial."""
    figure = go.Figure()
    for trial in trials:
        if line := lines.get(trial.trial):
            color, dash = looks(trials)[trial.trial]
            figure.add_scatter(
                x=[epoch for epoch, _ in line],
                y=[right for _, right in line],
                mode="lines+markers",
                line={"color": color, "dash": dash, "width": 2},
                marker={"size": 5},
                hovertemplate=f"{escape(trial.label)}<br>epoch %{{x}}: %{{y:.1%}}<extra></extra>",
                showlegend=False,
            )
    layout(figure, 220, "epoch", "accuracy", top=8)
    figure.update_xaxes(range=list(window[0]), nticks=6)
    figure.update_yaxes(range=list(window[1]), tickformat=".3~p", nticks=6)
    return figure


def routing_figure(trial: TrialPaths) -> go.Figure:
    """A heat map: the share of the images that leaves at each exit after each epoch that was evaluated."""
    epochs, shares = routing(trial)
    labels = exit_labels(trial.record)
    figure = go.Figure()
    few = len(epochs) <= 10 and len(labels) <= MOST_EXITS
    figure.add_heatmap(
        x=[str(epoch) for epoch in epochs],
        y=labels,
        z=shares.T.round(4).tolist(),
        zmin=0,
        zmax=round(float(shares.max()), 4),
        colorscale=[[0, SHARES[0]], [1, SHARES[1]]],
        xgap=1,
        ygap=1,
        texttemplate="%{z:.0%}" if few else None,
        textfont={"size": 11},
        showscale=not few,
        colorbar={"thickness": 9, "outlinewidth": 0, "tickformat": ".0%", "nticks": 5},
        hovertemplate="exit %{y} after epoch %{x}: %{z:.1%}<extra></extra>",
    )
    row = 28 if len(labels) <= MOST_EXITS else 9
    layout(figure, 90 + row * max(len(labels), 3), "epoch", "exit", top=8)
    every, rows = -(-len(epochs) // 12), -(-len(labels) // 24)
    figure.update_xaxes(type="category", showgrid=False, tickvals=[str(epoch) for epoch in epochs[::every]])
    figure.update_yaxes(type="category", showgrid=False, tickvals=labels[::rows], autorange="reversed")
    return figure


def confidence_figure(found: Ranks, rows: np.ndarray) -> go.Figure:
    """Images by the rank of their confidence at two exits, coloured by which of the two is right; `rows` are drawn."""
    figure = go.Figure()
    for i, (name, (color, symbol, _)) in enumerate(zip(AGREE, AGREE_STYLES, strict=True)):
        mine = rows[found.right[rows] == i]
        figure.add_scatter(
            x=found.x[mine].round(3).tolist(),
            y=found.y[mine].round(3).tolist(),
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 5 if i == 0 else 7, "opacity": 0.55 if i == 0 else 0.9},
            hovertemplate=f"{name}<br>rank %{{x:.0%}}, then %{{y:.0%}}<extra></extra>",
            showlegend=False,
        )
    ends = [-0.02, 1.02]
    line = {"color": "#7C8591", "width": 1, "dash": "dot"}
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line=line, hoverinfo="skip", showlegend=False)
    layout(figure, 350, *(f"rank at exit {escape(name)}" for name in found.names), top=8)
    figure.update_xaxes(range=ends, tickformat=".0%", dtick=0.25)
    figure.update_yaxes(range=ends, tickformat=".0%", dtick=0.25)
    return figure
