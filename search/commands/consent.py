"""Asking a person whether the addresses, and the code, that a study's folder names may be used."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.terminal import err
from search.errors import InputError
from search.units import printable

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy
    from search.study import Study

Trust = Annotated[
    bool,
    typer.Option("--trust", help="Use the database, the MLflow server and the code that the study's folder names."),
]


def opened(name: str, studies: Path | None, trust: bool = False) -> Study:
    """A study whose journal may be read: a person at a terminal is asked once, without one it is refused."""
    from search.study import Study

    found = Study.load(name, root=studies, trust=trust)
    consent(found, "journal")
    return found


def consent(study: StoredStudy, *names: str) -> None:
    """Ask whether these addresses of the study may be used, where that is not known; `InputError` for a no."""
    from search.studies.trust import listed

    addresses = study.untrusted(*names)
    if not addresses:
        return
    if not terminal():
        study.permit(*names)
    err.print(f"the folder {study.folder.path} names {listed(addresses)}; it was not made here.", soft_wrap=True)
    if addresses.keys() & {"journal", "tracking.uri"}:
        err.print("Whoever runs these servers learns your user and password there, and what the study says.")
    if any(name == "code" or name.startswith("methods.") for name in addresses):
        err.print("Code runs with your rights wherever it is imported or a network is built: read it before you agree.")
    if not typer.confirm(f"do you trust who made study {printable(study.spec.name)!r}?", err=True):
        raise InputError("nothing was sent to these addresses, and nothing of them was run")
    study.agree()


def to_build(study: StoredStudy) -> None:
    """Ask whether the files that the study's networks come from may be run, before a network is built."""
    from spaces.own_networks import written

    if keys := [key for key, _ in written(study.spec.methods)]:
        consent(study, *keys)


def of_a_folder(file: Path, given: Sequence[str]) -> None:
    """Ask about the addresses of a study file that lies in a study's folder; `given` are replaced on the command line.

    A study file that a person hands in is its own, whatever it names; one in a study's folder may have come with it.
    """
    from search.studies.folder import StudyFolder
    from search.studies.stored import StoredStudy

    folder = StudyFolder(file.parent)
    if file.name == folder.spec.name and file.is_file() and (folder.control.exists() or folder.checkpoints.exists()):
        study = StoredStudy.load(file.parent.resolve())
        consent(study, *({"journal", "tracking.uri", "code"} - set(given)))
        to_build(study)


def terminal() -> bool:
    """Whether somebody can be asked."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr.isatty()
