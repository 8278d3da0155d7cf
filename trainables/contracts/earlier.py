"""Configurations that earlier releases wrote down, completed by what later fields mean for them.

A checkpoint holds every value of its network's configuration, and so does a study, with the defaults of its
methods. A field of a method's `Config` that is missing there did not exist when it was written. It then has the value
under which today's code does what that code did without it; ``implied`` in ``earlier.json`` names it, ``"*"`` for all
methods that have such a field. Whoever adds a field adds its value there, too; a plug-in's unnamed ones have today's
defaults. Fields that no longer exist are left out.

``methods`` in ``earlier.json`` has spaces (`spaces.recorded`), defaults and published settings as they were at commit
7022e79. Studies that were created by then recorded none of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # looking at a study is quick without torch
    from trainables.contracts.method import Method

_FILE = Path(__file__).with_name("earlier.json")


@cache
def _contents() -> dict[str, Any]:
    return json.loads(_FILE.read_text())


def implied(method: str) -> dict[str, Any]:
    """The values of fields that did not exist once, under which a method does what it did then."""
    table = _contents()["implied"]
    return {**table.get("*", {}), **table.get(method, {})}


def unrecorded(method: str) -> dict[str, Any] | None:
    """``space``, ``defaults`` and ``published`` of a method at commit 7022e79; None of a method that was not there."""
    return _contents()["methods"].get(method)


def completed(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    """What `Method.configure` takes today for a configuration of which earlier code wrote down every value."""
    fields = [each.name for each in dataclasses.fields(method.Config)]
    known = {**implied(method.name), **values}
    return {name: known[name] for name in fields if name in known}


def defaults_of(method: Method) -> dict[str, Any]:
    """The defaults of a method's `Config` as plain JSON values, before any of them is worked out from another."""
    return {
        each.name: list(each.default) if isinstance(each.default, tuple) else each.default
        for each in dataclasses.fields(method.Config)
        if each.default is not dataclasses.MISSING
    }
