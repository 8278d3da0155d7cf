"""Chooses the operating point to promote: under a budget, above an accuracy, by its id, or one for every budget."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from search.errors import InputError
from search.frontier.neighbours import expected, shown_accuracy
from search.frontier.point import FrontPoint, front_point, point_of
from search.frontier.pool import StudyPoints
from search.frontier.query import TOLD, Query, best_rows, front_rows, in_budget, pool_of, unmet
from search.state.state import StudyState
from search.units import AxesText, parse_count
from spaces.space import nearest
from trainables.contracts.objective import Objective

_CANDIDATES = 64  # points of the highest measured accuracy that are compared by what is expected of them


@dataclass(frozen=True, slots=True)
class Budget:
    """What was asked for: at most so many MACs per image, at least this validation accuracy.

    `max_cost`: at most so many milliseconds, in a study whose cost is a latency.
    """

    max_macs: float | None = None
    min_accuracy: float | None = None
    max_cost: float | None = None

    @property
    def cheapest(self) -> bool:
        """Whether the cheapest above an accuracy is wanted, not the most accurate under a cost."""
        return self.max_macs is None and self.max_cost is None and self.min_accuracy is not None

    def record(self) -> dict[str, float | None]:
        """Plain values."""
        found = {"max_macs": self.max_macs, "min_accuracy": self.min_accuracy}
        return found if self.max_cost is None else {**found, "max_cost": self.max_cost}


@dataclass(frozen=True, slots=True)
class Target:
    """An alias, the budget that it stands for, and the point that it is to serve."""

    alias: str
    budget: Budget
    point: FrontPoint


def choose(source: StudyPoints, budget: Budget, method: str | None = None) -> FrontPoint:
    """The point under the budget of the highest expected accuracy whose checkpoint exists; of equals the cheapest.

    What is expected of a point is not what was measured of it: the best of many measurements are partly the luckiest
    (`search.frontier.expected`; with few trials of a method its measurements stand). With a least accuracy alone it is
    the cheapest point of which at least that is expected, or measured, where it is expected of none. All operating
    points count that miss none of the study's constraints, so that the second best stands in where the checkpoint of
    the best is gone. `max_cost`: milliseconds, in a study whose cost is a latency. Raises `InputError` naming the
    cheapest and the most accurate there is where none fits.
    """
    wish = Query(
        max_macs=budget.max_macs, min_accuracy=budget.min_accuracy, cost=budget.max_cost,
        methods=[method] if method else [],
    )  # fmt: skip
    axes = AxesText.of(source.created).objective
    if axes.timing is not None:
        wish = wish.on_axes(axes)  # of others the budget is in what stands for their axes
    pool = pool_of([source], wish, columns=TOLD)
    fitting = in_budget(pool, np.arange(len(pool.table)))
    if not len(fitting):
        raise InputError(unmet(pool))
    folder = source.study.folder
    kept = folder.kept()
    there = [name in kept for name in pool.table["checkpoint"].take(fitting).to_pylist()]
    if not any(there):
        best = in_budget(pool, front_rows(pool.error, pool.macs)[0])
        raise InputError(
            f"{len(best)} operating point(s) fit, such as {pool.table['point_id'][int(best[-1])]}, but none has its"
            f" checkpoint in {folder.stored_checkpoints or folder.checkpoints} (kept are those of the study's first two"
            " fronts and of each method's own)"
        )
    cheapest = budget.cheapest
    rows = best_rows(pool, fitting[there], cheapest=cheapest)[:_CANDIDATES]
    candidates = expected([source], [point_of(pool.table.slice(int(row), 1).to_pylist()[0]) for row in rows])
    if cheapest:
        least = budget.min_accuracy
        assert least is not None
        return next((point for point in candidates if shown_accuracy(point) >= least), candidates[0])
    return min(candidates, key=lambda point: (-shown_accuracy(point), point.macs))


def find(state: StudyState, point_id: str) -> FrontPoint:
    """The point of an identity ``t0003-9-2`` (trial, epoch, index in the curve)."""
    trial, _, rest = point_id.partition("-")
    epoch, _, index = rest.partition("-")
    known = state.trials.get(trial)
    if known is None:
        raise InputError(f"no trial of point {point_id!r}{nearest(trial, list(state.trials))}")
    if not (epoch.isdigit() and index.isdigit() and int(index) < len(known.curves.get(int(epoch), []))):
        epochs = ", ".join(map(str, known.curves)) or "none"
        raise InputError(f"no point {point_id!r}: trial {trial} has curves at epochs {epochs}")
    return front_point(state, (trial, int(epoch), int(index)))


def family(alias: str, budgets: Sequence[float | str]) -> dict[str, Budget]:
    """An alias for every budget, cheapest first: ``champion-5M`` stands for at most 5,000,000 MACs.

    Raises `InputError` for a budget that is no positive number, or for none.
    """
    counts = sorted({parse_count(budget) for budget in budgets})
    if not counts or counts[0] < 1:
        raise InputError(f"budgets {', '.join(map(str, budgets))!r}: write MACs per image, for example 5M,10M,20M")
    return {f"{alias}-{_spelt(count)}": Budget(max_macs=count) for count in counts}


def own_family(alias: str, budgets: Sequence[float | str], objective: Objective) -> dict[str, Budget]:
    """The same for costs in the study's own figures: ``champion-50`` stands for at most 50 trees."""
    found = {}
    for text in budgets:
        try:
            macs = objective.macs_of(float(text))
        except ValueError as error:
            raise InputError(f"budgets: {text!r} is no {objective.cost.title}: {error}") from None
        found[f"{alias}-{re.sub('[^0-9A-Za-z]', '_', f'{float(text):g}')}"] = Budget(max_macs=macs)
    if not found:
        raise InputError(f"budgets: write figures of {objective.cost.title}, for example 10,50")
    return dict(sorted(found.items(), key=lambda each: each[1].max_macs or 0.0))


def _spelt(count: float) -> str:
    """5000000 as 5M, 2500000 as 2500k: exact, and without the point that an alias may not hold."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size and count % size == 0:
            return f"{count / size:.0f}{letter}"
    return f"{count:.0f}"
