"""The search space of donors: which trained network a trial begins with, and its own learning rate behind it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from spaces.space import LogRange, Parameter, Space, When
from spaces.written import parameter_from

STUDY = "study"
"""The donor that a study names itself: its best matching static network."""
DONOR_LR = LogRange(0.003, 0.1)
"""A network that is trained already takes smaller steps than a new one."""


def options_of(written: Any) -> tuple[str, ...]:
    """The donors that a study file names, none (the empty word) among them; `ValueError` for what is no word."""
    parameter_from("donor", written, "")
    return tuple(written) if isinstance(written, list | tuple) else (written,)


def with_donor(space: Space, written: Any, *, rate: bool = True) -> Space:
    """A method's space with the parameter ``donor`` that a study file asks for, before all others.

    Where a trial has a donor, ``donor_lr`` takes the place of ``lr``; without `rate` the method has rates of its own
    there, and none is added.
    """
    options = options_of(written)
    given = tuple(option for option in options if option)
    if not given:
        return space
    parameters: dict[str, Parameter] = {"donor": parameter_from("donor", list(options), "")}
    for name, parameter in space.parameters.items():
        if name == "lr":
            if rate:
                parameters["donor_lr"] = replace(DONOR_LR, when=When("donor", given))
            if "" not in options:
                continue
            parameter = replace(parameter, when=When("donor", ("",)))
        parameters[name] = parameter
    return Space(parameters)
