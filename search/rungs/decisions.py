"""Decides whether a trial goes on: multi-objective asynchronous successive halving over curves.

At a rung a trial's whole curve is compared with the curves that other trials had at the same
epoch: by the best front layer that any of its points reaches among all their points, then by the
hypervolume that only this curve covers (`search.pareto.front.standings`). One of `reduction` goes on, or more where
the rung has foretold badly how trials end (`search.rungs.foretelling`).
Protected from stopping: the trial with the cheapest and the one with the most accurate point of
the rung, and at its first rung the first `grace` trials of every method.

With ``rungs.pause`` a trial that is not among the best waits instead, and goes on when it is among the
best of those that have come since (`promotable`): the promotions of Li et al. (ASHA, MLSys 2020), where
stopping is the variant of Ray. With ``rungs.brackets`` a share of the trials passes the first rungs unseen
(Hyperband: Li et al., JMLR 2018); every bracket is compared within itself and gets about as many epochs. A share of
``rungs.immune`` is trained in full whatever its rungs show, and is compared with like the others.

With ``objective.front = "cascades"`` a trial's curve has the points of the cascades, too, that its network makes with
those of others at the same epoch (`search.cascades.worth`); those that it takes part in are no points of its rivals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from search.pareto.front import place_among, standings
from search.rungs.foretelling import reduction_at
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of a trial: continue, pause, stop or finish; an empty `why` means that nothing was compared."""

    action: str
    why: str = ""


def cost_of(spec: StudySpec, state: StudyState) -> float:
    """What the trials' work has cost so far, in the unit of ``budget.cost``."""
    return state.work_seconds / 3600 * spec.resources.hourly


def limit_of(spec: StudySpec, state: StudyState, now: float) -> str:
    """Which limit of the study is reached at a moment: time, cost, or none."""
    if spec.budget.time is not None and state.elapsed_at(now) >= spec.budget.time:
        return "time"
    return "cost" if spec.budget.cost is not None and cost_of(spec, state) >= spec.budget.cost else ""


def decide(spec: StudySpec, state: StudyState, trial: Trial, epoch: int, spent: str = "") -> Decision:
    """The decision on a trial that has reported `epoch`, a function of the state alone (and of what is `spent`).

    `spent` names the limit of the study that is reached: time, cost, or none.
    """
    if epoch >= spec.budget.epochs:
        return Decision("finish", "trained in full")
    if spent:
        return Decision("stop", f"the study's {spent} was over at epoch {epoch}")
    if (
        trial.repeats
        or trial.immune
        or epoch not in spec.rung_epochs[trial.bracket :]
        or not trial.comparable.get(epoch)
    ):
        return Decision("continue")
    rivals = rivals_of(spec, state, trial, epoch)
    place, best = _place(spec, state, rivals, trial, epoch)
    where = f"place {place} of {len(rivals)} at epoch {epoch}"
    if place <= best:
        return Decision("continue", f"{where}: among the best {best}")
    shield = _protection(spec, rivals, trial, epoch)
    if shield:
        return Decision("continue", f"{where}: {shield}")
    if spec.rungs.pause:
        return Decision("pause", f"{where}: not among the best {best} so far")
    return Decision("stop", f"{where}: not among the best {best}")


def _place(spec: StudySpec, state: StudyState, rivals: list[Trial], trial: Trial, epoch: int) -> tuple[int, int]:
    """(place of a trial among its rivals, how many of them go on)."""
    reference = state.created["reference"]
    # what only this trial adds: the others are as they would be without it, in cascades, too
    curves = [rival.worth(epoch, "" if rival is trial else trial.id) for rival in rivals]
    missed = [rival.missed.get(epoch, 0.0) for rival in rivals]
    own = next(i for i, rival in enumerate(rivals) if rival is trial)
    place = place_among(curves, own, (reference["error"], reference["macs"]), missed)
    return place, room(spec, state, epoch, len(rivals))


def room(spec: StudySpec, state: StudyState, epoch: int, rivals: int) -> int:
    """How many of so many rivals go on behind a rung."""
    return max(1, math.ceil(rivals / reduction_at(spec, state, epoch)))


def _protection(spec: StudySpec, rivals: list[Trial], trial: Trial, epoch: int) -> str:
    """Why a trial that is not among the best goes on all the same; empty where nothing protects it."""
    # a point that misses a constraint is neither the most accurate nor the cheapest
    ends = {rival.id: rival.ends(epoch) for rival in rivals}
    error, macs = ends[trial.id]
    if not math.isfinite(error):
        return ""
    if error <= min(e for e, _ in ends.values()):
        return "the most accurate of its rung is protected"
    lowest = min(m for _, m in ends.values())
    if macs <= lowest and sum(m <= lowest for _, m in ends.values()) == 1:
        return "the cheapest of its rung is protected"
    kin = sum(rival.method == trial.method for rival in rivals)
    if kin <= spec.rungs.grace and epoch == spec.rung_epochs[trial.bracket]:  # further on it would cost the most
        return f"among the first {spec.rungs.grace} of its method"
    return ""


def promotable(spec: StudySpec, state: StudyState) -> tuple[Trial, str] | None:
    """The paused trial that goes on now, and why; the highest rung first, there the best. None where none does.

    Only the latest `rungs.window` trials of a rung and bracket are looked at: who fell out of it waits for nothing.
    """
    if not state.paused:
        return None
    reference = state.created["reference"]
    for epoch in reversed(spec.rung_epochs):
        found: list[tuple[int, Trial, str]] = []
        for bracket in range(spec.rungs.brackets):
            rivals = _latest(spec, state, bracket, epoch)
            if not any(rival.state == "paused" and rival.epoch == epoch for rival in rivals):
                continue
            missed = [rival.missed.get(epoch, 0.0) for rival in rivals]
            curves = [rival.arrays(epoch) for rival in rivals]
            stands = standings(curves, (reference["error"], reference["macs"]), missed)
            best = room(spec, state, epoch, len(rivals))
            for rival, standing in zip(rivals, stands, strict=True):
                place = 1 + int((stands > standing).sum())
                if rival.state == "paused" and rival.epoch == epoch and place <= best:
                    why = f"place {place} of {len(rivals)} at epoch {epoch} by now: among the best {best}"
                    found.append((place, rival, why))
        if found:
            return min(found, key=lambda entry: (entry[0], entry[1].number))[1:]
    return None


def rivals_of(spec: StudySpec, state: StudyState, trial: Trial, epoch: int) -> list[Trial]:
    """Whom a trial is compared with at a rung: the latest `rungs.window` others of its bracket there, and itself.

    A sampler that learns would otherwise be compared with its own beginnings, and nearly everything
    would pass.
    """
    latest = _latest(spec, state, trial.bracket, epoch)
    return latest if trial in latest else [*latest[1:], trial]


def _latest(spec: StudySpec, state: StudyState, bracket: int, epoch: int) -> list[Trial]:
    came = state.rung(epoch)
    if spec.rungs.brackets > 1:
        came = [other for other in came if other.bracket == bracket]
    return came[-spec.rungs.window - 1 :]
