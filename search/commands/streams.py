"""Standard streams that are closed, full, or read by nobody any more."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO

from search.errors import RunError

BROKEN_PIPE = 141
"""Exit code where whoever read the output has ended: that of a process which SIGPIPE ends."""


class OutputError(RunError):
    """What was asked for cannot be said: stdout takes nothing. `code` is the exit code."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"stdout cannot be written: {error.strerror or error}")
        self.code = BROKEN_PIPE if error.errno == errno.EPIPE else 1


def open_missing() -> None:
    """Open closed standard streams onto nothing, as Python itself discards what is printed to them.

    Else the next file that is opened gets their number, and whatever a library prints lands in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        with contextlib.suppress(OSError):
            if getattr(sys, name) is None:
                setattr(sys, name, open(_devnull(number), "w" if number else "r", closefd=False))


def _devnull(number: int) -> int:
    """The number of a file that is nothing: this one, unless it was given to another file meanwhile."""
    opened = os.open(os.devnull, os.O_RDWR)
    try:
        os.fstat(number)
    except OSError:
        os.dup2(opened, number)
        os.close(opened)
        return number
    return opened


def silence(stream: TextIO) -> None:
    """Let a stream that takes nothing discard what it holds and gets, so that nothing fails at exit."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
        stream.flush()


@contextlib.contextmanager
def writing(to_stderr: bool = False) -> Iterator[None]:
    """Raises `OutputError` where stdout takes nothing. What stderr does not take is lost: it is no result."""
    try:
        yield
    except OSError as error:
        silence(sys.stderr if to_stderr else sys.stdout)
        if not to_stderr:
            raise OutputError(error) from None


@contextlib.contextmanager
def flushed() -> Iterator[None]:
    """Bring what was printed to where it goes at the end of a command, whatever its own end was."""
    try:
        yield
    finally:
        with writing(to_stderr=True):
            sys.stderr.flush()
        with writing():
            sys.stdout.flush()
