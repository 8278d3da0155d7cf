"""What trials on other images say about configurations here: the beginning of a model.

How configurations of a method compare carries over from one set of images to another better than what they reach. A
process of the earlier trials (`search.sampling.gaussian_process`) foretells, within the budget that lies where this
study's budget lies in its range of MACs, the logarithm of the error, in units of its deviation there: z(x). The model
of this study has the prior mean a z(x), and

    a = (sum_i z_i y_i + n0 a0) / (sum_i z_i^2 + n0)

over its own observations y: it begins at a0, and what misleads is forgotten as trials of this study contradict it.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from search.sampling.codec import Codec
from search.sampling.gaussian_process import Process
from search.sampling.view import View

Array = np.ndarray

BELIEF, OBSERVATIONS = 0.7, 4.0
"""a0 and n0: what is believed of another study, and how many observations that is worth."""
LEAST = 6
"""Trials of a method elsewhere that it takes."""
_NOISE = 0.02
_FITS = 3


class Transfer:
    """The earlier trials of a method, as rows of a space."""

    def __init__(self, view: View, method: str, codec: Codec) -> None:
        trials = [t for t in view.elsewhere if t.method == method and t.steps(0)[0]]
        self._codec, self._steps = codec, [trial.steps(0) for trial in trials]
        everyones = [macs for trial in view.elsewhere for macs in trial.steps(0)[0]]
        self._range = math.log(min(everyones)), math.log(max(everyones))
        self.rows = codec.encode([trial.config for trial in trials])
        self._features, self._rung = codec.features(self.rows), np.zeros(len(trials), dtype=int)
        self._process = Process(len(codec.groups), 1, _NOISE)
        values = self._values(0.5)
        for _ in range(_FITS):
            self._process.fit(self._features, self._rung, values)

    @classmethod
    def of(cls, view: View, method: str, codec: Codec) -> Transfer | None:
        """The transfer of a method, made once a study; None where too little is known elsewhere."""
        if method not in view.transfers:
            there = sum(t.method == method and bool(t.steps(0)[0]) for t in view.elsewhere)
            view.transfers[method] = cls(view, method, codec) if there >= LEAST and codec.groups else None
        return view.transfers[method]

    def within(self, place: float) -> Foretold:
        """What is foretold within the budget at a place in [0, 1] of the range of MACs elsewhere."""
        values = self._values(place)
        self._process.condition(self._features, self._rung, values)
        order = np.argsort(values, kind="stable")
        return Foretold(self._process, self.rows[order])

    def _values(self, place: float) -> Array:
        """Of every trial the log of the least error within a budget (of its cheapest point); mean 0, deviation 1."""
        low, high = self._range
        budget = math.exp(low + place * (high - low))
        least = [errors[max(1, bisect_right(macs, budget)) - 1] for macs, errors in self._steps]
        values = np.log(np.maximum(least, 1e-6))
        return (values - values.mean()) / max(float(values.std()), 1e-3)


class Foretold:
    """z(x) within one budget; `best`: the rows elsewhere, the best first."""

    def __init__(self, process: Process, best: Array) -> None:
        self._process, self.best = process, best

    def __call__(self, features: Sequence[Array]) -> Array:
        """The values z (m,) of rows by their features."""
        return self._process.predict(features, 0)[0]


def belief(z: Array, y: Array) -> float:
    """a, by which z is weighed, from what it said (n,) of observations y (n,); never below 0."""
    return max(0.0, float((z @ y + OBSERVATIONS * BELIEF) / (z @ z + OBSERVATIONS)))
