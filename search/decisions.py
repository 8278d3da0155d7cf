"""Whether a trial goes on: multi-objective asynchronous successive halving over curves.

At a rung a trial's whole curve is compared with the curves that other trials had at the same
epoch: by the best front layer that any of its points reaches among all their points, then by the
hypervolume that only this curve covers (`search.frontier.standings`). One of `reduction` goes on.
Protected from stopping: the trial with the cheapest and the one with the most accurate point of
the rung, and the first `grace` trials of every method there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.frontier import place_among
from search.spec import StudySpec
from search.state import StudyState
from search.trial import Trial


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a trial: continue, stop or finish; an empty `why` means that nothing was compared."""

    action: str
    why: str = ""


def decide(spec: StudySpec, state: StudyState, trial: Trial, epoch: int, time_over: bool = False) -> Decision:
    """The decision on a trial that has reported `epoch`, a function of the state alone (and the clock)."""
    if epoch >= spec.budget.epochs:
        return Decision("finish", "trained in full")
    if time_over:
        return Decision("stop", f"the study's time was over at epoch {epoch}")
    if epoch not in spec.rung_epochs or not trial.comparable.get(epoch):
        return Decision("continue")
    rivals = rivals_of(spec, state, trial, epoch)
    reference = state.created["reference"]
    curves = [rival.arrays(epoch) for rival in rivals]
    own = next(i for i, rival in enumerate(rivals) if rival is trial)
    place = place_among(curves, own, (reference["error"], reference["macs"]))
    room = max(1, math.ceil(len(rivals) / spec.rungs.reduction))
    where = f"place {place} of {len(rivals)} at epoch {epoch}"
    if place <= room:
        return Decision("continue", f"{where}: among the best {room}")
    lowest_error = min(error.min() for error, _ in curves)
    lowest_macs = min(macs.min() for _, macs in curves)
    error, macs = curves[own]
    if error.min() <= lowest_error:
        return Decision("continue", f"{where}: the most accurate of its rung is protected")
    if macs.min() <= lowest_macs and sum(c[1].min() <= lowest_macs for c in curves) == 1:
        return Decision("continue", f"{where}: the cheapest of its rung is protected")
    kin = sum(rival.method == trial.method for rival in rivals)
    if kin <= spec.rungs.grace:
        return Decision("continue", f"{where}: among the first {spec.rungs.grace} of its method")
    return Decision("stop", f"{where}: not among the best {room}")


def rivals_of(spec: StudySpec, state: StudyState, trial: Trial, epoch: int) -> list[Trial]:
    """Whom a trial is compared with at a rung: the latest `rungs.window` others that came to it, and itself.

    A sampler that learns would otherwise be compared with its own beginnings, and nearly everything
    would pass.
    """
    latest = state.rung(epoch)[-spec.rungs.window - 1 :]
    return latest if trial in latest else [*latest[1:], trial]
