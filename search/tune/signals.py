"""Signals that end a running search: gently at the first, at once at the second.

Slurm, Kubernetes, ``docker stop`` and ``timeout`` send SIGTERM and kill the process half a minute later; Ctrl-C is
SIGINT. The first signal does what ``routefront stop`` does: workers leave behind a checkpoint of the epoch that they
are in. Ray's own handlers are replaced, for they end the process within Ray's C++ code and lose those epochs.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.engine.driver import Driver

GENTLE = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def heeded(driver: Driver) -> Iterator[None]:
    """Within, the first of `GENTLE` asks the driver to stop and notes which one it was (`Driver.signal`).

    Outside the main thread, where Python takes no signals, nothing is done. Earlier handlers are put back at the end.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def take(number: int, frame: FrameType | None) -> None:
        if driver.signal:
            os._exit(128 + number)
        driver.signal = number
        driver.folder.stop.touch()
        name = signal.Signals(number).name
        with contextlib.suppress(OSError):  # nobody reads it
            sys.stderr.write(f"{name}: stopping behind checkpoints; a second signal ends at once and loses them\n")
            sys.stderr.flush()

    before = {each: signal.signal(each, take) for each in GENTLE}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler if handler is not None else signal.SIG_DFL)
