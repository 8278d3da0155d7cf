"""The Tune callback: tells the driver that a trial has started, and lets it work once per step of Tune's loop."""

from __future__ import annotations

import time
from typing import Any

import ray
from ray import tune

from cluster.resources import DRAINING, node_of, nodes_of, room
from search.engine.driver import Driver, driver_at
from search.state.setbacks import DRAINED, SILENT
from search.units import show_seconds

_EVERY_SECONDS = 1.0
_LEAST_PATIENCE, _EPOCHS_PATIENCE = 600.0, 20.0


class StudyCallback(tune.Callback):
    """Records starts, renews the lease, obeys a gentle stop, follows the cluster as nodes join and leave.

    A worker that is silent for too long is ended. One on a node that is being drained is asked to leave, which
    it does behind a checkpoint in its epoch, and is ended where that epoch's report comes first. Ray then gives the
    trial another one. A gentle stop asks all of them.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._looked = 0.0
        self._heard: dict[str, tuple[Any, float]] = {}
        self._longest = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker took the trial up."""
        self._heard[trial.trial_id] = trial, time.monotonic()
        driver_at(self._folder).started(trial.config["trial"], node_of(trial.temporary_state.ray_actor))

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict, **info: Any) -> None:
        """It spoke."""
        now = time.monotonic()
        if trial.trial_id in self._heard:
            self._longest = max(self._longest, now - self._heard[trial.trial_id][1])
        self._heard[trial.trial_id] = trial, now
        driver = driver_at(self._folder)
        known = driver.state.trials[trial.config["trial"]]
        if known.node in driver.draining and known.state == "running":
            self._take(driver, trial, DRAINED, "its node is leaving the cluster; its checkpoint goes on elsewhere")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune is done with a trial: whether or not it said so, the driver is."""
        self._heard.pop(trial.trial_id, None)
        driver = driver_at(self._folder)
        known = driver.state.trials[trial.config["trial"]]
        open_ = known.state in ("asked", "running") and driver.holds(known.id, trial.config["attempt"])
        if open_ and not driver.stopping:
            driver.failed(known.id, f"its worker ended at epoch {known.epoch} without a report of the next")

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It lost its worker and waits for another one."""
        self._heard.pop(trial.trial_id, None)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune gave a worker up before the trial had begun on it: the trial is handed out again."""
        self._heard.pop(trial.trial_id, None)
        driver = driver_at(self._folder)
        if driver.holds(trial.config["trial"], trial.config["attempt"]):
            driver.take_back(trial.config["trial"])

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Once a second: keep the lease, obey a stop, look at the nodes and for the silent."""
        now = time.monotonic()
        if now - self._looked < _EVERY_SECONDS:
            return
        self._looked = now
        driver = driver_at(self._folder)
        driver.journal.renew()
        if not driver.stopping and driver.folder.stop.exists():
            driver.stopping = "stopped"
        driver.take_budget()
        resources = driver.spec.resources
        nodes = nodes_of(ray)
        driver.draining = {node.id for node in nodes if node.state == DRAINING}
        for trial in driver.state.live:
            if trial.state == "running" and (driver.stopping == "stopped" or trial.node in driver.draining):
                driver.courier.ask_to_leave(trial.id)
        driver.seen(nodes, room(ray, nodes, resources.cpus_per_trial, resources.gpus_per_trial, resources.workers))
        patience = resources.patience
        if patience is None and self._longest:
            patience = max(_LEAST_PATIENCE, _EPOCHS_PATIENCE * self._longest)
        if patience is not None:
            for trial, heard in list(self._heard.values()):
                if now - heard > patience:
                    why = f"no report for {show_seconds(now - heard)} (resources.patience {show_seconds(patience)})"
                    self._take(driver, trial, SILENT, why)

    def _take(self, driver: Driver, trial: Any, kind: str, why: str) -> None:
        """End a trial's worker, and tell the driver why before it hears of it."""
        self._heard.pop(trial.trial_id, None)
        driver.notes[trial.config["trial"]] = kind, why
        ray.kill(trial.temporary_state.ray_actor)
