"""The frontier of a study as rows for people and programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from search.errors import InputError
from search.pareto import front as pareto
from search.pareto.confidence import wilson
from search.points.rows import config_id
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
        return f"{self.trial}-{self.epoch}-{self.index}"

    def record(self) -> dict[str, Any]:
        """Plain values, with the point's identity and interval."""
        low, high = self.interval or (None, None)
        return {"point_id": self.point_id, **asdict(self), "low": low, "high": high}


def front_point(state: StudyState, key: tuple[str, int, int]) -> FrontPoint:
    """The row of one (trial, epoch, index)."""
    name, epoch, index = key
    trial = state.trials[name]
    point = trial.curves[epoch][index]
    return FrontPoint(
        trial=name,
        epoch=epoch,
        index=index,
        method=trial.method,
        variant=str(trial.config.get("variant", "")),
        network=str(trial.config.get("network", "")),
        accuracy=point["accuracy"],
        macs=point["macs"],
        macs_std=point["macs_std"],
        macs_full=trial.macs_full,
        params=trial.params,
        setting=point["setting"],
        knobs=point["knobs"],
        checkpoint=trial.checkpoints.get(epoch, ""),
        config=trial.config,
        config_id=config_id(trial.identity),
        study=state.created["spec"]["name"],
        seed=trial.seed,
        correct=point["correct"],
        count=point["count"],
    )


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
