"""Spaces as study files write them: a scalar fixes a parameter, a list chooses, a table ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spaces.space import Choice, Fixed, Parameter, Range, Space, nearest


def narrowed(space: Space, overrides: Mapping[str, Any], extra: Mapping[str, Any] | None = None) -> Space:
    """The space with some parameters replaced, as a study file writes them.

    A scalar fixes the parameter, a list chooses among its values, a table
    ``{low, high, log, integer, or_zero}`` ranges. `extra` holds names that are no part of this
    space yet may be set (fields of a method's configuration that are not searched by default).
    """
    parameters = dict(space.parameters)
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
