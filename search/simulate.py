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

import heapq
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from search.engine import ENGINES, Engine
from search.journal import Event
from search.spec import StudySpec
from search.state import StudyState
from spaces.space import Space

Result = dict[str, Any]
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
        """See `search.engine.Events`."""
        dies = self.dies_at and len(self.events) + 1 == self.dies_at
        if dies and not self.after:
            raise Killed
        event = Event(len(self.events) + 1, self._clock(), kind, trial, payload)
        self.events.append(event)
        if dies:
            raise Killed
        return event


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and what things cost, in virtual seconds.

    `crash`: the chance that a worker dies within an epoch; it is back after `restart` and goes on
    behind its last whole epoch. `straggle`: the chance that an epoch takes `slowdown` times as long.
    `delay`: results reach the driver up to so much later, drawn uniformly, so that they overtake
    each other. `service`: the driver's time for a result or a start.
    """

    crash: float = 0.0
    restart: float = 5.0
    straggle: float = 0.0
    slowdown: float = 10.0
    delay: float = 0.0
    service: float = 0.0


@dataclass(slots=True)
class Job:
    """One trial in the simulated cluster, with the names that Ray's schedulers read of a trial."""

    trial_id: str
    config: dict[str, Any]
    run: Iterator[tuple[float, Result]]
    last_result: Result = field(default_factory=dict)
    status: str = "RUNNING"
    again: bool = False

    def __hash__(self) -> int:
        return hash(self.trial_id)


class Cluster:
    """Simulated workers between a searcher and a scheduler of Ray's interfaces.

    `runner` makes of a suggested configuration what a worker does: an iterator over (seconds, result), one
    an epoch. `seen` hears every result when the driver takes it in.
    """

    def __init__(
        self,
        searcher: Any,
        scheduler: Any,
        runner: Callable[[dict[str, Any]], Iterator[tuple[float, Result]]],
        *,
        workers: int,
        seed: int = 0,
        faults: Faults | None = None,
        seen: Callable[[Job, Result], None] | None = None,
        started: Callable[[Job], None] | None = None,
    ) -> None:
        self.now = 0.0
        self.results = 0
        self.trials: dict[str, Job] = {}
        self._searcher, self._scheduler, self._runner = searcher, scheduler, runner
        self._workers, self._faults = workers, faults or Faults()
        self._random = random.Random(seed)
        self._seen = seen or (lambda job, result: None)
        self._started = started or (lambda job: None)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._busy = 0
        self._driver_free = 0.0
        self._names = itertools.count()

    def _at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), call))

    def _serve(self) -> None:
        """The driver takes one thing in: the clock moves on by what that costs."""
        self.now = self._driver_free = max(self.now, self._driver_free) + self._faults.service

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Until nothing is left to do, or `until` says so after a result."""
        self._fill()
        while self._heap and not until():
            time, _, call = heapq.heappop(self._heap)
            self.now = max(self.now, time)
            call()
            self._fill()

    def _fill(self) -> None:
        while self._busy < self._workers:
            name = f"sim{next(self._names):06d}"
            config = self._searcher.suggest(name)
            if config is None or config == "FINISHED":
                return
            self._serve()
            job = Job(name, config, self._runner(config))
            self.trials[name] = job
            self._busy += 1
            self._scheduler.on_trial_add(None, job)
            self._started(job)
            self._work(job)

    def _work(self, job: Job) -> None:
        """The next epoch of a trial, or its death."""
        faults, draw = self._faults, self._random.random
        if job.again:
            job.again = False
            seconds, result = 0.0, job.last_result  # a worker that came back reports what it has once more
        else:
            step = next(job.run, None)
            assert step is not None, "a scheduler lets a trial go on that has no epochs left"
            seconds, result = step
        if faults.straggle and draw() < faults.straggle:
            seconds *= faults.slowdown
        if faults.crash and job.last_result and draw() < faults.crash:
            ahead = job.run
            job.run = itertools.chain([(seconds, result)], ahead)
            job.again = True
            self._at(self.now + seconds * draw() + faults.restart, lambda: self._restarted(job))
            return
        late = faults.delay * draw() if faults.delay else 0.0
        self._at(self.now + seconds + late, lambda: self._report(job, result))

    def _restarted(self, job: Job) -> None:
        self._started(job)
        self._work(job)

    def _report(self, job: Job, result: Result) -> None:
        self._serve()
        self.results += 1
        job.last_result = result
        self._seen(job, result)
        done = bool(result.get("done"))
        action = "STOP" if done else self._scheduler.on_trial_result(None, job, result)
        if action != "STOP":
            self._searcher.on_trial_result(job.trial_id, result)
            self._work(job)
            return
        if done:
            self._scheduler.on_trial_complete(None, job, result)
        job.status = "TERMINATED"
        self._busy -= 1
        self._searcher.on_trial_complete(job.trial_id, result)


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
    ) -> None:
        self.problem, self.spec, self.workers, self.faults = problem, spec, workers, faults
        self.journal = MemoryJournal(self._clock, dies_at, after)
        self.cluster: Cluster | None = None
        self._before = 0.0
        self._seen = seen
        self.engine = self._engine()
        self.engine.record("created", created(spec, problem))

    def _clock(self) -> float:
        return self._before + (self.cluster.now if self.cluster else 0.0)

    def _engine(self) -> Engine:
        state = StudyState.of(self.journal.events)
        spaces, papers = self.problem.spaces, self.problem.papers
        name = f"simulation-{id(self)}"
        return Engine(
            name, self.spec, self.journal, state, self.workers, spaces=spaces, papers=papers, clock=self._clock
        )

    def run(self, until: Callable[[Engine], bool] = lambda engine: False) -> StudyState:
        """To the end of the budget, or until told; the state then."""
        from search.rungs import RungScheduler
        from search.searcher import CurveSearcher, constants

        if self.cluster is not None:  # a driver before this one died
            self._before += self.cluster.now
            self.cluster = None
            self.journal.dies_at = 0
            self.engine = self._engine()
        engine = self.engine
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
        )
        try:
            self.cluster.run(lambda: until(engine))
            engine.record("ended", {"why": "finished" if engine.exhausted else "stopped"})
        finally:
            ENGINES.pop(engine.name, None)
        return engine.state

    def _runner(self, config: dict[str, Any]) -> Iterator[tuple[float, Result]]:
        """A trial goes on behind the last epoch that it reported."""
        known = self.engine.state.trials[config["trial"]].epoch
        reports = trial_reports(self.problem, config)
        return itertools.islice(reports, max(0, known - 1), None)  # the last one is reported once more
