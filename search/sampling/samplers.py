"""Samplers by name: what each proposes, given what the trials so far have taught.

Every sampler is a pure function of a `View` of the study and a seed. Optuna's are told the trials
anew at every ask (`search.told`), so nothing of theirs can be lost.

========= ======================================================================================
budgets   a TPE for a compute budget drawn anew at every ask (`search.budgets`)
tpe       Optuna's multivariate TPE over one score a trial (`search.observations`), see `_tpe`
nsga2     Optuna's NSGA-II over error and log10 MACs of the points that trials ended with
evolution a trial on the front, some of its parameters drawn anew or moved a little
qmc       scrambled Sobol points over all methods' parameters together
random    uniform draws
========= ======================================================================================
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna

from search.budgets import ask_budgets
from search.frontier import non_dominated
from search.optuna_space import record, suggest
from search.places import at, moved
from search.told import told_study
from search.view import Config, View, ask_random
from spaces.space import Space

optuna.logging.set_verbosity(optuna.logging.ERROR)


def ask_qmc(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """The point of a scrambled Sobol sequence whose number is that of the ask (Owen, 1998).

    Its first coordinate is the method, the others are parameters by their place in a space. The sequence
    belongs to the study's seed; `seed` only draws what is asked for behind a given first stage.
    """
    if given:
        return ask_random(view, seed, given)
    longest = max(len(space.parameters) for space in view.spaces.values())
    from scipy.stats import qmc  # seconds, which other samplers save

    sequence = qmc.Sobol(1 + longest, scramble=True, rng=view.spec.seed)
    if view.asked:
        sequence.fast_forward(view.asked)
    point = sequence.random(1)[0].tolist()
    names = list(view.spaces)
    method = names[min(int(point[0] * len(names)), len(names) - 1)]
    values: Config = {}
    for unit, (name, parameter) in zip(point[1:], view.spaces[method].parameters.items(), strict=False):
        if parameter.when is None or parameter.when.holds(values):
            values[name] = at(parameter, unit)
    return {"method": method, **values}, f"point {view.asked} of a Sobol sequence"


def ask_evolution(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """A child of a trial on the front, which is drawn by its share of the front's members.

    Each parameter is moved with the chance 1/2; one in six children has another method's random ones.
    """
    rng = random.Random(seed)
    owners = [trial for trial in view.owners if not given or trial.method == given["method"]]
    if view.starting or not owners or rng.random() < 1 / 6:
        return ask_random(view, seed, given)
    parent = rng.choice(owners)
    space, values = view.spaces[parent.method], {}
    for name, parameter in space.parameters.items():
        if parameter.when is not None and not parameter.when.holds(values):
            continue
        if given and name in given:
            values[name] = given[name]
        elif name not in parent.config:
            values[name] = parameter.sample(rng)
        else:
            old = parent.config[name]
            values[name] = moved(parameter, old, rng) if rng.random() < 0.5 else old
    return {"method": parent.method, **values}, f"a child of {parent.id}, which is on the front"


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
    trials = [view.as_optuna(trial, view.spaces, [scores[trial.id]]) for trial in view.told()]
    trials += [view.as_optuna(trial, view.spaces, None) for trial in view.silent]
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


Ask = Callable[[View, int, Mapping[str, Any] | None], tuple[Config, str]]

SAMPLERS: dict[str, Ask] = {
    "budgets": ask_budgets,
    "tpe": ask_tpe,
    "nsga2": ask_nsga2,
    "evolution": ask_evolution,
    "qmc": ask_qmc,
    "random": ask_random,
}
