"""The Ray scheduler: every result goes to the driver, whose decision is carried out.

The rule itself is `search.rungs.decisions.decide`, a pure function of the folded journal; this class
only speaks Tune's language, so that the rule runs unchanged in a simulator or a test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray.tune.experiment import Trial as RayTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.engine.driver import driver_at
from search.engine.engine import engine_at


def _error(trial: RayTrial) -> str:
    """What Ray says of a worker that was lost; the copy in the storage comes later."""
    try:
        return Path(trial.error_file or "").read_text()
    except OSError:
        return ""


class RungScheduler(FIFOScheduler):
    """Stops trials at rungs. It holds nothing but the study's folder, so that Tune may pickle it."""

    def __init__(self, folder: str) -> None:
        super().__init__()
        self._folder = folder

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        """None first: Tune starts what is pending by itself, and need not look at all trials at every step.

        A trial that waits for a node as large as one that is gone is handed out anew, for one that is there.
        """
        engine = engine_at(self._folder)
        for name in engine.alone.homeless(engine.state.trials):
            for trial in tune_controller.get_trials():
                if trial.config["trial"] == name and trial.status == RayTrial.PENDING:
                    engine.take_back(name)
                    tune_controller.stop_trial(trial)

    def on_trial_add(self, tune_controller: Any, trial: RayTrial) -> None:
        """A trial is to get a worker, a new one where it lost the last: not where the driver has taken it back."""
        if not engine_at(self._folder).holds(trial.config["trial"], trial.config["attempt"]):
            tune_controller.stop_trial(trial)

    def on_trial_error(self, tune_controller: Any, trial: RayTrial) -> None:
        """It lost its worker; Tune asks for no advice and adds it again."""
        driver_at(self._folder).lost(trial.config["trial"], trial.config["attempt"], _error(trial))

    def on_trial_result(self, tune_controller: Any, trial: RayTrial, result: dict[str, Any]) -> str:
        """Record a report, answer with what the rungs decide."""
        engine = engine_at(self._folder)
        action = engine.report(trial.config["trial"], json.loads(result["report"]))
        if action == "continue" and not engine.stopping:
            return TrialScheduler.CONTINUE
        # A gentle stop leaves the trial undecided: its checkpoint is written, `resume` goes on.
        return TrialScheduler.STOP

    def debug_string(self) -> str:
        """Nothing of its own to say."""
        return "multi-objective rungs over curves"
