r"""The default sampler: a Gaussian process per method of what its curves reach within every compute budget.

The hypervolume of a front of (error, log MACs) is the integral over log MACs of the reference error minus the least
error within so many MACs. What a configuration x is expected to add to it is therefore

    a(x) = sum_k E[max(E_k - error_k(x), 0)] E[|cell k within reach of x|]

over cells k of the axis of log MACs: E_k is the least error within them so far, error_k(x) what x reaches within them,
and a cell is within reach as far as x has a point that is cheap enough. The axis ends at the dearest point seen and
begins left of the cheapest one, where nothing is better than the reference yet. For one point a configuration, with
error and cost independent, this is the expected hypervolume improvement (Emmerich, Giannakoglou and Naujoks, 2006).

A method is drawn by votes (`search.sampling.budgets`). Of its trials

1. a trial's value at its highest rung, by cell, is the logarithm of the least error that its curve shows within the
   cell's MACs (of its cheapest point, where none is cheap enough), plus what trials that went on gained behind that
   rung, cut off above: how bad the bad ones are teaches nothing about the good ones. What failed, or shows nothing
   that the constraints allow, has the value of the cut;
2. a process over configurations and rungs (`search.sampling.gaussian_process`), with the same hyperparameters for all
   cells, foretells values at the last rung, so that errors are log-normal; a second one foretells the MACs of the
   cheapest point;
3. proposed is what maximises a(x) among uniform draws, mutations of the best trials, and mutations of the best
   candidates among these. E_k is the front of what is foretold of the method's trials and was shown by those of
   others. Trials that run and have shown nothing count as if they had shown what is expected of them, so that workers
   do not all ask for the same.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from search.sampling.budgets import by_densities, gains, macs_range, ranking, shown_trials, voted_method
from search.sampling.codec import Codec
from search.sampling.gaussian_process import Process
from search.sampling.transfer import Foretold, Transfer, belief
from search.sampling.view import Proposal, View, ask_random
from search.state.trial import Trial
from search.units import show_count, show_share
from spaces.space import Fixed

Array = np.ndarray

UNIFORM = 0.1
"""Share of uniform proposals."""
DENSITIES = 0.3
"""Share of the others that two densities propose."""
LEAST = 4
"""Trials of a method with a point that counts, without which the densities propose."""
CAP = 160
"""Most trials that a process is conditioned on."""
REFIT, REFIT_FEWER, REFIT_ASKED = 1.3, 0.6, 2.0
"""Hyperparameters are fitted again with so many times the observations, with fewer, or after so many times the asks."""
CELLS, CHEAPER = 12, 3
"""Cells of the axis of log MACs between the cheapest and the dearest point seen, and left of the cheapest."""
CUT = 2.5
"""Values that are further above the median than this many times its distance from the least are cut off."""
WIDE, PARENTS, CHILDREN, ROUNDS, LATER_PARENTS, LATER_CHILDREN = 400, 8, 16, 4, 6, 12
"""Candidates: uniform draws; the best trials, and children of each; rounds of the best candidates, and children."""
_NOISE, _COST_NOISE = 0.02, 1e-3  # means of the priors of the variance, of values with deviation 1
_DIGITS = 4  # of hyperparameters in the journal
_LEAST_RANGE = 0.1  # of the logarithms of MACs, where all cost nearly the same
_FITTED = 4  # hyperparameters are fitted to one of so many cells
_NOTHING = 1e-12  # an expected gain of hypervolume that is none
_PLACES = (0.0, 0.5, 1.0)  # in the range of MACs, where trials elsewhere are asked


def ask_surrogate(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """What should add most to the front; `given` holds the method and parameters that are not drawn."""
    rng = random.Random(seed)
    shown = shown_trials(view)
    if view.starting or not shown or rng.random() < UNIFORM:
        return ask_random(view, seed, given)
    if rng.random() < DENSITIES:
        return by_densities(view, shown, rng, rng.getrandbits(32), given)
    budget = math.exp(rng.uniform(*macs_range(shown)))
    method = given["method"] if given else voted_method(view, ranking(shown, budget)[0], rng)
    told = Told(view, shown)
    own = told.of(view, method)
    free = any(not isinstance(parameter, Fixed) for parameter in view.spaces[method].parameters.values())
    least = LEAST if not view.elsewhere or Transfer.of(view, method, Codec(view.spaces[method])) is None else 2
    if not free or sum(each.counts for each in own) < least:
        return by_densities(view, shown, rng, rng.getrandbits(32), given or {"method": method})
    model = Model(view, method, told)
    row = model.search(np.random.default_rng(rng.getrandbits(32)), given)
    sooner = None if given else model.returning(view, row)
    return Proposal({"method": method, **model.codec.decode(row, given)}, model.why(row), model.fitted, sooner)


@dataclass(frozen=True, slots=True)
class Observation:
    """What a trial showed at its highest rung (0 is the first).

    `value` (cells,): the logarithms of its errors within each cell's MACs, with what later rungs should gain
    (`gained`, alike) added; NaN where no point counts. `macs`: the logarithm of its cheapest point's MACs; NaN where
    it showed nothing.
    """

    trial: Trial
    rung: int
    value: Array
    macs: float
    gained: Array

    @property
    def counts(self) -> bool:
        """Whether it showed a point that counts."""
        return not math.isnan(self.value[0])


class Told:
    """What the trials of all methods showed, by cells of the axis of log MACs.

    `edges` (cells + 1,) and `middles` (cells,) of the cells; `rungs`: how many there are; `observations`: by method
    one of every trial; `reference`: the error from which the hypervolume is measured.

    Where a constraint asks for an accuracy the hypervolume is that of points that have it, and until a trial has shown
    one there is a single cell: the least error counts, whatever it costs.
    """

    def __init__(self, view: View, shown: Mapping[int, Sequence[Trial]]) -> None:
        low, high = _range(shown)
        width = max(high - low, _LEAST_RANGE) / CELLS
        self.edges = high - width * np.arange(CELLS + CHEAPER, -1, -1)
        self.middles = (self.edges[1:] + self.edges[:-1]) / 2
        met = view.worst is None or any(trial.steps(epoch)[0] for epoch, own in shown.items() for trial in own)
        if not met:
            self.edges, self.middles = self.edges[[0, -1]], self.edges[[-1]]
        self.range, self.rungs = (low, high), len(shown)
        figures = [
            {trial.id: (trial, *_figures(trial, epoch, self.middles)) for trial in shown[epoch]}
            for epoch in sorted(shown)
        ]
        later = _later_gains(figures)
        everyone: dict[str, Observation] = {}
        for rung, each in enumerate(figures):
            for name, (trial, value, macs) in each.items():
                gained = later(trial.method, rung)
                everyone[name] = Observation(trial, rung, value + gained, macs, gained)
        self.observations: dict[str, list[Observation]] = {}
        for each in everyone.values():
            self.observations.setdefault(each.trial.method, []).append(each)
        values = [each.value for each in everyone.values() if each.counts] or [np.zeros(1)]
        self.reference = math.exp(np.max(values)) if view.reference is None else view.reference[0]
        if view.worst is not None and met:
            self.reference = min(self.reference, view.worst)

    def of(self, view: View, method: str) -> list[Observation]:
        """What the trials of a method showed, and those that failed before they showed anything."""
        own = self.observations.get(method, [])
        there, nothing = {each.trial.id for each in own}, np.full(len(self.middles), math.nan)
        failed = [trial for trial in view.failed if trial.method == method and trial.id not in there]
        return [*own, *(Observation(trial, 0, nothing, math.nan, nothing) for trial in failed)]

    def least(self, but: str) -> Array:
        """By cell the logarithm of the least error that methods but one reach; the reference's where none does."""
        best = np.full(len(self.middles), math.log(max(self.reference, 1e-6)))
        for method, own in self.observations.items():
            for each in own if method != but else ():
                best = np.where(each.macs <= self.middles, np.fmin(best, each.value), best)
        return best


