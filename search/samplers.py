"""Samplers by name: what each proposes, given what the trials so far have taught.

Every sampler is a pure function of a `View` of the study and a seed. Optuna's are told the trials
anew at every ask (`search.told`), so nothing of theirs can be lost.

========= ======================================================================================
tpe       Optuna's multivariate TPE over one score a trial (`search.observations`), see `_tpe`
nsga2     Optuna's NSGA-II over error and log10 MACs of the points that trials ended with
evolution a trial on the front, some of its parameters drawn anew or moved a little
qmc       scrambled Sobol points over all methods' parameters together
random    uniform draws
========= ======================================================================================
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from search.frontier import non_dominated
from search.observations import Observations
from search.optuna_space import record, suggest
from search.spec import StudySpec
from search.state import StudyState
from search.told import told_study
from search.trial import Trial
from spaces.space import Choice, Fixed, Parameter, Range, Space

optuna.logging.set_verbosity(optuna.logging.ERROR)

BEST, LATEST = 100, 200
"""So many of the best and of the latest other trials are told to a model."""

Config = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """What a sampler sees: spec, spaces, and what the trials had taught at one moment (`View.of`).

    Nothing in it changes when the study goes on, so that a proposal may be computed later, or in another
    thread. `asked`: how many trials were asked for; `scored`: how many showed something; `scores` of those
    that are not forgotten; `silent`: running ones without a score; `owners`: of the front's points;
    `rungs`: by epoch the trials that had a comparable curve there. `frozen` keeps Optuna's form of
    trials between asks.
    """

    spec: StudySpec
    spaces: Mapping[str, Space]
    asked: int
    scored: int
    scores: Mapping[str, float]
    trials: Mapping[str, Trial]
    silent: Sequence[Trial]
    owners: Sequence[Trial]
    rungs: Mapping[int, Sequence[Trial]]
    frozen: dict[tuple[str, int], FrozenTrial] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: StudySpec,
        spaces: Mapping[str, Space],
        state: StudyState,
        observations: Observations,
        frozen: dict[tuple[str, int], FrozenTrial] | None = None,
    ) -> View:
        """The view of a state as it is now."""
        scores = observations.scores(state)
        known = {epoch for trial in state.known for epoch in trial.comparable}
        return cls(
            spec=spec,
            spaces=spaces,
            asked=len(state.trials),
            scored=state.scored,
            scores=scores,
            trials={name: state.trials[name] for name in scores},
            silent=[trial for trial in state.live if trial.id not in scores][-LATEST:],
            owners=[state.trials[name] for name, _, _ in state.front()],
            rungs={epoch: _at_rung(state, epoch) for epoch in sorted({*state.rung_epochs(), *known})},
            frozen={} if frozen is None else frozen,
        )

    @property
    def starting(self) -> bool:
        """Whether too few trials have shown anything for a model."""
        return self.scored < self.spec.sampler.startup

    def told(self, method: str | None = None) -> list[Trial]:
        """Scored trials, of one method or all: the best and the latest, by number."""
        scores = self.scores
        scored = [trial for name in scores if method in (None, (trial := self.trials[name]).method)]
        if len(scored) > BEST + LATEST:
            scored.sort(key=lambda trial: (-scores[trial.id], trial.number))
            scored = scored[:BEST] + sorted(scored[BEST:], key=lambda trial: trial.number)[-LATEST:]
        return sorted(scored, key=lambda trial: trial.number)

    def as_optuna(self, trial: Trial, spaces: Mapping[str, Space], values: Sequence[float] | None) -> FrozenTrial:
        """A trial with these values, or running where there are none."""
        key = trial.id, len(spaces)
        if key not in self.frozen:
            params, distributions = record(trial.config, spaces)
            self.frozen[key] = optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
        found = self.frozen[key]
        found.state = TrialState.RUNNING if values is None else TrialState.COMPLETE
        found.values = None if values is None else list(values)
        return found


def _at_rung(state: StudyState, epoch: int) -> list[Trial]:
    """The latest trials with a curve at an epoch; those of earlier studies come before all others."""
    earlier = [trial for trial in state.known if epoch in trial.comparable]
    return [*earlier, *state.rung(epoch)][-(BEST + LATEST) :]


Ask = Callable[[View, int, Mapping[str, Any] | None], tuple[Config, str]]


def drawn(space: Space, rng: random.Random, given: Mapping[str, Any]) -> Config:
    """Uniform draws of the parameters of a space that are not given."""
    values: Config = {}
    for name, parameter in space.parameters.items():
        if parameter.when is None or parameter.when.holds(values):
            values[name] = given[name] if name in given else parameter.sample(rng)
    return values


def _method(view: View, rng: random.Random, given: Mapping[str, Any] | None) -> str:
    return given["method"] if given else rng.choice(list(view.spaces))


def ask_random(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """A method and then its parameters, each uniformly."""
    rng = random.Random(seed)
    method = _method(view, rng, given)
    return {"method": method, **drawn(view.spaces[method], rng, given or {})}, "random"


def at(parameter: Parameter, unit: float) -> Any:
    """The value of a parameter at a place in [0, 1), such that uniform places give its uniform draws."""
    match parameter:
        case Fixed():
            return parameter.value
        case Choice():
            return parameter.options[min(int(unit * len(parameter.options)), len(parameter.options) - 1)]
    if parameter.or_zero:
        if unit < 0.25:
            return 0 if parameter.integer else 0.0
        unit = (unit - 0.25) / 0.75
    low, high = _scale(parameter, parameter.low), _scale(parameter, parameter.high)
    return _unscaled(parameter, low + (high - low) * unit)


def _scale(parameter: Range, value: float) -> float:
    return math.log(value) if parameter.log else value


def _unscaled(parameter: Range, place: float) -> float | int:
    value = math.exp(place) if parameter.log else place
    value = min(max(value, parameter.low), parameter.high)
    return round(value) if parameter.integer else value


def ask_qmc(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """The point of a scrambled Sobol sequence whose number is that of the ask (Owen, 1998).

    Its first coordinate is the method, the others are parameters by their place in a space. The sequence
    belongs to the study's seed; `seed` only draws what is asked for behind a given first stage.
    """
    if given:
        return ask_random(view, seed, given)
    longest = max(len(space.parameters) for space in view.spaces.values())
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


def moved(parameter: Parameter, value: Any, rng: random.Random) -> Any:
    """A value near another one: a tenth of a range away on average, another option of a choice."""
    if not isinstance(parameter, Range) or not parameter.contains(value) or value == 0:
        return parameter.sample(rng)
    low, high = _scale(parameter, parameter.low), _scale(parameter, parameter.high)
    return _unscaled(parameter, _scale(parameter, value) + rng.gauss(0, 0.1) * (high - low))


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


SAMPLERS: dict[str, Ask] = {
    "tpe": ask_tpe,
    "nsga2": ask_nsga2,
    "evolution": ask_evolution,
    "qmc": ask_qmc,
    "random": ask_random,
}
