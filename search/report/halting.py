"""Ponder costs and halting maps of a report: where a network computes much and where little (ACT and SACT).

M. Figurnov et al., "Spatially adaptive computation time for residual networks", CVPR 2017, arXiv 1612.02297:
images beside the units computed at each of their positions; as figures of a page and as PNG pictures.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from matplotlib.figure import Figure

from search.report.html import panel, section
from search.report.mosaic import COLUMNS, in_page, mosaic
from search.report.paths.data import Paths, TrialPaths
from search.report.png import GREY, WIDTH, plain, titled, white
from search.report.style import layout, mixed, style

if TYPE_CHECKING:
    from trainables.data.encoded import ImageFiles


_EDGE = 32  # pixels that an image and a map have at least


def mapped(trial: TrialPaths) -> bool:
    """Whether halting maps of the trial are stored."""
    return len(trial.arrays.get("ponder", ())) > 0


def halting_rows(trial: TrialPaths, count: int = COLUMNS) -> np.ndarray:
    """Rows of the stored maps with the least and, behind them, the most computation: at most `count` each."""
    cost = trial.arrays["ponder"].astype(np.float64).mean(axis=(1, 2))
    order = np.argsort(cost, kind="stable")
    count = min(count, len(order) // 2) or len(order)
    return np.concatenate([order[:count], order[len(order) - count :]]) if len(order) > 1 else order


def halting_range(trial: TrialPaths) -> tuple[float, float]:
    """The least and the most ponder cost at a position of any stored map."""
    maps = trial.arrays["ponder"].astype(np.float64)
    return float(maps.min()), float(maps.max())


def coloured(maps: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps (m, h, w) as images (m, 3, h, w) uint8: blue is little, orange is much."""
    table = np.array([[int(mixed(1 - i / 255)[j : j + 2], 16) for j in (1, 3, 5)] for i in range(256)], np.uint8)
    levels = ((maps.astype(np.float64) - low) / max(high - low, 1e-9) * 255).round().clip(0, 255).astype(int)
    return table[levels].transpose(0, 3, 1, 2)


def enlarged(images: np.ndarray, edge: int) -> np.ndarray:
    """Images (m, channels, h, w) whose pixels were repeated or left out until both edges have `edge` pixels."""
    rows, columns = ((np.arange(edge) * size) // edge for size in images.shape[-2:])
    return images[:, :, rows[:, None], columns[None, :]]


def halting_picture(trial: TrialPaths, images: np.ndarray | ImageFiles | None) -> np.ndarray:
    """Rows of images, where they are at hand, each above its maps: (h, w, 4) uint8."""
    rows = halting_rows(trial)
    maps = coloured(trial.arrays["ponder"][rows], *halting_range(trial))
    edge = max(_EDGE, min(64, max(maps.shape[-2:])))
    strips = [enlarged(maps, edge)]
    if images is not None:
        found = images[trial.arrays["index"][trial.arrays["ponder_rows"][rows]]]
        found = enlarged(found if found.shape[1] == 3 else found[:, :1].repeat(3, axis=1), edge)
        strips.insert(0, found)
    columns = min(COLUMNS, max(1, len(rows) // 2))
    ordered = [strip[i : i + columns] for i in range(0, len(rows), columns) for strip in strips]
    return mosaic(np.concatenate(ordered), columns)


def halting_says(trial: TrialPaths) -> str:
    """Of the maps' range, for captions."""
    low, high = halting_range(trial)
    mean = float(trial.arrays["ponder"].astype(np.float64).mean())
    return f"ponder cost {low:.3g} (blue) to {high:.3g} (orange) at a position, {mean:.3g} on average"


def ponder_figure(trial: TrialPaths) -> go.Figure:
    """Bars: the ponder cost of each group, averaged over the images; whiskers: its deviation over them."""
    cost, deviation = trial.record["ponder"], trial.record["ponder_std"]
    figure = go.Figure()
    figure.add_bar(
        x=[f"group {g}" for g in range(1, len(cost) + 1)],
        y=cost,
        error_y={"array": deviation, "thickness": 1.5, "width": 6, "color": "#7C8591"},
        marker={"color": style(trial.method)[0]},
        text=[f"{mean:.2f}, deviation {std:.2f} over images" for mean, std in zip(cost, deviation, strict=True)],
        textposition="none",
        hovertemplate="%{x}: %{text}<extra></extra>",
    )
    layout(figure, 240, "", "ponder cost", top=8)
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(rangemode="tozero")
    return figure


def halting_section(paths: Paths) -> str:
    """What every group costs, and halting maps, of every trial that has some."""
    costly = [trial for trial in paths.trials if trial.record.get("ponder")]
    bars = [
        panel(ponder_figure(trial), f"ponder-{i}", f"Ponder cost of {trial.label}", trial.label)
        for i, trial in enumerate(costly)
    ]
    figures = ""
    for trial in filter(mapped, paths.trials):
        caption = f"{escape(trial.label)}: {halting_says(trial)}"
        picture = in_page(halting_picture(trial, paths.images), f"Halting maps of {trial.label}", exact=False)
        figures += f'<figure aria-label="Halting maps"><figcaption>{caption}</figcaption>{picture}</figure>'
    about = "Ponder cost of each group of units: how many are computed, and the remainder. Whiskers: over images."
    if figures:
        about += " Maps: the cost at each position, below the image; first the images with the least of it."
        about += "" if paths.images is not None else " The images are not at hand."
    body = "".join(f'<div class="panels">{part}</div>' for part in ("".join(bars), figures) if part)
    return section("Halting", about, body)


def ponder_picture(paths: Paths) -> Figure | None:
    """Bars: the ponder cost of each group; None where no trial halts."""
    trials = [trial for trial in paths.trials if trial.record.get("ponder")]
    if not trials:
        return None
    rows = -(-len(trials) // 2)
    figure = white(2.4 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes, trial in zip(panels, trials, strict=False):
        cost, look = trial.record["ponder"], {"color": style(trial.method)[0], "ecolor": GREY, "capsize": 4}
        axes.bar([f"group {g}" for g in range(1, len(cost) + 1)], cost, yerr=trial.record["ponder_std"], **look)
        axes.set(ylabel="ponder cost")
        plain(axes)
        titled(axes, trial.label.replace(", ", "\n", 1))
    for axes in panels[len(trials) :]:
        axes.set_axis_off()
    return figure


def halting_pictures(paths: Paths) -> Figure | None:
    """Images above their halting maps; None where no trial has stored some."""
    trials = [trial for trial in paths.trials if mapped(trial)]
    if not trials:
        return None
    pictures = [halting_picture(trial, paths.images) for trial in trials]
    heights = [WIDTH * picture.shape[0] / picture.shape[1] + 0.3 for picture in pictures]
    figure = white(sum(heights))
    panels = figure.subplots(len(trials), 1, squeeze=False, height_ratios=heights).ravel()
    for axes, trial, picture in zip(panels, trials, pictures, strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_axis_off()
        titled(axes, f"{trial.label}: {halting_says(trial)}")
    return figure
