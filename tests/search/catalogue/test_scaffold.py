"""`routefront new method`: the package that it writes passes the suite of our own methods, and is a plug-in."""

from __future__ import annotations

import importlib
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from routefront.testing import CHECKS, Case
from search.catalogue.scaffold import new_method
from search.errors import InputError
from search.spec.study import StudySpec
from trainables.contracts.method import Method
from trainables.registry import all_methods


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    files = new_method("toy-gate", folder)
    assert sorted(str(path.relative_to(folder / "toy-gate")) for path in files) == [
        "README.md",
        "pyproject.toml",
        "study.toml",
        "tests/test_conformance.py",
        "toy_gate/__init__.py",
        "toy_gate/method.py",
        "toy_gate/network.py",
        "toy_gate/space.py",
    ]
    assert not any(word in path.read_text() for path in files for word in ("@NAME@", "@MODULE@", "@METHOD@"))
    return folder / "toy-gate"


@pytest.fixture(scope="module")
def method(package: Path) -> Iterator[Method]:
    sys.path.insert(0, str(package))
    try:
        yield importlib.import_module("toy_gate.method").METHOD
    finally:
        sys.path.remove(str(package))


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_what_is_written_passes_every_check(check: Callable[[Case], None], method: Method) -> None:
    check(Case(method=method, values={"network": "toy-2"}))


def test_its_entry_point_and_study_file_are_right(
    package: Path, method: Method, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tomllib.loads((package / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["routefront.methods"] == {"toy_gate": "toy_gate.method:METHOD"}
    assert project["tool"]["setuptools"]["packages"] == ["toy_gate"]
    monkeypatch.setitem(all_methods(), "toy_gate", method)
    spec = StudySpec.read(package / "study.toml")
    assert list(spec.methods) == ["toy_gate", "static"] and "price" in spec.spaces()["toy_gate"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("aig", "there is a method aig already"),
        ("My Gate", "write small letters, digits and '-'"),
        ("class", "is a name that Python or routefront needs"),
        ("spaces", "is a name that Python or routefront needs"),
    ],
)
def test_names_that_cannot_be(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        new_method(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / "my-gate").mkdir()
    with pytest.raises(InputError, match="is there already"):
        new_method("my-gate", tmp_path)
    assert not list((tmp_path / "my-gate").iterdir())
