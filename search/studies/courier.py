"""Copies a study's files to object storage, in a thread of the driver.

Workers push and pull checkpoints themselves (`trainables.worker.shelf`).
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from search.studies.folder import write_spec

if TYPE_CHECKING:
    from search.studies.folder import StudyFolder
    from trainables.worker.remote import Remote

_LOOK_SECONDS = 10.0
_LIST_ALL = 20
_log = logging.getLogger("routefront.search")


class Courier:
    """What a driver has to do in the storage, one after the other in a thread; with no storage at once, here.

    What fails is logged and not tried again by itself: `gc` finds checkpoints that were to go, the next flush brings
    operating points, and workers bring checkpoints themselves.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder, self._listed = folder, set[str]()
        self._held: set[str] = set()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing, self._spec_text = False, ""
        self._asked: dict[str, float] = {}
        if folder.storage is not None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="courier")
            self._thread.start()

    def _run(self) -> None:
        look, away = time.monotonic(), False
        while not (away and self._closing):
            work: Callable[[], None] | None = self._look
            if time.monotonic() < look:
                try:
                    work = self._work.get(timeout=max(0.0, look - time.monotonic()))
                except queue.Empty:
                    continue
            else:
                look = time.monotonic() + _LOOK_SECONDS
            if work is None:
                return
            try:
                work()
                away = False
            except OSError as error:
                away = True
                _log.warning("%s", error)

    def _do(self, work: Callable[[], None]) -> None:
        self._work.put(work) if self._thread is not None else work()

    def close(self) -> None:
        """Wait until everything is done, unless the storage is away."""
        if self._thread is not None:
            self._closing = True
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def tidy(self, over: Iterable[str], keep: set[str]) -> None:
        """Remove every checkpoint of trials that are over which is not to be kept. `over` names all of them."""
        new = set(over) - self._listed
        self._listed |= new
        self._do(lambda: self._tidy(new, keep))

    def _tidy(self, new: set[str], keep: set[str]) -> None:
        if len(new) > _LIST_ALL:
            self._held |= {name for name in self._folder.kept() if name.split("/")[0] in new}
        else:
            self._held |= {name for trial in new for name in self._folder.kept_of(trial)}
        gone, self._held = self._held - keep, self._held & keep
        self._folder.remove(f"checkpoints/{name}" for name in sorted(gone))

    def remove_stage(self, key: str) -> None:
        """Remove a stored first stage."""
        self._do(lambda: self._folder.remove([f"checkpoints/stages/{key}"]))

    def points(self) -> None:
        """Let the operating points of the storage be those that are here."""
        if self._thread is not None:
            self._do(self._points)

    def _points(self) -> None:
        remote = self._remote()
        here = {path.name: path for path in self._folder.points.glob("*.parquet")}
        there = set(remote.names("points"))
        for name in sorted(here.keys() - there):
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                remote.put(here[name], f"points/{name}")
        remote.remove(f"points/{name}" for name in sorted(there - here.keys()))

    def ask_to_leave(self, trial: str) -> None:
        """Ask the worker of a trial to leave; called again and again while it is to."""
        from trainables.worker.shelf import LEAVE, ask_to_leave

        if self._thread is None:
            ask_to_leave(self._folder.checkpoints / trial)
            return
        now = time.monotonic()
        if now - self._asked.get(trial, -_LOOK_SECONDS) >= _LOOK_SECONDS:
            self._asked[trial] = now
            self._do(lambda: self._remote().write(f"checkpoints/{trial}/{LEAVE}", ""))

    def note_of(self, trial: str) -> dict[str, str] | None:
        """What the last worker of a trial said when it left, once; None where it said nothing."""
        from trainables.worker.shelf import NOTE, note_of, parsed_note

        self._asked.pop(trial, None)
        if self._thread is None:
            return note_of(self._folder.checkpoints / trial)
        name = f"checkpoints/{trial}/{NOTE}"
        with contextlib.suppress(OSError):
            text = self._remote().read(name)
            if text is not None:
                self._do(lambda: self._remote().remove([name]))
                return parsed_note(text)
        return None

    def _remote(self) -> Remote:
        remote = self._folder.remote
        assert remote is not None
        return remote

    def _look(self) -> None:
        """Take up what another machine wrote: a request to stop, other limits."""
        remote = self._remote()
        if remote.exists("stop"):
            self._folder.stop.touch()
        text = remote.read("study.toml")
        if text is not None and text != self._spec_text:
            self._spec_text = text
            write_spec(self._folder, text, away=False)
