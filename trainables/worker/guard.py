"""A worker that takes more memory than its trial may have ends itself, and says so.

What it says is a note beside the trial's checkpoints (`trainables.worker.shelf`), which the driver reads when it hears
that the worker is gone: a process that the system kills for its memory could say nothing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from trainables.worker.machine import own_memory

_EVERY_SECONDS = 0.25


def _nobody(kind: str, why: str) -> None:
    """Nobody is told."""


class Guard:
    """Watches this process while it works on a trial. `limit` in bytes; None: no limit, nothing is watched."""

    def __init__(self) -> None:
        self._limit: float | None = None
        self._note: Callable[[str, str], None] = _nobody
        self._thread: threading.Thread | None = None

    def watch(self, note: Callable[[str, str], None], limit: float | None) -> None:
        """The trial of which `note` leaves word may have so much from here on."""
        self._note, self._limit = note, limit
        if limit is not None and self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True, name="guard")
            self._thread.start()

    def _look(self) -> None:
        pause = threading.Event()
        while not pause.wait(_EVERY_SECONDS):
            limit, used = self._limit, own_memory()
            if limit is not None and used > limit:
                leave(self._note, "memory", f"{used / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB of a trial")


def end_children() -> None:
    """Kill every process that this one started and that still lives, and theirs (where the system tells: Linux)."""
    for pid in _children(os.getpid()):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listed.read_text().split()):
                found += [child, *_children(child)]
    return found


def leave(note: Callable[[str, str], None], kind: str, why: str) -> None:
    """Leave the note and end this process at once: nothing of it can be trusted to end in order."""
    end_children()
    note(kind, why)
    os.kill(os.getpid(), signal.SIGKILL)
