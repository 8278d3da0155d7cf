"""First stages that trials share: which are proposed again, who begins behind one, which are kept.

What is proposed is a pure function of the study's seed, the number of the ask and the state, like
`search.proposals`. `trainables.stages` says what names a stage and how a worker stores it; here only
the driver decides who uses it, and every decision is an event.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from search.folder import StudyFolder
from search.proposals import Proposer, seed_of
from search.spec import StudySpec
from search.state import StudyState
from search.trial import Stage, Trial
from search.view import View
from spaces.space import Fixed, Space
from trainables import stages
from trainables.checkpoints import STATE, CheckpointError
from trainables.registry import get_method

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


Again = tuple[dict[str, Any], str, Stage]


def propose_again(proposer: Proposer, state: StudyState, view: View, number: int) -> Callable[[], Again | None] | None:
    """Now and then (`stages.share`) the first stage of an earlier trial with later stages drawn anew.

    Returns what computes, from the view, (configuration, why, stage), or None where none is found; None
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
            drawn, how = proposer.asked(view, seed_of(spec.seed, number, "later stages", draw), kept)
            config = {**drawn, **kept}
            if any(trial.seed == trainer.seed and trial.config == config for trial in known):
                continue
            if stage_key(spec, state, config, trainer.seed, state.donor_of(trainer)) != stage.key:
                continue  # a parameter that is marked as of a later stage and is none
            return config, f"behind the first {stage.epoch} epochs of {trainer.id}; the rest {how}", stage
        return None

    return compute


class SharedStages:
    """The stored first stages of a study that is being driven: what workers are told, what is whole, what goes."""

    def __init__(self, folder: StudyFolder, proposer: Proposer, state: StudyState) -> None:
        self._folder, self._proposer, self._state = folder, proposer, state
        self._spec, self._spaces = proposer.spec, proposer.spaces

    def orders(self, trial: Trial, evaluate_at: list[int]) -> dict[str, Any]:
        """What a trial's worker is told: behind which stage it begins, whether it stores its own, when it is evaluated.

        The curves of a stage that is trained again were shown by its first trainer.
        """
        behind = trial.behind
        return {
            "stage": behind.key if behind and not trial.stage_lost else None,
            "publish": self._spec.stages.enabled and varies_later(self._spaces[trial.method], trial.config),
            "evaluate_at": [epoch for epoch in evaluate_at if behind is None or epoch > behind.epoch],
        }

    def waits(self, trial: Trial) -> bool:
        """Whether another trial is at this moment training again the stage that a trial is to begin behind."""
        behind = trial.behind
        if behind is None or trial.stage_lost or trial.epoch or behind.key in self._state.stages:
            return False
        return any(
            other.behind and other.behind.key == behind.key and other.stage_lost and other.epoch < behind.epoch
            for other in self._state.live
        )

    def loss(self, trial: Trial) -> str:
        """Why a trial cannot begin behind its stage and has to train it again; empty where it can."""
        behind = trial.behind
        if behind is None or trial.stage_lost or trial.epoch:
            return ""
        if self._folder.kept_of(trial.id):
            return ""  # it has begun, its report was lost on the way
        donor = self._state.donor_of(trial)
        if stage_key(self._spec, self._state, trial.config, trial.seed, donor) != behind.key:
            return f"first stage {behind.key[:12]} was trained by other code"
        remote = self._folder.remote
        if remote is not None:  # its worker compares it with its digests
            there = remote.exists(f"checkpoints/{stages.FOLDER}/{behind.key}/{STATE}")
            return "" if there else f"first stage {behind.key[:12]} is not in {self._folder.storage}"
        try:
            stages.check(self._folder.stages / behind.key)
        except CheckpointError as error:
            return str(error)
        return ""

    def surplus(self) -> list[Stage]:
        """Stages that are no candidates any more and that no trial waits to begin behind."""
        if len(self._state.stages) <= self._spec.stages.keep:
            return []
        keep = {stage.key for stage in candidates(self._proposer, self._state)}
        keep |= {trial.behind.key for trial in self._state.live if trial.behind}
        return [stage for stage in self._state.stages.values() if stage.key not in keep]

    def tidy(self) -> None:
        """Remove what a killed worker left half-written and what the state does not know."""
        known = self._state.stages
        self._folder.remove(f"checkpoints/stages/{key}" for key in self._folder.stored_stages() if key not in known)
