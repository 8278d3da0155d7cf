"""A study in Optuna's form, for Optuna's own tools (importances, dashboards, its samplers).

Nothing is told that was not seen: a trial that was stopped is PRUNED and has a value at the epochs that it
reached, never one of a full training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.journal.database import sqlite_address
from search.pareto.front import hypervolume
from search.sampling.optuna_space import record
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from spaces.space import Space

_STATES = {"finished": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "failed": TrialState.FAIL}


def to_optuna(state: StudyState, spec: StudySpec, file: Path) -> dict[str, int]:
    """Write two Optuna studies into an SQLite file; how many trials each has, by name.

    ``NAME`` maximises the hypervolume of a trial's curve after a full training; ``NAME (points)`` minimises
    error and log10 MACs of every operating point of full trainings (its setting is a user attribute).
    Points that miss a constraint are left out.
    """
    spaces, storage = state.kept.spaces, sqlite_address(file)
    curves = [_curve_trial(state, spec, trial, spaces) for trial in state.trials.values()]
    points = [
        point for trial in state.trials.values() if trial.state == "finished" for point in _points(spec, trial, spaces)
    ]
    most, least = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
    written = {spec.name: (curves, [most]), f"{spec.name} (points)": (points, [least, least])}
    for name, (trials, directions) in written.items():
        study = optuna.create_study(storage=storage, study_name=name, directions=directions)
        study.add_trials(trials)
    return {name: len(trials) for name, (trials, _) in written.items()}


def _curve_trial(state: StudyState, spec: StudySpec, trial: Trial, spaces: Mapping[str, Space]) -> FrozenTrial:
    reference = state.created["reference"]
    corner = reference["error"], reference["macs"]
    shown = {e: hypervolume(*trial.arrays(e), corner) for e in sorted(trial.curves) if trial.comparable.get(e)}
    params, distributions = record(trial.config, spaces)
    how = _STATES.get(trial.state, TrialState.WAITING)
    if how is TrialState.COMPLETE and spec.budget.epochs not in shown:
        how = TrialState.FAIL  # nothing of a full training can be compared
    attributes: dict[str, Any] = {
        "trial": trial.id, "method": trial.method, "state": trial.state, "reason": trial.reason,
        "epoch": trial.epoch, "seed": trial.seed, "why": trial.why, "repeats": trial.repeats,
    }  # fmt: skip
    return optuna.create_trial(
        state=how,
        value=shown[spec.budget.epochs] if how is TrialState.COMPLETE else None,
        params=params,
        distributions=distributions,
        user_attrs=attributes,
        intermediate_values={} if how is TrialState.WAITING else shown,
    )


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
