"""Repeats: configurations on the front are trained again in full with new seeds; their figures over all seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from search.errors import InputError
from search.sampling.proposals import seed_of
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from spaces.space import nearest


def root_of(trial: Trial) -> str:
    """The trial whose configuration a trial trains: its own name, unless it repeats another."""
    return trial.repeats or trial.id


def repeats_of(state: StudyState, name: str) -> list[Trial]:
    """All trials of the configuration of a trial, the first one first."""
    return [trial for trial in state.trials.values() if root_of(trial) == name]


def plan_repeats(
    state: StudyState, spec: StudySpec, *, points: Sequence[str] = (), seeds: int = 2, top: int | None = None
) -> list[dict[str, Any]]:
    """Trials that train the configurations of front members once more, on `seeds` new seeds each.

    `points` names points (``t0003-9-2``) or trials instead of the front, `top` keeps the configurations with
    the most points on it. Repeats that were asked for but are not over count as planned already. Raises
    `InputError` for a point that is not there.
    """
    if seeds < 1:
        raise InputError(f"--seeds {seeds}: at least 1")
    if points:
        roots = [root_of(_trial(state, point)) for point in points]
    else:
        owners = [root_of(state.trials[name]) for name, _, _ in state.front()]
        roots = sorted(owners, key=lambda name: (-owners.count(name), name))
        if not roots:
            raise InputError(f"study {spec.name!r} has no operating point yet; there is nothing to confirm")
    plans = []
    for root in list(dict.fromkeys(roots))[: None if points else top]:
        first = state.trials[root]
        begun = len(repeats_of(state, root)) - 1 + sum(plan.get("repeats") == root for plan in state.planned)
        for index in range(begun, begun + seeds):
            seed = seed_of(spec.seed, first.number, "repeat", index)
            why = f"{root} again, on new seed {index + 1}"
            begun = {"donor": asdict(first.donor)} if first.donor else {}
            plans.append({"config": first.config, "seed": seed, "why": why, "repeats": root, **begun})
    return plans


def _trial(state: StudyState, point: str) -> Trial:
    name = point.partition("-")[0]
    if name not in state.trials:
        raise InputError(f"no trial of point {point!r}{nearest(name, list(state.trials))}")
    return state.trials[name]


@dataclass(frozen=True, slots=True)
class Spread:
    """What the seeds of one configuration showed at one setting after a full training."""

    trial: str
    method: str
    setting: dict[str, Any]
    accuracies: list[float]
    macs: list[float]
    on_front: bool

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracy over the seeds; None with one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None


def spreads(state: StudyState, epochs: int) -> list[Spread]:
    """For every configuration with repeats, setting by setting, what its fully trained seeds showed; by MACs."""
    front = {(root_of(state.trials[name]), index) for name, epoch, index in state.front() if epoch == epochs}
    found = []
    for root in dict.fromkeys(trial.repeats for trial in state.trials.values() if trial.repeats):
        curves = [trial.curves[epochs] for trial in repeats_of(state, root) if epochs in trial.curves]
        for index, points in enumerate(zip(*curves, strict=True)):
            found.append(
                Spread(
                    trial=root,
                    method=state.trials[root].method,
                    setting=points[0]["setting"],
                    accuracies=[point["accuracy"] for point in points],
                    macs=[point["macs"] for point in points],
                    on_front=(root, index) in front,
                )
            )
    return sorted(found, key=lambda spread: statistics.fmean(spread.macs))
