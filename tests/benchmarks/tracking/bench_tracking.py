"""What tracking costs: a trial's critical path, and how fast records drain, with the server healthy, slow and dead.

    python tests/benchmarks/tracking/bench_tracking.py

The critical path is what `Engine.report` waits for: the append to the journal and the listeners. It is timed for
the same reports without tracking and with a tracker whose server is healthy, answers 200 ms late, or refuses
every connection; rounds are interleaved. Then: how many trials a second a study drains at, healthy and slow.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.benchmarks.tracking.check_tracking import endless
from tests.support.story import Story
from tests.support.tracked import Place, Proxy, Server

_SLOW = 0.2


def critical_path(folder: Path, uri: str | None, reports: int, pause: float) -> list[float]:
    """Seconds that each report waited; the uploader is given time to start, so that it works meanwhile."""
    place = Place(folder, Story())
    tracker = place.tracker(uri) if uri else None
    if tracker is not None:
        tracker.start()
        time.sleep(8.0)  # until it has imported mlflow and found the server
    waited = []
    events = (event for event in endless(place.story))
    while len(waited) < reports:
        event = next(events)
        began = time.perf_counter()
        event = place.append(event)
        if tracker is not None:
            tracker(event, None)  # type: ignore[arg-type]
        if event.kind == "report":
            waited.append(time.perf_counter() - began)
        time.sleep(pause)
    if tracker is not None:
        tracker.close(0.1)
    place.journal.close()
    return waited


def drain(folder: Path, uri: str, trials: int) -> tuple[float, int]:
    """(trials a second, events) of a study that is brought to a server in one go."""
    place = Place(folder, Story())
    for event in itertools.islice(endless(place.story), 6 * trials):
        place.append(event)
    uploader = place.uploader(uri)
    began = time.perf_counter()
    uploader.deliver(final=True)
    seconds = time.perf_counter() - began
    place.journal.close()
    return trials / seconds, uploader.cursor


def milliseconds(values: list[float]) -> str:
    ordered = sorted(values)
    nine = ordered[int(0.99 * (len(ordered) - 1))]
    return f"{1e3 * statistics.median(ordered):8.3f} {1e3 * nine:8.3f} {1e3 * ordered[-1]:8.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reports", type=int, default=200, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.01, help="seconds between events")
    parser.add_argument("--trials", type=int, default=60, help="of the study that is drained")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="routefront-bench-") as name:
        folder = Path(name)
        server = Server(folder)
        server.start()
        try:
            server.wait()
            healthy, slow, dead = Proxy(server.port), Proxy(server.port, _SLOW), Proxy(server.port)
            dead.close()
            addresses = {"without": None, "healthy": healthy.uri, "slow": slow.uri, "dead": dead.uri}
            waited: dict[str, list[float]] = {name: [] for name in addresses}
            for number in range(given.rounds):
                for kind, uri in addresses.items():
                    place = folder / f"{kind}{number}"
                    waited[kind] += critical_path(place, uri, given.reports, given.pause)
            rates = {
                kind: drain(folder / f"drain-{kind}", uri, given.trials)
                for kind, uri in (("healthy", healthy.uri), ("slow", slow.uri))
            }
        finally:
            server.kill()
    cores, load = os.cpu_count(), os.getloadavg()[0]
    print(f"{platform.machine()}, {cores} cores, load {load:.1f}", end=", ")
    print(f"Python {platform.python_version()}, mlflow {version('mlflow')}")
    print(f"\ncritical path of a report, ms ({given.rounds} rounds of {given.reports}, interleaved)")
    print(f"{'server':<10}{'median':>8}{'99 %':>9}{'most':>9}{'median more than without':>27}")
    base = statistics.median(waited["without"])
    for kind, values in waited.items():
        more = 1e3 * (statistics.median(values) - base)
        print(f"{kind:<10}{milliseconds(values)}{more:>+27.3f}")
    print(f"\ndraining a study of {given.trials} trials (2 curves, 3 epochs each), one server worker on SQLite")
    for kind, (rate, events) in rates.items():
        late = f", every request {_SLOW * 1e3:.0f} ms late" if kind == "slow" else ""
        print(f"{kind:<10}{rate:6.1f} trials/s, {events} events{late}")


if __name__ == "__main__":
    main()
