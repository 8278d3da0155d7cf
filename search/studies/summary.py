"""What `routefront list` tells of a study, kept beside it, so that a study at rest is listed without its journal.

Whoever wrote to a study keeps it when the lease is given back. It holds for the journal's file as it was left, told by
size and time, and for the study file's digest; where one of them differs, the journal is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.state.state import StudyState
    from search.studies.stored import StoredStudy

NAME = "summary.json"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "study": str,
    "state": str,
    "trials": dict,
    "epochs": (int, float),
    "seconds": (int, float),
    "hypervolume": (int, float),
    "front_points": int,
    "stages": dict,
    "budget": dict,
    "dataset": str,
}
_LARGEST = 100_000
"""Bytes: what is larger was written by somebody else."""


def record_of(study: StoredStudy, state: StudyState) -> dict[str, Any]:
    """A study's state as `routefront status --json` prints it."""
    return {
        "study": study.spec.name,
        "state": study.status(),
        "trials": state.count(),
        "epochs": state.cost_epochs,
        "seconds": state.elapsed,
        "hypervolume": state.hypervolume,
        "front_points": len(state.front()),
        "stages": state.saved(),
        **({"machines": dict(state.machines)} if state.machines else {}),
        "budget": study.spec.budget.model_dump(),
        "dataset": state.created["data"]["name"],
        "folder": str(study.folder.path),
    }


def keep(study: StoredStudy, state: StudyState) -> None:
    """Keep the record of a study that nobody drives; not of one whose journal or folder lies elsewhere.

    It is a convenience: where it cannot be written, nothing is said.
    """
    folder = study.folder
    if study.spec.journal is not None or folder.storage is not None:
        return
    state.rest()
    part = folder.path / f".summary-{os.getpid()}.part"
    with contextlib.suppress(OSError, ValueError):
        record = record_of(study, state)
        if record["state"] == "running":  # somebody took it over
            return
        text = json.dumps({"of": _of(folder.path), "record": {name: record[name] for name in _FIELDS}})
        part.write_text(text, encoding="utf-8")
        part.replace(folder.path / NAME)


def kept_under(root: Path) -> tuple[dict[Path, dict[str, Any]], bool]:
    """The records that hold of studies under a root by their folders, oldest first, and whether these are all studies.

    Of a root in object storage nothing is known here.
    """
    if not root.is_dir():
        return {}, True
    whole, found = not (root / "storage").exists(), list[tuple[float, Path, dict[str, Any]]]()
    for folder in root.iterdir() if whole else ():
        try:
            written = (folder / "study.toml").stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            whole = False
            continue
        record = kept(folder.resolve())
        whole = whole and record is not None
        if record is not None:
            found.append((written, folder.resolve(), record))
    return {folder: record for _, folder, record in sorted(found, key=lambda entry: entry[:2])}, whole


def kept(folder: Path) -> dict[str, Any] | None:
    """The record that was kept in a study's folder, if it still holds; opens that file and the study file alone."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        file = folder / NAME
        if not file.is_file() or file.stat().st_size > _LARGEST:
            return None
        found = json.loads(file.read_bytes())
        record = found["record"]
        whole = all(isinstance(record[name], kind) for name, kind in _FIELDS.items())
        if whole and found["of"] == _of(folder) and isinstance(record["trials"]["total"], int):
            return {**{name: record[name] for name in _FIELDS}, "folder": str(folder)}
    return None


def _of(folder: Path) -> dict[str, Any]:
    """What a record holds for. Raises `OSError` where a file is missing, `ValueError` where the journal is in use."""
    log = folder / "control.db-wal"
    if log.exists() and log.stat().st_size:
        raise ValueError("somebody writes")
    spec, journal = folder / "study.toml", (folder / "control.db").stat()
    if not spec.is_file() or spec.stat().st_size > _LARGEST:
        raise ValueError("no study file")
    digest = hashlib.sha256(spec.read_bytes()).hexdigest()
    return {"journal": [journal.st_size, journal.st_mtime_ns], "spec": digest}
