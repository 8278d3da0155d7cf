r"""What a network that has just reported reaches in cascades with those of other trials, for the search.

With ``objective.front = "cascades"`` a trial is worth what it adds to the front of networks *and cascades*. Whenever a
curve comes that is compared (at a rung, at the end), its network is tried with each *partner*: at most
`search.state.state.PARTNERS` trials that own points of the front with cascades at the same epoch. Of both the points of
their own fronts take part, at most `POINTS` each. Pairs at all thresholds, answered by the last and by the mean,
are chosen on one half of the validation images and scored on the other, both ways: for budgets evenly over log MACs the
best pair within each, whose figures are averaged. What improves the front of that epoch is written into the report's
event, so that the state stays a fold over its events and a study goes on as it would have without an interruption.
Both trials own it: a later network may show that an earlier one is good company.

So a report costs the same however large the study is: at most `PARTNERS` + 1 sweeps of `POINTS` x `POINTS` pairs.
Temperatures are left out: thresholds are chosen anyway, and fitting takes as long as sweeping.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from search.cascades.members import shares_work
from search.cascades.selection import halves
from search.cascades.sweep import Answers, Chain, execute, firsts_before
from search.pareto.front import non_dominated
from search.state.trial import Trial
from trainables.inference.predictions import PREDICTIONS, Predictions, PredictionsError, read
from trainables.inference.rules import MOST_CLASSES, doubt, scores

if TYPE_CHECKING:
    from search.engine.driver import Driver

POINTS = 6
"""So many operating points of a network take part at most, evenly over its own front."""
BUDGETS = 12
_KIND = "probability"
_log = logging.getLogger("routefront.search")


@dataclass(frozen=True, slots=True)
class _Points:
    """The points of one network that take part: `last`, and `mean` where there are not too many classes."""

    last: Answers
    mean: Answers | None


class Worth:
    """Tries the network of each report with its partners; see the module. It keeps what partners answer in memory."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._known: dict[tuple[str, int], _Points | None] = {}
        self._halves: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None

    def __call__(self, trial: Trial, result: Mapping[str, Any]) -> list[list[Any]]:
        """The cascades that improve the front of the report's epoch, as [error, mean MACs, the other trial]."""
        epoch, state = result["epoch"], self._driver.state
        points = result["curve"]["points"]
        new = self._read(trial.id, result.get("checkpoint") or "", points)
        partners = state.partners.get(epoch, [])
        self._known = {key: kept for key, kept in self._known.items() if key[1] != epoch or key[0] in _names(partners)}
        self._known[trial.id, epoch] = new
        if new is None:
            return []
        found: list[list[Any]] = []
        for other in [trial, *partners]:
            known = new if other is trial else self._partner(other, epoch)
            if known is not None:
                found += [[error, macs, other.id] for error, macs in self._pairs(new, known, other is trial)]
        return self._improving(found, points, epoch)

    def _partner(self, other: Trial, epoch: int) -> _Points | None:
        """A partner's points; read once, after a restart from its checkpoint."""
        key = other.id, epoch
        if key not in self._known:
            self._known[key] = self._read(other.id, other.checkpoints[epoch], other.curves[epoch])
        return self._known[key]

    def _read(self, trial: str, checkpoint: str, points: Sequence[Mapping[str, Any]]) -> _Points | None:
        """What a checkpoint keeps of a network's own front; None, with a warning, where that cannot be read."""
        folder = self._driver.folder
        try:
            with tempfile.TemporaryDirectory() as room:
                path = folder.checkpoints / checkpoint / PREDICTIONS
                if folder.remote is not None:
                    path = Path(room) / PREDICTIONS
                    folder.remote.get(f"checkpoints/{checkpoint}/{PREDICTIONS}", path)
                kept = read(path)
            if kept.settings != len(points) or kept.macs.shape[1] != points[0]["count"]:
                raise PredictionsError("they are of another curve")
        except (OSError, PredictionsError) as error:
            _log.warning("predictions of %s cannot be read, it is compared without cascades: %s", trial, error)
            return None
        if self._halves is None:
            self._halves = halves(kept.labels, self._driver.spec.seed)
        return points_of(kept, self._counting(points))

    def _counting(self, points: Sequence[Mapping[str, Any]]) -> list[int]:
        """The settings on a curve's own front that meet the study's limits of MACs, thinned."""
        limit = self._driver.state.constraints.max_macs
        error = [1 - p["accuracy"] if limit is None or p["macs"] <= limit else np.nan for p in points]
        macs = np.array([p["macs"] for p in points])
        front = np.flatnonzero(non_dominated(error, macs))
        front = front[np.argsort(macs[front])]
        return front[np.unique(np.linspace(0, len(front) - 1, POINTS).astype(int))].tolist() if len(front) else []

    def _pairs(self, new: _Points, known: _Points, alone: bool) -> list[tuple[float, float]]:
        """(error, MACs) of pairs with a member of the new network, chosen on one half and scored on the other."""
        assert self._halves is not None
        forms = [(new.last, known.last)]
        if new.mean is not None and known.mean is not None:
            forms.append((new.mean, known.mean))
        both = [one if alone else _joined(one, other) for one, other in forms]
        mine = len(new.last.macs)
        if len(both[0].macs) < 2:
            return []
        low, high = both[0].macs.mean(axis=1).min(), 2 * both[0].macs.mean(axis=1).max()
        budgets = np.geomspace(low, high, BUDGETS)
        figures = np.stack(
            [_scored(both, mine, one, other, budgets) for one, other in (self._halves, self._halves[::-1])]
        )
        return [tuple(row) for row in figures.mean(axis=0).tolist() if np.isfinite(row).all()]

    def _improving(self, found: list[list[Any]], points: Sequence[Mapping[str, Any]], epoch: int) -> list[list[Any]]:
        """Those that no network, no cascade before and no other one of these dominates, within the limits."""
        limits = self._driver.state.constraints
        found = [
            each for each in found
            if (limits.max_macs is None or each[1] <= limits.max_macs)
            and (limits.min_accuracy is None or 1 - each[0] >= limits.min_accuracy)
        ]  # fmt: skip
        known = [(error, macs) for error, macs, _ in self._driver.state.joint_front(epoch)]
        known += [(1 - p["accuracy"], p["macs"]) for p in points]
        every = known + [(error, macs) for error, macs, _ in found]
        keep = non_dominated([e for e, _ in every], [m for _, m in every])[len(known) :]
        return [each for each, on in zip(found, keep, strict=True) if on]


