"""Prototype of a sampler: the sampler "budgets" with a Gaussian process per method in place of two densities.

Within a budget drawn for the ask (`search.sampling.budgets`) a trial's value at rung r is the logarithm of the least
error that its curve shows within it, plus what later rungs gain, cut off above. Its covariance with another is

    k = s^2 Matern_5/2(x, x') rho^|r - r'|

with a length scale a parameter, over places in ranges and one-hot options. A second process over the logarithm of the
cheapest point's MACs gives P(fits the budget). Proposed is what has the largest expected improvement at the last rung
times P(fits), among uniform draws and mutations of the best trials, then two rounds of mutations of the best of those.
Running trials count as if they had shown what is expected of them. Hyperparameters are maximum a posteriori, fitted
again when a third more trials are known.

Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2, 4.2 and 5.4.1; expected improvement:
Jones et al. (1998).
"""

from __future__ import annotations

import itertools
import math
import random
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import ndtr

from search.sampling import budgets
from search.sampling.density import favoured
from search.sampling.samplers import Ask
from search.sampling.view import Config, View, ask_random
from search.state.trial import Trial
from spaces.scale import place, placed
from spaces.space import Choice, Fixed, Parameter, Range, Space

Array = np.ndarray

OPTIONS: dict[str, Any] = {
    "method": "vote",  # how the method is drawn: by votes as in `budgets`, or all: by the largest improvement
    "uniform": 0.1,  # share of uniform proposals
    "mixed": 0.0,  # share of the others that come from the two densities
    "alike": 0.15,  # share of asks whose method is drawn from all alike, where method = all
    "least": 6,  # trials of a method that its process needs
    "bridge": False,  # with fewer: the two densities, else a uniform draw
    "pending": True,  # running trials count as if they had shown what is expected
    "cap": 160,  # trials that a process is conditioned on
    "refit": 1.3,  # times more trials after which hyperparameters are fitted again
    "winsor": 1.5,  # values above the median by so many times its distance from the least are cut off
}
WIDE, PARENTS, CHILDREN, ROUNDS, SECOND_PARENTS, SECOND_CHILDREN = 160, 8, 16, 2, 6, 12
"""Candidates: uniform draws; parents and children of each; rounds of parents and children among the candidates."""
_SQ5 = math.sqrt(5.0)


