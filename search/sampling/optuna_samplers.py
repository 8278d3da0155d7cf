"""Optuna's samplers as samplers of ours; they are told all trials anew at every ask.

TPE and NSGA-II have names of their own. Any other class that is installed is named in the study file:

    [sampler]
    name = "optuna.samplers:GPSampler"
    arguments = { n_startup_trials = 4 }
    objectives = 2   # error and log10 MACs of operating points; 1: a score a trial, larger is better

It is made anew for every ask, with the ask's seed where it takes one: the same study then gives the same proposals.
"""

from __future__ import annotations

import importlib
import inspect
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from search.errors import InputError
from search.pareto.front import non_dominated
from search.sampling.optuna_space import record, suggest
from search.sampling.optuna_storage import told_study
from search.sampling.view import Config, Proposal, View, ask_random
from search.state.trial import Trial
from spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


def _sampled(view: View, study: optuna.Study, spaces: Mapping[str, Space], given: Mapping[str, Any] | None) -> Config:
    if given:
        fixed, _ = record(given, spaces)
        study.enqueue_trial(fixed)
    return suggest(study.ask(), spaces)


def ask_tpe(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
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
    return Proposal(config, f"tpe after {len(scores)} observations")


def _optunas_tpe(seed: int) -> optuna.samplers.TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group and constant_liar are marked experimental
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=1
        )


def ask_nsga2(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """NSGA-II (Deb et al. 2002) over error and log10 MACs (`points`)."""
    told = points(view)
    if not told:
        return ask_random(view, seed, given)
    sampler = optuna.samplers.NSGAIISampler(seed=seed, population_size=min(50, max(2, len(told))))
    config = _sampled(view, told_study(told, sampler, 2), view.spaces, given)
    return Proposal(config, f"nsga2 after {len(told)} points")


def points(view: View) -> list[FrozenTrial]:
    """Trials as the cheapest, the middle and the most accurate of their curve's non-dominated points.

    The curves are those of the highest epoch that `startup` trials have reached; none before that.
    """
    epochs = [epoch for epoch, came in view.rungs.items() if len(came) >= view.spec.sampler.startup]
    told = []
    for trial in view.rungs[epochs[-1]] if epochs else ():
        params, distributions = record(trial.config, view.spaces)
        for values in extremes(*trial.arrays(epochs[-1])):
            told.append(optuna.create_trial(values=values, params=params, distributions=distributions))
    return told


def ask_named(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """What the class proposes that the study file names."""
    spec = view.spec.sampler
    if view.starting:
        return ask_random(view, seed, given)
    if spec.objectives == 1:
        scores = view.scores
        told = [as_optuna(view, trial, view.spaces, [scores[trial.id]]) for trial in view.told()]
    else:
        told = points(view)
    if not told:
        return ask_random(view, seed, given)
    told += [as_optuna(view, trial, view.spaces, None) for trial in view.silent]
    study = told_study(told, made(spec.name, spec.arguments, seed), spec.objectives)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a sampler says of spaces that it draws from independently
        config = _sampled(view, study, view.spaces, given)
    what = "points" if spec.objectives == 2 else "trials"
    return Proposal(config, f"{spec.name.partition(':')[2]} after {len(told)} {what}")


def made(name: str, arguments: Mapping[str, Any], seed: int) -> optuna.samplers.BaseSampler:
    """The sampler that ``module:Class`` names. Raises `InputError` where there is none of Optuna's kind.

    Nothing but a subclass of Optuna's `BaseSampler` is called: a study file may come from a stranger.
    """
    module, _, cls = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), cls)
    except ImportError as error:
        raise InputError(f"sampler {name!r}: {module} cannot be imported here: {error}") from None
    except AttributeError:
        raise InputError(f"sampler {name!r}: {module} has no {cls}") from None
    if not (inspect.isclass(found) and issubclass(found, optuna.samplers.BaseSampler)):
        raise InputError(f"sampler {name!r} is no sampler: it is no subclass of optuna.samplers.BaseSampler")
    seeded = {"seed": seed} if "seed" in inspect.signature(found).parameters else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a class is marked experimental
            return found(**{**seeded, **arguments})
    except (TypeError, ValueError) as error:
        raise InputError(f"sampler {name!r}: it does not take these arguments: {error}") from None


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
