"""The project's own engine on a public problem: its searcher, scheduler, rungs and samplers, in virtual time.

A trial's curve is one operating point. Workers report at the rungs and at the last epoch alone (nothing is decided
between), and every epoch counts as an operating point afterwards, as for every other contender.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

from search.journal.events import Event
from search.simulation.cluster import Result
from search.simulation.simulation import Curve, Simulation, study_spec, trial_reports
from search.state.state import StudyState
from spaces.space import Choice, LogRange, Range, Space
from tests.benchmarks.search.public.public_problems import Parameter, Public, Segment

WORKERS = 4


def _parameter(each: Parameter) -> Choice | Range:
    if each.options:
        return Choice(each.options)
    kind = LogRange if each.log else Range
    return kind(each.low, each.high, integer=each.integer)


class Adapter:
    """A public problem as a `search.simulation.simulation.Problem`."""

    def __init__(self, public: Public) -> None:
        self.public = public
        self.epochs, self.reference = public.epochs, public.reference
        self.spaces: Mapping[str, Space] = {
            method: Space({each.name: _parameter(each) for each in parameters})
            for method, parameters in public.spaces.items()
        }
        self.papers: Mapping[str, Mapping[str, Any]] = {method: {} for method in self.spaces}

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> Curve:
        """See `Problem`."""
        errors, costs, _ = self.public.table(dict(config))
        return [(1 - float(errors[epoch - 1]), float(costs[epoch - 1]))]

    def seconds(self, config: Mapping[str, Any]) -> float:
        """See `Problem`."""
        return self.public.table(dict(config))[2]


class Coarse(Simulation):
    """Reports at the rungs and at the end."""

    def _runner(self, config: dict[str, Any]) -> Iterator[tuple[float, Result]]:
        known, wanted = self.engine.state.trials[config["trial"]].epoch, set(config["evaluate_at"])
        waited = 0.0
        for epoch, (seconds, result) in enumerate(trial_reports(self.problem, config), 1):
            if epoch > known:
                waited += seconds
            if epoch in wanted and epoch >= known:  # the last one known is reported once more
                yield waited, result
                waited = 0.0


def run(problem: Public, seed: int, epochs: float, **parts: Any) -> tuple[list[Segment], int]:
    """What our search trains until `epochs` are spent (and a little longer), and how many trials that were.

    `parts` as in a study file.
    """
    adapter = Adapter(problem)
    given = {"seed": seed, "budget": {"trials": 1_000_000}, **parts}
    simulation = Coarse(adapter, study_spec(adapter, **given), workers=WORKERS)
    segments: list[Segment] = []
    last: dict[str, int] = {}

    def listen(event: Event, state: StudyState) -> None:
        if event.kind == "report" and event.trial is not None:
            trial = state.trials[event.trial]
            before = last.get(trial.id, 0)
            if trial.epoch > before:
                segments.append((trial.config, before + 1, trial.epoch, event.time, adapter.seconds(trial.config)))
                last[trial.id] = trial.epoch

    simulation.engine.listeners.append(listen)
    state = simulation.run(lambda engine: engine.state.cost_epochs >= epochs + WORKERS * problem.epochs)
    return segments, len(state.trials)


Run = Callable[[Public, int, float], tuple[list[Segment], int]]


def _with(**parts: Any) -> Run:
    return lambda problem, seed, epochs: run(problem, seed, epochs, **parts)


def _without_densities(problem: Public, seed: int, epochs: float) -> tuple[list[Segment], int]:
    with patch("search.sampling.surrogate.DENSITIES", 0.0):
        return run(problem, seed, epochs)


CONTENDERS: dict[str, Run] = {
    "ours": _with(),
    "ours densities": _with(sampler={"name": "budgets"}),
    "ours no densities": _without_densities,
    "ours no immunity": _with(rungs={"immune": 0.0}),
    "ours no rungs": _with(rungs={"enabled": False}),
    "ours random+rungs": _with(sampler={"name": "random"}),
    "ours random no rungs": _with(sampler={"name": "random"}, rungs={"enabled": False}),
    "ours tpe": _with(sampler={"name": "tpe"}),
    "ours evolution": _with(sampler={"name": "evolution"}),
    "ours brackets 2": _with(rungs={"brackets": 2}),
    "ours pause": _with(rungs={"pause": True}),
    "ours reduction 2": _with(rungs={"reduction": 2.0}),
}
"""Our search with parts of a study file, or with parts left out, by the contender's name."""
