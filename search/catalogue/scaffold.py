"""`routefront new method NAME`: a package of a person's own with a method that works."""

from __future__ import annotations

import keyword
import re
import shutil
from importlib.metadata import entry_points
from pathlib import Path

from search.catalogue.records import written
from search.errors import InputError

_TEMPLATE = Path(__file__).with_name("template")
_PLACES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "study.toml": "study.toml",
    "init.py": "@MODULE@/__init__.py",
    "space.py": "@MODULE@/space.py",
    "network.py": "@MODULE@/network.py",
    "method.py": "@MODULE@/method.py",
    "test_conformance.py": "tests/test_conformance.py",
}
_RESERVED = ("routefront", "spaces", "trainables", "search", "cluster", "tests", "mlflow", "torch", "ray", "optuna")


def new_method(name: str, folder: Path) -> list[Path]:
    """Write the package ``folder/NAME``; its files.

    Raises `InputError` where the name cannot be one, a method has it already, or the folder is there.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", name):
        raise InputError(f"method {name!r}: write small letters, digits and '-', beginning with a letter: my-gate")
    module = name.replace("-", "_")
    if keyword.iskeyword(module) or module in _RESERVED:
        raise InputError(f"method {name!r}: {module} is a name that Python or routefront needs; choose another one")
    taken = {record["name"] for record in written()} | {
        point.name for point in entry_points(group="routefront.methods")
    }
    if module in taken:
        raise InputError(f"method {name!r}: there is a method {module} already; choose another name")
    place = folder / name
    if place.exists():
        raise InputError(f"{place} is there already; choose another name or --folder")
    words = {"@NAME@": name, "@MODULE@": module, "@METHOD@": module}
    try:
        place.mkdir(parents=True)
        return [_written(place, template, target, words) for template, target in _PLACES.items()]
    except OSError as error:
        shutil.rmtree(place, ignore_errors=True)
        raise InputError(f"{place} cannot be written: {error.strerror or error}") from None


def _written(place: Path, template: str, target: str, words: dict[str, str]) -> Path:
    text = (_TEMPLATE / f"{template}.in").read_text(encoding="utf-8")
    for word, value in words.items():
        text, target = text.replace(word, value), target.replace(word, value)
    path = place / target
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
