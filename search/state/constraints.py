"""What an operating point must meet to count: accuracy, MACs, parameters, latency, seconds of training.

A point that misses one is no point: on no front, in no volume. A curve without any that counts stands
below every curve that has one, and the less it misses the higher (constraint domination: Deb, 2000),
so that a search is led to where points begin to count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from search.units import AxesText, show_count
from trainables.contracts.objective import Objective

if TYPE_CHECKING:
    from trainables.contracts.network import RoutedNetwork


@dataclass(frozen=True, slots=True)
class Constraints:
    """Limits; None is none. `max_latency` in milliseconds an image, `max_seconds` of one full training.

    `max_macs` limits the study's cost, whatever stands for it; `max_counted` the MACs where that cost is a measured
    latency.
    """

    min_accuracy: float | None = None
    max_macs: float | None = None
    max_params: float | None = None
    max_latency: float | None = None
    max_seconds: float | None = None
    max_counted: float | None = None
    objective: Objective = field(default_factory=Objective)

    @classmethod
    def of(cls, values: Mapping[str, Any] | None, objective: Objective | None = None) -> Constraints:
        """From a study file's table, `merit` and `cost` as what stands for them on the axes of the `objective`.

        Unknown keys are of later versions. Raises ValueError for a figure that its axis cannot show.
        """
        axes, given = objective or Objective(), {k: v for k, v in (values or {}).items() if v is not None}
        kept = {k: v for k, v in given.items() if k in _LIMITS}
        if axes.timing is not None and "max_macs" in kept:
            kept["max_counted"] = kept.pop("max_macs")
        if "merit" in given:
            kept["min_accuracy"] = axes.accuracy_of(given["merit"])
        if "cost" in given:
            kept["max_macs"] = axes.macs_of(given["cost"])
        return cls(**kept, objective=axes)

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in _LIMITS)

    def misses(self, points: Sequence[Mapping[str, Any]], params: float, seconds: float) -> np.ndarray:
        """By how much each point (n,) misses, as the sum of the shares of the limits; 0 where it counts.

        `seconds` are those of the full training, as far as it is known. A latency that was not
        measured misses wholly.
        """
        total = np.zeros(len(points))
        for index, point in enumerate(points):
            if self.min_accuracy is not None:
                total[index] += max(0.0, (self.min_accuracy - point["accuracy"]) / max(self.min_accuracy, 1e-9))
            total[index] += _over(point["macs"], self.max_macs)
            if self.max_counted is not None:
                total[index] += _over(point["counted_macs"], self.max_counted)
            if self.max_latency is not None:
                total[index] += _over(point.get("latency_ms", 2 * self.max_latency), self.max_latency)
        return total + _over(params, self.max_params) + _over(seconds, self.max_seconds)

    def besides_accuracy(self) -> Constraints:
        """The same limits without that of the accuracy."""
        return replace(self, min_accuracy=None)

    def refuses(self, network: RoutedNetwork) -> str:
        """Why a network that is not trained yet can meet them in no setting; empty where it may."""
        params = sum(network.params_by_part().values())
        if self.max_params is not None and params > self.max_params:
            return f"has {show_count(params)} parameters, more than {show_count(self.max_params)}"
        most = self.max_macs if self.objective.timing is None else self.max_counted
        if most is not None and network.macs_min > most:
            return f"costs at least {show_count(network.macs_min)} MACs, more than {show_count(most)}"
        return ""

    def __str__(self) -> str:
        words, axes = [], AxesText(self.objective)
        if self.min_accuracy is not None:
            least = "least" if self.objective.merit.maximise else "most"
            words.append(f"{axes.merit_title} of at {least} {axes.merit(self.min_accuracy)}")
        if self.max_macs is not None:
            most = "least" if self.objective.cost.maximise else "most"
            words.append(f"at {most} {axes.cost(self.max_macs)} {axes.cost_title}")
        if self.max_counted is not None:
            words.append(f"at most {show_count(self.max_counted)} MACs")
        if self.max_params is not None:
            words.append(f"at most {show_count(self.max_params)} parameters")
        for value, unit in ((self.max_latency, "ms an image"), (self.max_seconds, "seconds of training")):
            if value is not None:
                words.append(f"at most {value:g} {unit}")
        return " and ".join(words)


_LIMITS = ("min_accuracy", "max_macs", "max_params", "max_latency", "max_seconds", "max_counted")


def _over(value: float, limit: float | None) -> float:
    return 0.0 if limit is None else max(0.0, value / limit - 1.0)