class Codec:
    """Configurations of a space as rows (d,): the place of a number (-1 for its zero), the index of an option, NaN."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.params: list[tuple[str, Parameter]] = [
            (name, parameter) for name, parameter in space.parameters.items() if not isinstance(parameter, Fixed)
        ]
        self.index = {name: j for j, (name, _) in enumerate(self.params)}
        self.groups: list[tuple[int, str]] = []  # (column, kind) by length scale
        for j, (_, parameter) in enumerate(self.params):
            self.groups.append((j, "choice" if isinstance(parameter, Choice) else "place"))
            if isinstance(parameter, Range) and parameter.or_zero:
                self.groups.append((j, "zero"))

    @staticmethod
    def code(parameter: Parameter, value: Any) -> float:
        """A value that the parameter may take, as a number."""
        if isinstance(parameter, Choice):
            return float(parameter.options.index(value))
        assert isinstance(parameter, Range)
        return -1.0 if parameter.or_zero and value == 0 else place(parameter, value)

    def encode(self, configs: Sequence[Mapping[str, Any]]) -> Array:
        """Rows (n, d) of configurations."""
        rows = np.full((len(configs), len(self.params)), np.nan)
        for i, config in enumerate(configs):
            for j, (name, parameter) in enumerate(self.params):
                if name in config and parameter.contains(config[name]):
                    rows[i, j] = self.code(parameter, config[name])
        return rows

    def decode(self, row: Array, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The configuration of a row; what is `given` stands."""
        config: dict[str, Any] = {}
        for name, parameter in self.space.parameters.items():
            if parameter.when is not None and not parameter.when.holds(config):
                continue
            if given and name in given:
                config[name] = given[name]
            elif isinstance(parameter, Fixed):
                config[name] = parameter.value
            else:
                value = float(row[self.index[name]])
                if isinstance(parameter, Choice):
                    config[name] = parameter.options[int(value)]
                elif parameter.or_zero and value == -1:
                    config[name] = 0 if parameter.integer else 0.0
                else:
                    config[name] = placed(parameter, value)
        return config

    def uniform(self, count: int, rng: np.random.Generator, given: Mapping[str, Any] | None = None) -> Array:
        """Rows drawn uniformly."""
        return self._settled(np.full((count, len(self.params)), np.nan), rng, given)

    def mutate(
        self, parents: Array, rng: np.random.Generator, widths: Array, given: Mapping[str, Any] | None = None
    ) -> Array:
        """Of each parent (n, d) every parameter moves with the chance 0.4, one at least; `widths` (n,) of a range."""
        rows = parents.copy()
        count, d = rows.shape
        move = rng.random((count, d)) < 0.4
        move[np.arange(count), rng.integers(0, d, count)] = True
        for j, (_, parameter) in enumerate(self.params):
            at = np.flatnonzero(move[:, j] & ~np.isnan(rows[:, j]))
            if not len(at):
                continue
            if isinstance(parameter, Choice):
                rows[at, j] = self._drawn(j, len(at), rng)
                continue
            assert isinstance(parameter, Range)
            old = rows[at, j]
            new = np.abs(old + rng.normal(0, 1, len(at)) * widths[at])
            new = self._snapped(parameter, np.where(new > 1, 2 - new, new).clip(0, 1))
            if parameter.or_zero:
                flip = rng.random(len(at)) < 0.1
                fresh = self._snapped(parameter, rng.random(len(at)))
                new = np.where(old == -1, np.where(flip, fresh, -1.0), np.where(flip, -1.0, new))
            rows[at, j] = new
        return self._settled(rows, rng, given)

    def features(self, rows: Array) -> list[Array]:
        """By length scale an array (n, k) whose squared distances are compared."""
        found = []
        for j, kind in self.groups:
            column = rows[:, j]
            if kind == "choice":
                parameter = self.params[j][1]
                assert isinstance(parameter, Choice)
                hot = np.zeros((len(rows), len(parameter.options)))
                there = np.flatnonzero(~np.isnan(column))
                hot[there, column[there].astype(int)] = math.sqrt(0.5)
                found.append(hot)
            elif kind == "place":  # what is absent or zero stands in the middle
                found.append(np.where(np.isnan(column) | (column < 0), 0.5, column)[:, None])
            else:
                found.append((column == -1).astype(float)[:, None])
        return found

    def _drawn(self, j: int, count: int, rng: np.random.Generator) -> Array:
        parameter = self.params[j][1]
        if isinstance(parameter, Choice):
            return rng.integers(0, len(parameter.options), count).astype(float)
        assert isinstance(parameter, Range)
        places = self._snapped(parameter, rng.random(count))
        return np.where(rng.random(count) < 0.25, -1.0, places) if parameter.or_zero else places

    @staticmethod
    def _snapped(parameter: Range, places: Array) -> Array:
        """Places of the nearest whole numbers, of an integer range."""
        if not parameter.integer:
            return places
        low, high = parameter.low, parameter.high
        if parameter.log:
            low, high = math.log(low), math.log(high)
        values = low + places * (high - low)
        values = np.clip(np.rint(np.exp(values) if parameter.log else values), parameter.low, parameter.high)
        return ((np.log(values) if parameter.log else values) - low) / (high - low)

    def _active(self, rows: Array, j: int) -> Array:
        """Which rows (n,) have a parameter."""
        when = self.params[j][1].when
        if when is None:
            return np.ones(len(rows), dtype=bool)
        parent = self.space[when.parameter]
        if isinstance(parent, Fixed):
            return np.full(len(rows), parent.value in when.values)
        wanted = [self.code(parent, value) for value in when.values if parent.contains(value)]
        return np.isin(rows[:, self.index[when.parameter]], wanted)

    def _settled(self, rows: Array, rng: np.random.Generator, given: Mapping[str, Any] | None) -> Array:
        """Rows in which every parameter is there that its parent asks for, and no other; in place."""
        for j, (name, _) in enumerate(self.params):
            there = self._active(rows, j)
            if given and name in given:
                rows[:, j] = self.encode([{name: given[name]}])[0, j]
            fresh = there & np.isnan(rows[:, j])
            if fresh.any():
                rows[fresh, j] = self._drawn(j, int(fresh.sum()), rng)
            rows[~there, j] = np.nan
        return rows


