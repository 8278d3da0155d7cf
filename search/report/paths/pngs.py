"""The pictures of paths as matplotlib figures: skip ratios, computation by class, t-SNE, KL, images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from search.report.mosaic import mosaic
from search.report.paths import figures as path_figures
from search.report.paths.data import Paths, TrialPaths, extremes
from search.report.png import DASHES, plain, titled, white
from search.report.style import CLASS_COLOURS, LENGTH_SCALE, style
from search.report.variants import fronts_picture, variant_fronts


def rows_picture(
    trials: Sequence[TrialPaths], draw: Callable[[Axes, TrialPaths], None], height: float, columns: int = 1
) -> Figure | None:
    """One panel a trial, row by row, each `height` inches high."""
    if not trials:
        return None
    rows = -(-len(trials) // columns)
    figure = white(height * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, trial in zip(panels, trials, strict=False):
        draw(axes, trial)
        plain(axes)
        titled(axes, trial.label if columns == 1 else trial.label.replace(", ", "\n", 1))
    for axes in panels[len(trials) :]:
        axes.set_axis_off()
    return figure


def draw_skipping(axes: Axes, trial: TrialPaths) -> None:
    """Bars: the share of the images that skip each block."""
    ratios, groups = trial.record["skip_ratio"], trial.record["groups"]
    axes.bar(range(len(ratios)), ratios, color=style(trial.method)[0])
    for edge in path_figures.group_edges(groups):
        axes.axvline(edge, color="#7C8591", linewidth=1, linestyle=":")
    for middle, name in path_figures.group_middles(groups):
        behind = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
        axes.text(middle, 0.97, name, ha="center", va="top", fontsize=8, color="#57606A", bbox=behind)
    every = -(-len(ratios) // 20)
    numbers = [name.rpartition("-")[2] for name in trial.record["blocks"]]
    axes.set_xticks(range(0, len(ratios), every), numbers[::every])
    axes.set(ylim=(0, 1), xlim=(-0.6, len(ratios) - 0.4), xlabel="block", ylabel="share that skips")
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw_classes(axes: Axes, trial: TrialPaths, names: Sequence[str]) -> None:
    """Median and quartiles of the blocks that run for the images of each class."""
    rows = path_figures.class_rows(trial, names)
    color, marker, _ = style(trial.method)
    medians = [row["median"] for row in rows]
    below = [row["median"] - row["low"] for row in rows]
    above = [row["high"] - row["median"] for row in rows]
    places = range(len(rows))
    axes.errorbar(medians, places, xerr=[below, above], fmt=marker, color=color, capsize=3, linewidth=1.5)
    axes.set_yticks(places, [path_figures.class_label(row) for row in rows], fontsize=8, parse_math=False)
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set(
        xlim=path_figures.class_range(rows, trial.blocks),
        ylim=(-0.7, len(rows) - 0.3),
        xlabel=f"blocks that run, of {trial.blocks}",
    )


def tsne_picture(paths: Paths) -> Figure | None:
    """The relaxed decisions in two dimensions; None where no trial has any."""
    places = paths.places
    trials = [trial for trial in paths.trials if trial.trial in places]
    if not trials:
        return None
    figure = white(3.9 * len(trials))
    panels = figure.subplots(len(trials), 2, squeeze=False, sharex=True, sharey=True)
    scale = LinearSegmentedColormap.from_list("length", [color for _, color in LENGTH_SCALE])
    for (left, right), trial in zip(panels, trials, strict=True):
        rows, xy = places[trial.trial]
        labels = trial.arrays["label"][rows]
        palette = CLASS_COLOURS
        left.scatter(*xy.T, s=6, c=[palette[label % len(palette)] for label in labels], linewidths=0)
        length = trial.arrays["relaxed"][rows].astype(np.float64).sum(axis=1)
        drawn = right.scatter(*xy.T, s=6, c=length, cmap=scale, linewidths=0)
        figure.colorbar(drawn, ax=right, label="expected blocks that run", shrink=0.8)
        for axes, what in ((left, "by class"), (right, "by path length")):
            titled(axes, f"{trial.label}\n{what}")
            axes.set(xticks=[], yticks=[], aspect="equal")
    across, up = path_figures.common(places)
    panels[0, 0].set(xlim=across, ylim=up)
    if len(paths.classes) <= len(CLASS_COLOURS):
        for name, color in zip(paths.classes, CLASS_COLOURS, strict=False):
            panels[-1, 0].scatter([], [], s=20, color=color, label=name)
        legend = figure.legend(loc="outside lower left", ncols=10, fontsize=8, columnspacing=0.9, handletextpad=0.1)
        for text in legend.get_texts():  # a class may be called "$"
            text.set_parse_math(False)
    return figure


def copies_picture(trials: Sequence[TrialPaths]) -> Figure:
    """The KL between predictions for images and for their augmented copies."""
    looks = path_figures.looks(trials)
    names = list(trials[0].record["kl_histogram"])
    columns = 2
    rows = -(-(len(names) + 1) // columns)  # the last panel holds the legend
    figure = white(2.2 * rows)
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        for trial in trials:
            color, dash = looks[trial.trial]
            shares = np.array(trial.record["kl_histogram"][name]) / trial.record["images"]
            line = {"color": color, "linestyle": DASHES[dash], "linewidth": 1.6, "drawstyle": "steps-mid"}
            axes.plot(path_figures.kl_middles(trial), shares, label=trial.label, **line)
        axes.set(xscale="log", ylabel="share of images")
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        plain(axes)
        titled(axes, f"{name}: KL in nats")
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    panels[len(names)].legend(*panels[0].get_legend_handles_labels(), loc="center left", fontsize=8)
    return figure


def variants_picture(points: pa.Table) -> Figure:
    """The best accuracy against MACs of every method and variant."""
    return fronts_picture(variant_fronts(points), "MACs per image (log scale)")


def images_picture(paths: Paths) -> Figure | None:
    """The images with the shortest and the longest paths; None where there are none."""
    trials = [trial for trial in paths.trials if "index" in trial.arrays]
    if not trials or paths.images is None:
        return None
    figure = white(1.35 * len(trials))
    panels = figure.subplots(len(trials), 2, squeeze=False)
    for row, trial in zip(panels, trials, strict=True):
        for axes, rows, word in zip(row, extremes(trial), ("shortest", "longest"), strict=True):
            axes.imshow(mosaic(paths.images[trial.arrays["index"][rows]]), interpolation="nearest")
            axes.set_axis_off()
            titled(axes, f"{trial.label}\n{word} paths")
    return figure
