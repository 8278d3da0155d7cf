"""Rows of the operating-point table from the state of a study."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from typing import Any

from search.state.state import StudyState
from search.state.trial import Trial


def config_id(config: dict[str, Any]) -> str:
    """Twelve hex digits that repeats of one configuration share."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


class PointRows:
    """Rows of the operating points of a study that goes on; which trials repeat which is found out once a trial."""

    def __init__(self, state: StudyState, name: str) -> None:
        self._state, self._name = state, name
        self._known: dict[str, tuple[str, int]] = {}
        self._count: Counter[str] = Counter()

    def _identity(self, trial: Trial) -> tuple[str, int]:
        """The configuration's identity, and how many earlier trials have it, too."""
        if trial.id not in self._known:
            for new in itertools.islice(self._state.trials.values(), len(self._known), None):  # in the order of asks
                identity = config_id(new.identity)
                self._known[new.id] = identity, self._count[identity]
                self._count[identity] += 1
        return self._known[trial.id]

    def of(self, trial: Trial, epoch: int) -> list[dict[str, Any]]:
        """One row per operating point of a trial's curve at an epoch (validation split)."""
        data = self._state.created["data"]
        identity, repeat = self._identity(trial)
        config = json.dumps(trial.config, sort_keys=True)
        rows = []
        for index, point in enumerate(trial.curves[epoch]):
            rows.append(
                {
                    "point_id": f"{trial.id}-{epoch}-{index}",
                    "study": self._name,
                    "trial": trial.id,
                    "config_id": identity,
                    "repeat": repeat,
                    "method": trial.method,
                    "variant": str(trial.config.get("variant", "")),
                    "network": str(trial.config.get("network", "")),
                    "image_size": data["task"]["size"],
                    "dataset": data["name"],
                    "data_hash": data["hash"],
                    "split": "validation",
                    "phase": trial.phases.get(epoch, ""),
                    "epoch": epoch,
                    "cost_epochs": trial.cost_epochs,
                    "setting": json.dumps(point["setting"]),
                    "knobs": json.dumps(point["knobs"]),
                    "accuracy": point["accuracy"],
                    "correct": point["correct"],
                    "count": point["count"],
                    "macs": point["macs"],
                    "macs_std": point["macs_std"],
                    "macs_full": trial.macs_full,
                    "params": trial.params,
                    "seconds": trial.seconds,
                    "seed": trial.seed,
                    "checkpoint": trial.checkpoints.get(epoch, ""),
                    "config": config,
                    "code_version": self._state.created["code_version"],
                }
            )
        return rows
