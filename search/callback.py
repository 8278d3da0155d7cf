"""What Tune tells the driver besides results: starts, and a moment at every step of its loop."""

from __future__ import annotations

import time
from typing import Any

from ray import tune

from search.driver import driver_at

_EVERY_SECONDS = 1.0


class StudyCallback(tune.Callback):
    """Records starts, renews the lease, and looks for the file that asks for a gentle stop."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._looked = 0.0

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A worker took the trial up."""
        driver_at(self._folder).started(trial.config["trial"])

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tune is done with a trial: whether or not it said so, the driver is."""
        driver = driver_at(self._folder)
        known = driver.state.trials[trial.config["trial"]]
        if known.state in ("asked", "running") and not driver.stopping:
            driver.failed(known.id, f"its worker ended at epoch {known.epoch} without a report of the next")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The worker died more often than `resources.retries` allows.

        (The scheduler's hook of this name is also called when Tune is about to try again.)
        """
        error = str(trial.get_error() or "").strip().splitlines()
        reason = error[-1] if error else "no reason given"
        driver_at(self._folder).failed(trial.config["trial"], f"its worker died too often: {reason}")

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Once a second: keep the lease, obey a stop."""
        now = time.monotonic()
        if now - self._looked < _EVERY_SECONDS:
            return
        self._looked = now
        driver = driver_at(self._folder)
        driver.journal.renew()
        if not driver.stopping and driver.folder.stop.exists():
            driver.stopping = "stopped"
