"""Workers in virtual time between a searcher and a scheduler of Ray's interfaces, as Tune drives them."""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong, and what things cost, in virtual seconds.

    `crash`: the chance that a worker dies within an epoch; it is back after `restart` and goes on
    behind its last whole epoch. `hang`: the chance that it falls silent in one; it is ended after
    `patience`. `straggle`: the chance that an epoch takes `slowdown` times as long.
    `delay`: results reach the driver up to so much later, drawn uniformly, so that they overtake
    each other. `node`: workers a node; every node fails once in `lives` on average, with all its
    workers, and another takes its place after `repair`. `service`: the driver's time for a result, `start`:
    for a trial's start; `own`: the measured time of searcher and scheduler is charged as well (which is
    not deterministic).
    """

    crash: float = 0.0
    restart: float = 5.0
    hang: float = 0.0
    patience: float = 600.0
    straggle: float = 0.0
    slowdown: float = 10.0
    delay: float = 0.0
    node: int = 0
    lives: float = float("inf")
    repair: float = 600.0
    service: float = 0.0
    start: float = 0.0
    own: bool = False


@dataclass(slots=True)
class Job:
    """One trial in the simulated cluster, with the names that Ray's schedulers read of a trial."""

    trial_id: str
    config: dict[str, Any]
    run: Iterator[tuple[float, Result]]
    last_result: Result = field(default_factory=dict)
    status: str = "PENDING"
    step: tuple[float, Result] | None = None  # the running epoch, until it is reported
    again: bool = False
    since: float = 0.0  # when that epoch began
    node: int = -1
    attempt: int = 0  # what is still to come of an earlier worker counts no more

    def __hash__(self) -> int:
        return hash(self.trial_id)


