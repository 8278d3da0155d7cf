"""The sections of a report about soft routing between parallel paths."""

from __future__ import annotations

from html import escape

import pyarrow as pa

from search.report.gates import figures as gate_figures
from search.report.html import panel, plot, section
from search.report.mosaic import picture
from search.report.paths.data import Paths, TrialPaths
from search.report.variants import parameters_figure, variant_fronts


def gate_sections(points: pa.Table, paths: Paths) -> list[str]:
    """What there is to show: nothing where no trial routes softly."""
    trials = gate_figures.routed(paths.trials)
    if not trials:
        return []
    return [_parameters(points), _flow(trials), _gates(trials, paths), _images(trials, paths), _weights(trials)]


def _parameters(points: pa.Table) -> str:
    if not variant_fronts(points, "params"):
        return ""
    about = "One line for every method and variant: the points of its trials that no smaller network of it beats."
    label = "The best accuracy against parameters of every method and variant"
    return section("Accuracy against parameters", about, plot(parameters_figure(points), "parameters", label))


def _flow(trials: list[TrialPaths]) -> str:
    panels = []
    for t, trial in enumerate(trials):
        shown: list[tuple[str, int | None]] = [("mean over the images", None)]
        if "strengths" in trial.arrays:
            gate = gate_figures.telling(trial)[-1]
            most, least = gate_figures.openers(trial, gate, 1)
            if len(most):
                shown += [(f"the image with the largest {gate.label}", int(most[0]))]
                shown += [(f"the image with the smallest {gate.label}", int(least[0]))]
        for k, (what, row) in enumerate(shown):
            caption = f"{trial.label}: {what}"
            panels.append(panel(gate_figures.flow_figure(trial, row), f"flow-{t}-{k}", f"Routing: {caption}", caption))
    about = (
        "Squares are the tensors before and behind each routing layer, redder the larger their share of the"
        " activation; lines are gates, bluer and thicker the more open."
    )
    return section("Routing flow", about, f'<div class="panels">{"".join(panels)}</div>')


def _able(trials: list[TrialPaths]) -> list[TrialPaths]:
    return [trial for trial in trials if "relaxed" in trial.arrays]


def _gates(trials: list[TrialPaths], paths: Paths) -> str:
    panels = []
    for t, trial in enumerate(_able(trials)):
        for k, gate in enumerate(gate_figures.telling(trial)):
            caption = f"{trial.label}: {gate.label}"
            figure = gate_figures.gate_figure(trial, gate, paths.classes)
            panels.append(panel(figure, f"gate-{t}-{k}", f"Gate by class, {caption}", caption))
    about = (
        "Of some routing layers the gate that differs most between classes, for the two classes that open it least"
        " and the two that open it most."
    )
    return section("Gates by class", about, f'<div class="panels">{"".join(panels)}</div>' if panels else "")


def _images(trials: list[TrialPaths], paths: Paths) -> str:
    able = _able(trials)
    if not able:
        return ""
    title, about = "Images that open gates", "Above the images that open a gate most, below those that open it least."
    if paths.images is None:
        return section(title, about, f"<p>The images cannot be shown: {escape(paths.note)}</p>")
    panels = []
    for trial in able:
        for gate in gate_figures.telling(trial):
            caption, parts = escape(f"{trial.label}: {gate.label}"), ""
            for rows, word in zip(gate_figures.openers(trial, gate), ("most", "least"), strict=True):
                if not len(rows):
                    continue
                values = trial.arrays["relaxed"][rows, gate.column].astype(float)
                said = f"{word}: {values.min():.2f} to {values.max():.2f}"
                shown = paths.images[trial.arrays["index"][rows]]
                parts += f"<div>{said}</div>{picture(shown, f'{caption}, {said}')}"
            panels.append(f'<figure aria-label="{title}: {caption}"><figcaption>{caption}</figcaption>{parts}</figure>')
    return section(title, about, f'<div class="panels">{"".join(panels)}</div>')


def _weights(trials: list[TrialPaths]) -> str:
    panels = []
    for t, trial in enumerate(trials):
        for k, entry in enumerate(trial.record["routes"]["weights"]):
            caption = f"{trial.label}: layer {entry['layer']}, {entry['kind']}"
            figure = gate_figures.weights_figure(entry)
            panels.append(panel(figure, f"weights-{t}-{k}", f"Weights of parallel paths, {caption}", caption))
    about = (
        "The weights of layers that every path has for itself: lines that differ say that paths learned differently."
    )
    return section("Weights of parallel paths", about, f'<div class="panels small">{"".join(panels)}</div>')
