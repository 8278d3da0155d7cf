"""A worker that takes more memory than its trial may have ends itself, and says so.

What it says is a note in the trial's folder, which the driver reads when it hears that the worker is gone:
a process that the system kills for its memory could say nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from pathlib import Path

from trainables.machine import own_memory

NOTE = "left.json"
LEAVE = "leave"
"""The file in a trial's folder by which the driver asks its worker to leave (`ray_trainable`)."""
_EVERY_SECONDS = 0.25


class Guard:
    """Watches this process while it works on a trial. `limit` in bytes; None: no limit, nothing is watched."""

    def __init__(self) -> None:
        self._limit: float | None = None
        self._folder = Path()
        self._thread: threading.Thread | None = None

    def watch(self, folder: Path, limit: float | None) -> None:
        """The trial whose folder this is may have so much from here on."""
        self._folder, self._limit = folder, limit
        if limit is not None and self._thread is None:
            self._thread = threading.Thread(target=self._look, daemon=True, name="guard")
            self._thread.start()

    def _look(self) -> None:
        pause = threading.Event()
        while not pause.wait(_EVERY_SECONDS):
            limit, used = self._limit, own_memory()
            if limit is not None and used > limit:
                leave(self._folder, "memory", f"{used / 1e6:.0f} MB, more than the {limit / 1e6:.0f} MB of a trial")


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


def leave(folder: Path, kind: str, why: str) -> None:
    """Write the note and end this process at once: nothing of it can be trusted to end in order."""
    end_children()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / NOTE).write_text(json.dumps({"kind": kind, "why": why}))
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_leave(folder: Path) -> None:
    """Ask the worker of the trial whose folder this is to keep what it has and to leave."""
    with contextlib.suppress(OSError):  # a disk that is full: its next report ends it
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LEAVE).touch()


def note_of(folder: Path) -> dict[str, str] | None:
    """What the last worker of a trial said when it left, once; None where it said nothing."""
    path = folder / NOTE
    try:
        note = json.loads(path.read_text())
        path.unlink()
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) and {"kind", "why"} <= note.keys() else None
