"""The tables of a study file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from search.units import parse_bytes, parse_count, parse_seconds, show_bytes
from spaces.space import nearest
from trainables.contracts.objective import LATENCY, Axis, Objective, Timing
from trainables.data.resizing import checked

_LEAST_MEMORY = 200e6
SAMPLERS = ("surrogate", "budgets", "tpe", "nsga2", "evolution", "qmc", "random")
_CLASS = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class Part(BaseModel):
    """A table: unknown keys are refused, nothing changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataSpec(Part):
    """Which images: a known data set or a path, their size in pixels, at most `limit` for training.

    `image_size`: pixels along an edge, or [height, width]. `resize`: how images become of that size
    (`trainables.data.resizing`).

    `normalise`: what images are normalised by for every method that names nothing of its own
    (`trainables.contracts.recipe.TrainingConfig`); `balance` likewise: what is done about classes of different sizes,
    and `area`: training images are random crops of at least so large a share.
    """

    name: str = "digits"
    root: str | None = None
    image_size: int | tuple[int, int] | None = None
    resize: Literal["fit", "preset", "stretch"] | None = None
    limit: int | None = Field(default=None, ge=2)
    normalise: str | None = None
    balance: str | None = None
    area: float | None = None

    @field_validator("image_size", mode="before")
    @classmethod
    def _pixels(cls, value: Any) -> Any:
        return checked(value)


class AxisSpec(Part):
    """One axis of the objective, as ``{name = "error", best = 0, worst = 1}``.

    `direction`: maximize or minimize. `best` and `worst`: what it can show; a figure of merit has 0 and 1 by default, a
    cost needs `worst`. `scale`: whether ratios of it count (log) or differences (linear).
    """

    name: str = Field(min_length=1, max_length=60)
    unit: str = Field(default="", max_length=30)
    direction: Literal["maximize", "minimize"] | None = None
    best: float | None = None
    worst: float | None = None
    scale: Literal["linear", "log"] | None = None


_AXES: dict[str, dict[str, Any]] = {
    "accuracy": {"direction": "maximize", "best": 1.0, "worst": 0.0},
    "balanced_accuracy": {"direction": "maximize", "best": 1.0, "worst": 0.0},
    "error": {"direction": "minimize", "best": 0.0, "worst": 1.0},
    "macs": {"direction": "minimize", "unit": "MACs", "scale": "log"},
}
_SLOWEST = 1e4  # milliseconds an image: the bound of a measured latency that names none
"""What is known of axes by their name."""


class TimingSpec(Part):
    """How workers measure latency (`trainables.contracts.objective.Timing`)."""

    batch: int = Field(default=1, ge=1, le=4096)
    threads: int = Field(default=1, ge=1, le=1024)
    repeats: int = Field(default=3, ge=1, le=100)


