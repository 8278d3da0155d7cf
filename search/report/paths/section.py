"""The sections of a report about paths: tables, panels of figures, grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import pyarrow as pa

from search.report.html import class_key, method_name, panel, plot, section, table
from search.report.mosaic import picture
from search.report.paths import figures as path_figures
from search.report.paths.data import Paths, TrialPaths, extremes
from search.report.paths.figures import looks
from search.report.style import MOST_CLASSES
from search.report.variants import variants_figure
from search.units import knobs_text, show_count, show_share

_DASHES = {"solid": "", "dash": "6 4", "dot": "2 3", "dashdot": "7 3 2 3"}

_COPY_NAMES = {
    "crop": "random crop", "hflip": "horizontal flip", "vflip": "vertical flip",
    "rotation": "rotation", "mixture": "one of the four, drawn for every image",
}  # fmt: skip


def skip_section(trials: Sequence[TrialPaths]) -> str:
    """How often each block is skipped, trial by trial."""
    about = "The share of the validation images that skip a block, from the first block to the last."
    return _panels("Skip ratio per block", about, "skip", [(t, path_figures.skip_figure(t)) for t in trials])


def _panels(title: str, about: str, name: str, panels: Sequence[tuple[TrialPaths, object]]) -> str:
    """Figures of single trials side by side, where there is room."""
    drawn = [
        panel(figure, f"{name}-{i}", f"{title}: {trial.label}", trial.label) for i, (trial, figure) in enumerate(panels)
    ]
    return section(title, about, f'<div class="panels">{"".join(drawn)}</div>' if drawn else "")


def variants_section(points: pa.Table) -> str:
    """The best accuracy against MACs of every method and variant."""
    if not len(points):
        return ""
    label = "The best accuracy against MACs per image of every method and variant"
    about = "One line for every method and variant: the operating points of all its trials that no other one beats."
    return section("Accuracy against MACs by variant", about, plot(variants_figure(points), "variants", label))


def summary_section(trials: Sequence[TrialPaths]) -> str:
    """A table of the trials whose paths are drawn."""
    rows = []
    for trial in trials:
        record = trial.record
        copies = [show_share(record["consistency"][how] / record["images"]) for how in _COPY_NAMES]
        rows.append(
            (
                method_name({"method": trial.method, "variant": trial.variant}),
                escape(trial.network),
                escape(trial.trial),
                show_share(record["acc"]),
                show_count(record["macs"]),
                f"{record['K']:.2f} of {trial.blocks}",
                f"{record['compute_pct']:.1f} %",
                str(record["n_paths"]),
                *copies,
                f"{record['kl_aug']['mixture']:.3g}",
                escape(knobs_text(record["knobs"])),
            )
        )
    heads = ("Method", "Network", "Trial", "#Accuracy", "#MACs", "#Blocks run (K)", "#Computation",
             "#Paths", "#Crop", "#H. flip", "#V. flip", "#Rotation", "#Mixed", "#KL (mixed)", "Knobs")  # fmt: skip
    about = (
        "The most accurate trial of every method and variant among those trained in full, then others on the front,"
        " at one setting each. Crop to mixed: the share of the images whose path an augmented copy takes too; KL: of"
        " the predictions for the image from those for the copy, in nats. Computation counts blocks, one that always"
        " runs included."
    )
    return section("Paths of the best trials", about, table("Paths of the best trials", heads, rows))


def class_section(paths: Paths) -> str:
    """How many blocks run for the images of each class, trial by trial."""
    panels = [(trial, path_figures.class_figure(trial, paths.classes)) for trial in paths.trials]
    about = "Median and quartiles of the blocks that run. Classes by accuracy, which stands beside their names."
    if len(paths.classes) > MOST_CLASSES:
        about += f" {MOST_CLASSES} of {len(paths.classes)} classes, taken evenly."
    return _panels("Computation by class", about, "classes", panels)


def tsne_section(paths: Paths) -> str:
    """The relaxed decisions in two dimensions, coloured by class and by path length."""
    places = paths.places
    if not places:
        return ""
    limits = path_figures.common(places)
    panels = []
    for i, trial in enumerate(t for t in paths.trials if t.trial in places):
        rows, xy = places[trial.trial]
        for by, what in (("class", "by class"), ("length", "by path length")):
            figure = path_figures.tsne_figure(trial, rows, xy, limits, paths.classes, by)
            caption = f"{trial.label}: {what}"
            panels.append(panel(figure, f"tsne-{by}-{i}", f"t-SNE of the paths of {caption}", caption))
    about = (
        "t-SNE of the relaxed decisions, P(run) of every gate: a point is an image. All panels have the same axes."
        " The path length is the expected number of blocks that run."
    )
    return section("Paths by t-SNE", about, f'{class_key(paths.classes)}<div class="panels">{"".join(panels)}</div>')


def copies_section(trials: Sequence[TrialPaths]) -> str:
    """How far predictions for augmented copies are from those for their images."""
    panels = [
        panel(path_figures.kl_figure(trials, how), f"kl-{how}", f"KL between image and copy: {name}", name)
        for how, name in _COPY_NAMES.items()
    ]
    about = "How far the predictions for an augmented copy are from those for the image: further right is further off."
    body = f'{trial_key(trials)}<div class="panels small">{"".join(panels)}</div>'
    return section("KL between images and their augmented copies", about, body)


def images_section(paths: Paths) -> str:
    """The images with the shortest and the longest paths."""
    able = [trial for trial in paths.trials if "index" in trial.arrays]
    if not able:
        return ""
    title = "Easy and hard images"
    about = "Above the images with the shortest paths, below those with the longest."
    if paths.images is None:
        return section(title, about, f"<p>The images cannot be shown: {escape(paths.note)}</p>")
    panels = []
    for trial in able:
        length = trial.arrays["path"].sum(axis=1)
        caption, parts = escape(trial.label), ""
        for rows, word in zip(extremes(trial), ("easy", "hard"), strict=True):
            low, high = float(length[rows].min()), float(length[rows].max())
            blocks = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            said = f"{word}: {blocks} of {trial.blocks} blocks run"
            parts += f"<div>{said}</div>{picture(paths.images[trial.arrays['index'][rows]], f'{trial.label}, {said}')}"
        panels.append(f'<figure aria-label="{title}: {caption}"><figcaption>{caption}</figcaption>{parts}</figure>')
    return section(title, about, f'<div class="panels">{"".join(panels)}</div>')


def trial_key(trials: Sequence[TrialPaths]) -> str:
    """The lines of trials, as figures draw them."""
    entries = [
        f'<li><svg width="30" height="8" aria-hidden="true"><line x1="0" y1="4" x2="30" y2="4" stroke="{color}"'
        f' stroke-width="2.5" stroke-dasharray="{_DASHES[dash]}"/></svg>{escape(trial.label)}</li>'
        for trial, (color, dash) in zip(trials, looks(trials).values(), strict=True)
    ]
    return f'<ul class="key">{"".join(entries)}</ul>'
