"""The frontier of a study as rows for people and programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from search.pareto.confidence import wilson
from search.points.rows import point_id, point_row
from search.state.state import StudyState
from search.units import parsed


@dataclass(frozen=True, slots=True)
class FrontPoint:
    """A non-dominated operating point; accuracy on the validation split, MACs per image.

    `layer` 0 is the front, 1 the front of the rest. `seeds`: how many seeds its configuration was trained
    with to this epoch. `membership`: the probability to be on the front (`search.pareto.confidence`), `evidence`
    what that was drawn from ("images" or "counts"). `expected`: the accuracy to be expected on other images, with its
    95 % interval `expected_low` to `expected_high` (`search.frontier.expected`); None where too little is known or
    nobody asked. `latency_ms`, `latency_ms_64`: milliseconds per image
    where they were measured, alone and in batches of 64 (`search.frontier.latency`); `latency_form` is what one image
    alone was quickest with under onnxruntime (`search.frontier.exported`), "int8" where that answers otherwise, empty
    where our own execution was measured.
    `merit` and `cost`: the figures of the study's own axes, for which accuracy and MACs stand there; None where its
    axes are those. `counted_macs`: the MACs, where the study's cost is a latency, and `machine`: what measured it
    (None and empty elsewhere). `kind`: "point", or "cascade" (`search.cascades.front`).
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
    expected: float | None = None
    expected_low: float | None = None
    expected_high: float | None = None
    latency_ms: float | None = None
    latency_ms_64: float | None = None
    latency_form: str = ""
    merit: float | None = None
    cost: float | None = None
    counted_macs: float | None = None
    machine: str = ""
    kind: str = "point"

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
        macs_full=row["macs_full"], params=row["params"], setting=parsed(row["setting"]),
        knobs=parsed(row["knobs"]), checkpoint=row["checkpoint"] or "", config=parsed(row["config"]),
        config_id=row["config_id"], study=row["study"], seed=row["seed"] or 0, correct=row["correct"],
        count=row["count"], layer=layer, merit=row.get("merit"), cost=row.get("cost"),
        counted_macs=row.get("counted_macs"), machine=row.get("machine") or "",
    )  # fmt: skip


def in_macs(point: FrontPoint) -> FrontPoint:
    """A point of a study whose cost is a latency with its MACs as they were counted; others as they are."""
    return point if point.counted_macs is None else replace(point, macs=point.counted_macs)


def front_point(state: StudyState, key: tuple[str, int, int]) -> FrontPoint:
    """The point of one (trial, epoch, index)."""
    name, epoch, index = key
    return point_of(point_row(state, state.trials[name], epoch, index))
