"""What a cluster costs and gives: starts, throughput by nodes, recovery after losses, data on a node.

    python tests/benchmarks/faults/bench_cluster.py [--rounds 3] [--trials 150] [--only starts throughput recovery data]

starts      from the command to the first trial's start and its first report, on a new local Ray and on one that runs
throughput  trials and results a second of trials that train nothing, on 1, 2 and 3 nodes of one CPU, rounds interleaved
recovery    from SIGKILL of a worker, of a node, of the driver (resumed at once) to the lost trial's next new epoch
data        a set of the size of CIFAR-10: handing it to Ray once, the first trial of a node, the second

All on this machine: nodes share its cores, so throughput shows the driver and Ray, not the machines that one would add.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np

from tests.benchmarks.search.bench_orchestration import REPORTS, ours
from tests.support.faulty import ROOT, Driven, Nodes, create, worker_of

SLOW = {"*": ("slow", 0)}  # half a second an epoch
Found = dict[str, list[float]]


def keep(found: Found, name: str, value: float) -> None:
    """One more measurement of its kind."""
    found.setdefault(name, []).append(value)


def starts(nodes: Nodes, root: Path, found: Found) -> None:
    """A study of one trial, by the command that a user types."""
    for where, more in (("a new local Ray", []), ("a running cluster", ["--address", nodes.address])):
        name = f"start-{len(found)}-{time.monotonic_ns()}"
        study = create(root, name, budget={"trials": 1, "epochs": 1})
        environment = {k: v for k, v in os.environ.items() if more or not k.startswith("RAY_")}
        began = time.time()
        command = [sys.executable, "-m", "search", "resume", name, "--studies", str(root), "--tracking", "off", *more]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
        ended = time.time()
        journal = study.journal()
        at = {event.kind: event.time for event in journal.events()}
        journal.close()
        keep(found, f"{where}: first trial begun, s", at["start"] - began)
        keep(found, f"{where}: its first report, s", at["report"] - began)
        keep(found, f"{where}: the command is done, s", ended - began)


def throughput(nodes: Nodes, root: Path, found: Found, trials: int) -> None:
    """The same study on more and more nodes."""
    for count in (1, 2, 3):
        while len(nodes.nodes) > count:
            nodes.kill(nodes.nodes[-1])
        while len(nodes.nodes) < count:
            nodes.add()
        time.sleep(20)  # until Ray knows, and its first worker is there
        os.environ["BENCH_RAY"] = nodes.address
        mine = ours(root, time.monotonic_ns(), trials, workers=count)
        keep(found, f"{count} nodes: trials a second", 1000 / mine["trial"])
        keep(found, f"{count} nodes: results a second", mine["results"])


def recovery(nodes: Nodes, root: Path, found: Found) -> None:
    """One trial at a time is lost."""
    while len(nodes.nodes) < 2:
        nodes.add()

    def lost(what: str, kill: Callable[[Driven], Driven]) -> None:
        name = f"lost-{time.monotonic_ns()}"
        create(root, name, SLOW, budget={"trials": 2, "epochs": 60})
        driven = Driven(root, name, nodes.address)
        driven.until(lambda state: len(state.live) == 2 and all(trial.epoch > 3 for trial in state.live))
        before, began = driven.study.state(), time.time()
        driven = kill(driven)
        again = driven.until(lambda state: _behind(before, state))
        victim = _behind(before, again)
        journal = driven.study.journal()
        events = [e for e in journal.events() if e.trial == victim and e.time > began]
        journal.close()
        start = next(e.time for e in events if e.kind == "start")
        keep(found, f"{what}: its trial has another worker, s", start - began)
        report = next(e.time for e in events if e.kind == "report" and e.time > start)
        keep(found, f"{what}: a new epoch is reported, s", report - began)
        driven.kill()

    def worker(driven: Driven) -> Driven:
        pid = worker_of(driven.study)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return driven

    def node(driven: Driven) -> Driven:
        nodes.kill(nodes.nodes[-1])
        nodes.add()
        return driven

    def driver(driven: Driven) -> Driven:
        driven.kill()
        return Driven(root, driven.study.spec.name, nodes.address)

    for what, kill in (("a worker", worker), ("a node, another joins", node), ("the driver, resumed", driver)):
        lost(what, kill)


def _behind(before: Any, now: Any) -> str | None:
    """The trial that was started again and has shown a new epoch since."""
    for name, trial in now.trials.items():
        known = before.trials.get(name)
        if known and trial.starts > known.starts and trial.epoch > known.epoch:
            return str(name)
    return None


def data(nodes: Nodes, found: Found) -> None:
    """In workers of their own on one node, as `tune.with_parameters` hands it out."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from cluster.connect import connect
    from trainables.contracts.network import Task
    from trainables.data.splits import Augment, Data, Split, digest

    if not ray.is_initialized():
        connect(nodes.address)
    rng = np.random.default_rng(0)
    splits = [
        Split(images=rng.integers(0, 255, (n, 3, 32, 32), dtype=np.uint8), labels=np.zeros(n, dtype=np.int64))
        for n in (45000, 5000, 10000)
    ]
    began = time.perf_counter()
    fingerprint = digest(tuple("0123456789"), splits)
    keep(found, "data, once a study: its fingerprint, ms", 1000 * (time.perf_counter() - began))
    whole = Data(
        name="made", task=Task(classes=10, size=32), classes=tuple("0123456789"), train=splits[0],
        validation=splits[1], test=splits[2], mean=(0.5,) * 3, std=(0.5,) * 3, augment=Augment(), hash=fingerprint,
    )  # fmt: skip
    began = time.perf_counter()
    handed = ray.put(whole)
    keep(found, "data, once a study: handed to Ray, ms", 1000 * (time.perf_counter() - began))

    @ray.remote(num_cpus=0)
    class Trial:
        def ready(self) -> None:
            import trainables.worker.ray_trainable  # noqa: F401

        def take(self, handed: list[Any]) -> tuple[float, int]:
            began = time.perf_counter()
            mine = ray.get(handed[0])
            return 1000 * (time.perf_counter() - began), int(mine.train.images[::1000].sum())

    where = NodeAffinitySchedulingStrategy(nodes.nodes[0].node_id, soft=False)
    trials = [Trial.options(scheduling_strategy=where).remote() for _ in range(3)]  # type: ignore[attr-defined]
    ray.get([trial.ready.remote() for trial in trials])
    expected = int(splits[0].images[::1000].sum())
    for which, trial in zip(("first", "second", "third"), trials, strict=True):
        milliseconds, seen = ray.get(trial.take.remote([handed]))
        assert seen == expected
        keep(found, f"data, the {which} trial of a node: at hand, ms", milliseconds)
        ray.kill(trial)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trials", type=int, default=150)
    parser.add_argument("--only", nargs="+", default=["starts", "throughput", "recovery", "data"])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    nodes, found = Nodes(2), Found()
    import ray

    try:
        for _ in range(arguments.rounds):
            with tempfile.TemporaryDirectory(prefix="routefront-bench-") as folder:
                if "starts" in arguments.only:
                    starts(nodes, Path(folder), found)
                if "recovery" in arguments.only:
                    recovery(nodes, Path(folder), found)
                if "throughput" in arguments.only:
                    throughput(nodes, Path(folder), found, arguments.trials)
                if "data" in arguments.only:
                    data(nodes, found)
            print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    finally:
        ray.shutdown()
        nodes.shutdown()
    print(f"\n{arguments.rounds} rounds; throughput: {arguments.trials} trials of {REPORTS} reports\n")
    print("| what | median | least | most |\n|--|--|--|--|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
