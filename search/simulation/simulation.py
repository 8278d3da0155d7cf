"""A search in virtual time: the searcher, the scheduler and the engine that run on Ray, without Ray.

A simulated cluster of any number of workers asks a Ray `Searcher` for trials and shows their
results to a Ray `TrialScheduler`, as Tune does, while a clock jumps from event to event. What Tune
itself costs is charged: the driver serves one result after the other, `Faults.service` seconds each.
Workers may crash, straggle, and report late. Everything follows from the seed.

What a trial reports is a problem's affair (`Problem`): an analytic function, or a table recorded from
a real search. Any searcher and scheduler of Ray's interface can be compared (`Cluster`); `simulate`
runs ours.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from search.engine.engine import Engine, driven
from search.journal.events import Event
from search.simulation.cluster import Cluster, Faults, Job, Result
from search.spec.study import StudySpec
from search.state.state import StudyState
from spaces.space import Space

Curve = list[tuple[float, float]]  # (accuracy, MACs) of every setting


class Problem(Protocol):
    """What is searched over. `epochs` of one full training; `reference` (error, MACs) of the hypervolume."""

    epochs: int
    reference: tuple[float, float]
    spaces: Mapping[str, Space]
    papers: Mapping[str, Mapping[str, Any]]

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> Curve:
        """What a configuration ``{"method": ..., ...}`` trained with `seed` shows after `epoch` epochs."""
        ...

    def seconds(self, config: Mapping[str, Any]) -> float:
        """Virtual seconds of an epoch."""
        ...


class Killed(Exception):
    """The simulated driver died."""


class MemoryJournal:
    """Events in a list, timed by a virtual clock.

    `dies_at` (a number of events) raises `Killed` there: before the event is written, or after it
    where `after` is true, as a process that is killed between two statements.
    """

    def __init__(self, clock: Callable[[], float], dies_at: int = 0, after: bool = False) -> None:
        self.events: list[Event] = []
        self.dies_at, self.after = dies_at, after
        self._clock = clock

    def append(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> Event:
        """See `search.engine.engine.Events`."""
        dies = self.dies_at and len(self.events) + 1 == self.dies_at
        if dies and not self.after:
            raise Killed
        event = Event(len(self.events) + 1, self._clock(), kind, trial, payload)
        self.events.append(event)
        if dies:
            raise Killed
        return event


def created(spec: StudySpec, problem: Problem) -> dict[str, Any]:
    """The first event of a simulated study."""
    error, macs = problem.reference
    return {
        "spec": spec.model_dump(mode="json"),
        "reference": {"error": error, "macs": macs},
        "data": {"name": "simulated", "hash": "", "classes": [], "task": {"size": 0}, "counts": [0, 0, 0]},
        "code_version": "",
    }


def study_spec(problem: Problem, **parts: Any) -> StudySpec:
    """The spec of a simulated study of a problem; `parts` as in a study file, without data and methods."""
    given = {"name": "simulated", **parts, "methods": {name: {} for name in problem.spaces}}
    given["budget"] = {"epochs": problem.epochs, **given.get("budget", {})}
    given["stages"] = {"enabled": False}
    return StudySpec.parse(given, trusted=True)


def trial_reports(problem: Problem, config: Mapping[str, Any]) -> Iterator[tuple[float, Result]]:
    """What a worker of ours sends, epoch by epoch, with a curve where one is asked for."""
    full = {"method": config["method"], **config["config"]}
    seconds, wanted = problem.seconds(full), set(config["evaluate_at"])
    for epoch in range(1, config["epochs"] + 1):
        report: Result = {
            "epoch": epoch,
            "phase": "train",
            "comparable": True,
            "losses": {},
            "cost_epochs": float(epoch),
            "seconds": seconds,
        }
        if epoch in wanted:
            points = [
                {
                    "setting": {},
                    "knobs": {},
                    "accuracy": accuracy,
                    "correct": 0,
                    "count": 0,
                    "macs": macs,
                    "macs_std": 0,
                }
                for accuracy, macs in problem.curve(full, config["seed"], epoch)
            ]
            report["curve"] = {"points": points, "diagnostics": {}, "seconds": 0.0}
        yield seconds, {"report": json.dumps(report)}


def _size(engine: Engine, workers: int, faults: Faults | None) -> None:
    """So many workers are there, on one node where nodes do not fail."""
    node = faults.node if faults and faults.node else workers
    engine.workers = workers
    engine.alone.fit([node] * (workers // max(1, node)), workers)


class Simulation:
    """A study of a problem in virtual time, with the real engine, searcher and scheduler.

    `run` may be called again after `Killed`: it goes on from the journal, as `resume` does.
    """

    def __init__(
        self,
        problem: Problem,
        spec: StudySpec,
        *,
        workers: int = 4,
        faults: Faults | None = None,
        dies_at: int = 0,
        after: bool = False,
        seen: Callable[[Engine, Job, Result], None] | None = None,
        journal: type[MemoryJournal] = MemoryJournal,
    ) -> None:
        self.problem, self.spec, self.workers, self.faults = problem, spec, workers, faults
        self.journal = journal(self._clock, dies_at, after)
        self.cluster: Cluster | None = None
        self._before = 0.0
        self._begun = False
        self._seen = seen
        self.engine = self.again()
        self.engine.record("created", created(spec, problem))

    def _clock(self) -> float:
        return self._before + (self.cluster.now if self.cluster else 0.0)

    def again(self) -> Engine:
        """An engine that only ever read the journal as it is now."""
        spaces, papers = self.problem.spaces, self.problem.papers
        name = f"simulation-{id(self)}"
        engine = Engine(name, self.spec, self.journal, self.workers, spaces=spaces, papers=papers, clock=self._clock)
        engine.replay(self.journal.events)
        return engine

    def run(self, until: Callable[[Engine], bool] = lambda engine: False, *, dies_at: int = 0) -> StudyState:
        """To the end of the budget, or until told; the state then. A later run may die as well."""
        from search.tune.scheduler import RungScheduler
        from search.tune.searcher import CurveSearcher, constants

        if self._begun:  # a driver before this one died
            self._before, self.cluster = self._clock(), None
            self.journal.dies_at = dies_at
            self.engine = self.again()
        self._begun = True
        engine = self.engine
        _size(engine, self.workers, self.faults)
        engine.record("session", {"host": "simulated", "pid": 0, "workers": self.workers})
        self.cluster = Cluster(
            CurveSearcher(engine.name, constants(self.spec)),
            RungScheduler(engine.name),
            self._runner,
            workers=self.workers,
            seed=self.spec.seed + len(self.journal.events),
            faults=self.faults,
            seen=None if self._seen is None else lambda job, result: self._seen(engine, job, result),  # type: ignore[misc]
            started=lambda job: engine.started(job.config["trial"]),
            lost=lambda job, kind: engine.setback(job.config["trial"], kind, f"{kind}, as simulated"),
            sized=lambda workers: _size(engine, workers, self.faults),
        )
        try:
            with driven(engine):
                self.cluster.run(lambda: until(engine))
                engine.record("ended", {"why": "finished" if engine.exhausted else "stopped"})
        finally:
            engine.close()
        return engine.state

    def _runner(self, config: dict[str, Any]) -> Iterator[tuple[float, Result]]:
        """A trial goes on behind the last epoch that it reported."""
        known = self.engine.state.trials[config["trial"]].epoch
        reports = trial_reports(self.problem, config)
        return itertools.islice(reports, max(0, known - 1), None)  # the last one is reported once more
