"""The frontier of a study as rows for people and programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search.errors import InputError
from search.pareto import front as pareto
from search.pareto.confidence import wilson
from search.points.rows import point_id, point_row
from search.state.state import StudyState
from search.units import show_count, show_share


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A non-dominated operating point; accuracy on the validation split, MACs per image.

    `layer` 0 is the front, 1 the front of the rest. `seeds`: how many seeds its configuration was trained
    with to this epoch. `membership`: the probability to be on the front (`search.pareto.confidence`), `evidence`
    what that was drawn from ("images" or "counts"). `latency_ms`, `latency_ms_64`: milliseconds per image
    where they were measured, alone and in batches of 64 (`search.frontier.latency`).
    """

    trial: str
    epoch: int
    index: int
    method: str
    variant: str
    network: str
    accuracy: float
    macs: float
    macs_std: float
    macs_full: int
    params: int
    setting: dict[str, Any]
    knobs: dict[str, Any]
    checkpoint: str
    config: dict[str, Any]
    config_id: str
    study: str = ""
    seed: int = 0
    correct: int | None = None
    count: int | None = None
    layer: int = 0
    seeds: int = 1
    membership: float | None = None
    evidence: str = ""
    latency_ms: float | None = None
    latency_ms_64: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval (Wilson) that the number of validation images allows; None where it is unknown."""
        return wilson(self.correct, self.count) if self.count and self.correct is not None else None

    @property
    def point_id(self) -> str:
        """The identity of the point in the Parquet data set."""
        return point_id(self.trial, self.epoch, self.index)

    def record(self) -> dict[str, Any]:
        """Plain values, with the point's identity and interval."""
        low, high = self.interval or (None, None)
        return {"point_id": self.point_id, **asdict(self), "low": low, "high": high}


def point_of(row: Mapping[str, Any], layer: int = 0) -> FrontPoint:
    """A row of the operating-point table (`search.points.schema`) as a point; columns that it lacks are not told."""
    trial, epoch, index = str(row["point_id"]).rsplit("-", 2)
    return FrontPoint(
        trial=trial, epoch=int(epoch), index=int(index), method=row["method"], variant=row["variant"] or "",
        network=row["network"] or "", accuracy=row["accuracy"], macs=row["macs"], macs_std=row["macs_std"],
        macs_full=row["macs_full"], params=row["params"], setting=json.loads(row["setting"]),
        knobs=json.loads(row["knobs"]), checkpoint=row["checkpoint"] or "", config=json.loads(row["config"]),
        config_id=row["config_id"], study=row["study"], seed=row["seed"] or 0, correct=row["correct"],
        count=row["count"], layer=layer,
    )  # fmt: skip


def front_point(state: StudyState, key: tuple[str, int, int]) -> FrontPoint:
    """The point of one (trial, epoch, index)."""
    name, epoch, index = key
    return point_of(point_row(state, state.trials[name], epoch, index))


def front_points(
    state: StudyState,
    *,
    max_macs: float | None = None,
    min_accuracy: float | None = None,
    method: str | None = None,
) -> list[FrontPoint]:
    """The front, cheapest first; with `method` the front of that method's points alone."""
    if method is None:
        found = [front_point(state, key) for key in state.front()]
    else:
        found = _front_of_method(state, method)
    return [
        point
        for point in found
        if (max_macs is None or point.macs <= max_macs) and (min_accuracy is None or point.accuracy >= min_accuracy)
    ]


def _front_of_method(state: StudyState, method: str) -> list[FrontPoint]:
    if all(trial.method != method for trial in state.trials.values()):
        known = sorted({trial.method for trial in state.trials.values()})
        raise InputError(f"no trial of method {method!r} in this study; it has {', '.join(known) or 'no trials'}")
    keys = [
        (trial.id, epoch, index)
        for trial in state.trials.values()
        if trial.method == method
        for epoch, curve in trial.curves.items()
        for index in range(len(curve))
    ]
    points = [front_point(state, key) for key in keys]
    mask = pareto.non_dominated(
        np.array([1 - point.accuracy for point in points]), np.array([point.macs for point in points])
    )
    return sorted((p for p, keep in zip(points, mask, strict=True) if keep), key=lambda p: p.macs)


def unmet(state: StudyState, max_macs: float | None, min_accuracy: float | None) -> str:
    """Why no point of the front meets a budget: the nearest there is."""
    front = front_points(state)
    if not front:
        return "the study has no operating point yet"
    cheapest, best = front[0], front[-1]
    wishes = []
    if max_macs is not None:
        wishes.append(f"at most {show_count(max_macs)} MACs")
    if min_accuracy is not None:
        wishes.append(f"accuracy of at least {show_share(min_accuracy)}")
    return (
        f"no operating point has {' and '.join(wishes)}; the cheapest costs {show_count(cheapest.macs)} MACs"
        f" ({show_share(cheapest.accuracy)}), the most accurate has {show_share(best.accuracy)}"
        f" ({show_count(best.macs)} MACs)"
    )
