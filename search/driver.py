"""The one process that writes a study: what happens is appended, folded in, then acted upon."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from search import points
from search.decisions import Decision, decide
from search.errors import InputError
from search.folder import StudyFolder
from search.frontier import front_layers
from search.journal import Event, Journal
from search.paths import chosen
from search.proposals import propose, seed_of
from search.rows import point_rows
from search.spec import StudySpec
from search.stages import SharedStages, propose_again
from search.state import StudyState, Trial

Listener = Callable[[Event, StudyState], None]

# Tune pickles the searcher and the scheduler; what they refer to is found here by its folder.
DRIVERS: dict[str, Driver] = {}

_FLUSH_ROWS = 500
_log = logging.getLogger("routefront.search")


class Driver:
    """Ask, start, report, fail: every call appends one event first and answers from the folded state.

    Calls may come from several threads of this process. `listeners` hear every event after it was
    folded in.
    """

    def __init__(self, folder: StudyFolder, spec: StudySpec, journal: Journal, state: StudyState, workers: int) -> None:
        self.folder, self.spec, self.journal, self.state, self.workers = folder, spec, journal, state, workers
        self.spaces = spec.spaces()
        self.stages = SharedStages(folder, spec, self.spaces, state)
        self.listeners: list[Listener] = []
        self.stopping = ""
        self._lock = threading.RLock()
        self._handed: set[str] = set()
        self._rows: list[dict[str, Any]] = []
        DRIVERS[str(folder.path)] = self

    # -- events --------------------------------------------------------------------------------

    def record(self, kind: str, payload: Mapping[str, Any], trial: str | None = None) -> Event:
        """Append an event, fold it in, tell the listeners."""
        with self._lock:
            event = self.journal.append(kind, dict(payload), trial)
            self.state.apply(event)
            for listener in self.listeners:
                listener(event, self.state)
            return event

    def ask(self) -> Trial | None:
        """The next trial to run; None when there is none at the moment (see `exhausted`).

        Unfinished trials of an earlier session come first, each with its checkpoint; one whose first
        stage another trial is just training again lets a new one go first.
        """
        with self._lock:
            running = sum(not self.state.trials[name].over for name in self._handed)
            if self.stopping or running >= self.workers:
                return None
            for trial in self.state.live:
                if trial.id not in self._handed and not self.stages.waits(trial):
                    return self._hand(trial)
            return None if self._spent else self._hand(self._proposed())

    def _proposed(self) -> Trial:
        number = len(self.state.trials)
        again = propose_again(self.spec, self.spaces, self.state, number)
        config, why = again[:2] if again else propose(self.spec, self.spaces, self.state, number)
        payload: dict[str, Any] = {
            "number": number,
            "config": config,
            "seed": seed_of(self.spec.seed, number, "training"),
            "why": why,
            "seen": self.state.seq,
        }
        if again:
            stage = again[2]
            payload |= {"seed": self.state.trials[stage.trial].seed, "stage": asdict(stage)}
        name = f"t{number:04d}"
        self.record("ask", payload, name)
        return self.state.trials[name]

    def _hand(self, trial: Trial) -> Trial:
        self._handed.add(trial.id)
        reason = self.stages.loss(trial)
        if reason:
            self._stage_lost(trial, reason)
        return trial

    def _stage_lost(self, trial: Trial, reason: str) -> None:
        assert trial.behind is not None
        self.record("stage", {"key": trial.behind.key, "action": "lost", "why": reason}, trial.id)
        _log.warning("%s; %s trains it again", reason, trial.id)

    @property
    def time_over(self) -> bool:
        """Whether the study's time is used up."""
        return self.spec.budget.time is not None and self.state.elapsed_now() >= self.spec.budget.time

    @property
    def exhausted(self) -> bool:
        """Whether no further trial will be asked for."""
        if self.stopping:
            return True
        waiting = any(trial.id not in self._handed for trial in self.state.live)
        return not waiting and self._spent

    @property
    def _spent(self) -> bool:
        return len(self.state.trials) >= self.spec.budget.trials or self.time_over

    def started(self, name: str) -> None:
        """A worker took the trial up (again, after its worker died)."""
        with self._lock:
            if not self.state.trials[name].over:
                self.record("start", {}, name)

    def report(self, name: str, result: Mapping[str, Any]) -> str:
        """Take a report in and answer with the action: continue, stop or finish.

        A report that is known already (a worker repeated it after a restart) or that comes after
        the trial was decided changes nothing.
        """
        with self._lock:
            trial = self.state.trials[name]
            if trial.over:
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
                self.record("report", {k: result[k] for k in _REPORT_KEYS if k in result}, name)
                if "curve" in result:
                    self._rows += point_rows(self.state, trial, epoch, self.spec)
            if epoch in trial.decided:
                return trial.decided[epoch]
            decision = decide(self.spec, self.state, trial, epoch, self.time_over)
            if decision.why:  # else nothing was compared, which is not worth an event
                self._decided(trial, epoch, decision)
            return decision.action

    def _decided(self, trial: Trial, epoch: int, decision: Decision) -> None:
        self.record("decision", {"epoch": epoch, "action": decision.action, "why": decision.why}, trial.id)
        if trial.over:
            self.prune(trial)
            self._drop_stages()
        if trial.over or len(self._rows) >= _FLUSH_ROWS:
            self.flush()

    def failed(self, name: str, reason: str, trace: str = "") -> None:
        """Record a trial as failed; the study goes on."""
        with self._lock:
            trial = self.state.trials[name]
            if not trial.over:
                self.record("failed", {"reason": reason, "traceback": trace[-4000:], "epoch": trial.epoch}, name)
                self.prune(trial)

    # -- what follows from the events ----------------------------------------------------------

    def flush(self) -> None:
        """Write the operating points that are not written yet."""
        with self._lock:
            if self._rows:
                points.write(self._rows, self.folder.points)
                self._rows = []

    def recover_points(self) -> None:
        """Write the points of the journal that an interrupted session had not flushed."""
        with self._lock:
            table = points.read(self.folder.points, columns=["point_id"])
            written = set(table.column("point_id").to_pylist())
            for trial in self.state.trials.values():
                for epoch in trial.curves:
                    rows = point_rows(self.state, trial, epoch, self.spec)
                    self._rows += [row for row in rows if row["point_id"] not in written]
            self.flush()

    def prune(self, trial: Trial) -> None:
        """Keep of a trial that is over only checkpoints in the first two fronts, promoted ones and reported ones."""
        keep = kept_checkpoints(self.state)
        for other in self.state.trials.values():
            if other.over:
                for folder in (self.folder.checkpoints / other.id).glob("epoch-*"):
                    if f"{other.id}/{folder.name}" not in keep:
                        shutil.rmtree(folder, ignore_errors=True)

    def _drop_stages(self) -> None:
        for stage in self.stages.surplus():
            why = f"not among the best {self.spec.stages.keep}"
            self.record("stage", {"key": stage.key, "action": "dropped", "why": why}, stage.trial)
            self.stages.remove(stage.key)

    def end(self, why: str) -> None:
        """Say why the session ends; the points of many small files become one."""
        self.flush()
        points.compact(self.folder.points)
        self.record("ended", {"why": why})

    def release(self) -> None:
        """Give the lease back and close the journal; what was not said is found at the next start."""
        self.journal.close()
        DRIVERS.pop(str(self.folder.path), None)


