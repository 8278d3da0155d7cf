"""Workers in virtual time between a searcher and a scheduler of Ray's interfaces, as Tune drives them."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


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
        self._finished = False
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
        while self._busy < self._workers and not self._finished:
            name = f"sim{next(self._names):06d}"
            config = self._searcher.suggest(name)
            if config is None or config == "FINISHED":
                self._finished = config == "FINISHED"  # it is not asked again, as Tune does not
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
