"""Optuna's TPE and NSGA-II as samplers of ours; they are told all trials anew at every ask."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from search.pareto.front import non_dominated
from search.sampling.optuna_space import record, suggest
from search.sampling.optuna_storage import told_study
from search.sampling.view import Config, View, ask_random
from search.state.trial import Trial
from spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


def _sampled(view: View, study: optuna.Study, spaces: Mapping[str, Space], given: Mapping[str, Any] | None) -> Config:
    if given:
        fixed, _ = record(given, spaces)
        study.enqueue_trial(fixed)
    return suggest(study.ask(), spaces)


def ask_tpe(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """Multivariate, grouped TPE (Bergstra et al. 2011; Falkner et al. 2018) over the trials' scores.

    Until `startup` trials have a score: random. Trials that are running count as bad ones (a
    constant lie), so that workers do not all ask for the same.
    """
    if view.starting:
        return ask_random(view, seed, given)
    scores = view.scores
    trials = [as_optuna(view, trial, view.spaces, [scores[trial.id]]) for trial in view.told()]
    trials += [as_optuna(view, trial, view.spaces, None) for trial in view.silent]
    config = _sampled(view, told_study(trials, _optunas_tpe(seed)), view.spaces, given)
    return config, f"tpe after {len(scores)} observations"


def _optunas_tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group and constant_liar are marked experimental
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=1
        )


def ask_nsga2(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """NSGA-II (Deb et al. 2002) over error and log10 MACs.

    A trial is told as the cheapest, the middle and the most accurate of its curve's non-dominated points
    at the highest epoch that `startup` trials have reached.
    """
    epochs = [epoch for epoch, came in view.rungs.items() if len(came) >= view.spec.sampler.startup]
    if not epochs:
        return ask_random(view, seed, given)
    told = []
    for trial in view.rungs[epochs[-1]]:
        params, distributions = record(trial.config, view.spaces)
        for values in extremes(*trial.arrays(epochs[-1])):
            told.append(optuna.create_trial(values=values, params=params, distributions=distributions))
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(2, len(told))))
    return _sampled(view, told_study(told, sampler, 2), view.spaces, given), f"nsga2 after {len(told)} points"


def extremes(error: np.ndarray, macs: np.ndarray) -> list[list[float]]:
    """[error, log10 MACs] of the cheapest, the middle and the most accurate non-dominated point of a curve."""
    front = np.flatnonzero(non_dominated(error, macs))
    front = front[np.argsort(macs[front])]
    places = sorted({0, len(front) // 2, len(front) - 1}) if len(front) else []
    return [[float(error[front[i]]), float(np.log10(macs[front[i]]))] for i in places]


def as_optuna(view: View, trial: Trial, spaces: Mapping[str, Space], values: Sequence[float] | None) -> FrozenTrial:
    """A trial of a view with these values, or running where there are none."""
    key = trial.id, len(spaces)
    if key not in view.frozen:
        params, distributions = record(trial.config, spaces)
        view.frozen[key] = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
    found = view.frozen[key]
    found.state = TrialState.RUNNING if values is None else TrialState.COMPLETE
    found.values = None if values is None else list(values)
    return found
