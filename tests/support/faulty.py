"""Studies to which things happen: a driver in a process of its own, trials that misbehave, a cluster of several nodes.

``python -m tests.support.faulty STUDIES NAME ADDRESS [TRACKING]`` goes on with a study and prints its digest.
A trial misbehaves where the study's folder has a file ``ill.json``, {trial, or * for the others: [what, from which
epoch on]}; see `tests.support.ill`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.spec.study import StudySpec
from search.study import Study

if TYPE_CHECKING:
    from search.state.state import StudyState

ROOT = Path(__file__).resolve().parents[2]
SPEC: dict[str, Any] = {
    "name": "faulty",
    "data": {"name": "digits", "image_size": 8},
    "budget": {"trials": 6, "epochs": 8},
    "rungs": {"enabled": False},
    "sampler": {"startup": 2},
    "stages": {"enabled": False},
    "diagnostics": False,
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 32}},
}


class Nodes:
    """A head that runs no trials and nodes of one CPU each, guarded by a token."""

    def __init__(self, count: int = 2) -> None:
        os.environ |= {"OMP_NUM_THREADS": "1"}
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        from tests.support.local_cluster import cluster

        self.cluster = cluster(num_cpus=0)
        self.nodes: list[Any] = []
        for _ in range(count):
            self.add()

    @property
    def address(self) -> str:
        """Of the head."""
        return str(self.cluster.address)

    def add(self) -> Any:
        """One more node."""
        self.nodes.append(self.cluster.add_node(num_cpus=1))
        return self.nodes[-1]

    def kill(self, node: Any) -> None:
        """The node and all on it, without a warning."""
        self.nodes.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def shutdown(self) -> None:
        """All of it."""
        self.cluster.shutdown()


class Driven:
    """A study that a process of its own drives; what it prints goes to a file in the study's root."""

    def __init__(self, root: Path, name: str, address: str, tracking: str = "off") -> None:
        self.study = Study.load(name, root=root)
        self.began = time.monotonic()
        self._said = root / f"{name}-{time.monotonic_ns()}.txt"
        command = [sys.executable, "-m", "tests.support.faulty", str(root), name, address, tracking]
        with self._said.open("w") as said:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)

    def until(self, true: Callable[[StudyState], object], within: float = 300.0) -> StudyState:
        """Wait until the journal says so."""
        end = time.monotonic() + within
        while True:
            state = self.study.state()
            if true(state):
                return state
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"not within {within:g} s: {state.count()}\n{self.said()}"
            time.sleep(0.1)

    def wait(self, within: float = 300.0) -> tuple[int, str]:
        """How the driver ended, and the digest that it printed."""
        code = self.process.wait(within)
        digests = [line for line in self.said().splitlines() if line.startswith("digest ")]
        return code, digests[-1].split()[1] if digests else ""

    def kill(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def said(self) -> str:
        """Everything that it printed."""
        return self._said.read_text()


def create(root: Path, name: str, ill: dict[str, tuple[str, int]] | None = None, **changes: Any) -> Study:
    """A study of `SPEC` with these tables changed."""
    values = {**SPEC, **{key: {**SPEC.get(key, {}), **value} for key, value in changes.items() if key != "journal"}}
    if "journal" in changes:
        values["journal"] = changes["journal"]
    study = Study.create(StudySpec.parse({**values, "name": name}), root=root)
    if ill:
        (study.folder.path / "ill.json").write_text(json.dumps(ill))
    return study


def setbacks(state: StudyState) -> Counter[str]:
    """How often trials lost their workers, by kind."""
    return Counter(each["kind"] for trial in state.trials.values() for each in trial.setbacks)


def worker_of(study: Study) -> int | None:
    """The process of a trial that has reported and runs; None where there is none."""
    journal = study.journal()
    try:
        events = list(journal.events())
    finally:
        journal.close()
    over = {e.trial for e in events if e.kind in ("failed", "decision")}
    pids = [e.payload["worker"] for e in events if e.kind == "report" and e.trial not in over]
    for pid in reversed(pids):
        with contextlib.suppress(OSError):
            if b"Trainable" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
    return None


def main() -> None:
    studies, name, address, *rest = sys.argv[1:]
    from search.tune import run

    study = Study.load(name, root=Path(studies))
    if (study.folder.path / "ill.json").exists():
        from tests.support.ill import IllTrainable

        run._trainable = _with(run._trainable, IllTrainable)

    @contextlib.contextmanager
    def watch(driver: Any) -> Iterator[None]:
        yield
        print("digest", driver.digest(), flush=True)

    try:
        print(study.launch(address=address, tracking=rest[0] if rest else "off", watch=watch, say=print), flush=True)
    except Exception as error:
        from search.commands.terminal import said

        traceback.print_exc()
        print(said(error))  # as the command line does
        sys.exit(1)


def _with(make: Callable[..., Any], trainable: Any) -> Callable[..., Any]:
    return lambda driver, data, other: make(driver, data, trainable)


if __name__ == "__main__":
    main()
