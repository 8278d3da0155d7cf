"""Which trials pass rungs unseen: brackets and immunity; and how many epochs trials still train on average."""

from __future__ import annotations

import itertools
import random

from search.spec.study import StudySpec
from search.state.state import StudyState

FIRST_TRAININGS = 10
PRIOR_TRIALS = 8
"""Of so many trials what is expected of a rung counts for, beside those that came to it."""


def epochs_to_come(spec: StudySpec, epoch: int = 0, state: StudyState | None = None) -> float:
    """How many epochs a trial that has trained `epoch` of them still trains on average.

    Of those that come to a rung, one in `rungs.reduction` goes on: as if `PRIOR_TRIALS` had come and shown
    that, beside those of a `state`.
    """
    total, share = 0.0, 1.0
    for before, rung in itertools.pairwise([0, *spec.rung_epochs, spec.budget.epochs]):
        if rung > epoch:
            total += share * (rung - max(before, epoch))
            came = [trial.decided[rung] for trial in (state.rung(rung) if state else ()) if rung in trial.decided]
            share *= (came.count("continue") + PRIOR_TRIALS / spec.rungs.reduction) / (len(came) + PRIOR_TRIALS)
    return total


def bracket_of(spec: StudySpec, seed: int) -> int:
    """The bracket of a trial, drawn so that every bracket trains about as many epochs."""
    rungs, last = spec.rung_epochs, spec.budget.epochs
    count = min(spec.rungs.brackets, len(rungs))
    if count < 2:
        return 0
    weights = []
    for bracket in range(count):
        steps = [*rungs[bracket:], last]
        later = itertools.pairwise(steps)
        mean = steps[0] + sum((b - a) / spec.rungs.reduction ** (i + 1) for i, (a, b) in enumerate(later))
        weights.append(1 / mean)
    return random.Random(seed).choices(range(count), weights)[0]


def immune(spec: StudySpec, state: StudyState, seed: int) -> bool:
    """Whether a trial is trained in full whatever its rungs show: one in ``1 / rungs.immune``, drawn by `seed`.

    Rungs that stop what learns slowly never see how it ends; immune trials show it. The first `FIRST_TRAININGS` full
    trainings' worth of epochs are better spent on many trials.
    """
    early = state.cost_epochs < FIRST_TRAININGS * spec.budget.epochs
    return bool(spec.rung_epochs) and not early and random.Random(seed).random() < spec.rungs.immune