_REPORT_KEYS = (
    "epoch", "phase", "comparable", "losses", "lr", "images", "cost_epochs", "seconds", "curve", "checkpoint",
    "params", "macs_full", "worker", "stage", "diagnostics",
)  # fmt: skip


def kept_checkpoints(state: StudyState) -> set[str]:
    """Names ``trial/epoch-NNNN`` of the checkpoints in the first two fronts, of promoted points, and of the trials
    whose paths a report shows.
    """
    owners: list[tuple[Trial, int]] = []
    errors: list[float] = []
    macs: list[float] = []
    for trial in state.trials.values():
        for epoch, curve in trial.curves.items():
            for point in curve:
                owners.append((trial, epoch))
                errors.append(1.0 - point["accuracy"])
                macs.append(point["macs"])
    keep = {promotion["checkpoint"] for promotion in state.promotions}
    keep |= {trial.checkpoint for trial in chosen(state) if trial.checkpoint}
    if owners:
        layers = front_layers(np.array(errors), np.array(macs))
        for index in np.flatnonzero(layers <= 1):
            trial, epoch = owners[index]
            if epoch in trial.checkpoints:
                keep.add(trial.checkpoints[epoch])
    return keep


def driver_at(path: str) -> Driver:
    """The live driver of a study folder, for objects that came out of a pickle."""
    try:
        return DRIVERS[path]
    except KeyError:
        raise InputError(f"study {path} is not being driven by this process; use `routefront resume`") from None
