"""Rows of the operating-point table from the state of a study."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from search.spec import StudySpec
from search.state import StudyState
from search.trial import Trial


def config_id(config: dict[str, Any]) -> str:
    """Twelve hex digits that repeats of one configuration share."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:12]


def point_rows(state: StudyState, trial: Trial, epoch: int, spec: StudySpec) -> list[dict[str, Any]]:
    """One row per operating point of a trial's curve at an epoch (validation split)."""
    data = state.created["data"]
    identity = config_id(trial.config)
    repeat = sum(t.number < trial.number and config_id(t.config) == identity for t in state.trials.values())
    rows = []
    for index, point in enumerate(trial.curves[epoch]):
        rows.append(
            {
                "point_id": f"{trial.id}-{epoch}-{index}",
                "study": spec.name,
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
                "config": json.dumps(trial.config, sort_keys=True),
                "code_version": state.created["code_version"],
            }
        )
    return rows
