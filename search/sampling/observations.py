"""Scores of trials for samplers: one number a trial, comparable although trials trained different numbers of epochs.

The score is the standing of a trial's curve among the curves of the highest rung that it has shown one
at, in [0, 1], plus the number of rungs below: a trial that was stopped at 3 epochs teaches what 3
epochs teach and is never taken for a finished one.

A study may have any number of trials; what is compared stays bounded. At every rung the latest
`WINDOW` curves and those that hold a point of the rung's front are ranked, the others are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from search.pareto.front import Archive, standings
from search.state.state import StudyState
from search.state.trial import Trial

WINDOW = 400
"""Latest curves that are compared at a rung."""
FAILED = -1.0
"""The score of a failed trial."""


class _Ranking:
    """The trials that are compared at a rung at some moment; who stands where is computed when it is asked for."""

    def __init__(self, trials: Sequence[Trial], epoch: int, corner: tuple[float, float]) -> None:
        self._names = [trial.id for trial in trials]
        self._curves = [trial.arrays(epoch) for trial in trials]
        self._missed = [trial.missed.get(epoch, 0.0) for trial in trials]
        self._corner = corner

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    @cached_property
    def standing(self) -> dict[str, float]:
        values = standings(self._curves, self._corner, self._missed)
        return dict(zip(self._names, values.tolist(), strict=True))


class Scores(Mapping[str, float]):
    """Score by trial as it was at one moment: names at once, a rung's standings when one of them is asked for."""

    def __init__(self, rankings: Sequence[_Ranking], failed: Sequence[str]) -> None:
        self._rankings = rankings
        self._rung: dict[str, int | None] = {}
        for index, ranking in enumerate(rankings):
            self._rung.update(dict.fromkeys(ranking, index))
        self._rung.update(dict.fromkeys(failed))

    def __getitem__(self, name: str) -> float:
        index = self._rung[name]
        return FAILED if index is None else index + self._rankings[index].standing[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rung

    def __iter__(self) -> Iterator[str]:
        return iter(self._rung)

    def __len__(self) -> int:
        return len(self._rung)


@dataclass(slots=True)
class _Rung:
    archive: Archive
    seen: int = 0
    ranking: _Ranking | None = None


class Observations:
    """Scores of a state's trials, brought up to date when asked for; equal to a fresh computation."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self._rungs: dict[int, _Rung] = {}

    def scores(self, state: StudyState) -> Scores:
        """Score by trial, of those that have shown a comparable curve or failed and are not forgotten."""
        rankings = [self._ranking(state, epoch) for epoch in state.rung_epochs()]
        return Scores(rankings, [trial.id for trial in state.failed[-self.window :]])

    def _ranking(self, state: StudyState, epoch: int) -> _Ranking:
        corner = state.created["reference"]["error"], state.created["reference"]["macs"]
        rung, trials = self._rungs.setdefault(epoch, _Rung(Archive(corner))), state.rung(epoch)
        if rung.ranking is None or rung.seen != len(trials):
            for trial in trials[rung.seen :]:
                error, macs = trial.arrays(epoch)
                rung.archive.extend(error, macs, [trial] * len(error))
            rung.seen = len(trials)
            kept: dict[str, Trial] = {trial.id: trial for _, _, trial in rung.archive}
            kept.update({trial.id: trial for trial in trials[-self.window :]})
            rung.ranking = _Ranking(list(kept.values()), epoch, corner)
        return rung.ranking
