"""What the journal tells of one trial, of a finished first stage, and of one step of progress."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

OVER = ("finished", "stopped", "failed")


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished first stage: who trained it, its last epoch, what it cost in epochs (views counted) and seconds."""

    key: str
    trial: str
    epoch: int
    cost_epochs: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Donor:
    """The trial whose network another one begins with, as it was after an epoch: its checkpoint by name."""

    trial: str
    epoch: int
    checkpoint: str


class Together(NamedTuple):
    """What a cascade of a trial's network with that of another trial (or its own, at two settings) reaches."""

    error: float
    macs: float
    other: str


@dataclass(slots=True, eq=False)
class Trial:
    """One training as the journal tells it. `curves` by epoch; `state` asked, running, paused or over.

    `behind` is the first stage that it was proposed to begin behind; with `stage_lost` it trains that stage itself.
    `shared` says that it did begin behind it: its `epoch` counts the stage's epochs, its `cost_epochs` and
    `seconds` do not. `bracket` counts the rungs that it passes unseen; it is `immune` where it passes all of them
    (`search.rungs.brackets.immune`). `repeats` names the trial whose configuration it trains once more, on another
    seed. `donor` is the trial of the study whose network it begins with (`search.state.donors`), where its
    configuration asks for one.
    `shown` says by the epoch of a curve what the trial had cost by then (``cost_epochs``, ``seconds``) and how large
    its network was (``params``, ``macs_full``), which may change with the phase.
    `missed` says by epoch how far its nearest point was from what the constraints ask (0: it has one).
    `node` is where it runs or ran; `setbacks` is what took its workers away, each {kind, why, epoch, node}
    (`search.state.setbacks`). `alone`: memory ran out, so it runs when nothing else does; `infeasible`: then too.
    `uncaptured`: why its worker no longer repeats its steps as a CUDA graph (`trainables.training.steps`); empty where
    it does, or where its steps were never to be captured.
    `together` says by epoch what cascades of its network with those of other trials reach (`Together`); it is replaced,
    never changed, so that a copy (`still`) keeps what was known.
    """

    id: str
    number: int
    config: dict[str, Any]
    seed: int
    why: str
    asked_at: float
    state: str = "asked"
    reason: str = ""
    epoch: int = 0
    seconds: float = 0.0
    cost_epochs: float = 0.0
    starts: int = 0
    checkpoint: str | None = None
    params: int = 0
    macs_full: int = 0
    curves: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    shown: dict[int, dict[str, Any]] = field(default_factory=dict)
    comparable: dict[int, bool] = field(default_factory=dict)
    checkpoints: dict[int, str] = field(default_factory=dict)
    decided: dict[int, str] = field(default_factory=dict)
    losses: dict[int, dict[str, float]] = field(default_factory=dict)
    phases: dict[int, str] = field(default_factory=dict)
    behind: Stage | None = None
    donor: Donor | None = None
    stage_lost: bool = False
    shared: bool = False
    bracket: int = 0
    immune: bool = False
    repeats: str | None = None
    missed: dict[int, float] = field(default_factory=dict)
    node: str = ""
    setbacks: list[dict[str, Any]] = field(default_factory=list)
    alone: bool = False
    infeasible: bool = False
    uncaptured: str = ""
    heard: float = 0.0
    diagnostics: dict[str, Any] | None = None
    together: dict[int, list[Together]] = field(default_factory=dict)
    _arrays: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False, compare=False)
    _learning: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)
    _steps: dict[int, tuple[list[float], list[float]]] = field(default_factory=dict, repr=False, compare=False)
    _still: Trial | None = field(default=None, repr=False, compare=False)

    @property
    def method(self) -> str:
        """The method's name."""
        return self.config["method"]

    @property
    def identity(self) -> dict[str, Any]:
        """What trials that differ in nothing but the seed share: the configuration, and what it begins with."""
        return self.config if self.donor is None else {**self.config, "donor": self.donor.checkpoint}

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in OVER

    def take_curve(
        self,
        epoch: int,
        points: list[dict[str, Any]],
        misses: np.ndarray | None = None,
        besides: np.ndarray | None = None,
    ) -> None:
        """The curve shown at an epoch, and how far each point is from what is asked (0: it counts).

        `besides`: how far it is from what is asked besides an accuracy.
        """
        right, work = [p["accuracy"] for p in points], [float(p["macs"]) for p in points]
        # lists, since arrays of a few points take longer to begin; a sum with NaN or infinity in it is below nothing
        if points and not (min(right) >= 0 and max(right) <= 1 and min(work) > 0 and sum(right) + sum(work) < math.inf):
            raise ValueError(f"the curve of epoch {epoch} has accuracies beyond [0, 1], or impossible MACs")
        error, macs = np.array([1.0 - accuracy for accuracy in right]), np.array(work)
        self.curves[epoch] = points
        if misses is not None:
            error[misses > 0] = np.nan
            self.missed[epoch] = float(misses.min(initial=np.inf))
        if besides is not None:
            self._learning[epoch] = np.where(besides > 0, np.nan, 1.0 - np.array(right))
        self._arrays[epoch] = error, macs

    def take_arrays(self, epoch: int, error: np.ndarray, macs: np.ndarray) -> None:
        """A curve of which only (error, macs) are known."""
        self.comparable[epoch], self._arrays[epoch] = True, (error, macs)

    def arrays(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(error, macs) of the curve at an epoch; the error of a point that does not count is NaN."""
        return self._arrays[epoch]

    def take_together(self, epoch: int, found: list[Together]) -> None:
        """Cascades at an epoch that its network is a member of."""
        self.together = {**self.together, epoch: [*self.together.get(epoch, ()), *found]}
        self._steps = {known: steps for known, steps in self._steps.items() if known != epoch}
        self._still = None

    def still(self) -> Trial:
        """The trial as it is now, for who looks at it later: a later trial may make cascades with its network."""
        if not self.together:
            return self
        if self._still is None:
            self._still = copy.copy(self)
        return self._still

    def worth(self, epoch: int, without: str = "") -> tuple[np.ndarray, np.ndarray]:
        """(error, macs) of the curve at an epoch, and of the cascades that its network is a member of.

        `without`: of the cascades, those that take no network of that trial.
        """
        return self._joined(epoch, self._arrays[epoch][0], without)

    def _joined(self, epoch: int, error: np.ndarray, without: str = "") -> tuple[np.ndarray, np.ndarray]:
        macs = self._arrays[epoch][1]
        more = [(each.error, each.macs) for each in self.together.get(epoch, ()) if each.other != without]
        if not more:
            return error, macs
        return np.append(error, [e for e, _ in more]), np.append(macs, [m for _, m in more])

    def steps(self, epoch: int) -> tuple[list[float], list[float]]:
        """(MACs in ascending order, least error within so many) of the points of `worth` that count."""
        if epoch not in self._steps:
            self._steps[epoch] = _steps(*self.worth(epoch))
        return self._steps[epoch]

    def learning(self, epoch: int) -> tuple[list[float], list[float]]:
        """As `steps`, of the points that miss no constraint but one on the accuracy, which more training may meet."""
        if epoch not in self._learning:
            return self.steps(epoch)
        return _steps(*self._joined(epoch, self._learning[epoch]))

    def ends(self, epoch: int) -> tuple[float, float]:
        """(least error, least MACs) of the points of that curve that count; infinite where none does."""
        macs, least = _steps(*self._arrays[epoch]) if self.together.get(epoch) else self.steps(epoch)
        return (least[-1], macs[0]) if macs else (math.inf, math.inf)

    def record(self) -> dict[str, Any]:
        """Everything that is known, as plain values."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if not f.name.startswith("_")}
        values |= {"behind": None if self.behind is None else asdict(self.behind)}
        return values | {"donor": None if self.donor is None else asdict(self.donor)}


def _steps(error: np.ndarray, macs: np.ndarray) -> tuple[list[float], list[float]]:
    counts = np.flatnonzero(~np.isnan(error))
    order = counts[np.argsort(macs[counts], kind="stable")]
    return macs[order].tolist(), np.minimum.accumulate(error[order]).tolist()


@dataclass(slots=True)
class History:
    """One step of the study's progress: seconds of work, epochs of cost, trials over, hypervolume."""

    seconds: float
    epochs: float
    trials: int
    hypervolume: float
