"""Operating points of a study's state as rows of the table: the one place that says how a point is spelled."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

from search.points.canonical import canonical
from search.state.state import StudyState
from search.state.trial import Trial


def config_id(config: Mapping[str, Any]) -> str:
    """Twelve hex digits that repeats of one configuration share."""
    return hashlib.sha256(canonical(config).encode()).hexdigest()[:12]


def point_id(trial: str, epoch: int, index: int) -> str:
    """The identity of a point in its study, such as ``t0003-9-2``."""
    return f"{trial}-{epoch}-{index}"


def study_values(created: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that all points of a study share, from the event that created it."""
    data = created["data"]
    return {
        "study": created["spec"]["name"],
        "image_size": size if isinstance(size := data["task"]["size"], int) else min(size),
        "dataset": data["name"],
        "data_hash": data["hash"],
        "split": "validation",
        "code_version": created["code_version"],
    }


def trial_values(trial: Trial) -> dict[str, Any]:
    """The columns that all points of a trial share."""
    return {
        "trial": trial.id,
        "config_id": config_id(trial.identity),
        "method": trial.method,
        "variant": str(trial.config.get("variant", "")),
        "network": str(trial.config.get("network", "")),
        "seed": trial.seed,
        "config": canonical(trial.config),
    }


def curve_values(trial: Trial, epoch: int) -> dict[str, Any]:
    """The columns that all points of a trial's curve at an epoch share."""
    return {
        "phase": trial.phases.get(epoch, ""),
        "epoch": epoch,
        "checkpoint": trial.checkpoints.get(epoch, ""),
        **trial.shown[epoch],
    }


def point_values(trial: Trial, epoch: int, index: int) -> dict[str, Any]:
    """The columns of one point alone."""
    point = trial.curves[epoch][index]
    return {
        "point_id": point_id(trial.id, epoch, index),
        "setting": canonical(point["setting"]),
        "knobs": canonical(point["knobs"]),
        **{name: point[name] for name in ("accuracy", "correct", "count", "macs", "macs_std")},
        **{name: point.get(name) for name in ("merit", "cost", "counted_macs", "machine")},
    }


def point_row(state: StudyState, trial: Trial, epoch: int, index: int) -> dict[str, Any]:
    """One operating point as a row of `search.points.schema`, but for `repeat` (`Repeats`)."""
    values = study_values(state.created) | trial_values(trial) | curve_values(trial, epoch)
    return values | point_values(trial, epoch, index)


class Repeats:
    """How many earlier trials of a study have a trial's configuration; found out once a trial while the study grows."""

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._known: dict[str, int] = {}
        self._count: Counter[str] = Counter()

    def of(self, trial: Trial) -> int:
        """0 for the first trial of a configuration, 1 for the second, and so on, in the order of asks."""
        if trial.id not in self._known:
            for new in itertools.islice(self._state.trials.values(), len(self._known), None):
                identity = config_id(new.identity)
                self._known[new.id] = self._count[identity]
                self._count[identity] += 1
        return self._known[trial.id]


class PointRows:
    """Rows of the operating points of a study that goes on."""

    def __init__(self, state: StudyState) -> None:
        self._state, self._repeats = state, Repeats(state)

    def of(self, trial: Trial, epoch: int) -> list[dict[str, Any]]:
        """One row per operating point of a trial's curve at an epoch (validation split)."""
        same = study_values(self._state.created) | trial_values(trial) | curve_values(trial, epoch)
        same["repeat"] = self._repeats.of(trial)
        return [same | point_values(trial, epoch, index) for index in range(len(trial.curves[epoch]))]
