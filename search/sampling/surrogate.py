"""The default sampler: a Gaussian process per method of what its curves reach within a compute budget.

As in `search.sampling.budgets`, every ask draws a budget, so that over many asks the whole front gets its share, and a
method by votes. Of the trials of that method

1. a trial's value at a rung is the logarithm of the least error that its curve shows within the budget (of its cheapest
   point, where none fits), plus what trials that went on gained behind that rung, cut off above: how bad the bad ones
   are teaches nothing about the good ones. What failed, or shows nothing that the constraints allow, has the value of
   the cut;
2. a process over configurations and rungs (`search.sampling.gaussian_process`) foretells values at the last rung, a
   second one the MACs of the cheapest point, which may not fit the budget;
3. proposed is what maximises the expected improvement (Jones, Schonlau and Welch, 1998) times the probability to fit,
   among uniform draws, mutations of the best trials, and mutations of the best candidates among these. Trials that
   run and have shown nothing count as if they had shown what is expected of them, so that workers do not all ask for
   the same.

A share of the proposals is that of two densities instead, which follow narrow optima that a process smooths away, and
a share is uniform. A process is conditioned on at most `CAP` trials, the best and the latest, so that a proposal takes
as long in a large study as in a small one. Hyperparameters are fitted again when a third more observations are there
than at their last fit. The journal keeps them with the ask that they were fitted for, so that a study goes on after a
restart exactly as it would have without.
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from search.sampling.budgets import by_densities, gains, macs_range, ranking, shown_trials, voted_method
from search.sampling.codec import Codec
from search.sampling.gaussian_process import Process
from search.sampling.transfer import Transfer, belief
from search.sampling.view import Proposal, View, ask_random
from search.state.trial import Trial
from search.units import show_count, show_share
from spaces.space import Fixed

Array = np.ndarray

UNIFORM = 0.1
"""Share of uniform proposals."""
DENSITIES = 0.4
"""Share of the others that two densities propose."""
LEAST = 6
"""Trials of a method with a point that counts, without which the densities propose."""
CAP = 160
"""Most trials that a process is conditioned on."""
REFIT, REFIT_FEWER, REFIT_ASKED = 1.3, 0.6, 2.0
"""Hyperparameters are fitted again with so many times the observations, with fewer, or after so many times the asks."""
CUT = 1.5
"""Values that are further above the median than this many times its distance from the least are cut off."""
WIDE, PARENTS, CHILDREN, ROUNDS, LATER_PARENTS, LATER_CHILDREN = 160, 8, 16, 2, 6, 12
"""Candidates: uniform draws; the best trials, and children of each; rounds of the best candidates, and children."""
_NOISE, _COST_NOISE = 0.02, 1e-3  # means of the priors of the variance, of values with deviation 1
_DIGITS = 4  # of hyperparameters in the journal


def ask_surrogate(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """What should improve most on the most accurate within a compute budget drawn for this ask."""
    rng = random.Random(seed)
    shown = shown_trials(view)
    if view.starting or not shown or rng.random() < UNIFORM:
        return ask_random(view, seed, given)
    if rng.random() < DENSITIES:
        return by_densities(view, shown, rng, rng.getrandbits(32), given)
    budget = math.exp(rng.uniform(*macs_range(shown)))
    method = given["method"] if given else voted_method(view, ranking(shown, budget)[0], rng)
    observed = observations(view, shown, method, budget)
    free = any(not isinstance(parameter, Fixed) for parameter in view.spaces[method].parameters.values())
    least = LEAST if not view.elsewhere or Transfer.of(view, method, Codec(view.spaces[method])) is None else 2
    if not free or len({each.trial.id for each in observed if each.counts}) < least:
        return by_densities(view, shown, rng, rng.getrandbits(32), given or {"method": method})
    low, high = macs_range(shown)
    place = (math.log(budget) - low) / (high - low) if high > low else 0.5
    model = Model(view, method, observed, budget, place=place, rungs=len(shown))
    row = model.search(np.random.default_rng(rng.getrandbits(32)), given)
    sooner = None if given else model.returning(view, row)
    return Proposal({"method": method, **model.codec.decode(row, given)}, model.why(row), model.fitted, sooner)


@dataclass(frozen=True, slots=True)
class Observation:
    """What a trial showed at a rung (0 is the first).

    `value`: the logarithm of its error within the budget, with what later rungs should gain (`gained`) added; NaN
    where no point counts. `macs`: the logarithm of its cheapest point's MACs; NaN where it showed nothing.
    """

    trial: Trial
    rung: int
    value: float
    macs: float
    gained: float = 0.0

    @property
    def counts(self) -> bool:
        """Whether it showed a point that counts."""
        return not math.isnan(self.value)


def observations(view: View, shown: Mapping[int, Sequence[Trial]], method: str, budget: float) -> list[Observation]:
    """What the trials of a method showed, by rung, and those that failed before they showed anything."""
    found, later, there = [], _later_gains(shown, budget), set[str]()
    for rung, epoch in enumerate(sorted(shown)):
        for trial in shown[epoch]:
            if trial.method == method:
                there.add(trial.id)
                (value, macs), gained = _figures(trial, epoch, budget), later(method, rung)
                found.append(Observation(trial, rung, value + gained, macs, gained))
    failed = (trial for trial in view.failed if trial.method == method and trial.id not in there)
    return [*found, *(Observation(trial, 0, math.nan, math.nan) for trial in failed)]


def _figures(trial: Trial, epoch: int, budget: float) -> tuple[float, float]:
    """(log of the least error within the budget, else of the cheapest point; log of the cheapest MACs).

    Points that miss a constraint are left out, and the error is NaN where all do. One on the accuracy is none here:
    what misses it is the more wanted the nearer it comes, and may meet it after more epochs.
    """
    macs, least = trial.learning(epoch)
    if not macs:
        return math.nan, math.log(float(trial.arrays(epoch)[1].min()))
    within = max(1, bisect_right(macs, budget))
    return math.log(max(least[within - 1], 1e-6)), math.log(macs[0])


def _later_gains(shown: Mapping[int, Sequence[Trial]], budget: float) -> Callable[[str, int], float]:
    """By method and rung how much the value still changes behind it, by the trials that went on."""
    seen = [{t.id: (t.method, _figures(t, epoch, budget)[0]) for t in shown[epoch]} for epoch in sorted(shown)]
    steps = []
    for before, after in itertools.pairwise(seen):
        both = sorted(before.keys() & after.keys())
        changes = [(before[name][0], after[name][1] - before[name][1]) for name in both]
        steps.append(gains([(method, change) for method, change in changes if not math.isnan(change)]))
    return lambda method, rung: sum(step(method) for step in steps[rung:])


class Model:
    """The two processes of a method within a budget, conditioned on its trials.

    `place`: where the logarithm of the budget lies in the range of MACs, in [0, 1]; trials elsewhere are asked there.

    `fitted`: hyperparameters that were fitted anew, for the journal; None where those that it holds were taken.
    """

    def __init__(
        self,
        view: View,
        method: str,
        observed: Sequence[Observation],
        budget: float,
        *,
        place: float = 0.5,
        rungs: int,
    ) -> None:
        self.method, self.codec = method, Codec(view.spaces[method])
        self._budget, self._last = math.log(budget), rungs - 1
        told = self._told(observed)
        self._trials = len({each.trial.id for each in told})
        transfer = Transfer.of(view, method, self.codec) if view.elsewhere else None
        self._elsewhere = None if transfer is None else transfer.within(place)
        kept = view.models.get(method, {})
        self._error = Process(len(self.codec.groups), rungs, _NOISE)
        self._cost = Process(len(self.codec.groups), 1, _COST_NOISE)
        begun = self._error.begin(kept.get("error", ())) and self._cost.begin(kept.get("cost", ()))
        fit = not begun or _due(kept, len(told), view.asked)
        rows = self.codec.encode([each.trial.config for each in told])
        self._condition_error(view, told, rows, fit)
        self._condition_cost(told, rows, fit)
        self._rank(told, rows)
        self.fitted = self._kept(len(told), view.asked) if fit else None

    def _told(self, observed: Sequence[Observation]) -> list[Observation]:
        """Of the trials the best half of `CAP`, and of the others the newest."""
        top = {each.trial.id: each for each in observed}  # of each trial the highest rung

        def rank(each: Observation) -> tuple[bool, float]:
            return (not each.macs <= self._budget, each.value if each.counts else math.inf)

        order = sorted(top.values(), key=rank)
        if len(order) > CAP:
            newest = sorted(order[CAP // 2 :], key=lambda each: -each.trial.number)
            order = order[: CAP // 2] + newest[: CAP // 2]
        keep = {each.trial.id for each in order}
        return [each for each in observed if each.trial.id in keep]

    def _condition_error(self, view: View, told: Sequence[Observation], rows: Array, fit: bool) -> None:
        values, rung = np.array([each.value for each in told]), np.array([each.rung for each in told])
        counts = values[~np.isnan(values)]
        middle, least = float(np.median(counts)), float(counts.min())
        cut = middle + CUT * max(middle - least, 1e-3)
        values = np.where(np.isnan(values), cut, np.minimum(values, cut))
        self._mean, self._deviation = float(values.mean()), max(float(values.std()), 1e-3)
        y, features = (values - self._mean) / self._deviation, self.codec.features(rows)
        self._belief = 0.0
        if self._elsewhere is not None:
            z = self._elsewhere(features)
            self._belief = belief(z, y)
            y = y - self._belief * z
        if fit:
            self._error.fit(features, rung, y)
            self._error.begin([round(each, _DIGITS) for each in self._error.theta.tolist()])  # as the journal has them
        self._error.condition(features, rung, y)
        running = [trial.config for trial in view.silent if trial.method == self.method]
        self._running = self.codec.features(self.codec.encode(running))
        if running:
            more = self._running
            expected, _ = self._error.predict(more, self._last)
            features = [np.concatenate(pair) for pair in zip(features, more, strict=True)]
            rung = np.concatenate([rung, np.full(len(running), self._last)])
            self._error.condition(features, rung, np.concatenate([y, expected]))

    def _condition_cost(self, told: Sequence[Observation], rows: Array, fit: bool) -> None:
        at = list({each.trial.id: i for i, each in enumerate(told) if not math.isnan(each.macs)}.values())
        macs = np.array([told[i].macs for i in at])
        self._macs_mean, self._macs_deviation = float(macs.mean()), float(macs.std())
        self._steady = self._macs_deviation < 1e-5  # all cost the same
        if self._steady:
            return
        y, rung = (macs - self._macs_mean) / self._macs_deviation, np.zeros(len(at), dtype=int)
        features = self.codec.features(rows[at])
        if fit:
            self._cost.fit(features, rung, y)
            self._cost.begin([round(each, _DIGITS) for each in self._cost.theta.tolist()])
        self._cost.condition(features, rung, y)

    def _rank(self, told: Sequence[Observation], rows: Array) -> None:
        """The parents of candidates, those that fit first, the best first; what the best that fits shows, or None."""
        at = list({each.trial.id: i for i, each in enumerate(told) if each.counts}.values())
        macs = np.array([told[i].macs for i in at])
        mean, _ = self._foretold(self.codec.features(rows[at]))
        over = np.maximum(macs - self._budget, 0.0)
        fitting = [*mean[over <= 1e-9]]
        if len(self._running[0]):  # it counts, too: else workers would ask for its like until it reports
            expected, _ = self._foretold(self._running)
            fitting += [*expected[self._fits(self._running) >= 0.5]]
        self._best = float(min(fitting)) if fitting else None
        self._parents = rows[at][np.lexsort((mean, over))][:PARENTS]
        if self._elsewhere is not None and self._belief > 0:
            self._parents = np.concatenate([self._parents, self._elsewhere.best[: PARENTS // 2]])

    def _kept(self, count: int, asked: int) -> dict[str, Any]:
        error, cost = self._error.theta.tolist(), self._cost.theta.tolist()
        return {"method": self.method, "observations": count, "asked": asked, "error": error, "cost": cost}

    def _foretold(self, features: Sequence[Array]) -> tuple[Array, Array]:
        """Mean and deviation (m,) of values at the last rung."""
        mean, deviation = self._error.predict(features, self._last)
        if self._elsewhere is not None:
            mean = mean + self._belief * self._elsewhere(features)
        return mean * self._deviation + self._mean, deviation * self._deviation

    def _fits(self, features: Sequence[Array]) -> Array:
        """The probability (m,) that the cheapest point fits the budget."""
        if self._steady:
            return np.full(len(features[0]), float(self._macs_mean <= self._budget + 1e-9))
        mean, deviation = self._cost.predict(features, 0)
        scale = np.sqrt(deviation**2 + 1e-6) * self._macs_deviation
        return ndtr((self._budget - (mean * self._macs_deviation + self._macs_mean)) / scale)

    def score(self, rows: Array) -> Array:
        """What is to be maximised (m,); where nothing fits the budget yet, mainly the probability to fit."""
        features = self.codec.features(rows)
        mean, deviation = self._foretold(features)
        if self._best is None:
            return self._fits(features) * (1 + 0.1 * deviation - 0.01 * mean)
        return improvement(mean, deviation, self._best) * self._fits(features)

    def search(self, rng: np.random.Generator, given: Mapping[str, Any] | None = None) -> Array:
        """The row (d,) of the best candidate; what is `given` stands."""

        def children(parents: Array, count: int, low: float, high: float) -> Array:
            each = np.repeat(parents, count, 0)
            return self.codec.mutate(each, rng, 10 ** rng.uniform(low, high, len(each)), given)

        rows = np.concatenate([self.codec.uniform(WIDE, rng, given), children(self._parents, CHILDREN, -2.0, -0.5)])
        scores = self.score(rows)
        for _ in range(ROUNDS):
            more = children(rows[np.argsort(-scores, kind="stable")[:LATER_PARENTS]], LATER_CHILDREN, -2.3, -0.9)
            rows, scores = np.concatenate([rows, more]), np.concatenate([scores, self.score(more)])
        return rows[int(np.argmax(scores))]

    def returning(self, view: View, row: Array) -> tuple[str, str] | None:
        """The trial that waits at a rung and whose missing epochs promise more, each, than a training of `row` does.

        What later trials like it showed is what makes it promise more than when it was left behind.
        """
        waiting = [(trial, epoch) for trial, epoch in view.waiting if trial.method == self.method]
        if not waiting or self._best is None:
            return None
        rows = self.codec.encode([trial.config for trial, _ in waiting])
        promised = self.score(rows) / [1 - epoch / view.spec.budget.epochs for _, epoch in waiting]
        best = int(np.argmax(promised))
        if not promised[best] > self.score(row[None])[0]:
            return None
        return waiting[best][0].id, f"trials like it did well: {self.why(rows[best])}"

    def why(self, row: Array) -> str:
        """What is expected of a row, in words."""
        features = self.codec.features(row[None])
        (mean,), (deviation,) = self._foretold(features)
        error, low, high = (min(1.0, math.exp(mean + sign * deviation)) for sign in (0, -1, 1))
        within, fits = show_count(math.exp(self._budget)), float(self._fits(features)[0])
        begun = "" if self._elsewhere is None else f"; other images count {self._belief:.2f}"
        return (
            f"{show_share(1 - error)} expected ({show_share(1 - high)} to {show_share(1 - low)}) within {within} MACs,"
            f" which it keeps with {fits:.0%}, after {self._trials} {self.method} trials{begun}"
        )


def _due(kept: Mapping[str, Any], count: int, asked: int) -> bool:
    """Whether hyperparameters are to be fitted again, with so many observations, after so many asks."""
    then, when = kept.get("observations", 0), kept.get("asked", 0)
    if not (isinstance(then, int) and isinstance(when, int)):
        return True
    return count >= REFIT * then or count < REFIT_FEWER * then or asked >= REFIT_ASKED * when


def improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected improvement (m,) below the best, of normal draws (Jones et al. 1998, equation 15)."""
    z = (best - mean) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))
