"""Every method by name: a literal, extended by plug-ins of the entry-point group `routefront.methods`."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points

from spaces.space import nearest
from trainables.contracts.method import Method
from trainables.methods import (
    act,
    aig,
    blockdrop,
    blocks,
    codinet,
    decide,
    ensemble,
    exits,
    imta,
    multipath,
    sdv,
    skipnet,
    static,
)

_OURS = (
    static.METHOD,
    skipnet.METHOD,
    codinet.METHOD,
    aig.METHOD,
    blockdrop.METHOD,
    sdv.METHOD,
    imta.METHOD,
    decide.METHOD,
    act.METHOD,
    act.SPATIAL,
    multipath.METHOD,
    ensemble.METHOD,
    exits.METHOD,
    blocks.METHOD,
)
METHODS: dict[str, Method] = {method.name: method for method in _OURS}


@cache
def all_methods() -> dict[str, Method]:
    """Our methods and those of installed plug-ins (a plug-in may not take a name of ours)."""
    methods = dict(METHODS)
    for point in entry_points(group="routefront.methods"):
        try:
            method = point.load()
        except ImportError as error:  # it may have been written against other places (`spaces.moved`)
            raise ValueError(f"plug-in {point.value!r} cannot be imported: {error}") from None
        if method.name in methods:
            raise ValueError(f"plug-in {point.value!r} brings a method named {method.name!r}, which exists already")
        methods[method.name] = method
    return methods


def get_method(name: str) -> Method:
    """A method by name; `ValueError` with the nearest name where there is none."""
    methods = all_methods()
    if name not in methods:
        raise ValueError(f"unknown method {name!r}{nearest(name, list(methods))}")
    return methods[name]
