"""Old places of modules: who imports one is told the new place in one line.

Methods may come from other distributions (entry points `routefront.methods`), which were written against the places of
their time. `install` is called by the packages whose modules have moved. The finder stands first, so that no older
copy of a package that lies somewhere on the path is found in its stead; it knows old places alone. Older code under the
same name (a promoted model brings its own) is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

# TABLES


class Finder:
    """Raises `ModuleNotFoundError` with the new place of a module or name of one package, and finds nothing else."""

    def __init__(self, package: str, places: Sequence[str]) -> None:
        self.package, self.places = package, list(places)

    def find_spec(self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        """See `importlib.abc.MetaPathFinder`."""
        running = sys.modules.get(self.package)
        if not fullname.startswith(f"{self.package}.") or list(getattr(running, "__path__", ())) != self.places:
            return
        told = new_place(fullname)
        if told:
            # without the name of the module: `from package import name` would take it for "not there, go on"
            raise ModuleNotFoundError(told)


def new_place(name: str) -> str:
    """One line that says where a module, or a name of a module, is now; empty where nothing has moved."""
    if name in MODULES:
        return f"{name} has moved: import {MODULES[name]}"
    module, _, last = name.rpartition(".")
    for home, names in NAMES.get(module, {}).items():
        if last in names.split():
            home, _, new = home.partition(":")
            return f"{last} of {module} has moved: from {home} import {new or last}"
    return ""


def install(package: str, places: Sequence[str]) -> None:
    """Tell importers of old places of a package, whose folders are `places`; once, however often it is called."""
    for finder in sys.meta_path:
        if isinstance(finder, Finder) and (finder.package, finder.places) == (package, list(places)):
            return
    sys.meta_path.insert(0, Finder(package, places))  # type: ignore[arg-type]
