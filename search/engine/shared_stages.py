"""The stored first stages of a study that is being driven.

`search.sampling.first_stages` says which are proposed again, `trainables.training.stages` how workers store them.
"""

from __future__ import annotations

from typing import Any

from search.sampling.first_stages import candidates, stage_key, varies_later
from search.sampling.proposals import Proposer
from search.state.state import StudyState
from search.state.trial import Stage, Trial
from search.studies.folder import StudyFolder
from trainables.checkpoints import STATE, CheckpointError
from trainables.training import stages


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
