"""The live display of a running study: a table in a terminal, a line every 15 seconds elsewhere."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live

from search.status.table import status_table, summary

if TYPE_CHECKING:
    from search.engine.driver import Driver

_REFRESH_SECONDS = 0.5
_LINE_SECONDS = 15.0


def watching(console: Console) -> Callable[[Driver], AbstractContextManager[None]]:
    """A display for `search.tune.run.run`: a live table in a terminal, a line now and then elsewhere."""

    @contextlib.contextmanager
    def watch(driver: Driver) -> Iterator[None]:
        stop = threading.Event()
        show = _terminal if console.is_terminal else _lines
        thread = threading.Thread(target=show, args=(console, driver, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(timeout=5)

    return watch


def _terminal(console: Console, driver: Driver, stop: threading.Event) -> None:
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            with contextlib.suppress(RuntimeError):  # the state changed while it was read: next time
                live.update(status_table(driver.spec, driver.state, "running"), refresh=True)
            if stop.wait(_REFRESH_SECONDS):
                return


def _lines(console: Console, driver: Driver, stop: threading.Event) -> None:
    while not stop.wait(_LINE_SECONDS):
        with contextlib.suppress(RuntimeError):
            console.print(summary(driver.spec, driver.state), soft_wrap=True)
