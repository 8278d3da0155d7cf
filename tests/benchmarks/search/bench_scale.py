"""How a search scales to thousands of GPUs: the real engine, searcher and rungs in virtual time, costs charged.

    python tests/benchmarks/search/bench_scale.py [--gpus 8 64 512 4096] [--hours 8 4 2 0.5] [--sampler budgets] [--json
    FILE]

First measured here, on a real Ray: the driver's processor time for a result and for a trial's start of bare
Ray Tune (a class trainable, actors reused), and how long `ray.wait` takes with so many trials running. Then simulated:
trials of 2 to 200 minutes (`Minutes`), 8 GPUs a node, a node fails every 100 hours, 3 % of the epochs take
four times as long. Ray's share is charged for every result and start, our own (searcher, rungs, state, an
SQLite journal on this disk) is measured call by call, in processor time, and charged too, proposals in full
although the real driver prepares them beside its other work. Each size runs in a process of its own, for as many
(virtual) hours as given.

Utilisation: 1 - the share of the workers' seconds in which they had no trial, waited for the driver or did what
was lost; up to the last trial's start (then the time is over and nothing new begins), and with the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from search.journal.database import Journal, sqlite_address
from search.journal.events import Event
from search.pareto.front import Archive
from search.simulation.cluster import Faults
from search.simulation.simulation import MemoryJournal, Simulation, study_spec
from tests.benchmarks.search.problems import Minutes

HOUR = 3600.0
SHOWN = (0.25, 0.5, 1, 2, 4, 8)  # hours


class Kept(MemoryJournal):
    """Events in SQLite on disk, at the simulation's time; only the points that they show are remembered."""

    file: ClassVar[Path]

    def __init__(self, clock: Callable[[], float], *_: Any) -> None:
        super().__init__(clock)
        self.durable = Journal(sqlite_address(self.file), "scale", create=True)
        self.durable.acquire()
        self.shown: list[tuple[float, list[tuple[float, float]]]] = []
        self.kinds: dict[str, int] = {}

    def append(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> Event:
        """Like the study's own journal."""
        written = self.durable.append(kind, payload, trial)
        event = Event(written.seq, self._clock(), kind, trial, payload)
        what = payload["kind"] if kind == "setback" else kind
        self.kinds[what] = self.kinds.get(what, 0) + 1
        if kind == "report" and "curve" in payload:
            points = [(1 - point["accuracy"], point["macs"]) for point in payload["curve"]["points"]]
            self.shown.append((event.time, points))
        return event


def simulated(gpus: int, hours: float, sampler: str, service: float, start: float, seed: int) -> dict[str, Any]:
    """One size, in this process."""
    problem = Minutes("smooth", seed)
    spec = study_spec(
        problem,
        seed=seed,
        budget={"trials": 10**7, "time": f"{hours}h"},
        sampler={"name": sampler},
    )
    faults = Faults(
        node=8, lives=100 * HOUR, repair=600.0, straggle=0.03, slowdown=4.0, service=service, start=start, own=True
    )
    with tempfile.TemporaryDirectory() as folder:
        Kept.file = Path(folder) / "control.db"
        simulation = Simulation(problem, spec, workers=gpus, faults=faults, journal=Kept)
        began = time.process_time()
        simulation.run()
        here = time.process_time() - began
        size = sum(file.stat().st_size for file in Path(folder).iterdir())
    cluster, journal = simulation.cluster, simulation.journal
    assert cluster is not None and isinstance(journal, Kept)
    now, wasted, held, driver = cluster.at_last_start
    starts = len(cluster.trials)
    own = cluster.driver - service * (cluster.results + starts) - start * starts
    archive, volumes, at = Archive(problem.reference), {}, 0
    for hour in SHOWN:
        while at < len(journal.shown) and journal.shown[at][0] <= hour * HOUR:
            for error, macs in journal.shown[at][1]:
                archive.add(error, macs)
            at += 1
        volumes[hour] = archive.hypervolume / problem.ideal if hour * HOUR <= cluster.now else None
    return {
        "gpus": gpus, "trials": len(simulation.engine.state.trials),
        "hours": cluster.now / HOUR, "until": now / HOUR,
        "utilisation": 1 - wasted / held, "with_end": 1 - cluster.wasted / cluster.held,
        "driver": driver / now, "own_ms": 1000 * own / (cluster.results + starts), "results": cluster.results,
        "results_a_second": cluster.results / cluster.now, "starts_a_second": starts / now,
        "lost": journal.kinds.get("node", 0), "bytes_a_second": size / cluster.now,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "here": here, "volumes": volumes,
    }  # fmt: skip


# -- what Ray costs --------------------------------------------------------------------------------


def ray_costs(gpus: list[int]) -> tuple[float, float, dict[int, float]]:
    """Milliseconds of the driver's processor for a result and for a start, and of `ray.wait` by trials that run."""
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray
    from ray import tune

    from cluster.connect import prepare_environment

    prepare_environment(local=True)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    class Nothing(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.epoch, self.reports = 0, config["reports"]

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.epoch = 0
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            return {"report": "x" * 2000, "done": self.epoch == self.reports}

    def trial_cost(trials: int, reports: int, folder: str) -> float:
        marks: list[float] = []

        class Watch(tune.Callback):
            def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
                marks.append(time.process_time())

        tune.Tuner(
            tune.with_resources(Nothing, {"cpu": 1}),
            param_space={"reports": reports},
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True, max_concurrent_trials=2),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, callbacks=[Watch()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            ),
        ).fit()  # fmt: skip
        return 1000 * (marks[-1] - marks[2]) / (len(marks) - 3)

    with tempfile.TemporaryDirectory() as folder:
        few, many = trial_cost(60, 2, folder), trial_cost(60, 12, folder)
    result = (many - few) / 10
    waits = {}

    @ray.remote(num_cpus=0.1)
    class Worker:
        def train(self, seconds: float) -> None:
            time.sleep(seconds)

    busy, quick = Worker.remote(), Worker.remote()  # type: ignore[attr-defined]
    ray.get(quick.train.remote(0))
    pending: list[Any] = []
    for count in gpus:
        pending += [busy.train.remote(1e6) for _ in range(count - len(pending))]
        taken = []
        for _ in range(30):
            ready = quick.train.remote(0)
            time.sleep(0.02)
            began = time.perf_counter()
            ray.wait([*pending, ready], num_returns=1, timeout=0.1)
            taken.append(1000 * (time.perf_counter() - began))
        waits[count] = statistics.median(taken)
    ray.shutdown()
    return result, few - 2 * result, waits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512, 4096])
    parser.add_argument("--hours", type=float, nargs="+", default=[8, 4, 2, 0.5], help="budget.time of each size")
    parser.add_argument("--sampler", default="budgets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ray", type=float, nargs=2, help="ms for a result and a start, instead of measuring")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        gpus, hours, service, start = int(a.child[0]), *map(float, a.child[1:])
        print(json.dumps(simulated(gpus, hours, a.sampler, service, start, a.seed)))
        return
    result, start, waits = (*a.ray, dict.fromkeys(a.gpus, 0.0)) if a.ray else ray_costs(sorted(a.gpus))
    print(f"Ray Tune, driver's processor: {result:.2f} ms a result, {start:.2f} ms a start")
    print("ray.wait, trials running: " + ", ".join(f"{n}: {ms:.2f} ms" for n, ms in waits.items()))
    print(
        "\n| GPUs | trials | hours until the last start | utilisation | with the end | driver busy | own, ms"
        " | results/s | starts/s | trials off failed nodes | MiB | KB/s written | s here |\n" + "|--" * 13 + "|"
    )
    found = []
    for gpus, hours in zip(a.gpus, a.hours, strict=True):
        command = [sys.executable, __file__, "--sampler", a.sampler, "--seed", str(a.seed), "--child"]
        command += [str(gpus), str(hours), str((result + waits[gpus]) / 1000), str(start / 1000)]
        r = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        found.append(r)
        print(
            f"| {gpus} | {r['trials']} | {r['until']:.2f} | {r['utilisation']:.1%} | {r['with_end']:.1%}"
            f" | {r['driver']:.1%} | {r['own_ms']:.1f} | {r['results_a_second']:.2f} | {r['starts_a_second']:.2f}"
            f" | {r['lost']} | {r['memory']:.0f} | {r['bytes_a_second'] / 1000:.1f} | {r['here']:.0f} |",
            flush=True,
        )
    print("\n| GPUs | " + " | ".join(f"{h} h" for h in SHOWN) + " |\n|--" + "|--" * len(SHOWN) + "|")
    for r in found:
        cells = [r["volumes"][str(h)] for h in SHOWN]
        print(f"| {r['gpus']} | " + " | ".join("over" if c is None else f"{c:.3f}" for c in cells) + " |")
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
