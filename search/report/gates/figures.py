"""The interactive pictures of soft routing: gates by class, routing flow, weights of parallel layers, parameters.

After figures 7, 8, 10 and 11 of D. Tissera et al., arXiv 2107.02450. Drawn from what
`trainables.diagnostics.gates` measured. Shape legend: n images, D gates, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.report.paths.data import TrialPaths
from search.report.style import CLASS_COLOURS, DASHES, layout

MOST_GATES, MOST_CLASSES, GATE_BINS = 4, 4, 25
PATH_COLOURS = ("#2C7BE5", "#D9480F", "#59A14F", "#B07AA1", "#D9B036", "#76B7B2", "#9C755F", "#8F8A86")
LINES, TENSORS = "#2C7BE5", "#E03131"


@dataclass(frozen=True, slots=True)
class Gate:
    """One gate: column of the relaxed decisions, routing layer (from 0), input and output (from 0)."""

    column: int
    layer: int
    place: str
    i: int
    j: int

    @property
    def label(self) -> str:
        """As the paper writes it: layer, input and output from 1."""
        return f"{self.place}, gate from input {self.i + 1} to path {self.j + 1}"


def routed(trials: Sequence[TrialPaths]) -> list[TrialPaths]:
    """The trials with soft routing."""
    return [trial for trial in trials if trial.record.get("routes")]


def gates_of(trial: TrialPaths) -> list[Gate]:
    """All gates, in the order of the relaxed decisions."""
    found: list[Gate] = []
    for index, layer in enumerate(trial.record["routes"]["layers"]):
        if layer["gates"]:
            pairs = [(i, j) for i in range(layer["inputs"]) for j in range(layer["outputs"])]
            found += [Gate(len(found) + k, index, layer["place"], i, j) for k, (i, j) in enumerate(pairs)]
    return found


def telling(trial: TrialPaths, most: int = MOST_GATES) -> list[Gate]:
    """Of every routing layer the gate that differs most between classes, at most `most` layers, taken evenly.

    It is the one with the largest share of its variance between the classes' means.
    """
    values, labels = trial.arrays["relaxed"].astype(np.float64), trial.arrays["label"]
    members = [labels == label for label in np.unique(labels)]
    between = sum(mine.mean() * (values[mine].mean(axis=0) - values.mean(axis=0)) ** 2 for mine in members)
    share = between / np.maximum(values.var(axis=0), 1e-12)
    best: dict[int, Gate] = {}
    for gate in gates_of(trial):
        if gate.layer not in best or share[gate.column] > share[best[gate.layer].column]:
            best[gate.layer] = gate
    found = list(best.values())
    return [found[i] for i in sorted({*np.linspace(0, len(found) - 1, min(most, len(found))).round().astype(int)})]


def shown_classes(trial: TrialPaths, gate: Gate, most: int = MOST_CLASSES) -> list[int]:
    """The classes for which a gate is open least and most, by rising means."""
    values, labels = trial.arrays["relaxed"][:, gate.column].astype(np.float64), trial.arrays["label"]
    order = sorted(np.unique(labels).tolist(), key=lambda label: values[labels == label].mean())
    return order if len(order) <= most else [*order[: most // 2], *order[-(most - most // 2) :]]


def gate_histogram(trial: TrialPaths, gate: Gate, label: int) -> tuple[np.ndarray, np.ndarray]:
    """(middles of the bins, shares of the class): the range is that of the gate over all images."""
    values = trial.arrays["relaxed"][:, gate.column].astype(np.float64)
    low, high = float(values.min()), float(values.max())
    high = max(high, low + 1e-3)
    counts, edges = np.histogram(values[trial.arrays["label"] == label], bins=GATE_BINS, range=(low, high))
    return (edges[:-1] + edges[1:]) / 2, counts / max(1, counts.sum())


def gate_figure(trial: TrialPaths, gate: Gate, names: Sequence[str]) -> go.Figure:
    """Figure 10: how open a gate is for the images of some classes."""
    figure, middles = go.Figure(), np.zeros(2)
    for turn, label in enumerate(shown_classes(trial, gate)):
        middles, shares = gate_histogram(trial, gate, label)
        figure.add_scatter(
            x=middles.round(5).tolist(),
            y=shares.round(5).tolist(),
            name=escape(str(names[label])),
            mode="lines",
            line={
                "color": CLASS_COLOURS[label % len(CLASS_COLOURS)],
                "dash": DASHES[turn % 4],
                "width": 2,
                "shape": "hvh",
            },
            hovertemplate=f"{escape(str(names[label]))}<br>%{{y:.1%}} near %{{x:.3f}}<extra></extra>",
        )
    layout(figure, 290, "gate", "share of the class", top=8)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=5)
    width = float(middles[1] - middles[0])
    figure.update_xaxes(nticks=6, range=[float(middles[0]) - width, float(middles[-1]) + width])
    return figure


def openers(trial: TrialPaths, gate: Gate, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Figure 9: rows of the images that open a gate most and least, the extreme ones first."""
    values = trial.arrays["relaxed"][:, gate.column].astype(np.float64)
    order = np.lexsort((np.arange(len(values)), -values))
    count = min(count, len(order) // 2)
    return order[:count], order[::-1][:count]


def flow(trial: TrialPaths, row: int | None = None) -> list[dict[str, Any]]:
    """Every routing layer: place, gates (m, n), relative sizes of inputs (m,) and outputs (n,), of an image or all.

    The sizes of the tensors on one side of a layer sum to 1. Gates are None where the layer has none.
    """
    found, column, tensor = [], 0, 0
    for layer in trial.record["routes"]["layers"]:
        m, n = layer["inputs"], layer["outputs"]
        count = len(layer["gates"])
        if row is None:
            gates, sizes = np.array(layer["gates"]), np.array(layer["strengths"])
        else:
            gates = trial.arrays["relaxed"][row, column : column + count].astype(np.float64)
            sizes = trial.arrays["strengths"][row, tensor : tensor + m + n].astype(np.float64)
        sides = [part / max(part.sum(), 1e-12) for part in (sizes[:m], sizes[m:])]
        found.append(
            {"place": layer["place"], "gates": gates.reshape(m, n) if count else None, "inputs": sides[0]}
            | {"outputs": sides[1]}
        )
        column, tensor = column + count, tensor + m + n
    return found


def shade(colour: str, share: float) -> str:
    """A colour, from almost white at 0 to itself at 1."""
    part = 0.12 + 0.88 * min(max(share, 0.0), 1.0)
    return "#" + "".join(f"{round(part * int(colour[i : i + 2], 16) + (1 - part) * 255):02X}" for i in (1, 3, 5))


def places_of(count: int) -> list[float]:
    """Heights of so many tensors, the first on top, around 0."""
    return [(count - 1) / 2 - k for k in range(count)]


def flow_figure(trial: TrialPaths, row: int | None = None) -> go.Figure:
    """Figure 8: tensors before and behind every routing layer, red by relative size; lines by the gates, blue."""
    figure = go.Figure()
    layers = flow(trial, row)
    x, y, colours, texts = [], [], [], []
    for k, layer in enumerate(layers):
        sides = [("input", 2 * k, layer["inputs"]), ("output", 2 * k + 1, layer["outputs"])]
        heights = [places_of(len(sizes)) for _, _, sizes in sides]
        if layer["gates"] is not None:
            for i, j in np.ndindex(layer["gates"].shape):
                gate = float(layer["gates"][i, j])
                line = {"color": shade(LINES, gate), "width": 1 + 6 * gate}
                ends = [heights[0][i], heights[1][j]]
                figure.add_scatter(x=[2 * k, 2 * k + 1], y=ends, mode="lines", line=line, hoverinfo="skip")
        for (word, at, sizes), up in zip(sides, heights, strict=True):
            for turn, size in enumerate(sizes.tolist()):
                said = f"{layer['place']}, {word} {turn + 1}: {size:.0%} of the activation"
                if word == "input" and layer["gates"] is not None:
                    said += "<br>gates " + ", ".join(f"{g:.2f}" for g in layer["gates"][turn].tolist())
                x, y = [*x, at], [*y, up[turn]]
                colours, texts = [*colours, shade(TENSORS, size)], [*texts, said]
    marker = {"symbol": "square", "size": 15, "color": colours, "line": {"color": "#7C8591", "width": 1}}
    figure.add_scatter(x=x, y=y, mode="markers", marker=marker, text=texts, hovertemplate="%{text}<extra></extra>")
    tallest = max(max(len(layer["inputs"]), len(layer["outputs"])) for layer in layers)
    layout(figure, 110 + 38 * tallest, "", "", top=8)
    ticks = [2 * k + 0.5 for k in range(len(layers))]
    figure.update_xaxes(tickvals=ticks, ticktext=[layer["place"] for layer in layers], showgrid=False, tickangle=-35)
    figure.update_yaxes(visible=False, range=[-tallest / 2 - 0.1, tallest / 2 + 0.1])
    figure.update_layout(showlegend=False)
    return figure


def weight_lines(entry: Mapping[str, Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(middles of the bins, shares of the weights) of every path of a layer."""
    edges = np.linspace(entry["low"], entry["high"], len(entry["counts"][0]) + 1)
    counts = [np.array(each, dtype=float) for each in entry["counts"]]
    return [((edges[:-1] + edges[1:]) / 2, each / each.sum()) for each in counts]


def weights_figure(entry: Mapping[str, Any]) -> go.Figure:
    """Figure 11: the weights of one layer, a line a path."""
    figure = go.Figure()
    for path, (middles, shares) in enumerate(weight_lines(entry)):
        line = {"color": PATH_COLOURS[path % 8], "dash": DASHES[path % 4], "width": 2, "shape": "hvh"}
        hover = f"path {path + 1}: %{{y:.1%}} near %{{x:.3g}}<extra></extra>"
        xs, ys = [float(f"{at:.4g}") for at in middles], shares.round(5).tolist()
        figure.add_scatter(x=xs, y=ys, name=f"path {path + 1}", mode="lines", line=line, hovertemplate=hover)
    layout(figure, 270, "weight", "share of the path's", top=8)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero", nticks=5)
    figure.update_xaxes(nticks=6)
    return figure
