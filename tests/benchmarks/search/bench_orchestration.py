"""What a trial costs beside its training: no-op trials through our search, and through bare Ray Tune.

    python tests/benchmarks/search/bench_orchestration.py [--trials 200] [--function-trials 6] [--rounds 3] [--tracking]

Trials of three reports that train nothing, two at a time, on one Ray: (a) our searcher with random proposals,
scheduler, journal and points (SQLite and Parquet on disk); (b) a class trainable with actor reuse and
Ray's own random search, nothing else; (c) a function trainable likewise (few trials: each starts a process).
Seconds a trial are those between the first and the last trial's start, so that fixed starts and ends of
Tune are left out; interleaved rounds, medians. Beside it: the driver's own work for a report (journal, state,
decision, points), and with ``--tracking`` results a second with MLflow (SQLite) on and off.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.spec.study import StudySpec
from search.studies.stored import load_data
from search.study import Study

REPORTS = 3


def _spec(name: str, trials: int, workers: int) -> StudySpec:
    return StudySpec.parse(
        {
            "name": name,
            "data": {"name": "digits", "image_size": 8, "limit": 32},
            "budget": {"trials": trials, "epochs": REPORTS},
            "rungs": {"epochs": [1, 2], "reduction": 1.0001},  # decisions are taken, nobody is stopped
            "sampler": {"name": "random", "published": False},
            "stages": {"enabled": False},
            "resources": {"workers": workers},
            "diagnostics": False,
            "methods": {"static": {"network": "resnet-8"}, "skipnet": {"network": "resnet-8"}},
        }
    )


def _noop() -> Any:
    from ray import tune

    class Noop(tune.Trainable):
        """Reports curves that nobody trained."""

        def setup(self, config: dict[str, Any], data: Any = None) -> None:
            self.reset_config(config)

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.trial, self.epoch = new_config, 0
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            points = [
                {
                    "setting": {"threshold": i / 10}, "knobs": {"threshold": i / 10}, "accuracy": 0.5 + i / 20,
                    "correct": 16 + i, "count": 32, "macs": 1e6 * (i + 1), "macs_std": 0.0,
                }
                for i in range(9)
            ]  # fmt: skip
            report = {
                "epoch": self.epoch, "phase": "train", "comparable": True, "losses": {"cross_entropy": 1.0},
                "cost_epochs": float(self.epoch), "seconds": 0.0, "params": 1, "macs_full": 10**7,
                "curve": {"points": points, "diagnostics": {}, "seconds": 0.0},
            }  # fmt: skip
            return {"report": json.dumps(report)}

    return Noop


def ours(root: Path, number: int, trials: int, tracking: str = "off", workers: int = 2) -> dict[str, float]:
    """Seconds a trial of our search, and of the driver's own work for a report."""
    from search.engine.driver import Driver
    from search.tracking.tracker import Tracker
    from search.tune.run import run

    study = Study.create(_spec(f"noop-{number}", trials, workers), root=root)
    data = load_data(study.spec)
    own: list[float] = []
    with study.driving() as driver:
        report = driver.report

        def timed(name: str, result: Any) -> str:
            started = time.perf_counter()
            action = report(name, result)
            own.append(time.perf_counter() - started)
            return action

        driver.report = timed  # type: ignore[method-assign]
        assert isinstance(driver, Driver)
        tracker = None
        if tracking != "off":
            tracker = Tracker(tracking, study.spec.tracking.experiment, study.folder, study.spec)
            tracker.start()
            driver.listeners.append(tracker)
        run(driver, data, address=os.environ["BENCH_RAY"], trainable=_noop())
        if tracker:
            tracker.close(0.0)
    journal = study.journal()
    starts = [event.time for event in journal.events() if event.kind == "start"]
    ends = [event.time for event in journal.events() if event.kind == "report"]
    journal.close()
    return {
        "trial": 1000 * (starts[-1] - starts[0]) / (len(starts) - 1),
        "report": 1000 * statistics.median(own),
        "results": (len(ends) - 1) / (ends[-1] - ends[0]),
    }


def bare(root: Path, trials: int, function: bool) -> float:
    """Milliseconds a trial of Ray Tune alone."""
    from ray import tune

    begun: list[float] = []

    class Watch(tune.Callback):
        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            begun.append(time.perf_counter())

    class Class(tune.Trainable):
        def setup(self, config: dict[str, Any]) -> None:
            self.epoch = 0

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self.epoch = 0
            return True

        def step(self) -> dict[str, Any]:
            self.epoch += 1
            return {"loss": 1.0, "done": self.epoch == REPORTS}

    def train(config: dict[str, Any]) -> None:
        for _ in range(REPORTS):
            tune.report({"loss": 1.0})

    tuner = tune.Tuner(
        tune.with_resources(train if function else Class, {"cpu": 1}),
        param_space={"lr": tune.loguniform(1e-3, 1.0)},
        tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=not function, max_concurrent_trials=2),
        run_config=tune.RunConfig(
            storage_path=str(root),
            verbose=0,
            callbacks=[Watch()],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False)
            if not function
            else tune.CheckpointConfig(),
        ),
    )
    tuner.fit()
    return 1000 * (begun[-1] - begun[0]) / (len(begun) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--function-trials", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tracking", action="store_true")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from cluster.connect import connect, prepare_environment

    prepare_environment(local=False)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.environ["BENCH_RAY"] = cluster.address
    connect(cluster.address)
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in range(arguments.rounds):
            mine = ours(root, 2 * number, arguments.trials)
            found.setdefault("ours, ms a trial", []).append(mine["trial"])
            found.setdefault("driver's own work, ms a report", []).append(mine["report"])
            found.setdefault("results a second, tracking off", []).append(mine["results"])
            if arguments.tracking:
                uri = f"sqlite:///{root / 'mlflow.db'}"
                found.setdefault("results a second, tracking on", []).append(
                    ours(root, 2 * number + 1, arguments.trials, uri)["results"]
                )
            found.setdefault("class trainable, ms a trial", []).append(bare(root / "class", arguments.trials, False))
            found.setdefault("function trainable, ms a trial", []).append(
                bare(root / "function", arguments.function_trials, True)
            )
            print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    import ray

    ray.shutdown()
    cluster.shutdown()
    print(f"\n{arguments.trials} trials of {REPORTS} reports, {arguments.rounds} rounds, medians\n\n| | |\n|--|--|")
    for name, values in found.items():
        print(f"| {name} | {statistics.median(values):.2f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
