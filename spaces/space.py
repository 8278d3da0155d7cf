"""Search spaces: ranges, choices and the conditions between them.

A `Space` says what may vary and nothing about how it is searched: `search/optuna_space.py` asks
Optuna for its parameters, tests draw from it with `sample`. Every parameter marks the *stage* of
training that it first influences, so that trials which agree on stage 1 can share its result.
"""

from __future__ import annotations

import difflib
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
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

    def sample(self, rng: random.Random) -> dict[str, Any]:
        """One configuration drawn at random, conditions respected."""
        config: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if parameter.when is None or parameter.when.holds(config):
                config[name] = parameter.sample(rng)
        return config

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

    def narrowed(self, overrides: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Space:
        """The space with some parameters replaced, as a study file writes them.

        A scalar fixes the parameter, a list chooses among its values, a table
        ``{low, high, log, integer, or_zero}`` ranges. `extra` holds names that are no part of this
        space yet may be set (fields of a method's configuration that are not searched by default).
        """
        parameters = dict(self.parameters)
        for name, written in overrides.items():
            base = parameters.get(name)
            if base is None and name not in (extra or {}):
                known = [*parameters, *(extra or {})]
                raise ValueError(f"unknown parameter {name!r}{nearest(name, known)}")
            example = (extra or {}).get(name) if base is None else _example(base)
            parameter = parameter_from(name, written, example)
            if base is not None:
                parameter = replace(parameter, stage=base.stage, when=base.when)
            parameters[name] = parameter
        # a parameter whose condition can no longer hold leaves the space with it
        kept: dict[str, Parameter] = {}
        for name, parameter in parameters.items():
            condition = parameter.when
            if condition is not None and not (
                condition.parameter in kept and any(kept[condition.parameter].contains(v) for v in condition.values)
            ):
                if name in overrides:
                    raise ValueError(
                        f"parameter {name!r} only exists where {condition.parameter} is one of {condition.values!r}"
                    )
                continue
            kept[name] = parameter
        return Space(kept)


def _example(parameter: Parameter) -> Any:
    match parameter:
        case Range():
            return int(parameter.low) if parameter.integer else float(parameter.low)
        case Choice():
            return parameter.options[0]
        case Fixed():
            return parameter.value


def _check_type(name: str, value: Any, example: Any) -> None:
    if example is None:
        return
    numbers = isinstance(example, int | float) and not isinstance(example, bool)
    if numbers:
        good = isinstance(value, int | float) and not isinstance(value, bool)
    else:
        good = isinstance(value, type(example))
    if not good:
        words = {"str": "a word", "bool": "true or false"}
        kind = "a number" if numbers else words.get(type(example).__name__, "a value")
        raise ValueError(f"{name} = {value!r} has the wrong type; it takes {kind} such as {example!r}")


def parameter_from(name: str, written: Any, example: Any = None) -> Parameter:
    """A parameter from what a study file says: a scalar, a list, or a table with low and high."""
    if isinstance(written, Mapping):
        allowed = ("low", "high", "log", "integer", "or_zero")
        for key in written:
            if key not in allowed:
                raise ValueError(f"{name}: unknown key {key!r} in a range{nearest(key, allowed)}")
        if "low" not in written or "high" not in written:
            raise ValueError(f"{name}: a range needs low and high, for example {{low = 0.1, high = 1.0}}")
        if example is not None and (isinstance(example, bool) or not isinstance(example, int | float)):
            raise ValueError(f"{name}: a range does not fit here; it takes values such as {example!r}")
        try:
            integer = written.get("integer", isinstance(example, int))
            options = {k: v for k, v in written.items() if k in ("log", "or_zero")}
            return Range(written["low"], written["high"], integer=integer, **options)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if isinstance(written, list | tuple):
        if not written:
            raise ValueError(f"{name} = [] offers nothing to choose from; list at least one value")
        for value in written:
            _check_type(name, value, example)
        if len(written) == 1:
            return Fixed(written[0])
        try:
            return Choice(tuple(written))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    _check_type(name, written, example)
    return Fixed(written)
