"""The driver's side of tracking: it starts the uploader's process and tells it of new events; training never waits.

The journal is the spool; `Tracker` starts a process (`search.tracking.process`) that reads it and brings it to
MLflow, and starts another where that one dies. So what MLflow costs, its import, its calls, a server that
hangs, is paid outside the driver, whose reports wait for nothing but the journal.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.journal.database import Journal, sqlite_address
from search.journal.events import Event
from search.tracking.process import FIRST_DELAY, LONGEST_DELAY, UNREACHABLE
from search.tracking.server import check_server, default_uri, shown

if TYPE_CHECKING:
    from search.spec.study import StudySpec
    from search.state.state import StudyState
    from search.studies.folder import StudyFolder

__all__ = ["Tracker", "check_server", "default_uri"]

_log = logging.getLogger("routefront.tracking")

_COMMAND = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from search.tracking.process import main; main()"


class Tracker:
    """Mirrors a study in MLflow while its driver runs.

    Use: ``tracker.start()``, ``driver.listeners.append(tracker)``, run, ``tracker.close()``. Nothing here
    raises into the driver: what goes wrong is logged once, kept in `problem`, and tried again later.
    """

    def __init__(self, uri: str, experiment: str, folder: StudyFolder, spec: StudySpec) -> None:
        self.uri, self.experiment, self.folder, self.spec = uri, experiment, folder, spec
        self.problem = ""
        self._last = self._cursor = 0
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._thread: threading.Thread | None = None

    # -- the driver's side -----------------------------------------------------------------------

    def __call__(self, event: Event, state: StudyState) -> None:
        """Note how far the journal is; the uploader reads the event there."""
        self._last = event.seq

    def start(self) -> None:
        """Begin to bring the journal to MLflow, of which only what is new is sent."""
        journal = Journal(self._journal, self.spec.name)
        self._last = journal.last()
        journal.close()
        self._thread = threading.Thread(target=self._watch_over, name="routefront-tracking", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many events are not known to have arrived; the journal keeps them."""
        return max(0, self._last - self._cursor)

    @property
    def pid(self) -> int | None:
        """The uploader's process, None where there is none at the moment."""
        return self._process.pid if self._process is not None else None

    def close(self, timeout: float = 30.0) -> int:
        """Send what waits, for at most `timeout` seconds; how many events still wait.

        Where the server does not answer, it is tried a few times within seconds.
        """
        limit = time.monotonic() + timeout
        with self._lock:
            self._closing.set()
            self._tell("close")
        if self._thread is not None:
            self._thread.join(timeout)
            with self._lock:
                if self._process is not None:
                    self._process.kill()
            self._thread.join(max(5.0, limit - time.monotonic()))
        return self.waiting

    # -- the thread ------------------------------------------------------------------------------

    @property
    def _journal(self) -> str:
        return self.spec.journal or sqlite_address(self.folder.control)

    def _watch_over(self) -> None:
        """Start the uploader, hear what it says, start it again when it was killed."""
        delay, attempts = FIRST_DELAY, 0
        while attempts < 3:
            began = time.monotonic()
            attempts += self._closing.is_set()  # two more, then the next session takes it up
            status = self._hear()
            if status in (0, UNREACHABLE):  # it was asked to end
                return
            self._trouble(f"the uploader ended with status {status}, see {self._errors}; it is started again")
            if time.monotonic() - began > LONGEST_DELAY:
                delay = FIRST_DELAY
            self._closing.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)

    def _hear(self) -> int:
        """One life of the uploader; its exit status."""
        try:
            self._spawn()
        except OSError as error:
            self._trouble(f"the uploader cannot be started: {error}")
            return -1
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                self._take(json.loads(line))
        status = self._process.wait()
        with self._lock:
            self._process = None
        return status

    def _spawn(self) -> None:
        orders = {"uri": self.uri, "experiment": self.experiment, "name": self.spec.name}
        orders |= {"journal": self._journal, "study": str(self.folder.path)}
        path = json.dumps([os.path.abspath(place) for place in sys.path])
        self._errors.parent.mkdir(exist_ok=True)
        with self._lock, open(self._errors, "w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _COMMAND, path],
                stdin=subprocess.PIPE,  # it ends with us: whatever kills the driver closes this
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,  # Ctrl-C is for the driver, which then says `close`
            )
            self._tell(json.dumps(orders))  # not on the command line: addresses may hold passwords
            if self._closing.is_set():
                self._tell("close")

    @property
    def _errors(self) -> Path:
        return self.folder.path / "tracking" / "uploader.log"

    def _tell(self, line: str) -> None:
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError, ValueError):  # it has just died, which `_hear` sees
                self._process.stdin.write(line + "\n")
                self._process.stdin.flush()

    def _take(self, message: dict[str, Any]) -> None:
        self._cursor = message.get("at", self._cursor)
        problem = message.get("problem")
        if problem:
            self._trouble(f"{problem}; the journal keeps what it misses")
        elif problem is not None and self.problem:
            _log.warning("MLflow at %s answers again; nothing was lost", shown(self.uri))
            self.problem = ""

    def _trouble(self, reason: str) -> None:
        if not self.problem:
            _log.warning("MLflow at %s: %s", shown(self.uri), reason)
        self.problem = reason
