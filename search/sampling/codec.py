"""Configurations of a space as rows of numbers, for models that compute with them, and draws of many at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spaces.scale import place, placed
from spaces.space import Choice, Fixed, Parameter, Range, Space

Array = np.ndarray

MOVES, ENDS = 0.4, 0.5
"""The chance of every parameter to be another one in a mutation; and of a number that would leave its range to be at
its end then: the best ones often are. Otherwise it is reflected there."""
_ZERO, _ZERO_DRAWN, _ZERO_FLIPS = -1.0, 0.25, 0.1


class Codec:
    """Rows (n, d) of configurations, one column a parameter that is not fixed.

    A number is its place in [0, 1] on the scale on which its range is uniform, and -1 where the range may be zero and
    it is; a choice is the index of its option. NaN: the parameter does not exist there, or has a value that the space
    does not know. `groups` has (column, kind) for every length scale of a kernel: "place", "choice", and "zero" for
    whether a range that may be zero is.
    """

    def __init__(self, space: Space) -> None:
        self.space = space
        self.parameters: list[tuple[str, Parameter]] = [
            (name, parameter) for name, parameter in space.parameters.items() if not isinstance(parameter, Fixed)
        ]
        self._column = {name: j for j, (name, _) in enumerate(self.parameters)}
        self.groups: list[tuple[int, str]] = []
        for j, (_, parameter) in enumerate(self.parameters):
            self.groups.append((j, "choice" if isinstance(parameter, Choice) else "place"))
            if isinstance(parameter, Range) and parameter.or_zero:
                self.groups.append((j, "zero"))

    @staticmethod
    def _code(parameter: Parameter, value: Any) -> float:
        if isinstance(parameter, Choice):
            return float(parameter.options.index(value))
        assert isinstance(parameter, Range)
        return _ZERO if parameter.or_zero and value == 0 else place(parameter, value)

    def encode(self, configs: Sequence[Mapping[str, Any]]) -> Array:
        """Rows (n, d) of configurations."""
        rows = np.full((len(configs), len(self.parameters)), np.nan)
        for i, config in enumerate(configs):
            for j, (name, parameter) in enumerate(self.parameters):
                if name in config and parameter.contains(config[name]):
                    rows[i, j] = self._code(parameter, config[name])
        return rows

    def decode(self, row: Array, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The configuration of a row (d,); what is `given` stands."""

        def choose(name: str, parameter: Parameter) -> Any:
            if given and name in given:
                return given[name]
            if isinstance(parameter, Fixed):
                return parameter.value
            value = float(row[self._column[name]])
            if isinstance(parameter, Choice):
                return parameter.options[int(value)]
            if parameter.or_zero and value == _ZERO:
                return 0 if parameter.integer else 0.0
            return placed(parameter, value)

        return self.space.build(choose)

    def uniform(self, count: int, rng: np.random.Generator, given: Mapping[str, Any] | None = None) -> Array:
        """Rows (count, d) drawn uniformly, of which the parameters in `given` stand."""
        return self._settled(np.full((count, len(self.parameters)), np.nan), rng, given)

    def mutate(
        self, parents: Array, rng: np.random.Generator, widths: Array, given: Mapping[str, Any] | None = None
    ) -> Array:
        """Children (n, d) of parents (n, d): every parameter moves with the chance `MOVES`, one at least.

        A number moves by a normal draw with the deviation `widths` (n,) of its range, and ends at the range's end or is
        reflected there (`ENDS`); a choice is drawn anew.
        """
        rows = parents.copy()
        count, d = rows.shape
        if not d:
            return rows
        moves = rng.random((count, d)) < MOVES
        moves[np.arange(count), rng.integers(0, d, count)] = True
        for j, (_, parameter) in enumerate(self.parameters):
            at = np.flatnonzero(moves[:, j] & ~np.isnan(rows[:, j]))
            if not len(at):
                continue
            if isinstance(parameter, Choice):
                rows[at, j] = self._drawn(parameter, len(at), rng)
                continue
            assert isinstance(parameter, Range)
            old = rows[at, j]
            new = old + rng.normal(0, 1, len(at)) * widths[at]
            reflected = 1 - np.abs(1 - np.abs(new))
            new = _whole(parameter, np.where(rng.random(len(at)) < ENDS, new, reflected).clip(0, 1))
            if parameter.or_zero:
                flips = rng.random(len(at)) < _ZERO_FLIPS
                fresh = _whole(parameter, rng.random(len(at)))
                new = np.where(old == _ZERO, np.where(flips, fresh, _ZERO), np.where(flips, _ZERO, new))
            rows[at, j] = new
        return self._settled(rows, rng, given)

    def features(self, rows: Array) -> list[Array]:
        """By length scale an array (n, k): a kernel compares its squared distances.

        Two options of a choice are 1 apart, as the ends of a range are. What does not exist, or is zero, stands in the
        middle of its range.
        """
        found = []
        for j, kind in self.groups:
            column = rows[:, j]
            if kind == "choice":
                parameter = self.parameters[j][1]
                assert isinstance(parameter, Choice)
                hot = np.zeros((len(rows), len(parameter.options)))
                there = np.flatnonzero(~np.isnan(column))
                hot[there, column[there].astype(int)] = math.sqrt(0.5)
                found.append(hot)
            elif kind == "place":
                found.append(np.where(np.isnan(column) | (column < 0), 0.5, column)[:, None])
            else:
                found.append((column == _ZERO).astype(float)[:, None])
        return found

    @staticmethod
    def _drawn(parameter: Parameter, count: int, rng: np.random.Generator) -> Array:
        if isinstance(parameter, Choice):
            return rng.integers(0, len(parameter.options), count).astype(float)
        assert isinstance(parameter, Range)
        places = _whole(parameter, rng.random(count))
        return np.where(rng.random(count) < _ZERO_DRAWN, _ZERO, places) if parameter.or_zero else places

    def _active(self, rows: Array, j: int) -> Array:
        """Which rows (n,) have a parameter; the columns before it are settled."""
        when = self.parameters[j][1].when
        if when is None:
            return np.ones(len(rows), dtype=bool)
        parent = self.space[when.parameter]
        if isinstance(parent, Fixed):
            return np.full(len(rows), parent.value in when.values)
        wanted = [self._code(parent, value) for value in when.values if parent.contains(value)]
        return np.isin(rows[:, self._column[when.parameter]], wanted)

    def _settled(self, rows: Array, rng: np.random.Generator, given: Mapping[str, Any] | None) -> Array:
        """The rows, changed in place: every parameter exists that its parent asks for, and no other."""
        for j, (name, parameter) in enumerate(self.parameters):
            if given and name in given:
                rows[:, j] = self.encode([{name: given[name]}])[0, j]
            there = self._active(rows, j)
            fresh = there & np.isnan(rows[:, j])
            if fresh.any():
                rows[fresh, j] = self._drawn(parameter, int(fresh.sum()), rng)
            rows[~there, j] = np.nan
        return rows


def _whole(parameter: Range, places: Array) -> Array:
    """Places of the nearest whole numbers, of an integer range."""
    if not parameter.integer:
        return places
    low, high = parameter.low, parameter.high
    if parameter.log:
        low, high = math.log(low), math.log(high)
    values = low + places * (high - low)
    values = np.clip(np.rint(np.exp(values) if parameter.log else values), parameter.low, parameter.high)
    return ((np.log(values) if parameter.log else values) - low) / (high - low)
