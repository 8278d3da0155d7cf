"""The part of a study's driver that is a function of its events alone: ask, start, report, fail.

Every call appends one event first and answers from the folded state, so that a journal replayed
gives the engine back whatever happened to its process. `search.engine.driver` adds what lies in the
study's folder, `search.simulation.simulation` runs the same engine in virtual time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from search.engine.ahead import Ahead
from search.engine.whole_nodes import Alone
from search.errors import InputError
from search.journal.events import REPORT_KEYS, Event, Events
from search.rungs.decisions import Decision, decide, limit_of, promotable
from search.sampling.proposals import Papers, Proposer, seed_of
from search.spec.study import StudySpec
from search.state.donors import Donors, without
from search.state.setbacks import MEMORY, too_many
from search.state.state import StudyState
from search.state.trial import Donor, Trial
from spaces.donor import STUDY
from spaces.space import Space

Listener = Callable[[Event, StudyState], None]

_log = logging.getLogger("routefront.search")

_DRIVEN: dict[str, Engine] = {}
"""Engines by name while they drive a study (`driven`)."""


class Engine:
    """Which trial comes next and what becomes of a report.

    `spaces` are the methods' spaces, `papers` their published settings. `name` finds the engine again
    (`engine_at`); `clock` is the time in seconds; with `background` proposals are prepared in a thread.
    Calls may come from several threads of this process. `listeners` hear every event after it was folded in.
    `stopping` says why no trial is asked for any more, `trouble` which error made it so, `signal` which signal asked
    for it. A subclass overrides what is done beside the events: `orders`, `values`, `_waits`, `_loss`, `_donor_loss`,
    `_together`, `_took`, `_ended`.
    """

    def __init__(
        self,
        name: str,
        spec: StudySpec,
        journal: Events,
        workers: int,
        *,
        spaces: Mapping[str, Space],
        papers: Papers,
        clock: Callable[[], float] = time.time,
        background: bool = False,
    ) -> None:
        self.name, self.spec, self.journal, self.workers = name, spec, journal, workers
        self.state = StudyState()
        self.spaces, self.clock = dict(spaces), clock
        self.proposer = Proposer(spec, self.spaces, papers)
        self.listeners: list[Listener] = []
        self.stopping, self.trouble, self.signal = "", "", 0
        self.alone = Alone()
        self._lock = threading.RLock()
        self._handed: dict[str, Trial] = {}
        self._attempts: dict[str, int] = {}
        self.donors = Donors(self.state)
        self.ahead = Ahead(self.proposer, self.state, background=background)

    def replay(self, events: Iterable[Event]) -> None:
        """Fold in what a journal holds, and prepare what an engine that was never interrupted would have prepared."""
        events = list(events)
        asks = sum(event.kind == "ask" for event in events)
        for event in events:
            self.state.apply(event)
            if event.kind == "ask":
                asks -= 1
                if asks < self.spec.sampler.ahead:
                    self.ahead.prepare()

    def digest(self) -> str:
        """SHA-256 over the state, what the sampler is told of it, and the proposals that are prepared."""
        scores = sorted(self.proposer.observations.scores(self.state).items())
        told = json.dumps([self.state.digest(), scores, self.ahead.prepared()], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    # -- events --------------------------------------------------------------------------------

    def record(self, kind: str, payload: Mapping[str, Any], trial: str | None = None) -> Event:
        """Append an event, fold it in, tell the listeners."""
        with self._lock:
            event = self.journal.append(kind, dict(payload), trial)
            self.state.apply(event)
            if kind == "ask":
                self.ahead.prepare()
            for listener in self.listeners:
                listener(event, self.state)
            return event

    def ask(self) -> Trial | None:
        """The next trial to run; None when there is none at the moment (see `exhausted`).

        Unfinished trials of an earlier session come first, each with its checkpoint; one whose first stage
        another trial is just training again lets a new one go first. Then those that waited at a rung and are
        among its best by now, then what was planned, then what is proposed; last those that need the memory of
        a whole node, as many at once as there are nodes (`search.engine.whole_nodes`).
        """
        with self._lock:
            self._handed = {name: trial for name, trial in self._handed.items() if trial.state in ("asked", "running")}
            alone = any(t.alone for t in self._handed.values())
            if self.stopping or len(self._handed) >= (self.alone.single if alone else self.workers):
                return None
            for trial in self.state.live:
                if trial.id not in self._handed and trial.alone == alone and not self._waits(trial):
                    return self._hand(trial)
            promoted = None if alone or self.limit else promotable(self.spec, self.state) or self._sooner()
            if promoted:
                trial, why = promoted
                self.record("decision", {"epoch": trial.epoch, "action": "promote", "why": why}, trial.id)
                return self._hand(trial)
            if not alone and not self._spent:
                return self._hand(self._planned() if self.state.planned else self._proposed())
            if not self._handed:
                if self.state.live:
                    return self._hand(self.state.live[0])
                for trial in self.state.paused:
                    self._decided(trial, trial.epoch, Decision("stop", "never among the best of its rung"))
            return None

    def _sooner(self) -> tuple[Trial, str] | None:
        """The trial that waits at a rung and of which the sampler expects more than of what it proposes next."""
        if not self.state.paused or self._spent or self.state.planned:
            return None
        name, why = self.ahead.sooner or ("", "")
        return (self.state.trials[name], why) if name else None

    def _planned(self) -> Trial:
        plan = self.state.planned[0]
        number = len(self.state.trials)
        payload = {"number": number, **plan, "planned": True, "seen": self.state.seq}
        self.record("ask", self._begun(payload), f"t{number:04d}")
        return self.state.trials[f"t{number:04d}"]

    def _proposed(self) -> Trial:
        name = f"t{len(self.state.trials):04d}"
        self.record("ask", self._begun(self.ahead.take()), name)
        return self.state.trials[name]

    def _begun(self, payload: dict[str, Any]) -> dict[str, Any]:
        """What is asked for, with the trial named whose network it begins with, where one of the study's is wanted.

        From scratch where there is none yet (`search.state.donors`). One whose checkpoint is lost is wanted no more.
        """
        config = payload["config"]
        if config.get("donor") != STUDY or payload.get("donor"):
            return payload
        while (found := self.donors.best(config)) is not None:
            reason = self._donor_loss(found)
            if not reason:
                return {**payload, "donor": asdict(found)}
            self.record("donor", {"checkpoint": found.checkpoint, "action": "lost", "why": reason}, found.trial)
            _log.warning("%s; no trial begins with it any more", reason)
        seed = seed_of(self.spec.seed, payload["number"], "without a donor")
        why = f"{payload['why']}; from scratch, for no network of its body is trained yet"
        return {**payload, "config": without(config, self.spaces[config["method"]], seed), "why": why}

    def _hand(self, trial: Trial) -> Trial:
        self._handed[trial.id] = trial
        self._attempts[trial.id] = self.attempt(trial.id) + 1
        reason = self._loss(trial)
        if reason:
            self._stage_lost(trial, reason)
        return trial

    def _stage_lost(self, trial: Trial, reason: str) -> None:
        assert trial.behind is not None
        self.record("stage", {"key": trial.behind.key, "action": "lost", "why": reason}, trial.id)
        _log.warning("%s; %s trains it again", reason, trial.id)

    @property
    def limit(self) -> str:
        """Which limit of the study is reached: time, cost, or none."""
        return limit_of(self.spec, self.state, self.clock())

    @property
    def exhausted(self) -> bool:
        """Whether no further trial will be asked for."""
        if self.stopping:
            return True
        # one that runs may lose its worker and be handed out again, or wait at a rung and then go on or be ended
        return self._spent and not self.state.live and not self.state.paused

    @property
    def _spent(self) -> bool:
        repeats = bool(self.state.planned) and self.state.planned[0].get("repeats")
        return bool(self.limit) or not (repeats or self.state.proposed < self.spec.budget.trials)

    def attempt(self, name: str) -> int:
        """How often this driver has handed a trial out."""
        return self._attempts.get(name, 0)

    def holds(self, name: str, attempt: int) -> bool:
        """Whether a trial as it was handed out that time is still this driver's: not over and not taken back."""
        return self._handed.get(name) is self.state.trials[name] and self.attempt(name) == attempt

    def started(self, name: str, node: str = "") -> None:
        """A worker on a node took the trial up (again, after its worker died)."""
        with self._lock:
            if not self.state.trials[name].over:
                self.record("start", {"node": node}, name)

    def setback(self, name: str, kind: str, why: str) -> bool:
        """A trial lost its worker (`search.state.setbacks`): whether Ray may give it another one at once.

        It may not where it met too many and failed, and where memory ran out: then it is handed out
        once more when nothing else runs, and has failed as infeasible where that is not enough.
        """
        with self._lock:
            trial = self.state.trials[name]
            if trial.over:
                return False
            if kind == MEMORY and trial.alone:
                self.failed(name, f"out of memory although nothing else ran: {why}", infeasible=True)
                return False
            if too_many(trial.setbacks, kind, self.spec.resources.retries):
                self.failed(name, f"its worker died too often: {why}")
                return False
            self.record("setback", {"kind": kind, "why": why, "epoch": trial.epoch, "node": trial.node}, name)
            if kind == MEMORY:
                self.take_back(name)
            return kind != MEMORY

    def take_back(self, name: str) -> None:
        """A trial that was handed out is to be handed out again."""
        with self._lock:
            self._handed.pop(name, None)
            self.alone.forget(name)

    def report(self, name: str, result: Mapping[str, Any]) -> str:
        """Take a report in and answer with the action: continue, pause, stop or finish.

        A report that is known already (a worker repeated it after a restart) or that comes after
        the trial was decided changes nothing.
        """
        with self._lock:
            trial = self.state.trials[name]
            if trial.over:
                return "stop"
            for trouble in ("full", "away"):  # the disk, the storage
                if result.get(trouble):
                    self.stopping, self.trouble = trouble, result["error"]
                    return "stop"
            if result.get("memory"):
                self.setback(name, MEMORY, result["error"])
                return "stop"
            if "error" in result:
                self.failed(name, result["error"], result.get("traceback", ""))
                return "stop"
            epoch = result["epoch"]
            if trial.behind and not trial.stage_lost and not trial.shared:
                reason = result.get("stage_lost", "")
                if not reason and epoch <= trial.behind.epoch:  # its worker died after it had said so
                    reason = f"first stage {trial.behind.key[:12]} could not be read by its worker"
                if reason:
                    self._stage_lost(trial, reason)
            if epoch > trial.epoch:
                report = {k: result[k] for k in REPORT_KEYS if k in result}
                if "curve" in result and (together := self._together(trial, result)) is not None:
                    report["together"] = together
                self.record("report", report, name)
                if "curve" in result:
                    self._took(trial, epoch)
            if epoch in trial.decided:
                return trial.decided[epoch]
            decision = decide(self.spec, self.state, trial, epoch, self.limit)
            if decision.why:  # else nothing was compared, which is not worth an event
                self._decided(trial, epoch, decision)
            return decision.action

    def _decided(self, trial: Trial, epoch: int, decision: Decision) -> None:
        self.record("decision", {"epoch": epoch, "action": decision.action, "why": decision.why}, trial.id)
        if trial.over:
            self._ended(trial)

    def failed(self, name: str, reason: str, trace: str = "", *, infeasible: bool = False) -> None:
        """Record a trial as failed; the study goes on. `infeasible`: its configuration does not fit this memory."""
        with self._lock:
            trial = self.state.trials[name]
            if not trial.over:
                payload = {"reason": reason, "traceback": trace[-4000:], "epoch": trial.epoch}
                self.record("failed", payload | ({"infeasible": True} if infeasible else {}), name)
                self._ended(trial)

    def close(self) -> None:
        """Drive no more."""
        self.ahead.close()

    # -- what a subclass does beside the events --------------------------------------------------

    def orders(self, trial: Trial, evaluate_at: list[int]) -> dict[str, Any]:
        """What the trial's worker is told besides its configuration."""
        return {}

    def values(self, trial: Trial) -> dict[str, Any]:
        """The configuration that the trial's worker is told."""
        return {name: value for name, value in trial.config.items() if name != "method"}

    def _waits(self, trial: Trial) -> bool:
        """Whether a trial has to let a new one go first."""
        return False

    def _loss(self, trial: Trial) -> str:
        """Why a trial cannot begin behind its first stage; empty where it can, or has none."""
        return ""

    def _donor_loss(self, donor: Donor) -> str:
        """Why no trial can begin with a network of the study; empty where one can."""
        return ""

    def _together(self, trial: Trial, result: Mapping[str, Any]) -> list[Any] | None:
        """What cascades of a network with those of other trials reach; None where nobody asks for it."""
        return None

    def _took(self, trial: Trial, epoch: int) -> None:
        """A curve was taken in."""

    def _ended(self, trial: Trial) -> None:
        """A trial is over."""


@contextlib.contextmanager
def driven(engine: Engine) -> Iterator[None]:
    """Within, `engine_at` finds an engine by its name: Tune pickles its searcher and its scheduler."""
    _DRIVEN[engine.name] = engine
    try:
        yield
    finally:
        _DRIVEN.pop(engine.name, None)


def engine_at(name: str) -> Engine:
    """The engine of a name that drives a study now, for objects that came out of a pickle."""
    try:
        return _DRIVEN[name]
    except KeyError:
        raise InputError(f"study {name} is not being driven by this process; use `routefront resume`") from None
