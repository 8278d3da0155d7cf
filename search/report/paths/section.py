"""The sections of a report about paths: tables, panels of figures, grids of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from html import escape

import pyarrow as pa

from search import path_plots
from search.exit_section import exit_sections
from search.gate_section import gate_sections
from search.halting import halting_section
from search.page_parts import class_key, method_name, panel, plot, section, table, trial_key
from search.paths import Paths, TrialPaths, extremes
from search.pictures import picture
from search.units import knobs_text, show_count, show_share
from search.variant_plots import variants_figure

_COPY_NAMES = {
    "crop": "random crop", "hflip": "horizontal flip", "vflip": "vertical flip",
    "rotation": "rotation", "mixture": "one of the four, drawn for every image",
}  # fmt: skip


def path_sections(points: pa.Table, paths: Paths) -> list[str]:
    """The sections in their order; a section that has nothing to show is left out."""
    sections = [_variants(points), *gate_sections(points, paths)]
    if paths.trials:
        gated = [t for t in paths.trials if "exit_frac" not in t.record and not t.record.get("routes")]
        choosing = replace(paths, trials=[t for t in paths.trials if not t.record.get("routes")])  # all paths run there
        exiting = [trial for trial in paths.trials if "exit_frac" in trial.record]
        sections += [
            _summary(paths.trials),
            _panels("Skip ratio per block", _SKIPPING, "skip", [(t, path_plots.skip_figure(t)) for t in gated]),
            *exit_sections(exiting, paths.classes),
            _by_class(choosing),
            _tsne(paths),
            _copies(paths.trials),
            halting_section(paths),
            _images(choosing),
        ]
    return [section for section in sections if section]


_SKIPPING = "The share of the validation images that skip a block, from the first block to the last."


def _panels(title: str, about: str, name: str, panels: Sequence[tuple[TrialPaths, object]]) -> str:
    """Figures of single trials side by side, where there is room."""
    drawn = [
        panel(figure, f"{name}-{i}", f"{title}: {trial.label}", trial.label) for i, (trial, figure) in enumerate(panels)
    ]
    return section(title, about, f'<div class="panels">{"".join(drawn)}</div>' if drawn else "")


def _variants(points: pa.Table) -> str:
    if not len(points):
        return ""
    label = "The best accuracy against MACs per image of every method and variant"
    about = "One line for every method and variant: the operating points of all its trials that no other one beats."
    return section("Accuracy against MACs by variant", about, plot(variants_figure(points), "variants", label))


def _summary(trials: Sequence[TrialPaths]) -> str:
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


def _by_class(paths: Paths) -> str:
    panels = [(trial, path_plots.class_figure(trial, paths.classes)) for trial in paths.trials]
    about = "Median and quartiles of the blocks that run. Classes by accuracy, which stands beside their names."
    if len(paths.classes) > path_plots.MOST_CLASSES:
        about += f" {path_plots.MOST_CLASSES} of {len(paths.classes)} classes, taken evenly."
    return _panels("Computation by class", about, "classes", panels)


def _tsne(paths: Paths) -> str:
    places = paths.places
    if not places:
        return ""
    limits = path_plots.common(places)
    panels = []
    for i, trial in enumerate(t for t in paths.trials if t.trial in places):
        rows, xy = places[trial.trial]
        for by, what in (("class", "by class"), ("length", "by path length")):
            figure = path_plots.tsne_figure(trial, rows, xy, limits, paths.classes, by)
            caption = f"{trial.label}: {what}"
            panels.append(panel(figure, f"tsne-{by}-{i}", f"t-SNE of the paths of {caption}", caption))
    about = (
        "t-SNE of the relaxed decisions, P(run) of every gate: a point is an image. All panels have the same axes."
        " The path length is the expected number of blocks that run."
    )
    return section("Paths by t-SNE", about, f'{class_key(paths.classes)}<div class="panels">{"".join(panels)}</div>')


def _copies(trials: Sequence[TrialPaths]) -> str:
    panels = [
        panel(path_plots.kl_figure(trials, how), f"kl-{how}", f"KL between image and copy: {name}", name)
        for how, name in _COPY_NAMES.items()
    ]
    about = "How far the predictions for an augmented copy are from those for the image: further right is further off."
    body = f'{trial_key(trials)}<div class="panels small">{"".join(panels)}</div>'
    return section("KL between images and their augmented copies", about, body)


def _images(paths: Paths) -> str:
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
