"""What a sampler sees of a study, and the uniform draws that every sampler falls back on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from search.sampling.density import Rows
from search.sampling.observations import Observations
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from spaces.space import Space, drawn

Config = dict[str, Any]


class Proposal(NamedTuple):
    """What a sampler proposes, and why; `model`: hyperparameters that it fitted for it, kept with the ask.

    A model that is kept has its method's name under "method" and is found again in `View.models`. `sooner`: the trial
    that waits at a rung and of which more is expected than of the proposal, and why.
    """

    config: Config
    why: str
    model: dict[str, Any] | None = None
    sooner: tuple[str, str] | None = None


BEST, LATEST = 100, 200
"""So many of the best and of the latest other trials are told to a model."""


@dataclass(frozen=True, slots=True)
class View:
    """What a sampler sees: spec, spaces, and what the trials had taught at one moment (`View.of`).

    Nothing in it changes when the study goes on, so that a proposal may be computed later, or in another thread.
    `asked`: how many trials were asked for; `scored`: how many showed something; `scores` of those that are not
    forgotten; `silent`: running ones without a score; `waiting`: paused ones and their epochs; `owners`: of the
    front's points; `rungs`: by epoch the trials that had a comparable curve there; `elsewhere`: trials of other
    images; `failed`: the latest that failed; `reference`: (error, MACs) of the hypervolume; `worst`: the error that a
    point may have. `models`: by method the hyperparameters that were fitted last, as their ask's event has them.
    `transfers` keeps by method what `search.sampling.transfer` made of the trials elsewhere, `frozen` keeps Optuna's
    form of trials between asks, `rows` by method what `search.sampling.density` found out about their configurations.
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
    reference: tuple[float, float] | None = None
    worst: float | None = None
    failed: Sequence[Trial] = ()
    waiting: Sequence[tuple[Trial, int]] = ()
    elsewhere: Sequence[Trial] = ()
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    transfers: dict[str, Any] = field(default_factory=dict)
    frozen: dict[tuple[str, int], Any] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        spec: StudySpec,
        spaces: Mapping[str, Space],
        state: StudyState,
        observations: Observations,
        frozen: dict[tuple[str, int], Any] | None = None,
        rows: dict[str, Rows] | None = None,
        transfers: dict[str, Any] | None = None,
    ) -> View:
        """The view of a state as it is now."""
        scores = observations.scores(state)
        # trials as they are now: later ones may add cascades to what theirs reach
        known = {epoch for trial in state.known for epoch in trial.comparable}
        return cls(
            spec=spec,
            spaces=spaces,
            asked=len(state.trials),
            scored=state.scored,
            scores=scores,
            trials={name: state.trials[name].still() for name in scores},
            silent=[trial for trial in state.live if trial.id not in scores][-LATEST:],
            owners=[state.trials[name].still() for name, _, _ in state.front()],
            rungs={epoch: _at_rung(state, epoch) for epoch in sorted({*state.rung_epochs(), *known})},
            reference=(corner["error"], corner["macs"]) if (corner := state.created.get("reference")) else None,
            worst=None if (least := state.constraints.min_accuracy) is None else 1 - least,
            failed=[trial.still() for trial in state.failed[-LATEST:]],
            waiting=[(trial, trial.epoch) for trial in state.paused],
            elsewhere=state.elsewhere,
            models=dict(state.models),
            transfers={} if transfers is None else transfers,
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


def _at_rung(state: StudyState, epoch: int) -> list[Trial]:
    """The latest trials with a curve at an epoch; those of earlier studies come before all others."""
    earlier = [trial for trial in state.known if epoch in trial.comparable]
    return [trial.still() for trial in [*earlier, *state.rung(epoch)][-(BEST + LATEST) :]]


def chosen_method(view: View, rng: random.Random, given: Mapping[str, Any] | None) -> str:
    """The method that is given, else one drawn from all alike."""
    return given["method"] if given else rng.choice(list(view.spaces))


def ask_random(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """A method and then its parameters, each uniformly."""
    rng = random.Random(seed)
    method = chosen_method(view, rng, given)
    return Proposal({"method": method, **drawn(view.spaces[method], rng, given or {})}, "random")
