"""What brings a study's journal to MLflow: events become changes of runs, what has arrived is noted and checked.

The journal on disk is the spool; what has arrived is remembered beside it, in ``<study>/tracking/``, one file an
address and experiment. Whatever dies between a call and that note, the next uploader sends the same
events again, which changes nothing (`search.tracking.runs`). `search.tracking.process` runs it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from search.journal.database import Journal
from search.journal.events import Event
from search.tracking.chronicle import STUDY, Chronicle, RunChange, study_id
from search.tracking.runs import Expected, StudyRuns
from search.tracking.server import shown

_log = logging.getLogger("routefront.tracking")

_CHUNK_EVENTS = 500  # what has arrived is noted at least this often while a long journal is replayed
_CAREFUL_EVENTS = 50  # the same after a failure: a server that comes and goes is brought a little each time
_FRONTIER_SECONDS = 30.0
_MODELS_SECONDS = 60.0  # a new member of the front costs four requests


class Uploader:
    """Brings a journal's events to one experiment of one address; `cursor` is the last that has arrived.

    `studies_root`: where a database address keeps its artifacts. Methods raise whatever MLflow
    raises, `InputError` for a damaged journal, and may be called again after any exception.
    """

    def __init__(self, uri: str, experiment: str, journal: Journal, study: Path) -> None:
        self.uri, self.experiment, self.journal, self.study = uri, experiment, journal, study
        self.moved: Callable[[int], None] = lambda seq: None
        self._note = note_of(study, uri, experiment)
        self.cursor = self._read_note()
        self._frontier_at = -_FRONTIER_SECONDS
        self._models_at = time.monotonic()
        self._failed = False
        self._forget()

    @property
    def created(self) -> int:
        """How many runs were created since the last look-up."""
        return self._runs.created if self._runs else 0

    @property
    def keys(self) -> set[str]:
        """The runs that the events so far have begun."""
        return self._chronicle.keys

    def _forget(self) -> None:
        self._chronicle = Chronicle()
        self._folded = 0
        self._runs: StudyRuns | None = None

    def disconnect(self) -> None:
        """After a failure: a creation may have arrived although its answer did not, so look again, and go slowly."""
        self._runs = None
        self._failed = True

    def restart(self) -> None:
        """Send everything again, from the first event."""
        self._forget()
        self._move_cursor(0)

    def deliver(self, *, final: bool = False) -> None:
        """Send what the journal holds beyond the cursor. `final`: the frontier as it stands too, and look whether all
        of it is there.
        """
        runs = self._connect()
        if runs is None:
            return
        for events in self._chunks(self._folded):
            for event in events:
                self._fold(event, self._chronicle)
            self._folded = events[-1].seq
            runs.send(self._chronicle.changes)
            self._move_cursor(self._folded)
        if self._chronicle.front_changed and (final or time.monotonic() - self._frontier_at > _FRONTIER_SECONDS):
            self._chronicle.add_frontier()
            self._frontier_at = time.monotonic()
        runs.send(self._chronicle.changes)
        if self.cursor != self._folded:
            self._move_cursor(self._folded)
        if self._chronicle.members_changed and (final or time.monotonic() - self._models_at > _MODELS_SECONDS):
            self._models_at = time.monotonic()
            chronicle = self._chronicle
            runs.front.show(chronicle.members(), runs.ids, chronicle.images, chronicle.begun)
            chronicle.members_changed = False
        if final:
            self._complete(runs)
        self._failed = False
        runs.hurry(True)

    def _chunks(self, after: int, upto: int | None = None) -> Iterator[list[Event]]:
        most = _CAREFUL_EVENTS if self._failed and upto is None else _CHUNK_EVENTS
        while True:
            limit = most if upto is None else min(most, upto - after)
            events = list(self.journal.events(after, limit)) if limit else []
            if events:
                yield events
                after = events[-1].seq
            if len(events) < most:
                return

    def _fold(self, event: Event, chronicle: Chronicle) -> None:
        try:
            chronicle.apply(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("event %d (%s) is not shown in MLflow: %r", event.seq, event.kind, error)

    # -- what is there already ---------------------------------------------------------------------

    def _connect(self) -> StudyRuns | None:
        """The study's runs, looked up; None before the first event. A cursor they do not bear out is not believed."""
        if self._runs is None:
            first = next(self.journal.events(limit=1), None)
            if first is None:
                return None
            name, root = first.payload["spec"]["name"], self.study.parent
            runs = StudyRuns(self.uri, self.experiment, name, study_id(first), root)
            runs.hurry(not self._failed)
            self._catch_up(runs)
            self._runs = runs
        return self._runs

    def _catch_up(self, runs: StudyRuns) -> None:
        """Fold what has arrived and make good what the server lacks of it: it may be another one, or an older copy."""
        expected, self._chronicle = self._expected(self.cursor)
        self._folded = self.cursor
        lacking = runs.lacking(expected) if expected else set()
        if lacking and STUDY not in runs.keys:
            self.restart()
        elif lacking:  # also those that hold more: a predecessor died before it had noted what it sent
            self._resend(runs, lacking, self.journal.last())

    def _complete(self, runs: StudyRuns) -> None:
        """Look once more: what a request of a dead predecessor did late is undone, what is missing is sent again."""
        lacking = runs.lacking(self._expected(self._folded)[0])
        if lacking:
            _log.warning("MLflow at %s lacks a part of %d runs; it is sent again", shown(self.uri), len(lacking))
            self._resend(runs, lacking, self._folded)

    def _expected(self, upto: int) -> tuple[dict[str, Expected], Chronicle]:
        """What the runs should hold after the events up to one, and the chronicle of these."""
        expected: dict[str, Expected] = {}

        def absorb(changes: dict[str, RunChange]) -> None:
            for key, change in changes.items():
                expected.setdefault(key, Expected()).absorb(change)

        return expected, self._replayed(upto, absorb)

    def _resend(self, runs: StudyRuns, keys: set[str], upto: int) -> None:
        """Send again, of the events up to one, what concerns these runs."""
        self._replayed(upto, lambda changes: runs.send({key: c for key, c in changes.items() if key in keys}))

    def _replayed(self, upto: int, use: Callable[[dict[str, RunChange]], None]) -> Chronicle:
        chronicle = Chronicle()
        for events in self._chunks(0, upto):
            for event in events:
                self._fold(event, chronicle)
            use(chronicle.changes)
            chronicle.changes.clear()
        return chronicle

    # -- the cursor --------------------------------------------------------------------------------

    def _read_note(self) -> int:
        try:
            return int(json.loads(self._note.read_text())["events"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # everything is sent again, which changes nothing

    def _move_cursor(self, seq: int) -> None:
        self.cursor = seq
        self.moved(seq)
        note = {"address": shown(self.uri), "experiment": self.experiment, "events": seq}
        part = self._note.with_suffix(".part")
        try:
            self._note.parent.mkdir(exist_ok=True)
            part.write_text(json.dumps(note, indent=1))
            os.replace(part, self._note)
        except OSError as error:
            _log.warning("%s cannot be written: %s", self._note, error.strerror or error)


def note_of(study: Path, uri: str, experiment: str) -> Path:
    """The file that remembers what has arrived at an address."""
    digest = hashlib.sha256(f"{shown(uri)} {experiment}".encode()).hexdigest()[:12]
    return study / "tracking" / f"{digest}.json"
