"""How asks, memory and resuming grow with a study: 100 to 20,000 finished trials.

    python tests/benchmarks/search/bench_asks.py [--trials 100 1000 5000 20000] [--sampler budgets] [--asks 60]
    [--workers 8]

A study of `problems.Analytic` is grown in virtual time with random proposals (its curves and rungs are real
ones), then copied into an SQLite journal. A fresh process resumes it (reads, folds, prepares), then
workers ask: what a worker waits for in `Engine.ask` (the wait that `sampler.ahead` hides is computed in a
thread meanwhile), with a pause between asks (`--pause` seconds) as trials have; and without any, in a burst.
Prints per size: seconds to resume, MiB of the process, milliseconds of an ask (median, p95) and in a burst,
how many events a proposal is behind (`seen`).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from search.engine.engine import Engine
from search.journal.database import Journal, sqlite_address
from search.simulation.simulation import Simulation, study_spec
from search.spec.study import StudySpec
from tests.benchmarks.search.problems import Analytic


def grow(trials: int, file: Path) -> None:
    """A journal of a study with so many trials that are over."""
    problem = Analytic("smooth", 0)
    spec = study_spec(problem, budget={"trials": trials}, sampler={"name": "random"}, rungs={"epochs": [1, 3, 9]})
    simulation = Simulation(problem, spec, workers=64)
    simulation.run()
    journal = Journal(sqlite_address(file), "simulated", create=True)
    journal.acquire()
    for event in simulation.journal.events:
        if event.kind != "ended":
            journal.append(event.kind, event.payload, event.trial)
    journal.close()


def child(file: Path, trials: int, sampler: str, asks: int, workers: int, pause: float) -> dict[str, Any]:
    """Resume and ask, in this process."""
    problem = Analytic("smooth", 0)
    given = {"budget": {"trials": trials + 10**6}, "sampler": {"name": sampler}, "rungs": {"epochs": [1, 3, 9]}}
    spec: StudySpec = study_spec(problem, **given)
    started = time.perf_counter()
    journal = Journal(sqlite_address(file), "simulated")
    journal.acquire()
    engine = Engine(
        "bench",
        spec,
        journal,
        workers,
        spaces=problem.spaces,
        papers=problem.papers,
        clock=journal.now,
        background=True,
    )
    engine.replay(journal.events())
    engine.record("session", {"host": "", "pid": 0, "workers": workers})
    resumed = time.perf_counter() - started
    assert len(engine.state.trials) == trials
    live: list[Any] = []
    waits: list[float] = []
    behind: list[int] = []
    for _ in range(asks):
        if len(live) == workers:
            _report(engine, problem, live.pop(0))
        time.sleep(pause)
        began = time.perf_counter()
        trial = engine.ask()
        waits.append(1000 * (time.perf_counter() - began))
        assert trial is not None
        live.append(trial)
        engine.started(trial.id)
    for event in journal.events(after=engine.state.seq - 6 * asks):
        if event.kind == "ask":
            behind.append(event.seq - 1 - event.payload["seen"])
    engine.workers = 10**6
    began = time.perf_counter()
    for _ in range(8):
        engine.ask()
    burst = 1000 * (time.perf_counter() - began) / 8
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "resume": resumed, "memory": peak, "median": statistics.median(waits),
        "p95": float(np.quantile(waits, 0.95)), "burst": burst, "behind": max(behind),
    }  # fmt: skip


def _report(engine: Engine, problem: Analytic, trial: Any) -> None:
    points = [
        {"setting": {}, "knobs": {}, "accuracy": a, "correct": 0, "count": 0, "macs": m, "macs_std": 0}
        for a, m in problem.curve(trial.config, trial.seed, 1)
    ]
    report = {
        "epoch": 1, "phase": "train", "comparable": True, "losses": {}, "cost_epochs": 1.0, "seconds": 1.0,
        "curve": {"points": points, "diagnostics": {}, "seconds": 0.0},
    }  # fmt: skip
    if engine.report(trial.id, report) == "continue":
        engine.failed(trial.id, "the benchmark has seen enough of it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1000, 5000, 20000])
    parser.add_argument("--sampler", default="budgets")
    parser.add_argument("--asks", type=int, default=60)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        file, trials = Path(arguments.child[0]), int(arguments.child[1])
        found = child(file, trials, arguments.sampler, arguments.asks, arguments.workers, arguments.pause)
        print(json.dumps(found))
        return
    print("| trials | resume s | MiB | ask ms, median | p95 | in a burst | events behind, at most |")
    print("|--|--|--|--|--|--|--|")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for trials in arguments.trials:
            file = Path(folder) / f"{trials}.db"
            grow(trials, file)
            command = [sys.executable, __file__, *sys.argv[1:], "--child", str(file), str(trials)]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            f = json.loads(out.splitlines()[-1])
            rows.append({"trials": trials, **f})
            print(
                f"| {trials} | {f['resume']:.1f} | {f['memory']:.0f} | {f['median']:.1f} | {f['p95']:.1f}"
                f" | {f['burst']:.1f} | {f['behind']} |",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