class Cluster:
    """Simulated workers between a searcher and a scheduler of Ray's interfaces.

    `runner` makes of a suggested configuration what a worker does: an iterator over (seconds, result), one
    an epoch. `seen` hears every result when the driver takes it in, `started` when a worker takes a trial up,
    `lost` when one loses it, and why: whether the trial gets another worker at once. `sized` hears how many
    workers there are when that changes.

    Afterwards `held` holds the seconds that workers were there, `wasted` those of them in which they had no
    trial, waited for the driver or did what was lost, `driver` the seconds that the driver was at work, each up
    to `now` and, as `at_last_start`, up to the last trial's start: the end of a study leaves workers idle.
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
        lost: Callable[[Job, str], bool] | None = None,
        sized: Callable[[int], None] | None = None,
    ) -> None:
        self.now = self.wasted = self.held = self.driver = 0.0
        self.at_last_start = (0.0, 0.0, 0.0, 0.0)
        self.results = 0
        self.trials: dict[str, Job] = {}
        self._searcher, self._scheduler, self._runner = searcher, scheduler, runner
        self._faults = faults or Faults()
        self._random = random.Random(seed)
        self._seen = seen or (lambda job, result: None)
        self._started = started or (lambda job: None)
        self._lost = lost or (lambda job, kind: True)
        self._sized = sized or (lambda workers: None)
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free: list[int] = []  # the nodes of idle workers
        self._there = 0
        self._on: dict[int, set[Job]] = {}
        self._waiting: deque[Job] = deque()  # for a worker
        self._finished = False
        self._driver_free = self._accounted = 0.0
        self._names, self._numbers = itertools.count(), itertools.count()
        size = self._faults.node or workers
        for first in range(0, workers, size):
            self._join(min(size, workers - first))

    def _at(self, time: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (time, next(self._order), call))

    def _to(self, moment: float) -> None:
        self.now = max(self.now, moment)
        self.held += (self.now - self._accounted) * self._there
        self.wasted += (self.now - self._accounted) * len(self._free)
        self._accounted = self.now

    def _serve(self, seconds: float) -> None:
        """The driver is at work for so long, after what it does already: the clock moves on."""
        self.driver += seconds
        self._driver_free = max(self.now, self._driver_free) + seconds
        self._to(self._driver_free)

    def _own(self, call: Callable[..., Any], *given: Any) -> Any:
        """Searcher and scheduler at work, on the driver's time where that is charged."""
        began = time.thread_time()  # other programs of a busy machine are not the driver's work
        found = call(*given)
        if self._faults.own:
            self._serve(time.thread_time() - began)
        return found

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Until nothing is left to do, or `until` says so after a result."""
        self._fill()
        while self._heap and not until():
            if self._finished and not self._waiting and not any(self._on.values()):
                return  # only nodes that would fail are left to wait for
            moment, _, call = heapq.heappop(self._heap)
            self._to(moment)
            call()
            self._fill()

    # -- nodes ---------------------------------------------------------------------------------

    def _join(self, workers: int) -> None:
        node = next(self._numbers)
        self._on[node] = set()
        self._free += [node] * workers
        self._there += workers
        if self._faults.lives != float("inf"):
            self._at(self.now + self._random.expovariate(1 / self._faults.lives), lambda: self._fail(node, workers))

    def _fail(self, node: int, workers: int) -> None:
        jobs = sorted(self._on.pop(node), key=lambda job: job.trial_id)
        self._free = [other for other in self._free if other != node]
        self._there -= workers
        self._sized(self._there)
        for job in jobs:
            job.node = -1
            if self._goes_on(job, "node"):
                self._waiting.append(job)
        self._at(self.now + self._faults.repair, lambda: self._repaired(workers))

    def _repaired(self, workers: int) -> None:
        self._join(workers)
        self._sized(self._there)

    # -- trials --------------------------------------------------------------------------------

    def _fill(self) -> None:
        while self._free and self._waiting:
            job = self._waiting.popleft()
            self._place(job)
            job.since = self.now  # it waited, not a worker
            self._begin(job)
        while self._free and not self._finished:
            name = f"sim{next(self._names):06d}"
            config = self._own(self._searcher.suggest, name)
            if config is None or config == "FINISHED":
                self._finished = config == "FINISHED"  # it is not asked again, as Tune does not
                return
            self._serve(self._faults.service + self._faults.start)
            job = Job(name, config, self._runner(config), since=self.now)
            self.trials[name] = job
            self._place(job)
            self._scheduler.on_trial_add(None, job)
            self.at_last_start = (self.now, self.wasted, self.held, self.driver)
            self._begin(job)

    def _place(self, job: Job) -> None:
        job.node = self._free.pop()
        self._on[job.node].add(job)
        job.status = "RUNNING"

    def _leave(self, job: Job) -> None:
        if job.node >= 0:
            self._on[job.node].remove(job)
            self._free.append(job.node)
            job.node = -1

    def _begin(self, job: Job) -> None:
        self.wasted += self.now - job.since
        self._own(self._started, job)
        self._work(job)

    def _work(self, job: Job) -> None:
        """The next epoch of a trial, or its death."""
        faults, draw = self._faults, self._random.random
        attempt, job.since = job.attempt, self.now
        if job.again:  # who came back reports once more
            spent, result = 0.0, job.last_result
        else:
            job.step = job.step or next(job.run, None)
            assert job.step is not None, "a scheduler lets a trial go on that has no epochs left"
            spent, result = job.step
            if faults.straggle and draw() < faults.straggle:
                spent *= faults.slowdown
            if faults.crash and job.last_result and draw() < faults.crash:
                self._at(self.now + spent * draw(), lambda: self._dies(job, attempt, "died", faults.restart))
                return
            if faults.hang and job.last_result and draw() < faults.hang:
                self._at(self.now + faults.patience, lambda: self._dies(job, attempt, "silent", faults.restart))
                return
        late = faults.delay * draw() if faults.delay else 0.0
        self._at(self.now + spent + late, lambda: self._report(job, attempt, spent, result))

    def _goes_on(self, job: Job, kind: str) -> bool:
        """A trial lost its worker: whether it gets another one."""
        job.attempt += 1
        self.wasted += self.now - job.since
        job.since = self.now
        job.again = bool(job.last_result)
        job.status = "PENDING"
        if self._own(self._lost, job, kind):
            return True
        self._over(job)
        return False

    def _dies(self, job: Job, attempt: int, kind: str, restart: float) -> None:
        if attempt == job.attempt and self._goes_on(job, kind):
            again = job.attempt
            self._at(self.now + restart, lambda: self._begin(job) if again == job.attempt else None)

    def _report(self, job: Job, attempt: int, spent: float, result: Result) -> None:
        if attempt != job.attempt:
            return
        self._serve(self._faults.service)
        self.results += 1
        if not job.again:
            job.step = None
        job.again = False
        job.last_result = result
        self._seen(job, result)
        done = bool(result.get("done"))
        action = "STOP" if done else self._own(self._scheduler.on_trial_result, None, job, result)
        self.wasted += self.now - job.since - spent
        if action != "STOP":
            self._searcher.on_trial_result(job.trial_id, result)
            self._work(job)
            return
        if done:
            self._scheduler.on_trial_complete(None, job, result)
        self._over(job)

    def _over(self, job: Job) -> None:
        self._leave(job)
        job.status = "TERMINATED"
        self._own(self._searcher.on_trial_complete, job.trial_id, job.last_result)
