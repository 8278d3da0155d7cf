"""A study in Optuna's form, for Optuna's own tools (importances, dashboards, its samplers).

Nothing is told that was not seen: a trial that was stopped is PRUNED and has a value at the epochs that it
reached, never one of a full training.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.journal.database import sqlite_address
from search.pareto.front import hypervolume
from search.sampling.optuna_space import record
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)
_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def to_optuna(state: StudyState, spec: StudySpec, file: Path) -> dict[str, int]:
    """Write two Optuna studies into an SQLite file; how many trials each has, by name (`OptunaFile`)."""
    return OptunaFile(spec, file).update(state)


class OptunaFile:
    """An SQLite file with two Optuna studies, which follows a study while it runs.

    ``NAME`` maximises the hypervolume of a trial's curve after a full training; ``NAME (points)`` minimises
    error and log10 MACs of every operating point of full trainings (its setting is a user attribute).
    Points that miss a constraint are left out. With `live` a trial at work is RUNNING, which tools show; without, it is
    WAITING, which a later `ask` of Optuna takes up.
    """

    def __init__(self, spec: StudySpec, file: Path, *, live: bool = False) -> None:
        self._spec, self._live = spec, live
        part = file.with_name(f"{file.name}.part")
        part.unlink(missing_ok=True)
        _begin(spec, part)
        os.replace(part, file)  # whoever waits for the file finds it with its studies
        storage = optuna.storages.RDBStorage(sqlite_address(file))
        self._curves = optuna.load_study(storage=storage, study_name=spec.name)
        self._points = optuna.load_study(storage=storage, study_name=f"{spec.name} (points)")
        self._written: dict[str, _Written] = {}
        self._whole: set[str] = set()
        self._counted = 0

    def update(self, state: StudyState) -> dict[str, int]:
        """Write what a state has beyond what was written; how many trials each Optuna study has, by name."""
        for trial in state.trials.values():
            known = self._written.get(trial.id)
            if known is None or not known.over:
                self._write(known, trial, _curve_trial(state, self._spec, trial, state.kept.spaces, live=self._live))
            if trial.state == "finished" and trial.id not in self._whole:
                self._whole.add(trial.id)
                points = _points(self._spec, trial, state.kept.spaces)
                self._points.add_trials(points)
                self._counted += len(points)
        return {self._spec.name: len(self._written), f"{self._spec.name} (points)": self._counted}

    def _write(self, known: _Written | None, trial: Trial, now: FrozenTrial) -> None:
        storage = self._curves._storage  # `Study` itself writes no trial that changes later
        if known is None:
            number = storage.create_new_trial(self._curves._study_id, template_trial=now)
            self._written[trial.id] = _Written(number, now.state, now.user_attrs, set(now.intermediate_values))
            return
        for name, value in now.user_attrs.items():
            if known.attributes.get(name) != value:
                storage.set_trial_user_attr(known.number, name, value)
        for epoch, value in now.intermediate_values.items():
            if epoch not in known.epochs:
                storage.set_trial_intermediate_value(known.number, epoch, value)
        known.attributes, known.epochs = now.user_attrs, set(now.intermediate_values)
        if known.state is not now.state:
            storage.set_trial_state_values(known.number, state=now.state, values=now.values)
            known.state = now.state


def _begin(spec: StudySpec, file: Path) -> None:
    """Create the two studies, without trials, in a new file."""
    most, least = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    storage = optuna.storages.RDBStorage(sqlite_address(file))
    curves = optuna.create_study(storage=storage, study_name=spec.name, directions=[most])
    points = optuna.create_study(storage=storage, study_name=f"{spec.name} (points)", directions=[least, least])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        curves.set_metric_names(["hypervolume"])
        points.set_metric_names(["error", "log10 MACs"])
    storage.engine.dispose()


@dataclass(slots=True)
class _Written:
    """A trial as the file has it: Optuna's number in its storage, its state, what is said of it."""

    number: int
    state: TrialState
    attributes: dict[str, Any]
    epochs: set[int]

    @property
    def over(self) -> bool:
        """Whether Optuna lets it be as it is."""
        return self.state.is_finished()


def _curve_trial(
    state: StudyState, spec: StudySpec, trial: Trial, spaces: Mapping[str, Space], *, live: bool = False
) -> FrozenTrial:
    reference = state.created["reference"]
    corner = reference["error"], reference["macs"]
    shown = {e: hypervolume(*trial.arrays(e), corner) for e in sorted(trial.curves) if trial.comparable.get(e)}
    params, distributions = record(trial.config, spaces)
    idle = TrialState.RUNNING if live and trial.starts else TrialState.WAITING
    how = _STATES.get(trial.state, idle)
    if how is TrialState.COMPLETE and spec.budget.epochs not in shown:
        how = TrialState.FAIL  # nothing of a full training can be compared
    attributes: dict[str, Any] = {
        "trial": trial.id, "method": trial.method, "state": trial.state, "reason": trial.reason,
        "epoch": trial.epoch, "seed": trial.seed, "why": trial.why, "repeats": trial.repeats,
    }  # fmt: skip
    told = optuna.create_trial(
        state=how,
        value=shown[spec.budget.epochs] if how is TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values={} if how is TrialState.WAITING else shown,
    )
    if how is not TrialState.WAITING:
        told.datetime_start = datetime.fromtimestamp(trial.asked_at)
    if how.is_finished():
        told.datetime_complete = datetime.fromtimestamp(max(trial.heard, trial.asked_at))
    return told


def _points(spec: StudySpec, trial: Trial, spaces: Mapping[str, Space]) -> list[FrozenTrial]:
    params, distributions = record(trial.config, spaces)
    error, macs = trial.arrays(spec.budget.epochs) if spec.budget.epochs in trial.curves else (np.empty(0), np.empty(0))
    return [
        optuna.create_trial(
            values=[e, math.log10(m)],
            params=params,
            distributions=distributions,
            user_attrs={
                "trial": trial.id,
                "epoch": spec.budget.epochs,
                "setting": trial.curves[spec.budget.epochs][index]["setting"],
                "knobs": trial.curves[spec.budget.epochs][index]["knobs"],
            },
        )
        for index, (e, m) in enumerate(zip(error.tolist(), macs.tolist(), strict=True))
        if math.isfinite(e) and m > 0
    ]