class ObjectiveSpec(Part):
    """What is searched for: a figure of merit against a cost (`trainables.contracts.objective.Objective`).

    Methods have accuracy, or by choice ``balanced_accuracy``, and MACs, or with ``cost = "latency"`` the milliseconds
    that their workers measure as `latency` says; trainables name their own two axes, a word alone where its name says
    all. `front`: of single networks, or of cascades of them, too: a trial is then worth what its network reaches by
    itself and in cascades with those of other trials (`search.cascades.worth`).
    """

    front: Literal["networks", "cascades"] = "networks"
    merit: AxisSpec = AxisSpec(name="accuracy")
    cost: AxisSpec = AxisSpec(name="macs")
    latency: TimingSpec | None = None

    @field_validator("merit", "cost", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.latency is not None and self.cost.name != LATENCY:
            raise ValueError(
                f'objective.latency says how it is measured, but the cost is {self.cost.name}: write cost = "latency"'
            )
        self.objective(measured=self.cost.name == LATENCY and (self.cost.worst is None or self.latency is not None))
        return self

    def _measured(self) -> Objective:
        """Accuracy against the latency that workers measure."""
        asked = sorted(set(_given(self.cost)) - {"name", "worst"})
        if asked:
            raise ValueError(f"objective.cost: {asked[0]} of a measured latency is known; it takes a name and a worst")
        if self.merit != AxisSpec(name="accuracy"):
            raise ValueError(f"objective.merit: methods have accuracy against a latency, not {self.merit.name}")
        worst = _SLOWEST if self.cost.worst is None else self.cost.worst
        if not worst > 0:
            raise ValueError(f"objective.cost: worst = {worst:g}: a latency is above 0 milliseconds")
        timing = Timing(**(self.latency or TimingSpec()).model_dump())
        cost = Axis(name=LATENCY, unit="ms", best=None, worst=worst, maximise=False, log=True)
        return Objective(cost=cost, timing=timing)

    def objective(self, *, measured: bool = False) -> Objective:
        """The axes with all that their names and directions imply. Raises ValueError where bounds contradict it.

        `measured`: the cost, if it is latency, is what workers measure of methods, not what trainables say.
        """
        if measured and self.cost.name == LATENCY:
            return self._measured()
        if self.latency is not None:
            raise ValueError("objective.latency: workers measure methods; a trainable measures itself")
        merit = {"direction": "maximize", "scale": "linear", **_AXES.get(self.merit.name, {}), **_given(self.merit)}
        rising = merit["direction"] == "maximize"
        merit = {"best": float(rising), "worst": float(not rising), **merit}
        cost = {"direction": "minimize", "scale": "log", **_AXES.get(self.cost.name, {}), **_given(self.cost)}
        known = Objective()
        if cost["name"] == known.cost.name:
            cost.setdefault("worst", known.cost.worst)
        if merit["name"] == cost["name"]:
            raise ValueError(f"objective: merit and cost are both {cost['name']!r}; they are two axes")
        if cost.get("worst") is None:
            raise ValueError(
                f"objective.cost: {cost['name']!r} needs a worst value, from which the area under a front is"
                f' measured: cost = {{ name = "{cost["name"]}", worst = ... }}'
            )
        if cost["scale"] == "linear" and cost.get("best") is None:
            if cost["direction"] == "maximize":
                raise ValueError(
                    f"objective.cost: {cost['name']!r} is maximized on a linear scale: give its best value"
                )
            cost["best"] = 0.0
        return Objective(merit=_axis(merit), cost=_axis(cost))


def _given(axis: AxisSpec) -> dict[str, Any]:
    return {name: value for name, value in axis.model_dump().items() if value is not None and value != ""}


def _axis(values: Mapping[str, Any]) -> Axis:
    kept = {name: values.get(name) for name in ("name", "best", "worst")}
    return Axis(
        **kept,  # type: ignore[arg-type]
        unit=values.get("unit", ""),
        maximise=values["direction"] == "maximize",
        log=values["scale"] == "log",
    )


class BudgetSpec(Part):
    """How much: trials, epochs of one full training, and optionally wall time (``"20m"``) and `cost`.

    `cost` is counted in hours of the GPUs (of the CPUs, where trials take no GPU) that trials hold, times
    ``resources.price``.
    """

    trials: int = Field(default=24, ge=1)
    epochs: int = Field(default=9, ge=1)
    time: float | None = None
    cost: float | None = Field(default=None, gt=0)

    @field_validator("time", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> float | None:
        if value is None:
            return None
        seconds = parse_seconds(value)
        if seconds <= 0:
            raise ValueError(f"budget.time = {value!r}: a time must be longer than nothing")
        return seconds


class RungSpec(Part):
    """When trials are compared and how many go on: one of `reduction` at every rung epoch.

    A trial is compared with the latest `window` that came to its rung before it. `pause`: who is not
    among the best waits, and goes on when it is by then. `brackets`: how many there are, each passing
    one rung more unseen than the one before (`search.rungs.decisions`). `immune`: the share of trials that are trained
    in full whatever their rungs show, once as many epochs are spent as ten full trainings have. `adapt`: more than one
    of `reduction` go on behind a rung that has foretold badly how those end (`search.rungs.foretelling`).
    """

    epochs: list[int] | None = None
    reduction: float = Field(default=4.0, gt=1)
    grace: int = Field(default=1, ge=0)
    window: int = Field(default=60, ge=2)
    brackets: int = Field(default=1, ge=1)
    immune: float = Field(default=0.08, ge=0, le=1)
    adapt: bool = True
    pause: bool = False
    enabled: bool = True

    @model_validator(mode="before")
    @classmethod
    def _earlier(cls, values: Any, info: ValidationInfo) -> Any:
        """Study files of earlier releases say ``adaptive = false``: a rule that no study file documented is gone."""
        stored = bool(info.context and info.context.get("trusted"))
        if isinstance(values, Mapping) and (stored or values.get("adaptive") is False):
            return {name: value for name, value in values.items() if name != "adaptive"}
        return values


class SamplerSpec(Part):
    """Which sampler proposes, after how many random ones, and whether the papers' settings run first.

    `name`: one of `SAMPLERS`, or an installed sampler of Optuna's kind as ``module:Class``, which is made with
    `arguments` and told error and log10 MACs of operating points, or one score a trial with `objectives` = 1
    (`search.sampling.optuna_samplers`). `ahead`: a proposal is computed while so many trials that were asked for before
    it are started, from what was known then, so that no worker waits for it; 0 computes it when it is asked for.
    """

    name: str = "surrogate"
    arguments: dict[str, Any] = Field(default_factory=dict)
    objectives: Literal[1, 2] = 2
    startup: int = Field(default=5, ge=1)
    published: bool = True
    ahead: int = Field(default=1, ge=0)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in SAMPLERS and not _CLASS.fullmatch(value):
            known = nearest(value, SAMPLERS)
            raise ValueError(f"unknown sampler {value!r}{known}; a sampler of Optuna's kind is named module:Class")
        return value

    @model_validator(mode="after")
    def _of_a_class(self) -> Self:
        if self.name in SAMPLERS and (self.arguments or self.objectives == 1):
            given = "arguments" if self.arguments else "objectives"
            raise ValueError(f"sampler {self.name!r} takes no {given}; they are for a sampler named as module:Class")
        return self


class ConstraintSpec(Part):
    """What an operating point must meet to count (`search.state.constraints`); latency in ms for one image.

    `merit` and `cost`: as good and as cheap as this at least, on the axes of ``[objective]``.
    """

    merit: float | None = None
    cost: float | None = None
    min_accuracy: float | None = Field(default=None, gt=0, le=1)
    max_macs: float | None = None
    max_params: float | None = None
    max_latency: float | None = Field(default=None, gt=0)
    max_seconds: float | None = None

    @field_validator("max_macs", "max_params", mode="before")
    @classmethod
    def _count(cls, value: Any) -> float | None:
        count = parse_count(value) if isinstance(value, str) else value
        if isinstance(count, int | float) and not count > 0:  # nor what is no number
            raise ValueError(f"{value!r}: a limit must be above 0")
        return count

    @field_validator("max_seconds", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> float | None:
        seconds = None if value is None else parse_seconds(value)
        if seconds is not None and seconds <= 0:
            raise ValueError(f"constraints.max_seconds = {value!r}: a limit must be above 0")
        return seconds


class StageSpec(Part):
    """Whether trials share finished first stages (`search.sampling.first_stages`).

    With probability `share` a proposal keeps the first stage of an earlier trial, drawn among the
    `keep` best that are finished, and varies only what comes later.
    """

    enabled: bool = True
    share: float = Field(default=0.25, ge=0, le=1)
    keep: int = Field(default=8, ge=1)


class WarmSpec(Part):
    """Earlier studies (names, or folders) that this one learns from; how many of their front run `first`."""

    studies: list[str] = Field(default_factory=list)
    first: int = Field(default=8, ge=0)


class ResourceSpec(Part):
    """What a trial gets, and how many run at once (0: as many as fit, also when nodes join or leave).

    `memory`: what one trial may have for itself (``"4GB"``); above it the trial is ended, tried once more with a
    whole node, and is infeasible then. `patience`: how long a trial may be silent before its worker is
    taken for hung (``"30m"``; where it is left out, ten minutes and twenty times the longest epoch so far).
    `retries`: how often a trial may lose its worker. `price` of an hour of a GPU, or of a CPU where trials
    take no GPU, for ``budget.cost``. `deterministic`: whether a GPU computes the same from the same, to the last bit.
    `capture`: whether it repeats training steps as CUDA graphs.
    """

    workers: int = Field(default=0, ge=0)
    cpus_per_trial: float = Field(default=1.0, gt=0)
    gpus_per_trial: float = Field(default=0.0, ge=0)
    deterministic: bool = False
    capture: Literal["auto", "off"] = "auto"
    retries: int = Field(default=3, ge=0)
    memory: float | None = None
    patience: float | None = None
    price: float = Field(default=1.0, gt=0)

    @field_validator("gpus_per_trial")
    @classmethod
    def _one_device(cls, value: float, info: ValidationInfo) -> float:
        if value > 1 and not (info.context and info.context.get("trusted")):
            raise ValueError(
                f"resources.gpus_per_trial = {value:g}: a trial uses one GPU at most; take 1 or a share of it"
            )
        return min(value, 1.0)  # studies of earlier releases held GPUs that no trial used

    @field_validator("memory", mode="before")
    @classmethod
    def _bytes(cls, value: Any) -> float | None:
        size = None if value is None else parse_bytes(value)
        if size is not None and size < _LEAST_MEMORY:
            raise ValueError(f"{value!r}: Python and torch alone take {show_bytes(_LEAST_MEMORY)} of memory")
        return size

    @field_validator("patience", mode="before")
    @classmethod
    def _silence(cls, value: Any) -> float | None:
        seconds = None if value is None else parse_seconds(value)
        if seconds is not None and seconds <= 0:
            raise ValueError(f"resources.patience = {value!r}: a patience must be longer than nothing")
        return seconds

    @property
    def hourly(self) -> float:
        """What an hour of one trial costs."""
        return (self.gpus_per_trial or self.cpus_per_trial) * self.price


class TrackingSpec(Part):
    """Where MLflow records: an address (the study folder's neighbour by default) or ``"off"``.

    `tensorboard`: whether workers write each trial's losses and figures by epoch for TensorBoard, too, into the study's
    folder.
    """

    uri: str | None = None
    experiment: str = "routefront"
    tensorboard: bool = False
