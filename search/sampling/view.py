"""What a sampler sees of a study, and the uniform draws that every sampler falls back on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from search.density import Rows
from search.observations import Observations
from search.optuna_space import record
from search.spec import StudySpec
from search.state import StudyState
from search.trial import Trial
from spaces.space import Space

Config = dict[str, Any]

BEST, LATEST = 100, 200
"""So many of the best and of the latest other trials are told to a model."""


@dataclass(frozen=True, slots=True)
class View:
    """What a sampler sees: spec, spaces, and what the trials had taught at one moment (`View.of`).

    Nothing in it changes when the study goes on, so that a proposal may be computed later, or in another
    thread. `asked`: how many trials were asked for; `scored`: how many showed something; `scores` of those
    that are not forgotten; `silent`: running ones without a score; `owners`: of the front's points;
    `rungs`: by epoch the trials that had a comparable curve there. `frozen` keeps Optuna's form of
    trials between asks, `rows` by method what `search.density` found out about their configurations.
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
    rows: dict[str, Rows] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: StudySpec,
        spaces: Mapping[str, Space],
        state: StudyState,
        observations: Observations,
        frozen: dict[tuple[str, int], FrozenTrial] | None = None,
        rows: dict[str, Rows] | None = None,
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
            rows={} if rows is None else rows,
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


def drawn(space: Space, rng: random.Random, given: Mapping[str, Any]) -> Config:
    """Uniform draws of the parameters of a space that are not given."""
    values: Config = {}
    for name, parameter in space.parameters.items():
        if parameter.when is None or parameter.when.holds(values):
            values[name] = given[name] if name in given else parameter.sample(rng)
    return values


def chosen_method(view: View, rng: random.Random, given: Mapping[str, Any] | None) -> str:
    """The method that is given, else one drawn from all alike."""
    return given["method"] if given else rng.choice(list(view.spaces))


def ask_random(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
    """A method and then its parameters, each uniformly."""
    rng = random.Random(seed)
    method = chosen_method(view, rng, given)
    return {"method": method, **drawn(view.spaces[method], rng, given or {})}, "random"
