"""The default sampler for Optuna's own studies: `SurrogateSampler`."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from search.sampling.surrogate import ask_surrogate
from search.sampling.view import View
from search.spec.study import StudySpec
from search.state.trial import Trial
from spaces.space import Choice, Fixed, Parameter, Range, Space, When

_METHOD = "all"
_MODEL = "routefront:model"
_CONSTRAINTS = "constraints"  # where Optuna's own samplers keep a trial's constraints; above 0 is violated
_STEPS_LISTED = 24  # values of a stepped distribution, up to which they are a whole range's places
_MOST_RUNGS = 4


class SurrogateSampler(BaseSampler):
    """`search.sampling.surrogate` for `optuna.create_study(sampler=...)`; nothing else of routefront is needed.

    >>> study = optuna.create_study(directions=["minimize", "minimize"], sampler=SurrogateSampler(seed=0))

    The first objective is what is to be best within every budget of the second one, such as an error and a cost; with
    one objective there is no budget. An objective that is positive and minimised, or maximised within [0, 1], is
    modelled by its logarithm (of 1 minus itself), any other as it is. With one objective, what pruned trials reported
    teaches what their steps teach. Trials whose constraints (`constraints_func` of Optuna's samplers) are violated and
    trials that failed count as bad ones. A parameter that some trials lack is taken to exist where one categorical
    parameter's value says so. `startup`: so many finished trials are drawn at random first. The same `seed` gives the
    same trials where trials are told in the same order. Raises `ValueError` for more than two objectives.
    """

    def __init__(self, *, seed: int | None = None, startup: int = 5) -> None:
        if startup < 1:
            raise ValueError(f"startup = {startup!r}: at least one trial is drawn at random first")
        self._seed = random.SystemRandom().getrandbits(32) if seed is None else seed
        self._startup = startup
        self._random = RandomSampler(seed=self._seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All parameters of the trials so far, as the latest trial has them; none while too few are finished."""
        done = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if sum(each.state is TrialState.COMPLETE for each in done) < self._startup:
            return {}
        return {name: distribution for each in done for name, distribution in each.distributions.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """What is proposed for a trial; see `ask_surrogate`."""
        if not search_space:
            return {}
        if len(study.directions) > 2:
            raise ValueError(f"{len(study.directions)} objectives: SurrogateSampler takes one or two")
        told = study.get_trials(deepcopy=False)
        space, values = _space(search_space, told)
        seed = int(np.random.default_rng([self._seed, trial.number]).integers(2**32))
        found = ask_surrogate(_view(study, told, space, search_space, self._startup), seed)
        if found.model is not None:  # where any process of a distributed study finds it
            study._storage.set_trial_system_attr(trial._trial_id, _MODEL, found.model)
        return {name: values[name](value) for name, value in found.config.items() if name in values}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """A uniform draw, of a parameter that no trial had before."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Only uniform draws have a state."""
        self._random.reseed_rng()


@dataclass(frozen=True, slots=True)
class _Scale:
    """Values of an objective as positive numbers whose logarithm is modelled, smaller ones better."""

    direction: StudyDirection
    low: float
    high: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float], direction: StudyDirection) -> _Scale:
        """The scale of what was seen; of nothing, any."""
        known = [value for value in values if math.isfinite(value)] or [1.0]
        return cls(direction, min(known), max(known), max(float(np.std(known)), 1e-12))

    def __call__(self, value: float) -> float:
        most = self.direction is StudyDirection.MAXIMIZE
        if not most and self.low > 0:
            return value / self.high
        if most and self.low >= 0 and self.high <= 1:
            return max(1 - value, 1e-6)
        return math.exp(((self.low - value) if most else (value - self.high)) / self.spread)


def _view(
    study: optuna.Study,
    told: Sequence[FrozenTrial],
    space: Space,
    distributions: Mapping[str, BaseDistribution],
    startup: int,
) -> View:
    """What the trials of a study have shown, as `ask_surrogate` sees it."""
    directions = study.directions
    done = [each for each in told if each.state is TrialState.COMPLETE]
    values = [cast(Sequence[float], each.values) for each in done]
    pruned = [each for each in told if each.state is TrialState.PRUNED and each.intermediate_values]
    steps = _rungs(pruned) if len(directions) == 1 else []
    reported = [v for each in (*done, *pruned) for v in each.intermediate_values.values()] if steps else []
    error = _Scale.of([each[0] for each in values] + reported, directions[0])
    cost = _Scale.of([each[1] for each in values], directions[1]) if len(directions) == 2 else None
    rungs: dict[int, list[Trial]] = {rung: [] for rung in range(len(steps) + 1)}
    kept = {}
    for each in (*done, *pruned):
        trial = kept[each.number] = _trial(each, distributions)
        for rung, step in enumerate(steps):
            if (shown := _until(each, step)) is not None:
                trial.take_arrays(rung, np.array([error(shown)]), np.array([1.0]))
                rungs[rung].append(trial)
    for each, (first, *second) in zip(done, values, strict=True):
        violated = any(value > 0 for value in each.system_attrs.get(_CONSTRAINTS) or ())
        macs = cost(second[0]) if cost else 1.0
        kept[each.number].take_arrays(len(steps), np.array([math.nan if violated else error(first)]), np.array([macs]))
        rungs[len(steps)].append(kept[each.number])
    failed = [_trial(each, distributions) for each in told if each.state is TrialState.FAIL and each.params]
    running = [_trial(each, distributions) for each in told if each.state is TrialState.RUNNING and each.params]
    spec = {"name": _METHOD, "methods": {_METHOD: {}}, "sampler": {"startup": startup}}
    models = [each.system_attrs[_MODEL] for each in told if _MODEL in each.system_attrs]
    return View(
        spec=StudySpec.parse(spec, trusted=True),
        spaces={_METHOD: space},
        asked=len(told),
        scored=len(done),
        scores={},
        trials={trial.id: trial for trial in failed},
        silent=running,
        owners=[],
        rungs={rung: trials for rung, trials in rungs.items() if trials},
        failed=failed,
        models={_METHOD: models[-1]} if models else {},
    )


