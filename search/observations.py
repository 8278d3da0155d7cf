"""What the trials of a study teach, told honestly about fidelity: one score per trial.

The score is the standing of a trial's curve among the curves of the highest rung that it has shown one
at, in [0, 1], plus the number of rungs below: a trial that was stopped at 3 epochs teaches what 3
epochs teach and is never taken for a finished one.

A study may have any number of trials; what is compared stays bounded. At every rung the latest
`WINDOW` curves and those that hold a point of the rung's front are ranked, the others are forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from search.frontier import Archive, standings
from search.state import StudyState
from search.trial import Trial

WINDOW = 400
"""Latest curves that are compared at a rung."""
FAILED = -1.0
"""The score of a failed trial."""


@dataclass(slots=True)
class _Rung:
    seen: int = 0
    archive: Archive | None = None
    standing: dict[str, float] = field(default_factory=dict)


class Observations:
    """Scores of a state's trials, brought up to date when asked for; equal to a fresh computation."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self._rungs: dict[int, _Rung] = {}

    def scores(self, state: StudyState) -> dict[str, float]:
        """Score by trial, of those that have shown a comparable curve or failed and are not forgotten."""
        found: dict[str, float] = {}
        for index, epoch in enumerate(state.rung_epochs()):
            for name, standing in self._standings(state, epoch).items():
                found[name] = index + standing
        failed = [trial.id for trial in state.failed[-self.window :]]
        found.update(dict.fromkeys(failed, FAILED))
        return found

    def _standings(self, state: StudyState, epoch: int) -> dict[str, float]:
        reference = state.created["reference"]
        corner = (reference["error"], reference["macs"])
        rung, trials = self._rungs.setdefault(epoch, _Rung()), state.rung(epoch)
        if rung.seen == len(trials):
            return rung.standing
        if rung.archive is None:
            rung.archive = Archive(corner)
        for trial in trials[rung.seen :]:
            error, macs = trial.arrays(epoch)
            rung.archive.extend(error, macs, [trial] * len(error))
        rung.seen = len(trials)
        kept: dict[str, Trial] = {trial.id: trial for _, _, trial in rung.archive}
        kept.update({trial.id: trial for trial in trials[-self.window :]})
        ranked = list(kept.values())
        missed = [trial.missed.get(epoch, 0.0) for trial in ranked]
        values = standings([trial.arrays(epoch) for trial in ranked], corner, missed)
        rung.standing = {trial.id: float(value) for trial, value in zip(ranked, values, strict=True)}
        return rung.standing
