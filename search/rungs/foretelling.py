"""How well a rung has foretold how trials end, and how many go on because of it.

Trials that are trained in full whatever their rungs show (`search.rungs.brackets.immune`) show both: how they stood
among each other at a rung, and at the end. Where the two agree, one of `rungs.reduction` goes on; the less they agree,
the more go on, at most one of two. Trials that rungs let pass say nothing of those that they stopped, and are no
evidence.
"""

from __future__ import annotations

import numpy as np

from search.pareto.front import standings
from search.spec.study import StudySpec
from search.state.state import StudyState

LEAST, MOST = 8, 60
"""Immune trials that it takes, and at most so many of the latest that are compared."""
GOOD, BAD = 0.9, 0.6
"""Rank correlations (Spearman) at which one of `rungs.reduction` goes on, and one of `_GENTLEST`."""
_GENTLEST = 2.0


def reduction_at(spec: StudySpec, state: StudyState, epoch: int) -> float:
    """One of how many goes on behind a rung."""
    most = spec.rungs.reduction
    if not spec.rungs.adapt or most <= _GENTLEST:
        return most
    found = agreement(state, epoch, spec.budget.epochs)
    if found is None:
        return most
    share = min(1.0, max(0.0, (found - BAD) / (GOOD - BAD)))
    return _GENTLEST + share * (most - _GENTLEST)


def agreement(state: StudyState, epoch: int, last: int) -> float | None:
    """The rank correlation of immune trials' standings at an epoch and at the last; None where too few have ended."""
    known, came = state.agreements.get(epoch, (-1, None)), len(state.rung(last))
    if known[0] != came:  # decisions at a rung are many, ends of trials few
        known = state.agreements[epoch] = came, _agreement(state, epoch, last)
    return known[1]


def _agreement(state: StudyState, epoch: int, last: int) -> float | None:
    ended = [trial for trial in state.rung(last) if trial.immune and trial.comparable.get(epoch)][-MOST:]
    if len(ended) < LEAST:
        return None
    corner = state.created["reference"]["error"], state.created["reference"]["macs"]
    at = []
    for when in (epoch, last):
        missed = [trial.missed.get(when, 0.0) for trial in ended]
        at.append(_ranks(standings([trial.arrays(when) for trial in ended], corner, missed)))
    if min(np.ptp(ranks) for ranks in at) == 0:  # all alike: nothing was foretold wrongly
        return 1.0
    return float(np.corrcoef(*at)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks (n,) from 0; equals share the mean of theirs."""
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties + 1) / 2)[place.reshape(-1)]
