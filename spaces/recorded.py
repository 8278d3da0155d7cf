"""A space as plain JSON values and back, without loss: what a study records of it when it is created."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from spaces.space import Choice, Fixed, Parameter, Range, Space, When

_FLAGS = ("log", "integer", "or_zero")
_KEYS = {"name", "range", "choice", "fixed", "stage", "when", *_FLAGS}


def recorded(space: Space) -> list[dict[str, Any]]:
    """The parameters of a space in their order; `space_from` is the inverse.

    Each has its ``"name"`` and one of ``"range": [low, high]`` (with ``"log"``, ``"integer"`` and ``"or_zero"`` where
    they hold), ``"choice": [...]`` and ``"fixed": value``. ``"stage"`` is there where it is not 1, ``"when":
    {parameter: [values]}`` where there is a condition. Tuples among the values are lists.
    """
    return [{"name": name, **_entry(parameter)} for name, parameter in space.parameters.items()]


def _entry(parameter: Parameter) -> dict[str, Any]:
    match parameter:
        case Range():
            entry: dict[str, Any] = {"range": [parameter.low, parameter.high]}
            entry |= {flag: True for flag in _FLAGS if getattr(parameter, flag)}
        case Choice():
            entry = {"choice": _listed(parameter.options)}
        case Fixed():
            entry = {"fixed": _listed(parameter.value)}
    if parameter.stage != 1:
        entry["stage"] = parameter.stage
    if parameter.when is not None:
        entry["when"] = {parameter.when.parameter: _listed(parameter.when.values)}
    return entry


def space_from(entries: Iterable[Mapping[str, Any]]) -> Space:
    """The space that was recorded. Raises `ValueError` for an entry that this code does not know."""
    return Space({entry["name"]: _parameter(entry) for entry in entries})


def _parameter(entry: Mapping[str, Any]) -> Parameter:
    unknown = entry.keys() - _KEYS
    if unknown:
        raise ValueError(f"parameter {entry['name']!r} was recorded with {', '.join(sorted(unknown))} by later code")
    when = None
    if "when" in entry:
        ((name, values),) = entry["when"].items()
        when = When(name, _tupled(values))
    stage = entry.get("stage", 1)
    if "range" in entry:
        low, high = entry["range"]
        flags = {flag: entry[flag] for flag in _FLAGS if flag in entry}
        return Range(low, high, stage=stage, when=when, **flags)
    if "choice" in entry:
        return Choice(_tupled(entry["choice"]), stage=stage, when=when)
    if "fixed" in entry:
        return Fixed(_tupled(entry["fixed"]), stage=stage, when=when)
    raise ValueError(f"parameter {entry['name']!r} was recorded without a range, a choice or a fixed value")


def _listed(value: Any) -> Any:
    return [_listed(each) for each in value] if isinstance(value, list | tuple) else value


def _tupled(value: Any) -> Any:
    return tuple(_tupled(each) for each in value) if isinstance(value, list) else value
