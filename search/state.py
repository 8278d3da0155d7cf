"""The state of a study: a fold over its journal, equal by construction after every restart.

Kinds of events and their payloads:

========== =====================================================================================
created    spec, reference {error, macs}, data {name, hash, classes, task, ...}, code_version
session    host, pid, workers: a driver began to work
ask        number, config {method, ...}, seed, why, seen (last event the proposal knew of), and where
           the trial begins behind a finished first stage: stage {key, trial, epoch, cost_epochs, seconds}
start      host: a worker took the trial up
report     what `fit` reports (epoch, losses, curve ...), checkpoint (name of its folder), stage (the
           key of the first stage that this epoch ended and that is stored now)
stage      key, action (lost: the trial trains it again; dropped: its checkpoint was removed), why
decision   epoch, action (continue, stop, finish), why
failed     reason
ended      why: a driver stopped working in good order
promotion  model, version, alias, point, validation and test figures
========== =====================================================================================
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from search.frontier import Archive
from search.journal import Event

LIVE, OVER = ("asked", "running"), ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished first stage: who trained it, its last epoch, what it cost in epochs (views counted) and seconds."""

    key: str
    trial: str
    epoch: int
    cost_epochs: float
    seconds: float


@dataclass(slots=True)
class Trial:
    """One training as the journal tells it. `curves` by epoch; `state` asked, running or over.

    `behind` is the first stage that it was proposed to begin behind; with `stage_lost` it trains
    that stage itself. `shared` says that it did begin behind it: its `epoch` counts the stage's
    epochs, its `cost_epochs` and `seconds` do not.
    """

    id: str
    number: int
    config: dict[str, Any]
    seed: int
    why: str
    asked_at: float
    state: str = "asked"
    reason: str = ""
    epoch: int = 0
    seconds: float = 0.0
    cost_epochs: float = 0.0
    starts: int = 0
    checkpoint: str | None = None
    params: int = 0
    macs_full: int = 0
    curves: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    comparable: dict[int, bool] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    decided: dict[int, str] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    phases: dict[int, str] = field(default_factory=dict)
    behind: Stage | None = None
    stage_lost: bool = False
    shared: bool = False
    diagnostics: dict[str, Any] | None = None

    @property
    def method(self) -> str:
        """The method's name."""
        return self.config["method"]

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in OVER

    def arrays(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(error, macs) of the curve at an epoch."""
        points = self.curves[epoch]
        return np.array([1.0 - p["accuracy"] for p in points]), np.array([p["macs"] for p in points])


@dataclass(slots=True)
class History:
    """One step of the study's progress: seconds of work, epochs of cost, trials over, hypervolume."""

    seconds: float
    epochs: float
    trials: int
    hypervolume: float


class StudyState:
    """Trials, rung records, the front so far and the budget spent. `apply` folds one event in."""

    def __init__(self) -> None:
        self.seq = 0
        self.created: dict[str, Any] = {}
        self.trials: dict[str, Trial] = {}
        self.stages: dict[str, Stage] = {}
        self.promotions: list[dict[str, Any]] = []
        self.history: list[History] = []
        self.archive: Archive | None = None
        self.elapsed = 0.0
        self.ended = ""
        self.workers = 0
        self._session: float | None = None
        self._before = 0.0

    @classmethod
    def of(cls, events: Iterable[Event]) -> StudyState:
        """The state after these events."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Fold one event in; events must come in order."""
        assert event.seq == self.seq + 1, (event.seq, self.seq)
        self.seq = event.seq
        if self._session is not None:
            self.elapsed = self._before + max(0.0, event.time - self._session)
        getattr(self, f"_on_{event.kind}", self._ignore)(event)

    def _ignore(self, event: Event) -> None:
        """Kinds of later versions change nothing here."""

    def _on_created(self, event: Event) -> None:
        self.created = event.payload
        reference = event.payload["reference"]
        self.archive = Archive((reference["error"], reference["macs"]))

    def _on_session(self, event: Event) -> None:
        self._before, self._session = self.elapsed, event.time
        self.ended = ""
        self.workers = event.payload.get("workers", 0)
        for trial in self.trials.values():
            if trial.state == "running":
                trial.state = "asked"  # its worker died with the driver

    def _on_ended(self, event: Event) -> None:
        self._before, self._session = self.elapsed, None
        self.ended = event.payload["why"]

    def _on_ask(self, event: Event) -> None:
        p = event.payload
        assert event.trial is not None
        self.trials[event.trial] = Trial(event.trial, p["number"], p["config"], p["seed"], p["why"], event.time)
        if p.get("stage"):
            self.trials[event.trial].behind = Stage(**p["stage"])

    def _on_start(self, event: Event) -> None:
        trial = self._trial(event)
        if not trial.over:
            trial.state = "running"
            trial.starts += 1

    def _on_report(self, event: Event) -> None:
        trial, p = self._trial(event), event.payload
        epoch = p["epoch"]
        if trial.behind is not None and trial.epoch == 0:
            trial.shared = not trial.stage_lost and epoch > trial.behind.epoch
        trial.epoch = epoch
        trial.cost_epochs, trial.seconds = p["cost_epochs"], trial.seconds + p["seconds"]
        trial.params, trial.macs_full = p.get("params", 0), p.get("macs_full", 0)
        trial.losses[epoch], trial.phases[epoch] = p["losses"], p["phase"]
        trial.diagnostics = p.get("diagnostics")
        if p.get("checkpoint"):
            trial.checkpoint = p["checkpoint"]
        if "curve" in p:
            trial.curves[epoch] = p["curve"]["points"]
            trial.comparable[epoch] = p["comparable"]
            if p.get("checkpoint"):
                trial.checkpoints[epoch] = p["checkpoint"]
            self._extend_front(trial, epoch)
        if p.get("stage"):
            self.stages[p["stage"]] = Stage(p["stage"], trial.id, epoch, trial.cost_epochs, trial.seconds)
        self._log()

    def _extend_front(self, trial: Trial, epoch: int) -> None:
        assert self.archive is not None
        for index, point in enumerate(trial.curves[epoch]):
            self.archive.add(1.0 - point["accuracy"], point["macs"], (trial.id, epoch, index))

    def _on_stage(self, event: Event) -> None:
        self.stages.pop(event.payload["key"], None)
        if event.payload["action"] == "lost":
            self._trial(event).stage_lost = True

    def _on_decision(self, event: Event) -> None:
        trial, p = self._trial(event), event.payload
        trial.decided[p["epoch"]] = p["action"]
        if p["action"] in ("stop", "finish"):
            trial.state = "stopped" if p["action"] == "stop" else "finished"
            trial.reason = p["why"]
            self._log()

    def _on_failed(self, event: Event) -> None:
        trial = self._trial(event)
        trial.state, trial.reason = "failed", event.payload["reason"]
        self._log()

    def _on_promotion(self, event: Event) -> None:
        self.promotions.append({**event.payload, "time": event.time})

    def _trial(self, event: Event) -> Trial:
        assert event.trial is not None
        return self.trials[event.trial]

    def _log(self) -> None:
        over = sum(t.over for t in self.trials.values())
        self.history.append(History(self.elapsed, self.cost_epochs, over, self.hypervolume))

    # -- what is asked of the state ------------------------------------------------------------

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front so far against the study's fixed reference."""
        return 0.0 if self.archive is None else float(self.archive.hypervolume)

    @property
    def cost_epochs(self) -> float:
        """Epochs of training spent, views counted."""
        return sum(trial.cost_epochs for trial in self.trials.values())

    def saved(self) -> dict[str, Any]:
        """What shared first stages saved: trials that began behind one, epochs of cost, seconds."""
        begun = [trial.behind for trial in self.trials.values() if trial.shared and trial.behind]
        return {
            "finished": len(self.stages),
            "shared": len(begun),
            "epochs_saved": sum(stage.cost_epochs for stage in begun),
            "seconds_saved": sum(stage.seconds for stage in begun),
            "trained_again": sum(trial.stage_lost for trial in self.trials.values()),
        }

    @property
    def live(self) -> list[Trial]:
        """Trials that are asked for and not over, oldest first."""
        return [trial for trial in self.trials.values() if not trial.over]

    def elapsed_now(self) -> float:
        """Seconds of work, up to this moment while a session runs."""
        if self._session is None:
            return self.elapsed
        return self._before + max(0.0, time.time() - self._session)

    def count(self) -> dict[str, int]:
        """Trials by state."""
        counts = {"running": 0, "stopped": 0, "finished": 0, "failed": 0, "waiting": 0}
        for trial in self.trials.values():
            counts["waiting" if trial.state == "asked" else trial.state] += 1
        return {**counts, "total": len(self.trials)}

    def front(self) -> list[tuple[str, int, int]]:
        """(trial, epoch, index of the point in its curve) of the front, cheapest first."""
        return [] if self.archive is None else [key for _, _, key in self.archive]

    def rung(self, epoch: int) -> list[Trial]:
        """Trials with a comparable curve at an epoch, in the order of their numbers."""
        return [t for t in self.trials.values() if t.comparable.get(epoch)]

    def digest(self) -> str:
        """SHA-256 over everything that later decisions depend on."""
        trials = {name: asdict(trial) for name, trial in sorted(self.trials.items())}
        stages = {key: asdict(stage) for key, stage in sorted(self.stages.items())}
        content = {"trials": trials, "stages": stages, "front": self.front(), "created": self.created}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
