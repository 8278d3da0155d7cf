"""A study's state in words: one line, a table, its best points, what constraints are missed by."""

from __future__ import annotations

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from search.rungs.brackets import epochs_to_come
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from search.units import AxesText, machines_text, show_count, show_seconds, show_share

_BLOCKS = " ▁▂▃▄▅▆▇█"


def time_left(spec: StudySpec, state: StudyState) -> float | None:
    """Seconds that the study will still run, as far as can be told: by its time, and by the epochs to come."""
    if state.ended:
        return None
    elapsed = state.elapsed_at()
    guesses: list[float] = []
    if spec.budget.time is not None:
        guesses.append(max(0.0, spec.budget.time - elapsed))
    trained = sum(len(trial.losses) for trial in state.trials.values())
    if trained:
        to_come = sum(epochs_to_come(spec, trial.epoch, state) for trial in state.live)
        to_come += len(state.planned) * spec.budget.epochs
        to_come += max(0, spec.budget.trials - state.proposed) * epochs_to_come(spec, 0, state)
        guesses.append(elapsed / trained * to_come)
    return min(guesses) if guesses else None


def summary(spec: StudySpec, state: StudyState) -> str:
    """One line: trials by state, hypervolume so far, cost, time left."""
    counts = state.count()
    left = time_left(spec, state)
    rarer = "".join(f" {counts[each]} {each}," for each in ("waiting", "paused") if counts[each])
    return (
        f"{counts['running']} running,{rarer} {counts['stopped']} stopped, {counts['finished']} finished,"
        f" {counts['failed']} failed of {spec.budget.trials} trials | hypervolume {state.hypervolume:.4f},"
        f" {len(state.front())} points | {state.cost_epochs:g} epochs in {show_seconds(state.elapsed_at())}"
        + (f", about {show_seconds(left)} left" if left is not None else "")
        + _saved(state)
    )


def _saved(state: StudyState) -> str:
    saved = state.saved()
    if not saved["shared"]:
        return ""
    return (
        f" | first stages shared by {saved['shared']}:"
        f" {saved['epochs_saved']:g} epochs and {show_seconds(saved['seconds_saved'])} saved"
    )


def _best(trial: Trial, axes: AxesText) -> str:
    if not trial.curves:
        return ""
    points = trial.curves[max(trial.curves)]
    best = max(points, key=lambda p: p["accuracy"])
    cheap = min(points, key=lambda p: p["macs"])
    shown = axes.point(best["accuracy"], best["macs"])
    return shown if len(points) == 1 else f"{shown}, down to {axes.cost(cheap['macs'])}"


def status_table(spec: StudySpec, state: StudyState, what: str, rows: int = 12) -> RenderableType:
    """The study as a table: the live trials and those that ended last."""
    axes = AxesText.of(state.created)
    shown = f"{axes.merit_title} and {axes.cost_title} of its curve"
    table = Table("trial", "method", "network", "epoch", "state", shown, box=None, padding=(0, 2))
    trials = list(state.trials.values())
    live = [t for t in trials if t.state == "running"]
    others = [t for t in trials if t.state != "running"][-max(0, rows - len(live)) :]
    colours = {
        "running": "cyan", "finished": "green", "stopped": "yellow", "failed": "red", "asked": "dim", "paused": "blue"
    }  # fmt: skip
    for trial in sorted([*live, *others], key=lambda t: t.number):
        epoch = f"{trial.epoch}/{spec.budget.epochs}"
        if trial.shared and trial.behind:
            epoch += f", {trial.behind.epoch} of {trial.behind.trial}"
        elif trial.donor:
            epoch += f", from {trial.donor.trial}"
        words = trial.reason if trial.state == "failed" else _best(trial, axes)
        table.add_row(
            trial.id, trial.method, str(trial.config.get("network", "")), epoch,
            Text("waiting" if trial.state == "asked" else trial.state, style=colours[trial.state]), Text(words),
        )  # fmt: skip
    lines = [Text(f"{spec.name}: {what}", style="bold"), Text(summary(spec, state))]
    if progress := growth(state):
        lines.append(Text(f"hypervolume over epochs {progress}"))
    if state.machines:
        lines.append(Text(machines_text(state.machines)))
    if best := best_points(state):
        lines.append(Text(f"front: {best}"))
    return Group(*lines, table)


def growth(state: StudyState, width: int = 40) -> str:
    """The hypervolume against epochs of cost as a line of blocks, with its half-way marks; empty before the first."""
    steps = [step for step in state.history if step.hypervolume > 0]
    if not steps or not state.cost_epochs:
        return ""
    epochs = np.array([step.epochs for step in steps])
    volumes = np.array([step.hypervolume for step in steps])
    at = np.searchsorted(epochs, np.linspace(0, state.cost_epochs, width + 1)[1:], side="right") - 1
    shares = np.where(at >= 0, volumes[np.maximum(at, 0)], 0.0) / volumes[-1]
    drawn = "".join(_BLOCKS[min(len(_BLOCKS) - 1, int(share * len(_BLOCKS)))] for share in shares)
    reached = {part: epochs[int(np.argmax(volumes >= part * volumes[-1]))] for part in (0.5, 0.9, 0.99)}
    marks = ", ".join(f"{part:.0%} by {epoch:g}" for part, epoch in reached.items())
    return f"{drawn} {volumes[-1]:.4f} ({marks})"


def best_points(state: StudyState, count: int = 5) -> str:
    """Some points of the front in words, evenly chosen from the cheapest to the most accurate."""
    front = state.front()
    chosen = [front[round(i * (len(front) - 1) / max(1, count - 1))] for i in range(min(count, len(front)))]
    words, axes = [], AxesText.of(state.created)
    for name, epoch, index in dict.fromkeys(chosen):
        point = state.trials[name].curves[epoch][index]
        words.append(f"{axes.point(point['accuracy'], point['macs'])} ({name})")
    return ", ".join(words)


def unmet_constraints(state: StudyState) -> str:
    """That no operating point meets the constraints, and how near the nearest came."""
    curves = [(missed, trial, epoch) for trial in state.trials.values() for epoch, missed in trial.missed.items()]
    said = f"no operating point has {state.constraints}"
    if not curves:
        return f"{said}; no trial has shown a curve yet"
    _, trial, epoch = min(curves, key=lambda entry: entry[0])
    best = max(trial.curves[epoch], key=lambda point: point["accuracy"])
    least = min(point["macs"] for point in trial.curves[epoch])
    return (
        f"{said}; the nearest, {trial.id} at epoch {epoch}, has {show_count(trial.params)} parameters,"
        f" {show_share(best['accuracy'])} at {show_count(best['macs'])} MACs and settings down to {show_count(least)}"
    )