def _distances(features: Sequence[Array]) -> Array:
    """Squared distances (groups, n, n)."""
    found = np.empty((len(features), len(features[0]), len(features[0])))
    for g, each in enumerate(features):
        squares = (each**2).sum(1)
        found[g] = np.maximum(squares[:, None] + squares[None] - 2 * each @ each.T, 0)
    return found


class Process:
    """A Gaussian process over (features, rung) with prior mean 0.

    `theta`: the logarithms of the length scales, of the signal's and the noise's variance, and logit rho, with a
    normal prior each.
    """

    def __init__(self, codec: Codec, rungs: int, noise: float) -> None:
        self.rungs, self.groups = rungs, len(codec.groups)
        self._mean = np.concatenate([np.full(self.groups, math.log(0.7)), [0.0, math.log(noise), 1.4]])
        self._deviation = np.concatenate([np.full(self.groups, 0.9), [0.7, 1.5, 1.0]])
        self.theta = self._mean.copy()
        self.fitted = 0

    def fit(self, features: Sequence[Array], rung: Array, y: Array) -> None:
        """Maximise the posterior of the hyperparameters, from where they are."""
        gap = np.abs(rung[:, None] - rung[None]).astype(float)
        bounds = [(math.log(0.05), math.log(20))] * self.groups + [(-3, 3), (math.log(1e-5), 1.0), (-3, 5)]
        given = _distances(features), gap, y
        found = minimize(self._loss, self.theta, given, "L-BFGS-B", jac=True, bounds=bounds, options={"maxiter": 10})
        if np.isfinite(found.fun):
            self.theta = found.x
        self.fitted = len(y)

    def _loss(self, theta: Array, distances: Array, gap: Array, y: Array) -> tuple[float, Array]:
        """The negative logarithm of the posterior, up to a constant, and its gradient."""
        g, count = self.groups, len(y)
        weights = np.exp(-2 * theta[:g])
        squares = np.tensordot(weights, distances, 1)
        r = np.sqrt(squares + 1e-12)
        fall = np.exp(-_SQ5 * r)
        signal, noise, rho = math.exp(theta[g]), math.exp(theta[g + 1]), 1 / (1 + math.exp(-theta[g + 2]))
        between = rho**gap
        plain = signal * (1 + _SQ5 * r + 5 / 3 * squares) * fall
        covariance = plain * between
        noisy = covariance.copy()
        noisy[np.diag_indices(count)] += noise + 1e-6
        try:
            root = cholesky(noisy, lower=True, check_finite=False)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = cho_solve((root, True), np.eye(count), check_finite=False)
        alpha = inverse @ y
        z = (theta - self._mean) / self._deviation
        loss = 0.5 * y @ alpha + np.log(np.diag(root)).sum() + 0.5 * (z**2).sum()
        slope = np.outer(alpha, alpha) - inverse
        gradient = np.empty_like(theta)
        base = slope * (signal * (5 / 3) * (1 + _SQ5 * r) * fall) * between
        gradient[:g] = -0.5 * (distances * base).sum((1, 2)) * weights
        gradient[g] = -0.5 * (slope * covariance).sum()
        gradient[g + 1] = -0.5 * noise * np.trace(slope)
        of_rho = (slope * plain * gap * rho ** np.maximum(gap - 1, 0)).sum() * rho * (1 - rho)
        gradient[g + 2] = -0.5 * of_rho if self.rungs > 1 else 0.0
        return float(loss), gradient + z / self._deviation

    def _stretched(self, features: Sequence[Array]) -> Array:
        """All features in one array, in units of their length scales."""
        return np.concatenate([each * math.exp(-self.theta[g]) for g, each in enumerate(features)], 1)

    def _cross(self, a: Array, b: Array) -> Array:
        squares = np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T, 0)
        r = np.sqrt(squares + 1e-12)
        return math.exp(self.theta[self.groups]) * (1 + _SQ5 * r + 5 / 3 * squares) * np.exp(-_SQ5 * r)

    def condition(self, features: Sequence[Array], rung: Array, y: Array) -> None:
        """On observations `y` (n,)."""
        self._rung, self._known = rung, self._stretched(features)
        self._rho = 1 / (1 + math.exp(-self.theta[self.groups + 2]))
        covariance = self._cross(self._known, self._known) * self._rho ** np.abs(rung[:, None] - rung[None])
        covariance[np.diag_indices(len(y))] += math.exp(self.theta[self.groups + 1]) + 1e-6
        self._root = cholesky(covariance, lower=True, check_finite=False)
        self._alpha = cho_solve((self._root, True), y, check_finite=False)

    def predict(self, features: Sequence[Array], rung: int) -> tuple[Array, Array]:
        """Mean and deviation (m,) of what is without noise at a rung."""
        between = self._rho ** np.abs(rung - self._rung)[None]
        covariance = self._cross(self._stretched(features), self._known) * between
        solved = solve_triangular(self._root, covariance.T, lower=True, check_finite=False)
        variance = math.exp(self.theta[self.groups]) - (solved**2).sum(0)
        return covariance @ self._alpha, np.sqrt(np.maximum(variance, 1e-9))