def _rungs(pruned: Sequence[FrozenTrial]) -> list[int]:
    """Steps at which trials were pruned, at most `_MOST_RUNGS` of them."""
    ends = sorted({max(each.intermediate_values) for each in pruned})
    if len(ends) > _MOST_RUNGS:
        ends = sorted({ends[round(i * (len(ends) - 1) / (_MOST_RUNGS - 1))] for i in range(_MOST_RUNGS)})
    return ends


def _until(trial: FrozenTrial, step: int) -> float | None:
    """What a trial reported at a step, or last before it; None where it did not come so far."""
    reported = trial.intermediate_values
    if not reported or max(reported) < step:
        return None
    return reported[max((each for each in reported if each <= step), default=min(reported))]


def _trial(trial: FrozenTrial, distributions: Mapping[str, BaseDistribution]) -> Trial:
    config = {"method": _METHOD}
    for name, value in trial.params.items():
        if name in distributions:
            config[name] = _coded(distributions[name], value)
    return Trial(f"t{trial.number:04d}", trial.number, config, 0, "", 0.0)


# -- distributions ---------------------------------------------------------------------------------


def _count(distribution: BaseDistribution) -> int:
    """How many values a distribution with a step of its own has, else 0."""
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return 1 + round((distribution.high - distribution.low) / distribution.step)
    if isinstance(distribution, IntDistribution) and distribution.step != 1:
        return 1 + (distribution.high - distribution.low) // distribution.step
    return 0


def _coded(distribution: BaseDistribution, value: Any) -> Any:
    """A value as the parameter has it: the number of its step, the index of an option."""
    if isinstance(distribution, CategoricalDistribution):
        return _index(distribution, value)
    if _count(distribution):
        stepped = cast(FloatDistribution | IntDistribution, distribution)
        return round((value - stepped.low) / cast(float, stepped.step))
    return value


def _index(distribution: CategoricalDistribution, value: Any) -> int:
    try:
        return int(distribution.to_internal_repr(value))
    except ValueError:  # an option that a later trial no longer has
        return -1


def _parameter(distribution: BaseDistribution, when: When | None) -> tuple[Parameter, Callable[[Any], Any]]:
    """A distribution as a parameter, and from the parameter's values to Optuna's."""
    if distribution.single():
        single = cast(CategoricalDistribution | FloatDistribution | IntDistribution, distribution)
        value = single.choices[0] if isinstance(single, CategoricalDistribution) else single.low
        return Fixed(_coded(distribution, value), when=when), lambda _: value
    if isinstance(distribution, CategoricalDistribution):
        return Choice(tuple(range(len(distribution.choices))), when=when), distribution.to_external_repr
    numeric = cast(FloatDistribution | IntDistribution, distribution)
    if count := _count(numeric):
        low, step = numeric.low, cast(float, numeric.step)
        return Range(0, count - 1, integer=True, when=when), lambda i: min(low + i * step, numeric.high)
    whole = isinstance(numeric, IntDistribution)
    return Range(numeric.low, numeric.high, log=numeric.log, integer=whole, when=when), lambda value: value


def _space(
    distributions: Mapping[str, BaseDistribution], told: Sequence[FrozenTrial]
) -> tuple[Space, dict[str, Callable[[Any], Any]]]:
    """The space of a study that names its parameters as it goes, and by name the way back to Optuna's values."""
    done = [each for each in told if each.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    order = sorted(distributions, key=lambda name: -sum(name in each.params for each in done))  # parents first
    parameters: dict[str, Parameter] = {}
    back: dict[str, Callable[[Any], Any]] = {}
    for name in order:
        parameters[name], back[name] = _parameter(
            distributions[name], _condition(name, distributions, parameters, done)
        )
    return Space(parameters), back


def _condition(
    name: str,
    distributions: Mapping[str, BaseDistribution],
    before: Mapping[str, Parameter],
    done: Sequence[FrozenTrial],
) -> When | None:
    """The choice whose value says whether a parameter exists, as the trials show it; None where there is none."""
    if all(name in each.params for each in done):
        return None
    for parent, parameter in before.items():
        distribution = distributions[parent]
        if not isinstance(parameter, Choice) or not isinstance(distribution, CategoricalDistribution):
            continue
        there: set[int] = set()
        absent: set[int] = set()
        for each in done:
            if parent in each.params:
                (there if name in each.params else absent).add(_index(distribution, each.params[parent]))
        if there and not there & absent and not any(name in each.params and parent not in each.params for each in done):
            return When(parent, tuple(sorted(there - {-1}))) if there - {-1} else None
    return None
