"""What an operating point must meet to count: accuracy, MACs, parameters, latency, seconds of training.

A point that misses one is no point: on no front, in no volume. A curve without any that counts stands
below every curve that has one, and the less it misses the higher (constraint domination: Deb, 2000),
so that a search is led to where points begin to count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from search.units import show_count, show_share

if TYPE_CHECKING:
    from trainables.contracts.network import RoutedNetwork


@dataclass(frozen=True, slots=True)
class Constraints:
    """Limits; None is none. `max_latency` in milliseconds an image, `max_seconds` of one full training."""

    min_accuracy: float | None = None
    max_macs: float | None = None
    max_params: float | None = None
    max_latency: float | None = None
    max_seconds: float | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any] | None) -> Constraints:
        """From a study file's table; unknown keys are of later versions."""
        return cls(**{k: v for k, v in (values or {}).items() if k in cls.__dataclass_fields__})

    def __bool__(self) -> bool:
        return any(getattr(self, name) is not None for name in self.__dataclass_fields__)

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
        if self.max_macs is not None and network.macs_min > self.max_macs:
            return f"costs at least {show_count(network.macs_min)} MACs, more than {show_count(self.max_macs)}"
        return ""

    def __str__(self) -> str:
        words = []
        if self.min_accuracy is not None:
            words.append(f"accuracy of at least {show_share(self.min_accuracy)}")
        for limit, unit in ((self.max_macs, "MACs"), (self.max_params, "parameters")):
            if limit is not None:
                words.append(f"at most {show_count(limit)} {unit}")
        for value, unit in ((self.max_latency, "ms an image"), (self.max_seconds, "seconds of training")):
            if value is not None:
                words.append(f"at most {value:g} {unit}")
        return " and ".join(words)


def _over(value: float, limit: float | None) -> float:
    return 0.0 if limit is None else max(0.0, value / limit - 1.0)