def improvement(mean: Array, deviation: Array, best: float) -> Array:
    """Expected improvement below the best."""
    z = (best - mean) / deviation
    return deviation * (z * ndtr(z) + np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def value(trial: Trial, epoch: int, budget: float) -> tuple[float, float] | None:
    """(log error within the budget, else of the cheapest point; log of the cheapest MACs); None without points."""
    macs, least = trial.steps(epoch)
    if not macs:
        return None
    within = max(1, bisect_right(macs, budget))
    return math.log(max(least[within - 1], 1e-6)), math.log(macs[0])


Later = Callable[[str, int], float]
"""(method, rung from 0): what later rungs gain."""


def gains_behind(shown: Mapping[int, Sequence[Trial]], budget: float) -> Later:
    """What the logarithm of the error gains behind a rung, by what `search.sampling.budgets` says of each step."""
    seen = []
    for epoch in sorted(shown):
        values = ((trial, value(trial, epoch, budget)) for trial in shown[epoch])
        seen.append({trial.id: (trial.method, found[0]) for trial, found in values if found is not None})
    steps = []
    for before, after in itertools.pairwise(seen):
        both = sorted(before.keys() & after.keys())
        steps.append(budgets._gains([(before[name][0], after[name][1] - before[name][1]) for name in both]))
    return lambda method, rung: sum(step(method) for step in steps[rung:])


@dataclass(slots=True)
class Kept:
    """What is kept of a method between asks: its processes, and trials as rows."""

    codec: Codec
    error: Process
    cost: Process
    rows: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Observation:
    """A trial at a rung: its value with what later rungs gain, and the logarithm of its cheapest MACs."""

    trial: Trial
    rung: int
    error: float
    macs: float


class MethodModel:
    """The two processes of a method within a budget; without enough trials only `count` is there."""

    def __init__(
        self,
        view: View,
        shown: Mapping[int, Sequence[Trial]],
        method: str,
        budget: float,
        options: Mapping[str, Any],
        later: Later,
    ) -> None:
        store = cast(dict[str, Kept], view.rows.setdefault("gaussian processes", {}))  # what lives between asks
        if method not in store:
            codec = Codec(view.spaces[method])
            store[method] = Kept(codec, Process(codec, len(shown), 0.02), Process(codec, 1, 1e-3))
        self.kept, self.method, self.options = store[method], method, options
        self.codec, self.last, self.budget = self.kept.codec, len(shown) - 1, math.log(budget)
        self.kept.error.rungs = len(shown)
        seen, top = [], dict[str, int]()  # by trial its highest rung
        for rung, epoch in enumerate(sorted(shown)):
            for trial in shown[epoch]:
                found = value(trial, epoch, budget) if trial.method == method else None
                if found is not None:
                    top[trial.id] = len(seen)
                    seen.append(Observation(trial, rung, found[0] + later(method, rung), found[1]))
        self.count = len(top)
        if self.count >= options["least"]:
            self._condition(view, self._told(seen, list(top.values())))

    def _told(self, seen: list[Observation], top: list[int]) -> list[Observation]:
        """What the process is conditioned on: the best half of the cap, and of the others the newest."""
        cap = self.options["cap"]
        order = sorted(top, key=lambda i: seen[i].error + (0 if seen[i].macs <= self.budget else 10))
        if len(order) > cap:
            rest = sorted(order[cap // 2 :], key=lambda i: -seen[i].trial.number)
            order = order[: cap // 2] + rest[: cap // 2]
        keep = {seen[i].trial.id for i in order}
        return [each for each in seen if each.trial.id in keep]

    def _condition(self, view: View, told: list[Observation]) -> None:
        for each in told:
            if each.trial.id not in self.kept.rows:
                self.kept.rows[each.trial.id] = self.codec.encode([each.trial.config])[0]
        rows = np.array([self.kept.rows[each.trial.id] for each in told])
        rung, error = np.array([each.rung for each in told]), np.array([each.error for each in told])
        macs, features = np.array([each.macs for each in told]), self.codec.features(rows)
        last: dict[str, int] = {}
        for i, each in enumerate(told):
            last[each.trial.id] = i
        once = np.array(list(last.values()))  # the last observation of each trial
        y = self._scaled(error)
        process = self.kept.error
        grown, shrunk = len(y) >= self.options["refit"] * process.fitted, len(y) < 0.6 * process.fitted
        if not process.fitted or grown or shrunk:
            process.fit(features, rung, y)
        process.condition(features, rung, y)
        self._condition_cost([each[once] for each in features], macs[once])
        running = [trial for trial in view.silent if trial.method == self.method]
        if running and self.options["pending"]:
            more = self.codec.features(self.codec.encode([trial.config for trial in running]))
            expected, _ = process.predict(more, self.last)
            both = [np.concatenate(pair) for pair in zip(features, more, strict=True)]
            rungs = np.concatenate([rung, np.full(len(running), self.last)])
            process.condition(both, rungs, np.concatenate([y, expected]))
        mean, _ = process.predict([each[once] for each in features], self.last)
        fits = macs[once] <= self.budget + 1e-9
        self.best = float(mean[fits].min()) * self._deviation + self._mean if fits.any() else None
        penalty = np.where(fits, 0.0, 100 + 10 * (macs[once] - self.budget))
        self._ranked = rows[once][np.argsort(mean + penalty, kind="stable")]

    def _scaled(self, error: Array) -> Array:
        """Values cut off above, with mean 0 and deviation 1."""
        middle, least = np.median(error), error.min()
        error = np.minimum(error, middle + self.options["winsor"] * max(middle - least, 1e-3))
        self._mean, self._deviation = float(error.mean()), max(float(error.std()), 1e-3)
        return (error - self._mean) / self._deviation

    def _condition_cost(self, features: Sequence[Array], macs: Array) -> None:
        self._cost_mean, self._cost_deviation = float(macs.mean()), float(macs.std())
        self.steady = self._cost_deviation < 1e-5  # all cost the same
        if self.steady:
            return
        y, rung, process = (macs - self._cost_mean) / self._cost_deviation, np.zeros(len(macs), int), self.kept.cost
        if not process.fitted or len(y) >= 1.8 * process.fitted or len(y) < 0.8 * process.fitted:
            process.fit(features, rung, y)
        process.condition(features, rung, y)

    def _fits(self, features: Sequence[Array]) -> Array:
        """The probability (m,) that the cheapest point fits the budget."""
        if self.steady:
            return np.full(len(features[0]), float(self._cost_mean <= self.budget))
        mean, deviation = self.kept.cost.predict(features, 0)
        scale = np.sqrt(deviation**2 + 1e-6) * self._cost_deviation
        return ndtr((self.budget - (mean * self._cost_deviation + self._cost_mean)) / scale)

    def score(self, rows: Array, best: float | None) -> Array:
        """What is to be maximised (m,); where nothing fits the budget yet, mainly P(fits)."""
        features = self.codec.features(rows)
        mean, deviation = self.kept.error.predict(features, self.last)
        mean, deviation = mean * self._deviation + self._mean, deviation * self._deviation
        if best is None:
            return self._fits(features) * (1 + 0.1 * deviation - 0.01 * mean)
        return improvement(mean, deviation, best) * self._fits(features)

    def search(
        self, best: float | None, rng: np.random.Generator, given: Mapping[str, Any] | None
    ) -> tuple[float, Array]:
        """(score, row) of the best candidate found."""

        def children(parents: Array, count: int, low: float, high: float) -> Array:
            each = np.repeat(parents, count, 0)
            return self.codec.mutate(each, rng, 10 ** rng.uniform(low, high, len(each)), given)

        rows = self.codec.uniform(WIDE, rng, given)
        rows = np.concatenate([rows, children(self._ranked[:PARENTS], CHILDREN, -2, -0.5)])
        scores = self.score(rows, best)
        for _ in range(ROUNDS):
            parents = rows[np.argsort(-scores, kind="stable")[:SECOND_PARENTS]]
            more = children(parents, SECOND_CHILDREN, -2.3, -0.9)
            rows, scores = np.concatenate([rows, more]), np.concatenate([scores, self.score(more, best)])
        at = int(np.argmax(scores))
        return float(scores[at]), rows[at]


def _ranked(shown: Mapping[int, Sequence[Trial]], budget: float) -> tuple[list[Trial], dict[str, float]]:
    """Trials by what is foretold of them, the best first, and that value."""
    values = budgets.foretold({epoch: list(trials) for epoch, trials in shown.items()}, budget)
    trials = sorted((trial for each in shown.values() for trial in each), key=lambda trial: trial.number)
    return sorted(dict.fromkeys(trials), key=lambda trial: values[trial.id]), values


def _densities(
    view: View, shown: Mapping[int, Sequence[Trial]], method: str, budget: float, rng: random.Random, given: Any
) -> tuple[Config, str]:
    """Two densities, as `ask_budgets` has them, while a process has too few trials."""
    ranked, values = _ranked(shown, budget)
    own = [trial for trial in ranked if trial.method == method]
    count = min(budgets._GOOD_MOST, max(budgets._GOOD_LEAST, math.ceil(budgets._GOOD * len(own))))
    others = [trial for trial in (*view.trials.values(), *view.silent) if trial.method == method]
    worse = dict.fromkeys([*own[count:], *(trial for trial in others if trial.id not in values)])
    good, bad = [trial.config for trial in own[:count]], [trial.config for trial in worse]
    config = favoured(view.spaces[method], good, bad, rng, given, view.rows.setdefault(method, {}))
    return {"method": method, **config}, "two densities"


def make(**changes: Any) -> Ask:
    """A sampler with some of `OPTIONS` changed."""
    options = {**OPTIONS, **changes}

    def ask(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
        rng = random.Random(seed)
        shown = budgets._shown(view)
        if view.starting or not shown or rng.random() < options["uniform"]:
            return ask_random(view, seed, given)
        if options["mixed"] and rng.random() < options["mixed"]:
            return budgets.ask_budgets(view, seed, given)
        budget = math.exp(rng.uniform(*budgets._range(shown)))
        later = gains_behind(shown, budget)
        if given:
            methods = [given["method"]]
        elif options["method"] == "vote":
            methods = [budgets._method(view, _ranked(shown, budget)[0], rng)]
        else:
            methods = list(view.spaces)
            if rng.random() < options["alike"]:
                methods = [rng.choice(methods)]
        models = [MethodModel(view, shown, method, budget, options, later) for method in methods]
        few = [model for model in models if model.count < options["least"]]
        if few and (len(models) == 1 or rng.random() < 0.5 * len(few) / len(models)):
            model = rng.choice(few)
            if options["bridge"] and model.count >= budgets._TRIALS_LEAST:
                return _densities(view, shown, model.method, budget, rng, given)
            return ask_random(view, seed, given or {"method": model.method})
        models = [model for model in models if model.count >= options["least"]]
        if not models:
            return ask_random(view, seed, given)
        best = min((model.best for model in models if model.best is not None), default=None)
        draw = np.random.default_rng(seed)
        found = [(*model.search(best, draw, given), model) for model in models]
        score, row, model = max(found, key=lambda each: each[0])
        why = f"EI {score:.3g} of {model.count} {model.method} trials within {budget / 1e6:.3g} M MACs"
        return {"method": model.method, **model.codec.decode(row, given)}, why

    return ask
