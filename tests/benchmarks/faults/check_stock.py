"""Stock Ray Tune with OptunaSearch and ASHA, its driver killed: what do the rungs remember after a restore?

    python tests/benchmarks/faults/check_stock.py

Runs itself twice on a local Ray. The first driver kills itself by SIGKILL at the fourth result, right behind a
snapshot; the second restores and ends when the first trial is there again. Each prints the numbers of records of ASHA's
rungs at that moment as a line of JSON. Exits with 1 if the restored rungs remember anything: then this project's claim
that stock rungs do not survive a killed driver is outdated.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from cluster.connect import prepare_environment

prepare_environment(local=True)  # before Ray is imported
from ray.tune.schedulers import AsyncHyperBandScheduler  # noqa: E402

EPOCHS, TRIALS, KILLED_AT = 9, 3, 4


class Watched(AsyncHyperBandScheduler):
    """ASHA that says how many records its rungs have."""

    results = 0

    def records(self) -> list[int]:
        return [len(recorded) for bracket in self._brackets for _, recorded in bracket._rungs]

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if sys.argv[-1] == "restore":
            print(json.dumps({"rungs": self.records()}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)  # it has said what it was asked for
        super().on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        self.results += 1
        if sys.argv[-1] == "run" and self.results == KILLED_AT:
            tune_controller.checkpoint(force=True)  # the best case: a snapshot of this very moment
            print(json.dumps({"rungs": self.records()}), flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return action


def train(config: dict[str, Any]) -> None:
    """Reports an error that falls with the epochs."""
    from ray import tune

    for epoch in range(1, EPOCHS + 1):
        tune.report({"error": config["x"] + 1 / epoch})


def drive(address: str, folder: str, mode: str) -> None:
    """One of the two drivers; it ends by SIGKILL."""
    import ray
    from ray import tune
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.optuna import OptunaSearch

    warnings.simplefilter("ignore")
    ray.init(
        address, log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": {"PYTHONPATH": os.getcwd()}}
    )
    search = OptunaSearch(space={"x": tune.uniform(0, 1)}, metric="error", mode="min", seed=0)
    if mode == "restore":
        tuner = tune.Tuner.restore(f"{folder}/stock", trainable=train)
    else:
        scheduler = Watched(metric="error", mode="min", max_t=EPOCHS, grace_period=1, reduction_factor=3)
        tuner = tune.Tuner(
            train,
            tune_config=tune.TuneConfig(
                search_alg=ConcurrencyLimiter(search, 2), scheduler=scheduler, num_samples=TRIALS, reuse_actors=True
            ),
            run_config=tune.RunConfig(name="stock", storage_path=folder, verbose=0),
        )
    tuner.fit()


def main() -> int:
    import ray

    address = ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False).address_info[
        "address"
    ]
    rungs: list[list[int]] = []
    with tempfile.TemporaryDirectory() as folder:
        for mode in ("run", "restore"):
            words = [sys.executable, __file__, address, folder, mode]
            done = subprocess.run(words, capture_output=True, text=True)
            said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
            assert said and done.returncode == -signal.SIGKILL, done.stderr[-2000:]
            print(mode, json.dumps(said[-1]))
            rungs.append(said[-1]["rungs"])
    assert sum(rungs[0]) > 0
    return int(sum(rungs[1]) > 0)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        drive(*sys.argv[1:])
    else:
        sys.exit(main())
