"""A driver that kills itself: ``python -m tests.support.killing STUDIES NAME ADDRESS KIND N WHEN``.

It goes on with a study and sends itself SIGKILL at the N-th event of a KIND that this process appends
("any" counts all), WHEN "before" it is written, "after" it was written, or "folded" (when every listener has
heard of it). KIND "flush" kills within the N-th flush of operating points, before or after the file is
there. Exits as usual where it never comes to that; then prints the engine's digest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from search.study import Study

os.environ.setdefault("OMP_NUM_THREADS", "1")

SPEC: dict[str, Any] = {
    "name": "killed",
    "data": {"name": "digits", "image_size": 8, "limit": 96},
    "budget": {"trials": 5, "epochs": 3},
    "rungs": {"epochs": [1], "grace": 0, "pause": True},
    "sampler": {"startup": 2},
    "stages": {"enabled": False},
    "resources": {"workers": 2},
    "diagnostics": False,
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 64}},
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(kind: str, number: int, when: str) -> None:
    """Make this process die at the moment that is meant."""
    from search.engine import driver, engine
    from search.journal.database import Journal
    from search.points import files as points

    left = [number]

    def meant(what: str) -> bool:
        left[0] -= kind in ("any", what)
        return kind in ("any", what) and left[0] == 0

    append, record, write = Journal.append, engine.Engine.record, points.write

    def dying_append(self: Journal, what: str, payload: dict[str, Any], trial: str | None = None) -> Any:
        dies = when != "folded" and meant(what)
        if dies and when == "before":
            _die()
        event = append(self, what, payload, trial)
        if dies:
            _die()
        return event

    def dying_record(self: Any, what: str, payload: Any, trial: str | None = None) -> Any:
        event = record(self, what, payload, trial)
        if when == "folded" and meant(what):
            _die()
        return event

    def dying_write(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == 0 and when == "before":
            _die()
        found = write(*args, **options)
        if left[0] == 0:
            _die()
        return found

    if kind == "flush":
        driver.FLUSH_SECONDS = 0.0
        points.write = dying_write
    else:
        Journal.append = dying_append  # type: ignore[method-assign]
        engine.Engine.record = dying_record  # type: ignore[method-assign]


def main() -> None:
    studies, name, address, kind, number, when = sys.argv[1:]
    arm(kind, int(number), when)
    from search.study import Study

    digests: list[str] = []

    @contextlib.contextmanager
    def watch(driver: Any) -> Iterator[None]:
        yield
        digests.append(driver.digest())

    study = Study.load(name, root=Path(studies))
    study.launch(address=address, tracking="off", watch=watch)
    if not digests:  # the last one was killed when all was done and written
        with study.driving() as driver:
            digests.append(driver.digest())
    print(*digests, flush=True)


def drive(studies: Path, name: str, address: str, kind: str, number: int, when: str) -> tuple[bool, str]:
    """Run such a driver in a process of its own: whether it was killed, and what it printed."""
    command = [sys.executable, "-m", "tests.support.killing", str(studies), name, address, kind, str(number), when]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300)
    if done.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.returncode != 0, done.stdout.strip()


def faults(study: Study, digest: str) -> list[str]:
    """What a study that was killed and resumed has lost or doubled; empty where all is well.

    `digest` is that of the engine of the last session.
    """
    from search.engine.driver import Driver
    from search.points import files as points
    from search.state.state import StudyState

    journal = study.journal()
    try:
        events = list(journal.events())
        fresh = Driver(study.folder, study.spec, journal)
        # the last session took its digest before it said that it had ended
        fresh.replay(events[:-1] if events[-1].kind == "ended" else events)
        again = fresh.digest()
        fresh.close()
    finally:
        journal.close()
    state = StudyState.of(events)
    found = [] if digest == again else [f"state {digest[:12]} differs from that of its journal {again[:12]}"]
    if state.proposed != study.spec.budget.trials:
        found.append(f"{state.proposed} trials of {study.spec.budget.trials}")
    if state.live or state.paused:
        found.append(f"{len(state.live) + len(state.paused)} trials never came to an end")
    ends = Counter(
        e.trial
        for e in events
        if e.kind == "failed" or (e.kind == "decision" and e.payload["action"] in ("stop", "finish"))
    )
    found += [f"{name} came to an end {count} times" for name, count in ends.items() if count != 1]
    shown = Counter((e.trial, e.payload["epoch"]) for e in events if e.kind == "report")
    found += [
        f"epoch {epoch} of {name} was counted {count} times" for (name, epoch), count in shown.items() if count > 1
    ]
    for trial in state.trials.values():
        if sorted(trial.losses) != list(range(1, trial.epoch + 1)):
            found.append(f"{trial.id} misses epochs: {sorted(trial.losses)}")
    told = sum(len(curve) for trial in state.trials.values() for curve in trial.curves.values())
    kept = points.read(study.folder.points).num_rows
    return found if kept == told else [*found, f"{kept} points in files, {told} in the journal"]


if __name__ == "__main__":
    main()