def _range(shown: Mapping[int, Sequence[Trial]]) -> tuple[float, float]:
    """Logarithms of the least MACs of a point that counts and the most of one that a constraint on MACs allows."""
    counts = [trial.steps(epoch)[0] for epoch, own in shown.items() for trial in own]
    allowed = [trial.learning(epoch)[0] for epoch, own in shown.items() for trial in own]
    every = [float(trial.arrays(epoch)[1].max()) for epoch, own in shown.items() for trial in own]
    cheapest = [macs[0] for macs in counts if macs] or [macs[0] for macs in allowed if macs] or every
    return math.log(min(cheapest)), math.log(max([macs[-1] for macs in allowed if macs] or every))


def _figures(trial: Trial, epoch: int, budgets: Array) -> tuple[Array, float]:
    """(logs (n,) of the least error within each budget, else of the cheapest point; log of the cheapest MACs).

    `budgets` are logarithms. Points that miss a constraint are left out, and errors are NaN where all do. One on the
    accuracy is none here: what misses it is the more wanted the nearer it comes, and may meet it after more epochs.
    """
    macs, least = trial.learning(epoch)
    if not macs:
        return np.full(len(budgets), math.nan), math.log(float(trial.arrays(epoch)[1].min()))
    logs, errors = np.log(macs), np.log(np.maximum(least, 1e-6))
    within = np.searchsorted(logs, budgets, side="right") - 1
    return errors[np.maximum(within, 0)], float(logs[0])


