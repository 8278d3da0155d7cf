"""The sections of a report about networks with exits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.report.exits import figures as exit_figures
from search.report.exits import flow
from search.report.exits.data import AGREE, budget, is_chain, ranks, routing
from search.report.html import class_key, panel, section
from search.report.paths.data import ALL_EMBEDDED, TrialPaths
from search.report.paths.figures import looks
from search.report.paths.section import trial_key
from search.report.style import ACCURACY_SCALE

_SHAPES = ("M6 2a4 4 0 1 0 .01 0z", "M6 1l5 9H1z", "M6 11L1 2h10z", "M2 2l8 8M10 2l-8 8")


def exit_sections(trials: Sequence[TrialPaths], classes: Sequence[str]) -> list[str]:
    """The sections in their order; empty words for what there is nothing of."""
    if not trials:
        return []
    return [_exits(trials, classes), _flow(trials, classes), _budgets(trials), _training(trials), _confidence(trials)]


def _exits(trials: Sequence[TrialPaths], classes: Sequence[str]) -> str:
    about = "Where images leave, how right the exits are, and which classes leave early."
    body = ""
    for i, trial in enumerate(trials):
        one = panel(
            exit_figures.exit_figure(trial), f"exits-{i}", f"Exits of {trial.label}", f"{trial.label}: exits"
        )  # fmt: skip
        if len(trial.record["exit_frac"]) <= exit_figures.MOST_EXITS:
            label = f"Exits by class of {trial.label}"
            figure = exit_figures.class_exit_figure(trial, classes)
            one += panel(figure, f"class-exits-{i}", label, f"{trial.label}: by class")
        body += f'<div class="panels">{one}</div>'
    return section("Exits", about, body)


def _flow(trials: Sequence[TrialPaths], classes: Sequence[str]) -> str:
    largest, limits = flow.largest_shares(trials), flow.accuracy_range(trials)
    body = ""
    for i, trial in enumerate(trials):
        label = f"Dataflow of {trial.label}"
        said = f"{100 * max(trial.record['exit_frac']):.0f} %"
        figure = flow.accuracy_flow(trial, largest[trial.trial], limits)
        parts = panel(figure, f"flow-{i}", label, f"{trial.label}: largest circle {said}")
        divided = flow.class_flow(trial, largest[trial.trial], classes)
        if divided is not None:
            parts += panel(divided, f"class-flow-{i}", f"{label}, by class", f"{trial.label}: by class")
        body += f'<div class="panels">{parts}</div>'
    about = (
        "A circle is an exit, its area the share of the images that leave there, in one measure for networks of one"
        " shape; a line is as wide as what flows along it. The first drawing is coloured by the accuracy on the"
        " images that leave, which stands in bold below chains, the second divided by their classes."
    )
    return section("Dataflow", about, _accuracy_scale(limits) + class_key(classes) + body)


def _accuracy_scale(limits: tuple[float, float]) -> str:
    colours = ",".join(colour for _, colour in ACCURACY_SCALE)
    low, high = (f"{100 * limit:.0f} %" for limit in limits)
    bar = f'<span class="scale" style="background:linear-gradient(90deg,{colours})"></span>'
    return f'<p class="note">Accuracy: {low} {bar} {high}</p>'


def _budgets(trials: Sequence[TrialPaths]) -> str:
    able = [trial for trial in trials if budget(trial).points]
    if not able:
        return ""
    first = panel(
        exit_figures.budget_figure(able), "budget", "Accuracy against the average budget", "what an average budget buys"
    )
    chains = [trial for trial in able if is_chain(trial.record)]
    if chains:
        figure = exit_figures.exit_accuracy_figure(chains, looks(able))
        first += panel(figure, "exit-accuracy", "Accuracy of every exit", "every exit on all images")
    about = (
        "Lines: the last curve of each trial, images leaving where its knobs say. Open circles: one exit alone, which"
        " answers every image. One trial for every variant: this is the ablation where a study searches variants."
    )
    return section("Accuracy against the budget", about, f'{trial_key(able)}<div class="panels">{first}</div>')


def _training(trials: Sequence[TrialPaths]) -> str:
    found = exit_figures.epochs_by_exit(trials)
    body = ""
    if found:
        window = exit_figures.epochs_window(found)
        drawn = {name for lines in found.values() for name in lines}
        panels = [
            panel(
                exit_figures.epochs_figure(trials, lines, window), f"epochs-{i}", f"Accuracy of exit {i}", f"exit {i}"
            )
            for i, lines in found.items()
        ]
        body += (
            trial_key([t for t in trials if t.trial in drawn]) + f'<div class="panels small">{"".join(panels)}</div>'
        )
    maps = [(trial, len(routing(trial)[0])) for trial in trials]
    panels = [
        panel(
            exit_figures.routing_figure(trial), f"routing-{i}", f"Routing of {trial.label}", f"{trial.label}: routing"
        )
        for i, (trial, epochs) in enumerate(maps)
        if epochs > 1
    ]
    if panels:
        body += f'<div class="panels">{"".join(panels)}</div>'
    about = (
        "After every epoch that was evaluated: the accuracy of each exit on all images, and the share of the images"
        " that leaves at each exit, at the setting whose knobs stand in the table of paths."
    )
    return section("Exits over training", about, body)


def _confidence(trials: Sequence[TrialPaths]) -> str:
    found = [(trial, rank) for trial in trials if (rank := ranks(trial)) is not None]
    most = ALL_EMBEDDED // max(1, len(found))
    panels = []
    for i, (trial, rank) in enumerate(found):
        rows = np.sort(np.random.default_rng(0).permutation(len(rank.x))[:most])
        caption = f"{trial.label}: rank correlation {rank.correlation:.2f}"
        label = f"Confidence at two exits, {caption}"
        panels.append(panel(exit_figures.confidence_figure(rank, rows), f"confidence-{i}", label, caption))
    about = (
        "A point is an image: its rank by confidence at the first exit and at the one behind it, 0 % the least"
        " confident. The nearer to the dotted line, the more the two agree on what is easy."
    )
    body = f'{_agree_key()}<div class="panels">{"".join(panels)}</div>' if panels else ""
    return section("Confidence at the first two exits", about, body)


def _agree_key() -> str:
    entries = [
        f'<li><svg width="12" height="12" aria-hidden="true"><path d="{shape}" stroke="{color}" stroke-width="2"'
        f' fill="{"none" if name == AGREE[-1] else color}"/></svg>{name}</li>'
        for name, (color, _, _), shape in zip(AGREE, exit_figures.AGREE_STYLES, _SHAPES, strict=True)
    ]
    return f'<ul class="key">{"".join(entries)}</ul>'
