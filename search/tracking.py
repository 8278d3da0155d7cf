"""Trials to MLflow, from the driver's process alone, and never in the way of training.

The journal is the spool: `Tracker` hears events, a thread of its own replays them, and
``<study>/tracking.json`` remembers for every tracking server the last event that arrived. Sending
an event again changes nothing, and a run is looked for by its tags before it is created, so a
server or a driver that dies loses nothing and doubles nothing.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from search.chronicle import STUDY, Chronicle, study_id
from search.journal import Event
from search.mlflow_client import check_server, default_uri, shown
from search.mlflow_runs import GoneError, StudyRuns

if TYPE_CHECKING:
    from search.folder import StudyFolder
    from search.spec import StudySpec
    from search.state import StudyState

__all__ = ["Tracker", "check_server", "default_uri"]

_log = logging.getLogger("routefront.tracking")

_GATHER_SECONDS = 0.5  # how long events wait for company, so that a run gets one call and not ten
_CHUNK_EVENTS = 2000  # the cursor moves at least this often while a long journal is replayed
_FRONTIER_SECONDS = 30.0
_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0


class Tracker:
    """A listener of the driver that mirrors a study in MLflow.

    Use: ``driver.listeners.append(tracker)``, ``tracker.start(journal.events())``, run,
    ``tracker.close()``. Nothing here raises into the driver: what goes wrong is logged once, kept
    in `problem`, and tried again later.
    """

    def __init__(self, uri: str, experiment: str, folder: StudyFolder, spec: StudySpec) -> None:
        self.uri, self.experiment, self.folder, self.spec = uri, experiment, folder, spec
        self.problem = ""
        self._events: list[Event] = []
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._cursor = self._read_cursor()
        self._frontier_at = 0.0
        self._forget()

    # -- the driver's side -----------------------------------------------------------------------

    def __call__(self, event: Event, state: StudyState) -> None:
        """Remember the event; takes microseconds whatever the server does."""
        with self._lock:
            self._events.append(event)
        self._wake.set()

    def start(self, events: Iterable[Event]) -> None:
        """Begin to replay: `events` is the whole journal, of which only what is new is sent."""
        journal = list(events)
        last = journal[-1].seq if journal else 0
        with self._lock:
            self._events = journal + [event for event in self._events if event.seq > last]
        self._thread = threading.Thread(target=self._work, name="routefront-tracking", daemon=True)
        self._thread.start()
        self._wake.set()

    @property
    def waiting(self) -> int:
        """How many events have not arrived yet; the journal keeps them."""
        with self._lock:
            return sum(event.seq > self._cursor for event in self._events)

    def close(self, timeout: float = 30.0) -> int:
        """Send what waits, for at most `timeout` seconds; how many events still wait.

        Where the server does not answer, one more attempt is made and no second one.
        """
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)
        return self.waiting

    # -- the thread ------------------------------------------------------------------------------

    def _work(self) -> None:
        delay = _FIRST_DELAY
        while True:
            self._wake.wait()
            self._closing.wait(_GATHER_SECONDS)
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                self._deliver(closing)
            except Exception as error:  # whatever MLflow raises, training goes on
                self._failed(error)
                if closing:
                    return
                self._closing.wait(delay)
                delay = min(2 * delay, _LONGEST_DELAY)
                self._wake.set()
                continue
            delay = _FIRST_DELAY
            if self.problem:
                _log.warning("MLflow at %s answers again; nothing was lost", shown(self.uri))
                self.problem = ""
            if closing and self._folded == len(self._events):
                return

    def _failed(self, error: Exception) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if not self.problem:
            _log.warning("MLflow at %s: %s; the journal keeps what it misses", shown(self.uri), reason)
        self.problem = reason
        self._runs = None  # a creation may have arrived although its answer did not: look again
        if isinstance(error, GoneError):
            self._forget()
            self._cursor = 0

    def _forget(self) -> None:
        self._chronicle = Chronicle()
        self._folded = 0
        self._runs: StudyRuns | None = None

    def _deliver(self, closing: bool) -> None:
        """Send everything that waits; the cursor follows chunk by chunk."""
        if not self._events:
            return
        runs = self._connect()
        while True:
            with self._lock:
                chunk = self._events[self._folded : self._folded + _CHUNK_EVENTS]
            for event in chunk:
                self._fold(event)
            self._folded += len(chunk)
            last = len(chunk) < _CHUNK_EVENTS
            if last and self._chronicle.front_changed and self._frontier_due(closing):
                self._chronicle.add_frontier()
                self._frontier_at = time.monotonic()
            runs.send(self._chronicle.changes)
            self._move_cursor()
            if last:
                return

    def _frontier_due(self, closing: bool) -> bool:
        return closing or time.monotonic() - self._frontier_at > _FRONTIER_SECONDS

    def _fold(self, event: Event) -> None:
        try:
            self._chronicle.apply(event)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _log.warning("event %d (%s) is not shown in MLflow: %r", event.seq, event.kind, error)
        if event.seq <= self._cursor:
            self._chronicle.changes.clear()
            self._chronicle.front_changed = False

    def _connect(self) -> StudyRuns:
        """The study's runs, looked up; a cursor that they do not bear out is not believed."""
        if self._runs is None:
            runs = StudyRuns(
                self.uri, self.experiment, self.spec.name, study_id(self._events[0]), self.folder.path.parent
            )
            asked = {event.trial for event in self._events if event.kind == "ask" and event.seq <= self._cursor}
            if self._cursor and not {STUDY, *asked} <= runs.keys:  # another database, or runs were deleted
                self._forget()
                self._cursor = 0
            self._runs = runs
        return self._runs

    # -- the cursor ------------------------------------------------------------------------------

    @property
    def _cursor_key(self) -> str:
        return f"{shown(self.uri)} {self.experiment}"

    def _read_cursor(self) -> int:
        try:
            return int(json.loads((self.folder.path / "tracking.json").read_text())[self._cursor_key])
        except (OSError, ValueError, KeyError, TypeError):
            return 0  # everything is sent again, which changes nothing

    def _move_cursor(self) -> None:
        self._cursor = self._events[self._folded - 1].seq if self._folded else 0
        path = self.folder.path / "tracking.json"
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        part = path.with_name(f".{path.name}.part")
        try:
            part.write_text(json.dumps({**known, self._cursor_key: self._cursor}, indent=1))
            os.replace(part, path)
        except OSError as error:
            _log.warning("%s cannot be written: %s", path, error.strerror or error)
