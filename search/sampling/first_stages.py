"""First stages that trials share: which are proposed again, behind which one a trial may begin.

What is proposed is a pure function of the study's seed, the number of the ask and the state, like
`search.sampling.proposals`. `trainables.training.stages` says what names a stage and how a worker stores it; only
the driver decides who uses it (`search.engine.shared_stages`), and every decision is an event.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from search.sampling.proposals import Proposer, seed_of
from search.sampling.view import Proposal, View
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Stage
from spaces.space import Fixed, Space
from trainables.registry import get_method
from trainables.training import stages

_DRAWS = 4  # until a pair of stages is found that was not trained together yet


def device_of(spec: StudySpec) -> str:
    """The kind of device that trains the study's trials."""
    return "cuda" if spec.resources.gpus_per_trial else "cpu"


def stage_key(spec: StudySpec, state: StudyState, config: Mapping[str, Any], seed: int, donor: str = "") -> str | None:
    """The key of a configuration's first stage in this study; None where there is nothing to share.

    `donor`: the checkpoint that it begins with (`StudyState.donor_of`).
    """
    try:
        return stages.key(
            get_method(config["method"]),
            state.kept.configure(config),
            epochs=spec.budget.epochs,
            seed=seed,
            data_hash=state.created["data"]["hash"],
            device=device_of(spec),
            donor=donor,
        )
    except ValueError:
        return None  # a setting that its method refuses: its trial will say so


def varies_later(space: Space, config: Mapping[str, Any]) -> bool:
    """Whether a later stage has parameters to draw where the first one is kept."""
    return any(space[name].stage > 1 and not isinstance(space[name], Fixed) for name in space.active(config))


def candidates(proposer: Proposer, state: StudyState) -> list[Stage]:
    """The finished first stages that may be proposed again, best first, at most `stages.keep`.

    The score of a stage is the best one of its trainer and of the trials that began behind it.
    """
    spec, spaces = proposer.spec, proposer.spaces
    scores = proposer.observations.scores(state) if state.stages else {}
    best = {stage.key: scores.get(stage.trial, -math.inf) for stage in state.stages.values()}
    for trial in state.trials.values():
        if trial.shared and trial.behind and trial.behind.key in best:
            best[trial.behind.key] = max(best[trial.behind.key], scores.get(trial.id, -math.inf))
    found = []
    for stage in state.stages.values():
        trainer = state.trials[stage.trial]
        if trainer.method not in spaces or not varies_later(spaces[trainer.method], trainer.config):
            continue
        known = stage_key(spec, state, trainer.config, trainer.seed, state.donor_of(trainer))
        if known == stage.key:  # else other code trained it
            found.append((-best[stage.key], trainer.number, stage))
    return [stage for _, _, stage in sorted(found, key=lambda entry: entry[:2])][: spec.stages.keep]


Again = tuple[Proposal, Stage]


def propose_again(proposer: Proposer, state: StudyState, view: View, number: int) -> Callable[[], Again | None] | None:
    """Now and then (`stages.share`) the first stage of an earlier trial with later stages drawn anew.

    Returns what computes, from the view, (proposal, stage), or None where none is found; None
    at once where ask `number` is an ordinary one. Of two stages drawn among the candidates the better one
    is taken. The trial has the seed of the stage's trainer, for the stage is that seed's; a pair of
    configuration and seed that was asked for already is never proposed, so repeats of a configuration are
    on seeds of their own.
    """
    spec, spaces = proposer.spec, proposer.spaces
    rng = random.Random(seed_of(spec.seed, number, "share"))
    if not spec.stages.enabled or rng.random() >= spec.stages.share:
        return None
    if spec.sampler.published and number < len(spaces):
        return None
    ready = candidates(proposer, state)
    if not ready:
        return None
    trainers = {stage.key: state.trials[stage.trial] for stage in ready}
    known = [trial for trial in state.trials.values() if trial.seed in {t.seed for t in trainers.values()}]

    def compute() -> Again | None:
        for draw in range(_DRAWS):
            stage = ready[min(rng.randrange(len(ready)), rng.randrange(len(ready)))]
            trainer = trainers[stage.key]
            space = spaces[trainer.method]
            kept = {n: v for n, v in trainer.config.items() if n == "method" or space[n].stage == 1}
            found = proposer.asked(view, seed_of(spec.seed, number, "later stages", draw), kept)
            config = {**found.config, **kept}
            if any(trial.seed == trainer.seed and trial.config == config for trial in known):
                continue
            if stage_key(spec, state, config, trainer.seed, state.donor_of(trainer)) != stage.key:
                continue  # a parameter that is marked as of a later stage and is none
            why = f"behind the first {stage.epoch} epochs of {trainer.id}; the rest {found.why}"
            return found._replace(config=config, why=why), stage
        return None

    return compute
