"""Search spaces: ranges, choices and the conditions between them.

A `Space` says what may vary and nothing about how it is searched: `search/sampling/optuna_space.py` asks
Optuna for its parameters, tests draw from it with `sample`. Every parameter marks the *stage* of
training that it first influences, so that trials which agree on stage 1 can share its result.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class When:
    """A condition: the parameter exists only where `parameter` has one of `values`."""

    parameter: str
    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError(f"condition on {self.parameter!r} lists no value; name at least one")

    def holds(self, config: Mapping[str, Any]) -> bool:
        """Whether the condition is met by a configuration (an absent parameter meets none)."""
        return self.parameter in config and config[self.parameter] in self.values


@dataclass(frozen=True, slots=True)
class Range:
    """A number between `low` and `high`, both included, drawn uniformly.

    With `log` it is drawn uniformly in its logarithm; `or_zero` adds the value 0 (a weight that
    may be switched off), which a logarithm cannot reach.
    """

    low: float
    high: float
    log: bool = field(default=False, kw_only=True)
    integer: bool = field(default=False, kw_only=True)
    or_zero: bool = field(default=False, kw_only=True)
    stage: int = field(default=1, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for bound in (self.low, self.high):
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                raise ValueError(f"range bound {bound!r} is not a number")
            if not math.isfinite(bound):
                raise ValueError(f"range bound {bound!r} is not finite")
            if self.integer and bound != int(bound):
                raise ValueError(f"integer range has the bound {bound!r}; give whole numbers")
        if self.low >= self.high:
            raise ValueError(
                f"range {self.low!r} to {self.high!r} is upside down or empty; low must be smaller than high"
            )
        if self.log and self.low <= 0:
            raise ValueError(f"logarithmic range starts at {self.low!r}; it must start above 0")

    def contains(self, value: Any) -> bool:
        """Whether a value lies in the range."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        if self.or_zero and value == 0:
            return True
        return self.low <= value <= self.high and (not self.integer or value == int(value))

    def sample(self, rng: random.Random) -> float | int:
        """One draw."""
        if self.or_zero and rng.random() < 0.25:
            return 0 if self.integer else 0.0
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else value

    def describe(self) -> str:
        """The range in words, for tables and error messages."""
        words = f"{self.low:g} to {self.high:g}"
        return words + (", log" if self.log else "") + (", or 0" if self.or_zero else "")


def LogRange(low: float, high: float, **options: Any) -> Range:
    """A `Range` drawn uniformly in its logarithm."""
    return Range(low, high, log=True, **options)


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values without an order."""

    options: tuple[Any, ...]
    stage: int = field(default=1, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.options:
            raise ValueError("a choice needs at least one option")
        if len(set(map(repr, self.options))) != len(self.options):
            raise ValueError(f"choice {self.options!r} names an option twice")

    def contains(self, value: Any) -> bool:
        """Whether a value is one of the options (1 is not True, and "1" is not 1)."""
        return any(type(value) is type(option) and value == option for option in self.options) or (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and any(
                isinstance(option, int | float) and not isinstance(option, bool) and value == option
                for option in self.options
            )
        )

    def sample(self, rng: random.Random) -> Any:
        """One draw."""
        return rng.choice(self.options)

    def describe(self) -> str:
        """The options in words."""
        return ", ".join(str(option) for option in self.options)


@dataclass(frozen=True, slots=True)
class Fixed:
    """One value that does not vary."""

    value: Any
    stage: int = field(default=1, kw_only=True)
    when: When | None = field(default=None, kw_only=True)

    def contains(self, value: Any) -> bool:
        """Whether a value is the fixed one."""
        return value == self.value

    def sample(self, rng: random.Random) -> Any:
        """The value."""
        return self.value

    def describe(self) -> str:
        """The value in words."""
        return f"= {self.value}"


Parameter = Range | Choice | Fixed


def nearest(word: str, known: Iterator[str] | list[str] | tuple[str, ...]) -> str:
    """``; did you mean 'x'?`` for the closest known word, or the list of known words."""
    names = [str(name) for name in known]
    close = difflib.get_close_matches(str(word), names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(sorted(names))}" if names else ""


@dataclass(frozen=True, slots=True)
class Space:
    """Parameters by name, conditions included.

    Raises `ValueError` where a condition names a parameter that is missing, that comes later,
    or a value that it cannot take: such a space would be empty or contradictory.
    """

    parameters: Mapping[str, Parameter]

    def __post_init__(self) -> None:
        seen: dict[str, Parameter] = {}
        for name, parameter in self.parameters.items():
            condition = parameter.when
            if condition is not None:
                if condition.parameter not in seen:
                    raise ValueError(
                        f"parameter {name!r} depends on {condition.parameter!r}, which does not come before it"
                    )
                if not any(seen[condition.parameter].contains(value) for value in condition.values):
                    raise ValueError(
                        f"parameter {name!r} can never exist:"
                        f" {condition.parameter!r} takes none of {condition.values!r}"
                    )
            seen[name] = parameter

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __getitem__(self, name: str) -> Parameter:
        return self.parameters[name]

    def __contains__(self, name: object) -> bool:
        return name in self.parameters

    def active(self, config: Mapping[str, Any]) -> list[str]:
        """Names of the parameters that exist under a configuration, in order."""
        return [n for n, p in self.parameters.items() if p.when is None or p.when.holds(config)]

    def build(self, choose: Callable[[str, Parameter], Any]) -> dict[str, Any]:
        """One configuration: `choose` gives the value of each parameter that exists under those before it."""
        config: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.when is None or parameter.when.holds(config):
                config[name] = choose(name, parameter)
        return config

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One configuration drawn at random, conditions respected."""
        return self.build(lambda name, parameter: parameter.sample(rng))

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise `ValueError` where a configuration leaves the space or misses a parameter."""
        for name in config:
            if name not in self.parameters:
                raise ValueError(f"unknown parameter {name!r}{nearest(name, list(self.parameters))}")
        for name in self.active(config):
            if name not in config:
                raise ValueError(f"parameter {name!r} is missing; it takes {self[name].describe()}")
            if not self[name].contains(config[name]):
                raise ValueError(f"{name} = {config[name]!r} is outside its space; it takes {self[name].describe()}")

    def stage(self, number: int) -> list[str]:
        """Names of the parameters that first influence training stage `number` (1 is the first)."""
        return [n for n, p in self.parameters.items() if p.stage == number]


def drawn(space: Space, rng: random.Random, given: Mapping[str, Any]) -> dict[str, Any]:
    """Uniform draws of the parameters of a space that are not given."""
    return space.build(lambda name, parameter: given[name] if name in given else parameter.sample(rng))
