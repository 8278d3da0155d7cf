"""The pictures of soft routing as PNG files (`search.report.gates.figures` has them for the page)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from search.report.gates import figures as gate_plots
from search.report.mosaic import mosaic
from search.report.paths.data import Paths, TrialPaths
from search.report.png import DASHES, WIDTH, plain, titled
from search.report.style import CLASS_COLOURS
from search.report.variants import fronts_picture, variant_fronts


def gate_figures(points: pa.Table, paths: Paths) -> dict[str, Figure | None]:
    """Figures by file name; None where there is nothing to draw."""
    trials = gate_plots.routed(paths.trials)
    able = [trial for trial in trials if "relaxed" in trial.arrays]
    gates = [(trial, gate) for trial in able for gate in gate_plots.telling(trial)]
    weights = [(trial, entry) for trial in trials for entry in trial.record["routes"]["weights"]]
    return {
        "parameters.png": _parameters(points) if trials else None,
        "routing-flow.png": _grid(trials, _flow, 1, lambda t: 0.9 + 0.35 * _tallest(t)),
        "gates.png": _grid(gates, lambda axes, pair: _gate(axes, pair[0], pair[1], paths.classes), 2, lambda _: 2.9),
        "gate-images.png": _images(gates, paths),
        "path-weights.png": _grid(weights, lambda axes, pair: _weights(axes, pair[0], pair[1]), 2, lambda _: 2.6),
    }


def _grid(
    items: Sequence[Any], draw: Callable[[Axes, Any], None], columns: int, height: Callable[[Any], float]
) -> Figure | None:
    if not items:
        return None
    rows = -(-len(items) // columns)
    figure = Figure(figsize=(WIDTH, sum(height(items[r * columns]) for r in range(rows))), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, item in zip(panels, items, strict=False):
        draw(axes, item)
    for axes in panels[len(items) :]:
        axes.set_axis_off()
    return figure


def _tallest(trial: TrialPaths) -> int:
    return max(max(layer["inputs"], layer["outputs"]) for layer in trial.record["routes"]["layers"])


def _flow(axes: Axes, trial: TrialPaths) -> None:
    layers = gate_plots.flow(trial)
    for k, layer in enumerate(layers):
        heights = [gate_plots.places_of(len(layer[side])) for side in ("inputs", "outputs")]
        if layer["gates"] is not None:
            for i, j in np.ndindex(layer["gates"].shape):
                gate = float(layer["gates"][i, j])
                colour, width = gate_plots.shade(gate_plots.LINES, gate), 0.8 + 4 * gate
                axes.plot([2 * k, 2 * k + 1], [heights[0][i], heights[1][j]], color=colour, linewidth=width, zorder=1)
        for at, side, up in zip((2 * k, 2 * k + 1), ("inputs", "outputs"), heights, strict=True):
            colours = [gate_plots.shade(gate_plots.TENSORS, size) for size in layer[side].tolist()]
            axes.scatter(
                [at] * len(up), up, s=90, marker="s", c=colours, edgecolors="#7C8591", linewidths=0.8, zorder=2
            )
    axes.set_xticks([2 * k + 0.5 for k in range(len(layers))], [layer["place"] for layer in layers], fontsize=8)
    axes.set(yticks=[], ylim=(-_tallest(trial) / 2 + 0.05, _tallest(trial) / 2 - 0.05))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    titled(axes, f"{trial.label}: mean over the images")


def _gate(axes: Axes, trial: TrialPaths, gate: gate_plots.Gate, names: Sequence[str]) -> None:
    for turn, label in enumerate(gate_plots.shown_classes(trial, gate)):
        middles, shares = gate_plots.gate_histogram(trial, gate, label)
        line: dict[str, Any] = {
            "color": CLASS_COLOURS[label % len(CLASS_COLOURS)],
            "linestyle": list(DASHES.values())[turn % 4],
        }
        axes.plot(middles, shares, drawstyle="steps-mid", linewidth=1.5, label=str(names[label]), **line)
    axes.set(xlabel="gate", ylabel="share of the class")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    for text in axes.legend(fontsize=7, handlelength=2.2).get_texts():
        text.set_parse_math(False)
    plain(axes)
    titled(axes, f"{trial.label}\n{gate.label}")


def _images(gates: Sequence[tuple[TrialPaths, gate_plots.Gate]], paths: Paths) -> Figure | None:
    if not gates or paths.images is None:
        return None
    figure = Figure(figsize=(WIDTH, 1.05 * len(gates)), layout="constrained")
    panels = figure.subplots(len(gates), 2, squeeze=False)
    for row, (trial, gate) in zip(panels, gates, strict=True):
        for axes, rows, word in zip(row, gate_plots.openers(trial, gate), ("most", "least"), strict=True):
            axes.set_axis_off()
            if len(rows):
                axes.imshow(mosaic(paths.images[trial.arrays["index"][rows]]), interpolation="nearest")
            titled(axes, f"{trial.label}\n{gate.label}" if word == "most" else "\nopened least")
    return figure


def _weights(axes: Axes, trial: TrialPaths, entry: dict[str, Any]) -> None:
    for path, (middles, shares) in enumerate(gate_plots.weight_lines(entry)):
        line: dict[str, Any] = {
            "color": gate_plots.PATH_COLOURS[path % 8],
            "linestyle": list(DASHES.values())[path % 4],
        }
        axes.plot(middles, shares, drawstyle="steps-mid", linewidth=1.5, label=f"path {path + 1}", **line)
    axes.set(xlabel="weight", ylabel="share of the path's")
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.legend(fontsize=7)
    plain(axes)
    titled(axes, f"{trial.label}\nlayer {entry['layer']}, {entry['kind']}")


def _parameters(points: pa.Table) -> Figure | None:
    fronts = variant_fronts(points, "params")
    return fronts_picture(fronts, "parameters (log scale)") if fronts else None
