"""Values of parameters as places on the scales on which they are drawn uniformly, and back."""

from __future__ import annotations

import math
import random
from typing import Any

from spaces.space import Choice, Fixed, Parameter, Range


def place(parameter: Range, value: float) -> float:
    """Where a value lies in its range, in [0, 1] on the scale on which the range is uniform."""
    low, high = scaled(parameter, parameter.low), scaled(parameter, parameter.high)
    return (scaled(parameter, value) - low) / (high - low)


def placed(parameter: Range, place: float) -> float | int:
    """The value at a place in [0, 1]."""
    low, high = scaled(parameter, parameter.low), scaled(parameter, parameter.high)
    return value_at(parameter, low + (high - low) * place)


def at(parameter: Parameter, unit: float) -> Any:
    """The value of a parameter at a place in [0, 1), such that uniform places give its uniform draws."""
    match parameter:
        case Fixed():
            return parameter.value
        case Choice():
            return parameter.options[min(int(unit * len(parameter.options)), len(parameter.options) - 1)]
    if parameter.or_zero:
        if unit < 0.25:
            return 0 if parameter.integer else 0.0
        unit = (unit - 0.25) / 0.75
    low, high = scaled(parameter, parameter.low), scaled(parameter, parameter.high)
    return value_at(parameter, low + (high - low) * unit)


def scaled(parameter: Range, value: float) -> float:
    """A value on the scale on which its range is uniform."""
    return math.log(value) if parameter.log else value


def value_at(parameter: Range, place: float) -> float | int:
    """The value at a place of that scale, inside the range."""
    value = math.exp(place) if parameter.log else place
    value = min(max(value, parameter.low), parameter.high)
    return round(value) if parameter.integer else value


def moved(parameter: Parameter, value: Any, rng: random.Random) -> Any:
    """A value near another one: a tenth of a range away on average, another option of a choice."""
    if not isinstance(parameter, Range) or not parameter.contains(value) or value == 0:
        return parameter.sample(rng)
    low, high = scaled(parameter, parameter.low), scaled(parameter, parameter.high)
    return value_at(parameter, scaled(parameter, value) + rng.gauss(0, 0.1) * (high - low))
