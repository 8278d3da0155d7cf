"""Kills the tracking server, the uploader and the driver at random moments, and counts what MLflow lost or doubled.

    python tests/benchmarks/tracking/check_tracking.py --kills 50

A driver appends events to a real journal and tracks them at a real `mlflow server` (on PostgreSQL where Debian's
package is installed, else on SQLite) while each of the three is killed with SIGKILL. In the end the server's own
tables are compared with the journal, row by row.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.postgres import INSTALLED, postgresql
from tests.support.story import Story
from tests.support.tracked import Place, Server, lost_and_doubled, until

_ROOT = Path(__file__).parents[3]


def drive(folder: Path, uri: str, pause: float) -> int:
    """The driver's process: go on with an endless story, an event every `pause` seconds, until ``stop`` appears.

    Returns how many events have not arrived in the end.
    """
    story = Story()
    place = Place(folder, story, more=True)
    tracker = place.tracker(uri)
    tracker.start()
    for event in itertools.islice(endless(story), place.journal.last() - 2, None):
        if (folder / "stop").exists():
            break
        tracker(place.append(event), None)  # type: ignore[arg-type]
        time.sleep(pause)
    place.journal.append("ended", {"why": "stopped"})
    waiting = tracker.close(300)
    if waiting:
        print(f"the driver: {waiting} events wait ({tracker.problem or 'no problem'})", file=sys.stderr)
    place.journal.close()
    return waiting


def endless(story: Story):
    """The events of trial after trial: two curves, three epochs, the end."""
    for number in itertools.count():
        at = len(story.events)
        name = story.ask(number, "skipnet")
        story.report(name, 1, [(0.5, 1e6), (0.7, 4e6 - number)])
        story.report(name, 2)
        story.report(name, 3, [(0.6, 1e6), (0.8, 4e6 - number)])
        story.decide(name, 3, "finish", "trained in full")
        yield from story.events[at:]


class Killing:
    """A driver and a server that are killed and go on."""

    def __init__(self, folder: Path, server: Server, rng: random.Random, pause: float = 0.3) -> None:
        self.folder, self.server, self.rng, self.pause = folder, server, rng, pause
        self.busy = 0  # kills while something was on its way
        (folder / "study").mkdir()
        self._drive()

    def _drive(self) -> None:
        words = [sys.executable, __file__, "--drive", str(self.folder / "study"), self.server.uri, str(self.pause)]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        self.driver = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)

    def kill(self, kind: str, longest: float = 4.0) -> None:
        """Wait until the server answers and a random moment more, then kill and start again."""
        self.server.wait()
        until(self._uploader)
        time.sleep(self.rng.uniform(0.0, longest))
        self.busy += self._arrived() < self._journal()
        if kind == "server":
            self.server.kill()
            self.server.start()
        elif kind == "uploader":
            pid = until(self._uploader)  # between two lives there is none, and 0 would be this process and all others
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        else:
            self.driver.kill()
            self.driver.wait()
            self._drive()

    def end(self) -> int:
        """Let the driver end; how many events it says have not arrived."""
        self.server.wait()
        (self.folder / "study" / "stop").touch()
        said, _ = self.driver.communicate(timeout=400)
        return int(said)

    def compare(self) -> tuple[int, int, int]:
        """(records expected, lost, doubled)."""
        from search.journal.database import Journal, sqlite_address

        journal = Journal(sqlite_address(self._folder / "control.db"), "story")
        try:
            return lost_and_doubled(self.server.database, [journal])
        finally:
            journal.close()

    @property
    def _folder(self) -> Path:
        return self.folder / "study" / "story"

    def _uploader(self) -> int:
        """The process that holds the uploader's lock, 0 while there is none."""
        for lock in self._folder.glob("tracking/*.lock"):
            text = lock.read_text()
            if text and Path(f"/proc/{text}").exists():
                return int(text)
        return 0

    def _arrived(self) -> int:
        return max((json.loads(p.read_text())["events"] for p in self._folder.glob("tracking/*.json")), default=0)

    def _journal(self) -> int:
        import sqlite3

        with sqlite3.connect(self._folder / "control.db", timeout=20) as connection:
            return connection.execute("select max(seq) from events").fetchone()[0]


def run(folder: Path, database: str, kinds: Sequence[str], seed: int, say: Callable[[str], None]) -> tuple[int, ...]:
    """Kill in this order; (records expected, lost, doubled, events that the driver said had not arrived)."""
    server = Server(folder, database)
    server.start()
    try:
        server.wait()
        killing = Killing(folder, server, random.Random(seed))
        try:
            for number, kind in enumerate(kinds, start=1):
                killing.kill(kind)
                say(f"{number:3} of {len(kinds)}: {kind} killed")
            waiting = killing.end()
        finally:
            killing.driver.kill()
            killing.driver.wait()
        say(f"{killing.busy} of {len(kinds)} kills while events were on their way")
        return *killing.compare(), waiting
    finally:
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--drive", nargs=3, metavar=("FOLDER", "URI", "PAUSE"), help="(the driver's own process)")
    given = parser.parse_args()
    if given.drive:
        folder, uri, pause = given.drive
        print(drive(Path(folder), uri, float(pause)), flush=True)
        return
    kinds = [kind for kind, _ in zip(itertools.cycle(("server", "uploader", "server", "driver")), range(given.kills))]
    random.Random(given.seed).shuffle(kinds)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="routefront-kills-")))
        database = stack.enter_context(postgresql()) if INSTALLED else ""
        records, lost, doubled, waiting = run(folder, database, kinds, given.seed, lambda text: print(text, flush=True))
    counts = ", ".join(f"{n} of the {kind}" for kind, n in sorted(Counter(kinds).items()))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {'PostgreSQL' if INSTALLED else 'SQLite'}, seed {given.seed}")
    print(f"{len(kinds)} kills ({counts}) in {time.monotonic() - began:.0f} s")
    print(f"{records} records expected, {lost} lost, {doubled} doubled; {waiting} events not arrived in the end")
    sys.exit(bool(lost or doubled or waiting))


if __name__ == "__main__":
    main()
