"""The operating points of studies, to ask questions of: one study's, or several studies' together.

A study's points are read from its Parquet files where these are whole, which the journal says: its
work ended in good order. Those of a running or interrupted study come from the journal itself, which
has what was not flushed yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from search.errors import InputError
from search.points import files as points
from search.points.table import state_table
from search.state.state import StudyState
from search.units import AxesText

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy


# What a driver writes while it works; a promotion afterwards adds no operating point.
_WORK = ("session", "ask", "start", "report", "decision", "failed", "stage", "ended")
_CREATED = {"spec": ("name",), "reference": ("error", "macs"), "data": ("name", "hash", "task")}


class StudyPoints:
    """The operating points of one study, and what it was created with.

    Raises `InputError` for a study without a journal, with a damaged one, or of another version.
    """

    def __init__(self, study: StoredStudy, state: StudyState | None = None) -> None:
        self.study = study
        self._table: pa.Table | None = None
        if state is None:
            state = self._open()
        if state is not None:
            self.created = self._checked(state.created)
            self._table = state_table(state)

    def _open(self) -> StudyState | None:
        """The journal's state, or None where the Parquet files have all of it."""
        journal = self.study.journal()
        try:
            first = journal.first()
            self.created = self._checked(first.payload if first and first.kind == "created" else {})
            last = journal.newest(_WORK)
            whole = last is not None and last.kind == "ended"
        finally:
            journal.close()
        if whole and not self._constrained and any(self.study.folder.points.glob("*.parquet")):
            return None
        return self.study.state()

    @property
    def _constrained(self) -> bool:
        """Whether some points do not count: the files have them all, and only the journal says which."""
        return any(limit is not None for limit in (self.created["spec"].get("constraints") or {}).values())

    def _checked(self, created: dict[str, Any]) -> dict[str, Any]:
        for key, names in _CREATED.items():
            part = created.get(key)
            missing = [name for name in names if not isinstance(part, dict) or name not in part]
            if missing:
                raise InputError(
                    f"study folder {self.study.folder.path} was written by another version of routefront:"
                    f" its first event lacks {key}.{missing[0]}; read it with the version that made it"
                )
        return created

    @property
    def name(self) -> str:
        """The study's name."""
        return self.study.spec.name

    @property
    def reference(self) -> tuple[float, float]:
        """The study's fixed reference: (error of guessing, largest macs_full)."""
        return float(self.created["reference"]["error"]), float(self.created["reference"]["macs"])

    def read(
        self, columns: Sequence[str] | None = None, filters: pc.Expression | None = None, *, unique: bool = True
    ) -> pa.Table:
        """Rows and columns as `search.points.files.read` gives them; `InputError` where a file is damaged or newer."""
        if self._table is not None:
            found = self._table if filters is None else self._table.filter(filters)
            return found.select(list(columns)) if columns is not None else found
        try:
            return points.read(self.study.folder.points, columns=columns, filters=filters, unique=unique)
        except ValueError as error:
            raise InputError(f"operating points of study {self.name!r}: {error}") from None


def opened(studies: Sequence[StoredStudy]) -> list[StudyPoints]:
    """The studies' points, each study once; `InputError` where their points may not share one front."""
    unique = {study.folder.path: study for study in studies}
    found = [StudyPoints(study) for study in unique.values()]
    for other in found[1:]:
        _comparable(found[0], other)
    return found


def _comparable(one: StudyPoints, other: StudyPoints) -> None:
    a, b = one.created["data"], other.created["data"]
    axes = [source.created.get("objective") for source in (one, other)]
    if axes[0] != axes[1]:
        said = [f"{t.merit_title} and {t.cost_title}" for t in (AxesText.of(s.created) for s in (one, other))]
        raise InputError(
            f"studies {one.name!r} ({said[0]}) and {other.name!r} ({said[1]}) have different axes, or bounds of them:"
            " their points share no front; ask for one at a time"
        )
    if a["hash"] != b["hash"] or a["task"] != b["task"]:
        raise InputError(
            f"studies {one.name!r} ({_images(a)}) and {other.name!r} ({_images(b)}) have different images:"
            " points of different data sets share no front; ask for one at a time"
        )
    if one.reference[0] != other.reference[0]:
        raise InputError(
            f"studies {one.name!r} and {other.name!r} have different reference errors"
            f" ({one.reference[0]:g} and {other.reference[0]:g}); ask for one at a time"
        )


def _images(data: dict[str, Any]) -> str:
    task = data["task"]
    if not task["classes"]:
        return f"measured on {data['name']}"
    size = task["size"] if isinstance(task["size"], int) else " x ".join(map(str, task["size"]))
    return f"{data['name']}, {task['classes']} classes, {size} px, digest {data['hash'][:8]}"


def joint_reference(pool: Sequence[StudyPoints]) -> tuple[float, float]:
    """(error of guessing, the largest reference MACs of these studies)."""
    return pool[0].reference[0], max(one.reference[1] for one in pool)
