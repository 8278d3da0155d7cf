"""Searches to compare: ours and what people use today, each through its public interface, in virtual time.

A contender is run on a problem until a number of epochs is spent and returns `Seen`: what was shown,
and when. Ray's searchers and schedulers are driven as Tune drives them (`search.simulation.simulation.Cluster`);
they know trials of one operating point, so their space has the setting as one more parameter.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import optuna

from search.pareto.front import Archive
from search.sampling.budgets import foretold
from search.sampling.optuna_space import suggest
from search.sampling.surrogate import Observation, Told
from search.sampling.view import View
from search.simulation.cluster import Cluster, Job, Result
from search.simulation.simulation import Problem, Simulation, study_spec
from search.spec.tables import SAMPLERS, SamplerSpec
from spaces.space import Range, Space
from tests.benchmarks.search.problems import SETTINGS

WORKERS = 4


@dataclass(frozen=True, slots=True)
class Seen:
    """Points shown when `cost` epochs had been spent: (index of the setting, error, MACs) each."""

    cost: float
    config: Mapping[str, Any]
    epoch: int
    points: list[tuple[int, float, float]]


def deployable(problem: Any, seen: list[Seen], grid: list[float]) -> list[float]:
    """Noise-free hypervolume, at every cost of the grid, of the networks that the noisy front holds then."""
    archive, volumes, at = Archive(problem.reference), [], 0
    for cost in grid:
        while at < len(seen) and seen[at].cost <= cost:
            one = seen[at]
            for setting, error, macs in one.points:
                archive.add(error, macs, (one.config, one.epoch, setting))
            at += 1
        true = Archive(problem.reference)
        for _, _, (config, epoch, setting) in archive:
            true.add(*problem.exact(config, epoch)[setting])
        volumes.append(true.hypervolume)
    return volumes


def ours(problem: Problem, seed: int, epochs: float, **parts: Any) -> list[Seen]:
    """Our engine, searcher and rungs; `parts` as in a study file."""
    seen: list[Seen] = []
    given = {"seed": seed, "budget": {"trials": 1_000_000}, **parts}
    simulation = Simulation(problem, study_spec(problem, **given), workers=WORKERS)

    def listen(event: Any, state: Any) -> None:
        if event.kind == "report" and "curve" in event.payload:
            trial = state.trials[event.trial]
            error, macs = trial.arrays(trial.epoch)
            first = problem.index(trial.config) if isinstance(problem, OnePoint) else 0
            points = [(i, e, m) for i, (e, m) in enumerate(zip(error.tolist(), macs.tolist(), strict=True), first)]
            seen.append(Seen(state.cost_epochs, trial.config, trial.epoch, points))

    simulation.engine.listeners.append(listen)
    simulation.run(lambda engine: engine.state.cost_epochs >= epochs)
    return seen


class _Scalar:
    """Trials of one operating point, as Ray's searchers know them."""

    def __init__(self, problem: Any, seed: int, every: int) -> None:
        self.problem, self.seed, self.every = problem, seed, every
        self.spent, self.begun = 0.0, 0
        self.seen: list[Seen] = []

    def space(self, trial: optuna.Trial) -> dict[str, Any]:
        config = suggest(trial, self.problem.spaces)
        settings = len(self.problem.exact(config, 1))
        config["setting"] = trial.suggest_int("setting", 0, settings - 1)
        return {"all": config}

    def run(self, config: dict[str, Any]) -> Iterator[tuple[float, Result]]:
        given = config["all"]
        setting, values = given["setting"], {k: v for k, v in given.items() if k != "setting"}
        self.begun += 1
        seed = self.seed * 1_000_003 + self.begun
        for epoch in range(1, self.problem.epochs + 1):
            accuracy, macs = self.problem.curve(values, seed, epoch)[setting]
            error, (reference, largest) = 1 - accuracy, self.problem.reference
            yield (
                self.problem.seconds(values),
                {
                    "training_iteration": epoch,
                    "error": error,
                    "macs": math.log10(macs),
                    # what people write: the mean of both objectives, each in units of its range
                    "both": error / reference + (math.log10(macs) - math.log10(largest) + 3) / 3,
                    "point": (values, setting, epoch, error, macs),
                    "done": epoch == self.problem.epochs,
                },
            )

    def took(self, job: Job, result: Result) -> None:
        self.spent += 1
        values, setting, epoch, error, macs = result["point"]
        if epoch % self.every == 0 or epoch == self.problem.epochs:
            self.seen.append(Seen(self.spent, values, epoch, [(setting, error, macs)]))


