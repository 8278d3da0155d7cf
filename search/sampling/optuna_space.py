"""From our spaces to Optuna: names, distributions, and its define-by-run calls.

A parameter that all methods of a study share (same name, same range) is one Optuna parameter;
the others carry their method's name: ``codinet.gamma``. A range with ``or_zero`` is two
parameters: a switch ``codinet.gamma?`` and the value. Fixed parameters are not asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from spaces.space import Choice, Fixed, Parameter, Range, Space

Spaces = Mapping[str, Space]


def shared(spaces: Spaces) -> set[str]:
    """Names that every method has, with one and the same unconditional parameter."""
    first, *others = spaces.values()
    return {
        name
        for name, parameter in first.parameters.items()
        if parameter.when is None and all(space.parameters.get(name) == parameter for space in others)
    }


def _name(method: str, parameter: str, common: set[str]) -> str:
    return parameter if parameter in common else f"{method}.{parameter}"


def _distribution(parameter: Parameter) -> BaseDistribution:
    match parameter:
        case Range(integer=True):
            return IntDistribution(int(parameter.low), int(parameter.high), log=parameter.log)
        case Range():
            return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)
        case Choice():
            return CategoricalDistribution(parameter.options)
        case Fixed():
            return CategoricalDistribution((parameter.value,))


def suggest(trial: optuna.Trial, spaces: Spaces) -> dict[str, Any]:
    """One configuration ``{"method": name, parameter: value ...}`` asked of Optuna."""
    common = shared(spaces)
    methods = list(spaces)
    method = trial.suggest_categorical("method", methods) if len(methods) > 1 else methods[0]
    values = spaces[method].build(lambda name, parameter: _ask(trial, _name(method, name, common), parameter))
    return {"method": method, **values}


def _ask(trial: optuna.Trial, name: str, parameter: Parameter) -> Any:
    match parameter:
        case Fixed():
            return parameter.value
        case Choice():
            return trial.suggest_categorical(name, parameter.options)
        case Range():
            if parameter.or_zero and not trial.suggest_categorical(f"{name}?", (True, False)):
                return 0 if parameter.integer else 0.0
            if parameter.integer:
                return trial.suggest_int(name, int(parameter.low), int(parameter.high), log=parameter.log)
            return trial.suggest_float(name, float(parameter.low), float(parameter.high), log=parameter.log)


def record(config: Mapping[str, Any], spaces: Spaces) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
    """(params, distributions) of a configuration, or of a part of one, as `optuna.create_trial` takes them."""
    common = shared(spaces)
    params: dict[str, Any] = {}
    distributions: dict[str, BaseDistribution] = {}
    method = config["method"]
    if len(spaces) > 1:
        params["method"], distributions["method"] = method, CategoricalDistribution(list(spaces))
    for name in spaces[method].active(config):
        parameter = spaces[method][name]
        if isinstance(parameter, Fixed) or name not in config:
            continue
        full, value = _name(method, name, common), config[name]
        if isinstance(parameter, Range) and parameter.or_zero:
            params[f"{full}?"], distributions[f"{full}?"] = value != 0, CategoricalDistribution((True, False))
            if value == 0:
                continue
        if not parameter.contains(value):
            continue  # a published setting outside the narrowed space teaches nothing about it
        params[full], distributions[full] = value, _distribution(parameter)
    return params, distributions
