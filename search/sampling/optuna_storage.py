"""An Optuna storage that holds given trials: Optuna's samplers are told them anew at every ask.

Optuna's own storages copy every trial that is added and every one that is asked for; a study that is
told a few hundred trials anew at every ask needs neither.
"""

from __future__ import annotations

import datetime
from collections.abc import Container, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.study._frozen import FrozenStudy
from optuna.trial import FrozenTrial, TrialState

_NAME = "told"


class Told(BaseStorage):
    """One study in memory: finished and running trials that nobody changes, and those that are asked for."""

    def __init__(self, trials: Sequence[FrozenTrial], directions: Sequence[StudyDirection]) -> None:
        self._trials = list(trials)
        self._directions = list(directions)
        for number, trial in enumerate(self._trials):
            trial.number, trial._trial_id = number, number  # their place in this study
        self._study_attrs: dict[str, Any] = {}

    def create_new_study(self, directions: Sequence[StudyDirection], study_name: str | None = None) -> int:
        """There is one study, made with the storage."""
        return 0

    def delete_study(self, study_id: int) -> None:
        """The study goes with the storage."""

    def set_study_user_attr(self, study_id: int, key: str, value: Any) -> None:
        """Not kept: nobody reads it."""

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        self._study_attrs[key] = value

    def get_study_id_from_name(self, study_name: str) -> int:
        """See `BaseStorage`."""
        return 0

    def get_study_name_from_id(self, study_id: int) -> str:
        """See `BaseStorage`."""
        return _NAME

    def get_study_directions(self, study_id: int) -> list[StudyDirection]:
        """See `BaseStorage`."""
        return self._directions

    def get_study_user_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return {}

    def get_study_system_attrs(self, study_id: int) -> dict[str, Any]:
        """See `BaseStorage`."""
        return self._study_attrs

    def get_all_studies(self) -> list[FrozenStudy]:
        """See `BaseStorage`."""
        return [FrozenStudy(_NAME, None, {}, self._study_attrs, 0, directions=self._directions)]

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        """A running trial, or the template with its number here."""
        number = len(self._trials)
        trial = template_trial or FrozenTrial(
            number=number,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
            trial_id=number,
        )
        trial.number, trial._trial_id = number, number
        self._trials.append(trial)
        return number

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        """See `BaseStorage`."""
        trial = self._trials[trial_id]
        trial.params = {**trial.params, param_name: distribution.to_external_repr(param_value_internal)}
        trial.distributions = {**trial.distributions, param_name: distribution}

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """See `BaseStorage`; a waiting trial is taken up."""
        trial = self._trials[trial_id]
        if state is TrialState.RUNNING and trial.state is not TrialState.WAITING:
            return False
        trial.state = state
        if values is not None:
            trial.values = list(values)
        return True

    def set_trial_intermediate_value(self, trial_id: int, step: int, intermediate_value: float) -> None:
        """Not kept: observations are told whole."""

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        """Not kept: nobody reads it."""

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        """See `BaseStorage`."""
        trial = self._trials[trial_id]
        trial.system_attrs = {**trial.system_attrs, key: value}

    def get_trial(self, trial_id: int) -> FrozenTrial:
        """See `BaseStorage`; not a copy."""
        return self._trials[trial_id]

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """See `BaseStorage`; never copies."""
        if states is None:
            return list(self._trials)
        return [trial for trial in self._trials if trial.state in states]


def told_study(
    trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler, objectives: int = 1
) -> optuna.Study:
    """A study that was told `trials`; one objective is maximised, several are minimised."""
    direction = StudyDirection.MAXIMIZE if objectives == 1 else StudyDirection.MINIMIZE
    return optuna.Study(study_name=_NAME, storage=Told(trials, [direction] * objectives), sampler=sampler)
