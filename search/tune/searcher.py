"""The Ray Searcher: hands out unfinished trials first, then what `search.sampling.proposals` proposes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray.tune.search import Searcher

from search.engine.engine import engine_at
from search.spec.study import StudySpec
from spaces import own_networks
from trainables.worker.order import Order


def threads_of(spec: StudySpec, workers: int, cpus: float) -> int:
    """Threads of a trial on this machine's `cpus` where `workers` trials run at once: its own, and what would be idle.

    Trials on CPUs take more than ``resources.cpus_per_trial`` where the study allows fewer trials at once than fit.
    """
    own = max(1, int(spec.resources.cpus_per_trial))
    at_once = max(1, min(workers, spec.budget.trials))
    return own if spec.resources.gpus_per_trial else max(own, int(cpus / at_once))


def constants(spec: StudySpec, threads: int = 1) -> dict[str, Any]:
    """What every trial of a study is told."""
    timing = spec.axes.timing
    return {
        "epochs": spec.budget.epochs,
        "evaluate_at": [*spec.rung_epochs, spec.budget.epochs],
        "threads": max(threads, int(spec.resources.cpus_per_trial)),
        "device": "cuda" if spec.resources.gpus_per_trial else "cpu",
        "diagnostics": spec.diagnostics,
        "predictions": spec.predictions or spec.compose,
        "device_share": spec.resources.gpus_per_trial or 1.0,
        "deterministic": spec.resources.deterministic,
        "capture": spec.resources.capture,
        "latency": spec.constraints.max_latency is not None,
        "timing": None if timing is None else timing.record(),
        "memory": spec.resources.memory,
        "scalars": spec.tracking.tensorboard,
    }


class CurveSearcher(Searcher):
    """Asks the study's driver. It holds nothing but the study's folder, so that Tune may pickle it.

    What trials report reaches the journal through the scheduler (`search.tune.scheduler`), which sees every
    result first; the searcher learns from the folded state at the next ask.
    """

    def __init__(self, folder: str, constants: dict[str, Any]) -> None:
        super().__init__(metric=None, mode=None)
        self._folder = folder
        self._constants = constants

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Nothing to set: objectives are the study's."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """The next trial's configuration, None for later, FINISHED when no more will come."""
        engine = engine_at(self._folder)
        trial = engine.ask()
        if trial is None:
            return Searcher.FINISHED if engine.exhausted else None
        memory = self._constants["memory"]
        share = engine.alone.give(trial.id) if trial.alone else 1
        told = {
            **self._constants,
            **engine.orders(trial, self._constants["evaluate_at"]),
            "memory": memory and memory * share,
            **({"device_share": 1.0} if trial.alone else {}),
        }
        order = Order(
            trial=trial.id,
            method=trial.method,
            config=engine.values(trial),
            seed=trial.seed,
            checkpoints=str(Path(self._folder) / "checkpoints"),
            share=share,
            attempt=engine.attempt(trial.id),
            sources=own_networks.trusted(),
            **told,
        )
        return order.record()

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """Known already: the scheduler recorded it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing to save: the journal is the truth."""
        Path(checkpoint_path).write_text(self._folder)

    def restore(self, checkpoint_path: str) -> None:
        """Nothing to restore."""
