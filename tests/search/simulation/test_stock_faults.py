"""What stock Ray Tune with Optuna does where this project claims to do better: fails when it learns (its killed driver:
`tests/benchmarks/faults/check_stock.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler
from ray.tune.search.optuna import OptunaSearch

from search.simulation.cluster import Cluster


def test_stock_optuna_search_takes_stopped_trials_for_complete() -> None:
    """Ray's searcher and scheduler, called as Tune calls them."""
    search = OptunaSearch(space=lambda trial: {"x": trial.suggest_float("x", 0, 1)}, metric="error", mode="min", seed=0)  # type: ignore[call-overload]
    scheduler = AsyncHyperBandScheduler(metric="error", mode="min", max_t=9, grace_period=1, reduction_factor=3)
    epochs: dict[str, int] = {}

    def run(config: dict[str, Any]) -> Iterator[tuple[float, dict[str, Any]]]:
        for epoch in range(1, 10):
            x = config["all"]["x"] if "all" in config else config["x"]
            yield 1.0, {"training_iteration": epoch, "error": x + 1 / epoch, "done": epoch == 9}

    def seen(job: Any, result: dict[str, Any]) -> None:
        epochs[job.trial_id] = result["training_iteration"]

    Cluster(search, scheduler, run, workers=2, seed=0, seen=seen).run(lambda: len(epochs) >= 12)
    assert search._ot_study is not None
    states = [trial.state.name for trial in search._ot_study.trials]
    stopped = sum(epoch < 9 for epoch in epochs.values()) - 2  # two may still run
    assert stopped > 0 and states.count("COMPLETE") >= len(epochs) - 2 and "PRUNED" not in states
