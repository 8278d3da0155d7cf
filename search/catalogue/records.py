"""Our methods and their usual networks as plain records, read from files: printing them takes no torch.

``methods.json`` holds what `search.catalogue.describe.method_record` says of every method of ours, ``networks.json``
what `network_description` says of each with its default configuration. A test compares them; after a change of a
method, its space or its network:

    python -m search.catalogue.records --write
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from search.errors import InputError

FILE = Path(__file__).with_name("methods.json")
NETWORKS = Path(__file__).with_name("networks.json")


def written() -> list[dict[str, Any]]:
    """The records in the file, in the order of the registry."""
    return json.loads(FILE.read_text(encoding="utf-8"))


def computed(*, plug_ins: bool = False) -> list[dict[str, Any]]:
    """The records as the methods themselves tell them, `plug_ins` included on demand; imports torch."""
    from search.catalogue.describe import method_record
    from trainables.registry import METHODS, all_methods

    return [method_record(method) for method in (all_methods() if plug_ins else METHODS).values()]


def networks_written() -> dict[str, dict[str, Any]]:
    """By method its default network as `network_description` tells it, for 10 classes of 32 x 32 pixels in colour."""
    return json.loads(NETWORKS.read_text(encoding="utf-8"))


def networks_computed() -> dict[str, dict[str, Any]]:
    """The same from the networks themselves, which are built for it."""
    from search.catalogue.describe import network_description
    from trainables.registry import METHODS

    return {name: network_description(name, {}) for name in METHODS}


def records(name: str | None = None) -> list[dict[str, Any]]:
    """Every method, or the one of that name; those of plug-ins are asked themselves.

    Raises `InputError` where there is no such method, or a plug-in cannot be imported.
    """
    found = written()
    if entry_points(group="routefront.methods"):
        try:
            found = computed(plug_ins=True)
        except ValueError as error:
            raise InputError(str(error)) from None
    if name is None:
        return found
    chosen = [record for record in found if record["name"] == name]
    if not chosen:
        from spaces.space import nearest

        raise InputError(f"unknown method {name!r}{nearest(name, [record['name'] for record in found])}")
    return chosen


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit("usage: python -m search.catalogue.records --write")
    FILE.write_text(json.dumps(computed(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    NETWORKS.write_text(json.dumps(networks_computed(), ensure_ascii=False) + "\n", encoding="utf-8")