def _later_gains(figures: Sequence[Mapping[str, tuple[Trial, Array, float]]]) -> Callable[[str, int], Array]:
    """By method and rung how much values (cells,) still change behind it, by the trials that went on."""
    cells = len(next(value for each in figures for _, value, _ in each.values()))
    behind: list[Callable[[str], Array]] = []
    for before, after in itertools.pairwise(figures):
        both = [(before[name], after[name]) for name in sorted(before.keys() & after.keys())]
        steps = [(then[0].method, now[1] - then[1]) for then, now in both]
        behind.append(gains([step for step in steps if not math.isnan(step[1][0])]))

    def later(method: str, rung: int) -> Array:
        return sum((gain(method) for gain in behind[rung:]), np.zeros(cells))

    return later


class Model:
    """The two processes of a method, conditioned on its trials.

    `fitted`: hyperparameters that were fitted anew, for the journal; None where those that it holds were taken.
    """

    def __init__(self, view: View, method: str, told: Told) -> None:
        self.method, self.codec = method, Codec(view.spaces[method])
        self._edges, self._middles, self._last = told.edges, told.middles, told.rungs - 1
        self._start, self._others = math.log(max(told.reference, 1e-6)), told.least(but=method)
        observed = self._chosen(told.of(view, method))
        self._trials = len(observed)
        self._elsewhere = self._transferred(view, told)
        kept = view.models.get(method, {})
        self._error = Process(len(self.codec.groups), told.rungs, _NOISE)
        self._cost = Process(len(self.codec.groups), 1, _COST_NOISE)
        begun = self._error.begin(kept.get("error", ())) and self._cost.begin(kept.get("cost", ()))
        fit = not begun or _due(kept, len(observed), view.asked)
        rows = self.codec.encode([each.trial.config for each in observed])
        self._condition_error(view, observed, rows, fit)
        self._condition_cost(observed, rows, fit)
        self._rank(observed, rows)
        self.fitted = self._kept(len(observed), view.asked) if fit else None

    def _chosen(self, observed: Sequence[Observation]) -> list[Observation]:
        """Of the trials the best half of `CAP`, those that come nearest to their method's front, and the newest."""
        if len(observed) <= CAP:
            return list(observed)
        away = self._away(np.array([each.value for each in observed]), np.array([each.macs for each in observed]))
        order = np.argsort(away, kind="stable").tolist()
        newest = sorted(order[CAP // 2 :], key=lambda i: -observed[i].trial.number)
        return [observed[i] for i in sorted([*order[: CAP // 2], *newest[: CAP // 2]])]

    def _away(self, values: Array, macs: Array) -> Array:
        """How far trials (n,) are from their front, in the logarithm of the error, where they come nearest."""
        reached = np.where((macs[:, None] <= self._edges[1:]) & ~np.isnan(values), values, np.inf)
        with np.errstate(invalid="ignore"):  # cells that none reaches
            return np.nan_to_num(np.nanmin(reached - reached.min(0), 1, initial=np.inf), nan=np.inf)

    def _transferred(self, view: View, told: Told) -> list[Foretold]:
        """What trials elsewhere foretell at the beginning, the middle and the end of the range of MACs."""
        transfer = Transfer.of(view, self.method, self.codec) if view.elsewhere else None
        if transfer is None:
            return []
        low, high = told.range
        places = (self._middles - low) / (high - low) if high > low else np.full(len(self._middles), 0.5)
        self._between = _interpolation(places.clip(0, 1))
        return [transfer.within(place) for place in _PLACES]

    def _prior(self, features: Sequence[Array]) -> Array:
        """What trials elsewhere say of rows (m, cells), by cell."""
        return np.stack([each(features) for each in self._elsewhere], 1) @ self._between

    def _condition_error(self, view: View, observed: Sequence[Observation], rows: Array, fit: bool) -> None:
        values, rung = np.array([each.value for each in observed]), np.array([each.rung for each in observed])
        counts = values[~np.isnan(values[:, 0])]
        middle, least = np.median(counts, 0), counts.min(0)
        cut = middle + CUT * np.maximum(middle - least, 1e-3)
        values = np.where(np.isnan(values), cut, np.minimum(values, cut))
        self._mean, self._deviation = values.mean(0), np.maximum(values.std(0), 1e-3)
        y, features = (values - self._mean) / self._deviation, self.codec.features(rows)
        self._belief = np.zeros(y.shape[1])
        if self._elsewhere:
            z = self._prior(features)
            self._belief = np.array([belief(z[:, k], y[:, k]) for k in range(y.shape[1])])
            y = y - self._belief * z
        if fit:
            self._error.fit(features, rung, y[:, min(CHEAPER, y.shape[1] - 1) :: _FITTED])
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

    def _condition_cost(self, observed: Sequence[Observation], rows: Array, fit: bool) -> None:
        at = [i for i, each in enumerate(observed) if not math.isnan(each.macs)]
        macs = np.array([observed[i].macs for i in at])
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

    def _rank(self, observed: Sequence[Observation], rows: Array) -> None:
        """The front of what is foretold of the trials, and the parents of candidates: the nearest to it first."""
        at = [i for i, each in enumerate(observed) if each.counts]
        macs = np.array([observed[i].macs for i in at])
        mean, _ = self._foretold(self.codec.features(rows[at]))
        fitting = np.where(macs[:, None] <= self._middles, mean, np.inf)
        if len(self._running[0]):  # they count, too: else workers would ask for their like until they report
            expected, _ = self._foretold(self._running)
            within = self._covered(self._running) >= 0.5 * np.diff(self._edges)
            fitting = np.concatenate([fitting, np.where(within, expected, np.inf)])
        self._own = np.minimum(fitting.min(0), self._start)
        self._best = np.minimum(self._own, self._others)
        self._parents = rows[at][np.argsort(self._away(mean, macs), kind="stable")][:PARENTS]
        for each in self._elsewhere if self._belief.max() > 0 else ():
            self._parents = np.concatenate([self._parents, each.best[: PARENTS // 4]])

    def _kept(self, count: int, asked: int) -> dict[str, Any]:
        error, cost = self._error.theta.tolist(), self._cost.theta.tolist()
        return {"method": self.method, "observations": count, "asked": asked, "error": error, "cost": cost}

    def _foretold(self, features: Sequence[Array]) -> tuple[Array, Array]:
        """Mean and deviation (m, cells) of values at the last rung."""
        mean, deviation = self._error.predict(features, self._last)
        if self._elsewhere:
            mean = mean + self._belief * self._prior(features)
        return mean * self._deviation + self._mean, deviation[:, None] * self._deviation

    def _cheapest(self, features: Sequence[Array]) -> tuple[Array, Array]:
        """Mean and deviation (m,) of the logarithm of the cheapest point's MACs."""
        if self._steady:
            return np.full(len(features[0]), self._macs_mean), np.full(len(features[0]), 1e-6)
        mean, deviation = self._cost.predict(features, 0)
        scale = np.sqrt(deviation**2 + 1e-6) * self._macs_deviation
        return mean * self._macs_deviation + self._macs_mean, scale

    def _covered(self, features: Sequence[Array]) -> Array:
        """Of every cell the expected part (m, cells) that is dearer than the cheapest point, in the cell's unit."""
        mean, deviation = self._cheapest(features)
        above = self._edges - mean[:, None]
        z = above / deviation[:, None]
        within = above * ndtr(z) + deviation[:, None] * np.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return np.diff(within, axis=1)

    def score(self, rows: Array) -> Array:
        """What rows are expected to add to the hypervolume (m,)."""
        features = self.codec.features(rows)
        mean, deviation = self._foretold(features)
        gain = improvement(mean, deviation, self._best)
        return (gain * self._covered(features)).sum(1)

    def search(self, rng: np.random.Generator, given: Mapping[str, Any] | None = None) -> Array:
        """The row (d,) of the best candidate; what is `given` stands."""

        def children(parents: Array, count: int, low: float, high: float) -> Array:
            each = np.repeat(parents, count, 0)
            return self.codec.mutate(each, rng, 10 ** rng.uniform(low, high, len(each)), given)

        rows = np.concatenate([self.codec.uniform(WIDE, rng, given), children(self._parents, CHILDREN, -2.0, -0.5)])
        scores = self.score(rows)
        if scores.max() <= _NOTHING:  # far behind other methods: better what improves it at least
            self._best = self._own
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
        if not waiting:
            return None
        rows = self.codec.encode([trial.config for trial, _ in waiting])
        promised = self.score(rows) / [1 - epoch / view.spec.budget.epochs for _, epoch in waiting]
        best = int(np.argmax(promised))
        if not promised[best] > self.score(row[None])[0]:
            return None
        return waiting[best][0].id, f"trials like it did well: {self.why(rows[best])}"

    def why(self, row: Array) -> str:
        """What is expected of a row where it should add most, in words."""
        features = self.codec.features(row[None])
        (mean,), (deviation,) = self._foretold(features)
        covered = self._covered(features)[0]
        k = int(np.argmax(improvement(mean, deviation, self._best) * covered))
        error, low, high = (min(1.0, math.exp(mean[k] + sign * deviation[k])) for sign in (0, -1, 1))
        cheapest, scale = self._cheapest(features)
        fits = float(ndtr((self._edges[k + 1] - cheapest[0]) / scale[0]))
        begun = f"; other images count {self._belief[k]:.2f}" if self._elsewhere else ""
        return (
            f"{show_share(1 - error)} expected ({show_share(1 - high)} to {show_share(1 - low)}) within"
            f" {show_count(math.exp(self._edges[k + 1]))} MACs, which it keeps with {fits:.0%}, after {self._trials}"
            f" {self.method} trials{begun}"
        )


def _due(kept: Mapping[str, Any], count: int, asked: int) -> bool:
    """Whether hyperparameters are to be fitted again, with so many observations, after so many asks."""
    then, when = kept.get("observations", 0), kept.get("asked", 0)
    if not (isinstance(then, int) and isinstance(when, int)):
        return True
    return count >= REFIT * then or count < REFIT_FEWER * then or asked >= REFIT_ASKED * when


def improvement(mean: Array, deviation: Array, best: Array) -> Array:
    """Expected improvement below exp(best) of log-normal errors; all are logarithms, of one shape or broadcast.

    With z = (best - mean) / deviation: exp(best) Phi(z) - exp(mean + deviation^2 / 2) Phi(z - deviation)
    (Hutter, Hoos, Leyton-Brown and Murphy, GECCO 2009; derived in arXiv:2411.18095).
    """
    z = (best - mean) / deviation
    found = np.exp(best) * ndtr(z) - np.exp(mean + 0.5 * deviation**2) * ndtr(z - deviation)
    return np.maximum(found, 0.0)


def _interpolation(places: Array) -> Array:
    """Weights (3, n) of the values at `_PLACES` for a linear interpolation at places (n,)."""
    return np.stack([np.interp(places, _PLACES, np.eye(len(_PLACES))[i]) for i in range(len(_PLACES))])
