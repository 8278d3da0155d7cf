"""Donors within a study: its own trained networks that trials may begin with (`trainables.training.donors`).

``donor = "study"`` is another trial of the study: of all trials that are over, that began with no donor themselves
and whose body is the one asked for, the best: finished before stopped, then by the accuracy that its curves show on
the validation split. It is chosen when the trial is asked for, from the state right then, and its event names it. Who
is over stays so, hence the best of a body only ever gives way to a better one: its checkpoint is kept, and any other
that trials begin with while they are not over. Where there is none yet a trial begins from scratch, at a learning
rate drawn as for others (`without`). Donors that the study file names are read in `search.planning.donors`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from search.state.trial import Donor, Trial
from spaces.donor import STUDY, options_of
from spaces.space import Space
from trainables.contracts.method import config_dict
from trainables.contracts.network import Task
from trainables.registry import get_method

if TYPE_CHECKING:
    from search.state.state import StudyState


_RANK = tuple[bool, float, int]


def takers(methods: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The methods of a study file whose trials may begin with a network of the study itself."""
    return [name for name, written in methods.items() if STUDY in options_of(written.get("donor", ""))]


class Donors:
    """The networks of a study that its trials may begin with. What is remembered follows from the state."""

    def __init__(self, state: StudyState) -> None:
        self._state = state
        self._known: dict[str, dict[str, Any] | None] = {}

    def best(self, config: Mapping[str, Any]) -> Donor | None:
        """The donor of a configuration ``{"method": ..., ...}``; None where no trial can be it yet."""
        method = get_method(config["method"])
        if method.donor is None:
            return None
        try:
            wanted = method.donor(self._state.kept.configure(config), Task(**self._state.created["data"]["task"]))
        except ValueError:  # a setting that its method refuses: its trial will say so
            return None
        ranked = [(self._rank(trial), trial) for trial in self._of(wanted["method"]) if self._fits(trial, wanted)]
        if not ranked:
            return None
        _, trial = max(ranked, key=lambda entry: entry[0])
        return self._given(trial)

    def kept(self) -> set[str]:
        """Names of the checkpoints ``trial/epoch-NNNN`` that trials to come may begin with: the best of every body."""
        found: dict[str, tuple[_RANK, Trial]] = {}
        task = Task(**self._state.created["data"]["task"])
        for name in takers(self._state.created["spec"]["methods"]):
            method = get_method(name)
            if method.donor is None:
                continue
            wanted = method.donor(self._state.kept.configure({"method": name, "donor": STUDY}), task)
            kind = {key: wanted[key] for key in ("method", "variant") if key in wanted}
            names = sorted({*wanted, "shortcut"} - kind.keys())
            for trial in self._of(wanted["method"]):
                if not self._fits(trial, kind):
                    continue
                body = json.dumps([name, [(self._config(trial) or {}).get(key) for key in names]])
                rank = self._rank(trial)
                if body not in found or rank > found[body][0]:
                    found[body] = rank, trial
        return {self._given(trial).checkpoint for _, trial in found.values()}

    def _of(self, method: str) -> Iterator[Trial]:
        """Trials of a method that are over, began with no donor, and left a checkpoint that is not lost."""
        for trial in self._state.trials.values():
            fresh = trial.state in ("finished", "stopped") and trial.donor is None and not trial.config.get("donor")
            if fresh and trial.method == method and self._epochs(trial):
                yield trial

    def _epochs(self, trial: Trial) -> list[int]:
        """Epochs that have both a curve and a checkpoint."""
        lost = self._state.lost_donors
        return [epoch for epoch in trial.curves if trial.checkpoints.get(epoch, "") not in ("", *lost)]

    def _fits(self, trial: Trial, wanted: Mapping[str, Any]) -> bool:
        config = self._config(trial)
        if config is None:
            return False
        return all(config.get(k) in (v if isinstance(v, tuple) else (v,)) for k, v in wanted.items())

    def _config(self, trial: Trial) -> dict[str, Any] | None:
        """A trial's whole configuration, defaults included; None of one that its method refuses."""
        if trial.id not in self._known:
            try:
                whole = config_dict(self._state.kept.configure(trial.config))
                self._known[trial.id] = {"method": trial.method, **whole}
            except ValueError:
                self._known[trial.id] = None
        return self._known[trial.id]

    def _accuracy(self, trial: Trial, epoch: int) -> float:
        return max(point["accuracy"] for point in trial.curves[epoch])

    def _epoch(self, trial: Trial) -> int:
        """The epoch of the most accurate of a trial's checkpoints, of equals the later."""
        return max(self._epochs(trial), key=lambda epoch: (self._accuracy(trial, epoch), epoch))

    def _rank(self, trial: Trial) -> _RANK:
        """What is compared: finished before stopped, then by accuracy, of equals the earlier."""
        return trial.state == "finished", self._accuracy(trial, self._epoch(trial)), -trial.number

    def _given(self, trial: Trial) -> Donor:
        epoch = self._epoch(trial)
        return Donor(trial.id, epoch, trial.checkpoints[epoch])


def without(config: Mapping[str, Any], space: Space, seed: int) -> dict[str, Any]:
    """A configuration that was to begin with a network of the study, from scratch: at a learning rate of its own."""
    rate = space["lr"] if "lr" in space else get_method(config["method"]).space["lr"]
    kept = {name: value for name, value in config.items() if name not in ("donor", "donor_lr")}
    return {**kept, "donor": "", "lr": rate.sample(random.Random(seed))}