def _names(trials: Sequence[Trial]) -> set[str]:
    return {trial.id for trial in trials}


def points_of(kept: Predictions, settings: Sequence[int]) -> _Points | None:
    """The answers of some settings of one network; None where there are none."""
    if not settings:
        return None
    shares = [kept.of(setting) for setting in settings]
    labels, macs = kept.labels, kept.macs[list(settings)]
    doubts = np.stack([doubt(each, _KIND) for each in shares])
    correct = np.stack([each.argmax(axis=1) == labels for each in shares])
    own = np.zeros(len(settings), dtype=np.int64) if shares_work(kept) else np.arange(len(settings))
    last, mean = Answers(doubts, correct, macs, own, labels), None
    if kept.count <= MOST_CLASSES["mean"]:
        totals = np.stack([scores(each).T for each in shares])
        mean = replace(last, correct=totals.argmax(axis=1) == labels, scores=totals)
    return _Points(last, mean)


def _joined(one: Answers, other: Answers) -> Answers:
    """The members of two networks, which share no work."""
    totals = None
    if one.scores is not None and other.scores is not None:
        totals = np.concatenate([one.scores, other.scores])
    doubts, correct, macs = (
        np.concatenate([getattr(one, name), getattr(other, name)]) for name in ("doubts", "correct", "macs")
    )
    family = np.concatenate([one.family, other.family + one.family.max() + 1])
    return Answers(doubts, correct, macs, family, one.labels, totals)


def _scored(
    forms: Sequence[Answers],
    mine: int,
    chosen_on: NDArray[np.intp],
    scored_on: NDArray[np.intp],
    budgets: NDArray[np.float64],
) -> NDArray[np.float64]:
    """(error, MACs) (B, 2) on one half of the best pair within each budget by the other; NaN where none fits.

    Pairs have one of the first `mine` members, in front or behind.
    """
    found: list[tuple[float, int, Chain, Answers]] = []
    for answers in forms:
        half = answers.on(chosen_on)
        every = range(len(answers.macs))
        parts = [firsts_before(half, every[:mine], every)]
        if mine < len(every):
            parts.append(firsts_before(half, every[mine:], every[:mine]))
        for part in parts:
            rows = zip(part.macs, part.right, part.chains, strict=True)
            found += [(macs, right, chain, answers) for macs, right, chain in rows]
    figures = np.full((len(budgets), 2), np.nan)
    if not found:
        return figures
    keep = np.flatnonzero(non_dominated([-float(each[1]) for each in found], [each[0] for each in found]))
    front = sorted((found[i] for i in keep.tolist()), key=lambda each: each[0])
    macs = np.array([each[0] for each in front])
    done: dict[int, tuple[float, float]] = {}
    for row, budget in enumerate(budgets.tolist()):
        place = int(np.searchsorted(macs, budget, side="right")) - 1
        if place < 0:
            continue
        if place not in done:
            executed = execute(front[place][3], front[place][2])
            done[place] = 1 - float(executed.correct[scored_on].mean()), float(executed.macs[scored_on].mean())
        figures[row] = done[place]
    return figures
