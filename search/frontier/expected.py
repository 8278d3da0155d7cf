r"""What operating points are expected to show on other images than those that they were chosen by.

A front is the best of many measured accuracies, and the best of many is partly the luckiest: its figures shrink on
other images, and another point may be better. Here every accuracy is set against what its neighbours say. Of the trials
of a method, within the MACs b of the point in question,

    y_i = log(least error of trial i within b) = f(x_i, r_i) + s_i + e_i

f is a Gaussian process over configurations and epochs (`search.sampling.gaussian_process`; r is log_3 of the epoch),
s_i is what is the network's own (its seed), of a variance that is fitted, and e_i is the error of a measurement on n
images, whose variance is known: kappa (1 - err) / (n err). Expected is the mean of f + s, without e: it is drawn
towards the neighbours the more, the fewer the images are and the better the neighbours agree. This is an empirical
Bayes estimate (Efron and Morris, 1975) with the process as its prior.

kappa, at most 1, is the share of a measurement's variance that differs between networks: images that all get wrong
move no comparison. Where it is known which images points got right, half of the mean share of images on which two of
them disagree, over the binomial's variance, estimates it (`own_share`).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from search.sampling.codec import Codec
from search.sampling.gaussian_process import Process
from spaces.space import Fixed, Space

Array = np.ndarray

MOST = 160
"""At most so many trials of a method are set against a point: those that are the best within its MACs."""
LEAST = 6
"""With fewer trials of a method nothing is said about its points."""
_NOISE = 0.05
_FITS = 2


@dataclass(frozen=True, slots=True)
class Shown:
    """The curve of a trial at an epoch: MACs (k,) and errors (k,) measured on `count` images."""

    config: Mapping[str, Any]
    epoch: int
    macs: Sequence[float]
    error: Sequence[float]
    count: int
    _steps: list[tuple[list[float], list[float]]] = field(default_factory=list, repr=False, compare=False)

    @property
    def method(self) -> str:
        """The name of its method."""
        return self.config["method"]

    def least(self, macs: float) -> float:
        """The least error within so many MACs; infinite where no point is."""
        if not self._steps:
            order = sorted(zip(self.macs, self.error, strict=True))
            errors = np.minimum.accumulate([error for _, error in order]).tolist()
            self._steps.append(([cost for cost, _ in order], errors))
        costs, errors = self._steps[0]
        within = bisect_right(costs, macs)
        return errors[within - 1] if within else math.inf


@dataclass(frozen=True, slots=True)
class Expected:
    """An expected error, and the interval that holds it with 95 % probability."""

    error: float
    low: float
    high: float


class Neighbours:
    """The trials of a study by method, and what they say of one another.

    `shown`: of each trial the curve of its last epoch, and further ones that are asked for. `kappa`: see the module.
    """

    def __init__(self, spaces: Mapping[str, Space], shown: Sequence[Shown], *, kappa: float = 1.0) -> None:
        self._kappa = kappa
        self._shown = shown
        self._codecs = {name: Codec(space) for name, space in spaces.items() if _free(space)}
        self._by_method: dict[str, list[int]] = {}
        for i, each in enumerate(shown):
            self._by_method.setdefault(each.method, []).append(i)
        self._rows: dict[str, Array] = {}
        self._processes: dict[str, Process] = {}

    def expected(self, index: int, macs: float) -> Expected | None:
        """What the curve `shown[index]` is expected to reach within so many MACs; None where too little is known."""
        method = self._shown[index].method
        own = self._by_method[method]
        if method not in self._codecs or len(own) < LEAST or not math.isfinite(self._shown[index].least(macs)):
            return None
        if method not in self._rows:
            self._rows[method] = self._codecs[method].encode([self._shown[i].config for i in own])
        errors = np.array([self._shown[i].least(macs) for i in own])
        within = np.flatnonzero(np.isfinite(errors))
        order = within[np.argsort(errors[within], kind="stable")][:MOST]
        at = np.flatnonzero(np.array(own)[order] == index)
        if len(order) < LEAST or not len(at):
            return None
        error = np.clip(errors[order], 1e-4, 1 - 1e-6)
        count = np.array([self._shown[own[i]].count for i in order], dtype=float)
        values = np.log(error)
        middle, spread = float(values.mean()), max(float(values.std()), 1e-3)
        y, known = (values - middle) / spread, self._kappa * (1 - error) / (error * count) / spread**2
        features = self._codecs[method].features(self._rows[method][order])
        rung = np.log([self._shown[own[i]].epoch for i in order]) / math.log(3)
        process = self._fitted(method, features, rung, y, known)
        process.condition(features, rung, y, known)
        means, deviations = process.without_errors()
        mean, deviation = means[at[0]] * spread + middle, deviations[at[0]] * spread
        low, error_, high = (min(1.0, math.exp(mean + z * deviation)) for z in (-1.959964, 0.0, 1.959964))
        return Expected(error_, low, high)

    def _fitted(self, method: str, features: Sequence[Array], rung: Array, y: Array, known: Array) -> Process:
        """The process of a method; its hyperparameters are fitted once, to the first that is asked for."""
        if method not in self._processes:
            process = self._processes[method] = Process(len(features), 2, _NOISE)
            for _ in range(_FITS):
                process.fit(features, rung, y, known)
        return self._processes[method]


def own_share(bits: Array) -> float:
    """kappa, from which of the images (i,) each of the points got right: bits (n, i) of booleans.

    1 where fewer than two points, or none that err, are known.
    """
    if len(bits) < 2:
        return 1.0
    right = bits.mean(1)
    binomial = float((right * (1 - right)).mean())
    # the mean share of images on which two different points disagree
    share = bits.mean(0)
    disagree = float((2 * share * (1 - share)).mean()) * len(bits) / (len(bits) - 1)
    return min(1.0, 0.5 * disagree / binomial) if binomial > 0 else 1.0


def _free(space: Space) -> bool:
    return any(not isinstance(parameter, Fixed) for parameter in space.parameters.values())
