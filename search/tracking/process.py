"""Runs the uploader, as a process of its own beside a driver (`main`) or within `routefront track`.

One uploader works at an address at a time; the lock is the kernel's and goes with its process.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from search.errors import InputError, RunError
from search.journal.database import Journal
from search.redaction import guard, redacted
from search.tracking.runs import GoneError
from search.tracking.server import shown
from search.tracking.uploader import Uploader, note_of

GATHER_SECONDS = 0.5  # how long events wait for company, so that a run gets one call and not ten
FIRST_DELAY, LONGEST_DELAY = 0.5, 5.0
UNREACHABLE = 3  # exit status: it was asked to end and the server takes nothing
_LAST_ATTEMPTS = 3  # when it was asked to end
_FAREWELL_SECONDS = 60.0  # how long one that was asked to end waits for its turn


@contextlib.contextmanager
def alone(study: Path, uri: str, experiment: str) -> Iterator[None]:
    """Be the only uploader of a study to an address; raises `InputError` naming the process that is."""
    import fcntl

    path = note_of(study, uri, experiment).with_suffix(".lock")
    path.parent.mkdir(exist_ok=True)
    with open(path, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"study {study.name!r} is being brought to {shown(uri)} by process {lock.read() or '?'} already;"
                " wait until it has ended"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def rebuild(
    uri: str, experiment: str, journal: Journal, study: Path, *, say: Callable[[str], None] = lambda text: None
) -> dict[str, int]:
    """Send a whole journal to an address, whatever has arrived there before: {events, runs, created}.

    Raises `InputError` where another process is at it, `RunError` of one line where MLflow fails.
    """
    with alone(study, uri, experiment):
        uploader = Uploader(uri, experiment, journal, study)
        uploader.restart()
        uploader.moved = lambda seq: say(f"{seq:,} events have arrived at {shown(uri)}")
        try:
            uploader.deliver(final=True)
        except InputError:
            raise
        except Exception as error:
            raise RunError(
                f"MLflow at {shown(uri)}: {reason_of(error)}; {uploader.cursor:,} of {journal.last():,} events have"
                " arrived; run the command again, nothing is doubled"
            ) from error
        return {"events": uploader.cursor, "runs": len(uploader.keys), "created": uploader.created}


def reason_of(error: Exception) -> str:
    """What went wrong, in a line: of a failed request the cause at its bottom."""
    cause: BaseException = error
    while (deeper := cause.__cause__ or cause.__context__) is not None:
        cause = deeper
    if isinstance(cause, OSError) and type(cause).__module__ in ("builtins", "http.client"):
        return redacted(f"does not answer ({cause.strerror or cause})")
    return redacted((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


# -- the process -----------------------------------------------------------------------------------


class Wishes:
    """What the driver writes to the uploader's input: ``close``, or nothing more when it has died."""

    def __init__(self, stream: Any) -> None:
        self.closing = threading.Event()
        self._stream = stream
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._stream:
            if line.strip() == "close":
                break
        self.closing.set()


def serve(uploader: Uploader, closing: threading.Event, say: Callable[..., None]) -> int:
    """Deliver until `closing`, then what is left, in a few attempts; the exit status.

    `say` is told `at` (the cursor) when it has moved and `problem` (one line, empty when it is over).
    """
    delay, problem, attempts = FIRST_DELAY, None, 0
    uploader.moved = lambda seq: say(at=seq)
    say(at=uploader.cursor)
    while True:
        final = closing.is_set()
        try:
            uploader.deliver(final=final)
        except Exception as error:  # whatever MLflow raises, training goes on
            problem = reason_of(error)
            say(problem=problem)
            uploader.restart() if isinstance(error, GoneError) else uploader.disconnect()
            attempts += final
            if attempts == _LAST_ATTEMPTS:
                return UNREACHABLE
            time.sleep(delay) if final else closing.wait(delay)
            delay = min(2 * delay, LONGEST_DELAY)
        else:
            delay = FIRST_DELAY
            if problem != "":
                problem = ""
                say(problem="")
            if final:
                return 0
            closing.wait(GATHER_SECONDS)


def main() -> None:
    """Orders come as one line of JSON on stdin (uri, experiment, journal, name, study); messages go to stdout."""
    os.nice(15)  # as Ray's workers: the driver goes first
    orders = json.loads(sys.stdin.readline())
    messages, sys.stdout = sys.stdout, sys.stderr  # nothing else may print among the messages
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "60")  # longer than a server waits for a free connection
    guard()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)

    def say(**message: Any) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            print(json.dumps(message), file=messages, flush=True)

    wishes, study = Wishes(sys.stdin), Path(orders["study"])
    journal = Journal(orders["journal"], orders["name"])
    with contextlib.ExitStack() as lock:
        limit = float("inf")
        while time.monotonic() < limit:
            with contextlib.suppress(InputError):  # a predecessor, whose driver died, brings what it has read
                lock.enter_context(alone(study, orders["uri"], orders["experiment"]))
                uploader = Uploader(orders["uri"], orders["experiment"], journal, study)
                sys.exit(serve(uploader, wishes.closing, say))
            time.sleep(GATHER_SECONDS)
            if wishes.closing.is_set():
                limit = min(limit, time.monotonic() + _FAREWELL_SECONDS)
    sys.exit(UNREACHABLE)


if __name__ == "__main__":
    main()