def rays(
    problem: Problem, seed: int, epochs: float, *, sampler: Callable[[int], Any] | None = None, asha: bool = False
) -> list[Seen]:
    """Ray's OptunaSearch with two objectives and full trainings, or on the mean of both with ASHA."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
    from ray.tune.search.optuna import OptunaSearch

    task = _Scalar(problem, seed, 1 if asha else problem.epochs)
    metric, mode = ("both", "min") if asha else (["error", "macs"], ["min", "min"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        searcher = OptunaSearch(
            space=task.space,
            metric=metric,
            mode=mode,
            sampler=sampler(seed) if sampler else None,
            seed=None if sampler else seed,
        )
    scheduler: Any = FIFOScheduler()
    if asha:
        scheduler = AsyncHyperBandScheduler(
            metric="both", mode="min", max_t=problem.epochs, grace_period=1, reduction_factor=3
        )
    cluster = Cluster(searcher, scheduler, task.run, workers=WORKERS, seed=seed, seen=task.took)
    cluster.run(lambda: task.spent >= epochs)
    return task.seen


CONTENDERS: dict[str, Callable[[Any, int, float], list[Seen]]] = {
    "ours": ours,
    "OptunaSearch": rays,
    "OptunaSearch + ASHA": lambda p, s, e: rays(p, s, e, asha=True),
    "NSGA-II": lambda p, s, e: rays(p, s, e, sampler=lambda seed: optuna.samplers.NSGAIISampler(seed=seed)),
    "random": lambda p, s, e: rays(p, s, e, sampler=lambda seed: optuna.samplers.RandomSampler(seed=seed)),
}


class OnePoint:
    """A problem whose trials show one operating point; which one is a parameter more."""

    def __init__(self, problem: Any) -> None:
        self._problem = problem
        setting = Range(0, SETTINGS - 1, integer=True)
        self.spaces: Mapping[str, Space] = {
            name: Space({**space.parameters, "setting": setting}) for name, space in problem.spaces.items()
        }

    def __getattr__(self, name: str) -> Any:
        return getattr(self._problem, name)

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> list[tuple[float, float]]:
        return [self._problem.curve(config, seed, epoch)[self.index(config)]]

    def index(self, config: Mapping[str, Any]) -> int:
        """Which point of the whole curve is shown."""
        return config["setting"] * len(self._problem.exact(config, 1)) // SETTINGS


def as_finished(shown: Mapping[int, list[Any]], budget: float) -> dict[str, float]:
    """Instead of `search.sampling.budgets.foretold`: what a trial showed last is taken for its end."""
    values: dict[str, float] = {}
    for epoch in sorted(shown):
        values |= foretold({epoch: shown[epoch]}, budget)
    return values


class _AtTheEnd(Told):
    def of(self, view: View, method: str) -> list[Observation]:
        found = super().of(view, method)
        return [replace(each, rung=self.rungs - 1, value=each.value - each.gained) for each in found]


def _dishonest(problem: Any, seed: int, epochs: float) -> list[Seen]:
    with patch("search.sampling.budgets.foretold", as_finished), patch("search.sampling.surrogate.Told", _AtTheEnd):
        return ours(problem, seed, epochs)


def _without_densities(problem: Any, seed: int, epochs: float) -> list[Seen]:
    with patch("search.sampling.surrogate.DENSITIES", 0.0):
        return ours(problem, seed, epochs)


ABLATIONS: dict[str, Callable[[Any, int, float], list[Seen]]] = {
    "ours, no curves": lambda p, s, e: ours(OnePoint(p), s, e),
    "ours, stopped as finished": _dishonest,
    "ours, no rungs": lambda p, s, e: ours(p, s, e, rungs={"enabled": False}),
    "ours, no densities": _without_densities,
    "ours, no immunity": lambda p, s, e: ours(p, s, e, rungs={"immune": 0.0}),
    "ours, fixed reduction": lambda p, s, e: ours(p, s, e, rungs={"adapt": False}),
    "ours, reduction 2": lambda p, s, e: ours(p, s, e, rungs={"reduction": 2.0}),
    "ours, pause": lambda p, s, e: ours(p, s, e, rungs={"pause": True}),
    **{
        f"ours, {name}": lambda p, s, e, name=name: ours(p, s, e, sampler={"name": name})
        for name in SAMPLERS
        if name != SamplerSpec().name
    },
}
