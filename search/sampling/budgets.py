"""A sampler of densities: a frontier is searched as a family of single-objective problems, one a compute budget.

The hypervolume of a front of (error, log MACs) is the integral over log MACs of the reference error minus the
least error within so many MACs. So every ask draws a budget from that integral's range and proposes what
should be the most accurate within it; over many asks the whole front gets its share, where one score a
trial settles on the region that is easiest to improve.

1. The budget is drawn log-uniformly between the cheapest and the most expensive operating point seen.
2. A trial's value is the logarithm of the least error that its curve shows within the budget, at the highest
   rung that it reached, plus what trials of its method that went on gained behind that rung (`foretold`): one
   that stopped at 3 epochs is neither taken for finished nor thrown away.
3. The method is drawn in one of three ways: all alike; by its share of the best fifth of all trials; by its share
   of the best fifth of equally many first trials of every method, since a method that was tuned for longer
   looks better than one that was not.
4. Among the method's trials a density of the best is set against that of the others, the failed and the
   running ones (`search.sampling.density`). One proposal in ten is uniform.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from search.sampling.density import favoured
from search.sampling.view import Proposal, View, ask_random
from search.state.trial import Trial

Array = np.ndarray

_UNIFORM = 0.1  # share of uniform proposals
_ALIKE = 0.3  # share of proposals whose method is drawn from all alike
_FIRST = 0.35  # and by the first trials of each
_TOP, _TOP_LEAST = 0.2, 5  # share of trials that vote for their method, at least so many
_GOOD, _GOOD_LEAST, _GOOD_MOST = 0.15, 3, 25  # share of a method's trials that count as good
_TRIALS_LEAST = 4  # with fewer of a method its parameters are drawn uniformly
_MISSES = 1e3  # the value of a curve without a point that counts; how much it misses comes on top
_SHRINK = 3.0  # a method's gain behind a rung weighs as the mean of all until so many trials showed it


def ask_budgets(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """What should be the most accurate within a compute budget drawn for this ask."""
    rng = random.Random(seed)
    shown = shown_trials(view)
    if view.starting or not shown or rng.random() < _UNIFORM:
        return ask_random(view, seed, given)
    return by_densities(view, shown, rng, seed, given)


def by_densities(
    view: View, shown: Mapping[int, list[Trial]], rng: random.Random, seed: int, given: Mapping[str, Any] | None
) -> Proposal:
    """What two densities of a method propose; while few of its trials are there, its uniform draw by `seed`."""
    budget = math.exp(rng.uniform(*macs_range(shown)))
    ranked, values = ranking(shown, budget)
    method = given["method"] if given else voted_method(view, ranked, rng)
    own = [trial for trial in ranked if trial.method == method]
    if len(own) < _TRIALS_LEAST:
        return ask_random(view, seed, given or {"method": method})
    count = min(_GOOD_MOST, max(_GOOD_LEAST, math.ceil(_GOOD * len(own))))
    others = [trial for trial in (*view.trials.values(), *view.silent) if trial.method == method]
    worse = dict.fromkeys([*own[count:], *(trial for trial in others if trial.id not in values)])
    good, bad = [trial.config for trial in own[:count]], [trial.config for trial in worse]
    config = favoured(view.spaces[method], good, bad, rng, given, view.rows.setdefault(method, {}))
    why = f"the best of {len(own)} {method} trials within {budget / 1e6:.3g} M MACs"
    return Proposal({"method": method, **config}, why)


def ranking(shown: Mapping[int, list[Trial]], budget: float) -> tuple[list[Trial], dict[str, float]]:
    """The trials within a budget, the best first, and what is foretold of each (`foretold`)."""
    values = foretold(shown, budget)
    ranked = sorted((trial for trials in shown.values() for trial in trials), key=lambda trial: trial.number)
    return sorted(dict.fromkeys(ranked), key=lambda trial: values[trial.id]), values


def shown_trials(view: View) -> dict[int, list[Trial]]:
    """By epoch the trials with a comparable curve: the latest, and those on the front."""
    found: dict[int, list[Trial]] = {}
    for epoch, trials in view.rungs.items():
        owners = [trial for trial in view.owners if trial.comparable.get(epoch)]
        together = [trial for trial in dict.fromkeys([*trials, *owners]) if trial.method in view.spaces]
        if together:
            found[epoch] = together
    return found


def macs_range(shown: Mapping[int, Sequence[Trial]]) -> tuple[float, float]:
    """The logarithms of the least and the most MACs of points that count, of all points where none does."""
    curves = [trial.arrays(epoch) for epoch, trials in shown.items() for trial in trials]
    error, macs = (np.concatenate(column) for column in zip(*curves, strict=True))
    macs = macs[~np.isnan(error)] if not np.isnan(error).all() else macs
    return math.log(macs.min()), math.log(macs.max())


def foretold(shown: Mapping[int, list[Trial]], budget: float) -> dict[str, float]:
    """By trial the logarithm of the error that its curve should reach within a budget at the last epoch shown.

    Behind a rung a trial is taken to gain what those gained that went on (`gains`). A curve without a point within the
    budget counts as worse than every other, the more so the further it is, and one without a point that meets
    the constraints as worse than these, by how much it misses them.
    """
    seen = {epoch: {trial.id: _value(trial, epoch, budget) for trial in trials} for epoch, trials in shown.items()}
    epochs = sorted(shown)
    methods = {trial.id: trial.method for trials in shown.values() for trial in trials}
    values = dict(seen[epochs[0]])
    for epoch, later in itertools.pairwise(epochs):
        both = sorted(seen[later].keys() & seen[epoch])
        steps = [(methods[name], np.array(seen[later][name] - seen[epoch][name])) for name in both]
        gain = gains([step for step in steps if abs(step[1]) < _MISSES / 2])  # others began or ceased to meet them
        values = {name: value + float(gain(methods[name])) for name, value in values.items()} | seen[later]
    return values


def gains(steps: Sequence[tuple[str, Array]]) -> Callable[[str], Array]:
    """By method the mean change of values from one rung to the next, of (method, change) pairs of one shape.

    The mean over a method is drawn towards the mean over all as if `_SHRINK` more trials had shown that.
    """
    by_method: dict[str, list[Array]] = {}
    for method, step in steps:
        by_method.setdefault(method, []).append(step)
    mean = np.mean([step for _, step in steps], 0) if steps else np.zeros(())
    means = {m: (np.sum(own, 0) + _SHRINK * mean) / (len(own) + _SHRINK) for m, own in by_method.items()}
    return lambda method: means.get(method, mean)


def _value(trial: Trial, epoch: int, budget: float) -> float:
    macs, least = trial.steps(epoch)
    if not macs:
        return _MISSES + trial.missed.get(epoch, 0.0)
    within = bisect_right(macs, budget)
    if within:
        return math.log(max(least[within - 1], 1e-6))
    return 0.5 * math.log(macs[0] / budget)


def voted_method(view: View, ranked: list[Trial], rng: random.Random) -> str:
    """A method: any, or of one of the best trials, or of one of the best among equally many first trials a method."""
    draw = rng.random()
    if draw < _ALIKE:
        return rng.choice(list(view.spaces))
    if draw < _ALIKE + _FIRST:
        by_method: dict[str, list[Trial]] = {}
        for trial in sorted(ranked, key=lambda trial: trial.number):
            by_method.setdefault(trial.method, []).append(trial)
        count = max(_TOP_LEAST, min(map(len, by_method.values())))
        first = {trial for own in by_method.values() for trial in own[:count]}
        ranked = [trial for trial in ranked if trial in first]
    return rng.choice(ranked[: max(_TOP_LEAST, math.ceil(_TOP * len(ranked)))]).method
