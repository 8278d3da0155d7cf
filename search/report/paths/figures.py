"""The interactive pictures of paths: skip ratios, computation by class, t-SNE, KL, variants, exits.

Every function draws one figure of one trial, or of all trials where they are compared; panels are
figures of their own, so that a narrow page can put them one below the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.report.paths.data import TrialPaths, spread
from search.report.style import CLASS_COLOURS, LENGTH_SCALE, MOST_CLASSES, distinct, layout, style
from search.units import show_share


def looks(trials: Sequence[TrialPaths]) -> dict[str, tuple[str, str]]:
    """(colour, dash) by trial."""
    return dict(zip((t.trial for t in trials), distinct([t.method for t in trials]), strict=True))


def group_edges(groups: Sequence[int]) -> list[float]:
    """Places between bars 0 ... N - 1 where a new group begins."""
    return [i - 0.5 for i in range(1, len(groups)) if groups[i] != groups[i - 1]]


def group_middles(groups: Sequence[int]) -> list[tuple[float, str]]:
    """(place, name) of every group of bars; none where there is a single group."""
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return []
    return [(float(np.mean([i for i, g in enumerate(groups) if g == name])), f"group {name + 1}") for name in names]


def skip_figure(trial: TrialPaths) -> go.Figure:
    """Bars: the share of the images that skip each block, from the first to the last; groups are marked."""
    groups, ratios = trial.record["groups"], trial.record["skip_ratio"]
    figure = go.Figure()
    texts = [
        f"{escape(name)}: skipped by {show_share(r)}" for name, r in zip(trial.record["blocks"], ratios, strict=True)
    ]
    figure.add_bar(
        x=list(range(len(ratios))),
        y=list(ratios),
        text=texts,
        textposition="none",
        hovertemplate="%{text}<extra></extra>",
        marker={"color": style(trial.method)[0]},
    )
    layout(figure, 220, "block", "share that skips", top=26)
    for edge in group_edges(groups):
        figure.add_vline(edge, line={"color": "#7C8591", "width": 1, "dash": "dot"})
    for middle, name in group_middles(groups):
        figure.add_annotation(x=middle, y=1.02, yref="paper", yanchor="bottom", text=name, showarrow=False)
    every = -(-len(ratios) // 14)
    numbers = [name.rpartition("-")[2] for name in trial.record["blocks"]]
    figure.update_xaxes(tickvals=list(range(len(ratios)))[::every], ticktext=numbers[::every], showgrid=False)
    figure.update_xaxes(range=[-0.6, len(ratios) - 0.4])
    figure.update_yaxes(range=[0, 1], tickformat=".0%", dtick=0.25)
    return figure


def class_rows(trial: TrialPaths, names: Sequence[str]) -> list[dict[str, Any]]:
    """What is drawn of every class, by rising accuracy: name, acc, median, low, high of the blocks that run.

    Of more than `MOST_CLASSES` classes so many are taken, evenly by accuracy.
    """
    rows = []
    for name, entry in zip(names, trial.record["skip_by_class"], strict=True):
        if entry["images"]:
            less, more = spread(entry)
            less, more = min(less, entry["median"]), max(more, entry["median"])  # of blocks in part rounded ones count
            run = {"median": trial.blocks - entry["median"], "low": trial.blocks - more, "high": trial.blocks - less}
            rows.append({"name": name, "acc": entry["acc"], "images": entry["images"], **run})
    rows.sort(key=lambda row: row["acc"])
    if len(rows) > MOST_CLASSES:
        rows = [rows[i] for i in np.linspace(0, len(rows) - 1, MOST_CLASSES).round().astype(int)]
    return rows


def class_label(row: Mapping[str, Any]) -> str:
    """A class with its accuracy, short enough for an axis."""
    name = str(row["name"])
    return f"{name if len(name) <= 14 else name[:13] + '…'} · {100 * row['acc']:.0f} %"


def class_figure(trial: TrialPaths, names: Sequence[str]) -> go.Figure:
    """Median and quartiles of the blocks that run for the images of each class, the most accurate on top."""
    rows = class_rows(trial, names)
    figure = go.Figure()
    figure.add_scatter(
        x=[row["median"] for row in rows],
        y=list(range(len(rows))),
        mode="markers",
        marker={"color": style(trial.method)[0], "size": 9, "symbol": style(trial.method)[2]},
        error_x={
            "symmetric": False,
            "array": [row["high"] - row["median"] for row in rows],
            "arrayminus": [row["median"] - row["low"] for row in rows],
            "thickness": 2,
            "width": 4,
        },
        text=[
            f"{escape(str(row['name']))}: median {row['median']:g} of {trial.blocks} blocks,<br>"
            f"half of the images {row['low']:g} to {row['high']:g};<br>accuracy {show_share(row['acc'])}"
            for row in rows
        ],
        hovertemplate="%{text}<extra></extra>",
    )
    layout(figure, 70 + 21 * len(rows), f"blocks that run, of {trial.blocks}", "", top=8)
    figure.update_yaxes(tickvals=list(range(len(rows))), ticktext=[escape(class_label(row)) for row in rows])
    figure.update_yaxes(range=[-0.7, len(rows) - 0.3])
    low, high = class_range(rows, trial.blocks)
    figure.update_xaxes(range=[low, high], dtick=max(1, -(-int(high - low) // 7)), tick0=0)
    return figure


def class_range(rows: Sequence[Mapping[str, Any]], blocks: int) -> tuple[float, float]:
    """Limits that hold all medians and quartiles, at least four blocks apart where there are as many."""
    low = min((min(row["low"], row["median"]) for row in rows), default=0.0)
    high = max((max(row["high"], row["median"]) for row in rows), default=float(blocks))
    extra = max(0.3, (4 - (high - low)) / 2)
    return max(low - extra, -0.3), min(high + extra, blocks + 0.3)


def common(places: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], list[float]]:
    """Limits (x, y) that hold all panels of a t-SNE: every panel has the same."""
    together = np.concatenate([xy for _, xy in places.values()])
    margin = 0.04 * float(np.ptp(together, axis=0).max())
    low, high = (together.min(axis=0) - margin).tolist(), (together.max(axis=0) + margin).tolist()
    return [low[0], high[0]], [low[1], high[1]]


def tsne_figure(
    trial: TrialPaths,
    rows: np.ndarray,
    xy: np.ndarray,
    limits: tuple[list[float], list[float]],
    names: Sequence[str],
    by: str,
) -> go.Figure:
    """One panel: images by the t-SNE of their relaxed decisions, coloured `by` class or length."""
    labels = trial.arrays["label"][rows]
    length = trial.arrays["relaxed"][rows].astype(np.float64).sum(axis=1)
    marker: dict[str, Any] = {"size": 4 if len(rows) > 500 else 5, "opacity": 0.8}
    x, y = np.round(xy, 1).T.tolist()
    figure = go.Figure()
    if by == "class":
        for label in range(len(names)):
            mine = np.flatnonzero(labels == label)
            color = CLASS_COLOURS[label % len(CLASS_COLOURS)]
            hover = f"{escape(str(names[label]))}<extra></extra>"
            xs, ys = [x[i] for i in mine], [y[i] for i in mine]
            figure.add_scatter(x=xs, y=ys, mode="markers", marker={**marker, "color": color}, hovertemplate=hover)
    else:
        bar = {"thickness": 10, "outlinewidth": 0, "orientation": "h", "y": -0.01, "yanchor": "top", "nticks": 5}
        marker |= {"color": np.round(length, 2).tolist(), "colorscale": [list(stop) for stop in LENGTH_SCALE]}
        hover = "%{marker.color:.2f} blocks<extra></extra>"
        figure.add_scatter(x=x, y=y, mode="markers", marker={**marker, "colorbar": bar}, hovertemplate=hover)
    layout(figure, 380, "", "", top=8)
    # a colour bar adds ten pixels of its own: with these margins the two panels of a trial have one size
    figure.update_layout(showlegend=False, margin={"b": 56 if by == "class" else 46})
    frame = {
        "showticklabels": False,
        "showgrid": False,
        "automargin": False,
        "title": None,
        "showline": True,
        "linecolor": "#7C8591",
    }
    figure.update_xaxes(range=limits[0], mirror=True, **frame)
    figure.update_yaxes(range=limits[1], mirror=True, **frame)
    return figure


def kl_middles(trial: TrialPaths) -> np.ndarray:
    """The middle of every bin of a KL histogram, on the log scale."""
    low, high, count = trial.record["kl_bins"]
    return 10 ** (low + (np.arange(count) + 0.5) * (high - low) / count)


def kl_figure(trials: Sequence[TrialPaths], how: str) -> go.Figure:
    """The share of images by the KL between the predictions for them and for their copies; a line a trial."""
    figure = go.Figure()
    for trial in trials:
        color, dash = looks(trials)[trial.trial]
        shares = np.array(trial.record["kl_histogram"][how]) / trial.record["images"]
        figure.add_scatter(
            x=kl_middles(trial).tolist(),
            y=shares.round(5).tolist(),
            mode="lines",
            line={"color": color, "dash": dash, "width": 2, "shape": "hvh"},
            hovertemplate=f"{escape(trial.label)}<br>%{{y:.1%}} near %{{x:.1e}}<extra></extra>",
            showlegend=False,
        )
    layout(figure, 220, "KL (nats, log scale)", "share of images", top=8)
    low, high, _ = trials[0].record["kl_bins"]
    powers = range(low, high + 1, 2)
    texts = [("≤" if power == low else "") + f"10<sup>{power}</sup>" for power in powers]
    figure.update_xaxes(type="log", tickvals=[10.0**p for p in powers], ticktext=texts, range=[low - 0.3, high])
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=5)
    return figure
