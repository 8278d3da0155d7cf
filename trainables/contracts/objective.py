"""What a study searches for: a figure of merit against a cost, each with its name, unit, direction and bounds.

Routed networks have accuracy and MACs. What else speaks the protocol of `trainables.external.Trainable` names its own
two axes, for example an error in kelvin against milliseconds. Curves, rungs, samplers and fronts all compute with a
share of errors in [0, 1] and a positive cost of which the logarithm counts, the smaller the better both; an
`Objective` says what figures of its axes are there, and what is shown of them.

Methods may be searched for against measured milliseconds instead of MACs: then the objective has a `Timing`, workers
measure every operating point, and its counted MACs stand beside (``counted_macs``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DECADES = 2.0
"""A linear axis of costs is as wide as so many decades of MACs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: `best` and `worst` bound what it can show, `unit` may be empty.

    `log`: whether ratios count (milliseconds) or differences (percent). Where `best` of a logarithmic cost is not
    known it is None: nothing depends on it.
    """

    name: str
    unit: str = ""
    best: float | None
    worst: float
    maximise: bool
    log: bool = False

    def __post_init__(self) -> None:
        said = f"{self.name}: best = {self.best}, worst = {self.worst}"
        bounds = [self.worst] if self.best is None else [self.best, self.worst]
        if not all(math.isfinite(bound) for bound in bounds):
            raise ValueError(f"{said}: bounds must be finite")
        if self.best is not None and (self.best == self.worst or (self.best > self.worst) != self.maximise):
            way = "above" if self.maximise else "below"
            raise ValueError(f"{said}: the best must lie {way} the worst of an axis that is {self.way}d")
        if self.log and min(bounds) <= 0:
            raise ValueError(f'{said}: an axis with scale = "log" has bounds above 0')

    @property
    def way(self) -> str:
        """The direction in a word: maximize or minimize."""
        return "maximize" if self.maximise else "minimize"

    @property
    def title(self) -> str:
        """Name and unit, for tables and pictures."""
        return f"{self.name} ({self.unit})" if self.unit and self.unit != self.name else self.name

    def place(self, value: float) -> float:
        """How far a value lies from `best` towards `worst`: 0 at the one, 1 at the other."""
        assert self.best is not None, "an axis without a best value has no places"
        if self.log:
            return math.log(value / self.best) / math.log(self.worst / self.best)
        return (value - self.best) / (self.worst - self.best)

    def at(self, place: float) -> float:
        """The value at a place."""
        assert self.best is not None, "an axis without a best value has no places"
        if self.log:
            return self.best * (self.worst / self.best) ** place
        return self.best + place * (self.worst - self.best)


LATENCY = "latency"
"""The name of the axis of cost that workers measure."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """How workers measure latency: milliseconds an image in batches of `batch`, on so many `threads` of the processor.

    A figure is the median of `repeats` measurements, each of which is the median of its passes
    (`trainables.inference.latency.repeated`).
    """

    batch: int = 1
    threads: int = 1
    repeats: int = 3

    def record(self) -> dict[str, int]:
        """Plain values."""
        return {"batch": self.batch, "threads": self.threads, "repeats": self.repeats}

    def __str__(self) -> str:
        images = "one image at a time" if self.batch == 1 else f"batches of {self.batch}"
        return f"{images}, {self.threads} thread{'s' if self.threads != 1 else ''}, median of {self.repeats} repeats"


def _accuracy() -> Axis:
    return Axis(name="accuracy", best=1.0, worst=0.0, maximise=True)


def _macs() -> Axis:
    return Axis(name="macs", unit="MACs", best=None, worst=1e15, maximise=False, log=True)


ACCURACY, BALANCED = "accuracy", "balanced_accuracy"
"""What methods are searched for: the share of images that are right, or the mean of that share over the classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """The two axes of a study; by default accuracy and MACs, which are what everything computes with.

    `timing`: how workers measure the cost, where that is latency; None where it is told or counted.
    """

    merit: Axis = field(default_factory=_accuracy)
    cost: Axis = field(default_factory=_macs)
    timing: Timing | None = None

    @property
    def usual(self) -> bool:
        """Whether the axes are those of methods: accuracy, plain or balanced, and MACs."""
        return self.merit.name in (ACCURACY, BALANCED) and self.cost.name == "macs"

    @property
    def balanced(self) -> bool:
        """Whether accuracy is the mean over the classes (`trainables.inference.balanced`)."""
        return self.usual and self.merit.name == BALANCED

    def accuracy_of(self, merit: float) -> float:
        """The share in [0, 1] that stands for a figure of merit; what is worse than `worst` counts as that.

        Raises ValueError for what is no finite number or better than the best that the axis can show.
        """
        axis = self.merit
        _finite(axis, merit)
        if axis.log and merit <= 0:
            raise ValueError(f'{axis.name} = {merit:g}: the axis has scale = "log"; its figures are above 0')
        place = axis.place(merit)
        if place < -1e-9:
            raise ValueError(
                f"{axis.name} = {merit:g} is better than the best that [objective] names ({axis.best:g}):"
                f" give merit a better bound, best = ..."
            )
        return 1.0 - min(1.0, max(0.0, place))

    def merit_at(self, accuracy: float) -> float:
        """The figure of merit for which a share stands, to twelve digits."""
        return accuracy if self.usual else _neat(self.merit.at(1.0 - accuracy))

    def macs_of(self, cost: float) -> float:
        """The positive number, smaller for what is cheaper, whose logarithm stands for a cost.

        A logarithmic cost that is minimised stands for itself, one that is maximised for its inverse; a linear one has
        `_DECADES` from its best to its worst. Raises ValueError for what is no finite number, or not above 0 on a
        logarithmic axis.
        """
        axis = self.cost
        _finite(axis, cost)
        if not axis.log:
            return 10.0 ** (_DECADES * axis.place(cost))
        if cost <= 0:
            raise ValueError(
                f'{axis.name} = {cost:g}: a cost is above 0; where it may be 0, say scale = "linear" in [objective]'
            )
        return 1.0 / cost if axis.maximise else cost

    def cost_at(self, macs: float) -> float:
        """The cost for which a positive number stands, to twelve digits."""
        if self.usual:
            return macs
        if not self.cost.log:
            return _neat(self.cost.at(math.log10(macs) / _DECADES))
        return _neat(1.0 / macs) if self.cost.maximise else macs

    @property
    def reference(self) -> dict[str, float]:
        """The reference point of hypervolumes, as {error, macs}: the worst of both axes."""
        return {"error": 1.0, "macs": self.macs_of(self.cost.worst)}

    def record(self) -> dict[str, Any]:
        """As plain values, for workers."""
        names = Axis.__dataclass_fields__
        axes = {each: {name: getattr(getattr(self, each), name) for name in names} for each in ("merit", "cost")}
        return axes if self.timing is None else {**axes, "timing": self.timing.record()}

    @classmethod
    def of(cls, record: Mapping[str, Mapping[str, Any]]) -> Objective:
        """What `record` made plain values of."""
        timing = Timing(**record["timing"]) if record.get("timing") else None
        return cls(merit=Axis(**record["merit"]), cost=Axis(**record["cost"]), timing=timing)


def _finite(axis: Axis, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{axis.name} = {value!r} is no finite number")


def _neat(value: float) -> float:
    return float(f"{value:.12g}")
