"""The order of a trial: what the driver tells the worker that trains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One trial for one worker. It travels as the flat dictionary that Tune wants for a trial's configuration.

    `config`: values of the method's configuration. `epochs`: of a full training; `evaluate_at`: after which of them a
    curve is measured. `checkpoints`: the study's folder of them, `storage` its address where it lies in no folder of
    all nodes. `threads` and `device` ("cpu" or "cuda") are the worker's; `device_share`: of the GPU's
    memory that it may reserve; `deterministic`: whether a GPU adds in the same order every time
    (`trainables.execution.arithmetic`), `capture`: whether it repeats steps without Python
    (`trainables.training.steps`). `memory`: bytes that the trial may have.
    `diagnostics`: whether its last epoch measures its paths, `latency`: whether curves measure theirs, `timing`: how,
    where that is their cost (`trainables.contracts.objective.Timing`),
    `predictions`: whether their checkpoints keep what is answered on every validation image.
    `scalars`: whether the worker writes curves for TensorBoard beside the checkpoints (`trainables.worker.scalars`).
    `stage`: the key of a first stage to begin behind, `publish`: whether to store its own. `donor`: the name of the
    checkpoint whose weights it begins with (`trainables.training.donors`). `trainable`: the class that is trained
    instead of a method (`trainables.external.load`), whose points have the axes of `objective`. `sources`: digests of
    the files of Python that the worker may run to build a network (`spaces.own_networks`). For the driver alone:
    `share`, of how many trials' resources it takes, and `attempt`, how often it was handed out before.
    """

    trial: str
    method: str
    config: Mapping[str, Any]
    seed: int
    epochs: int
    evaluate_at: Sequence[int]
    checkpoints: str
    storage: str | None = None
    threads: int = 1
    device: str = "cpu"
    device_share: float = 1.0
    deterministic: bool = False
    capture: str = "auto"
    memory: float | None = None
    diagnostics: bool = False
    latency: bool = False
    timing: Mapping[str, int] | None = None
    predictions: bool = False
    scalars: bool = False
    stage: str | None = None
    publish: bool = False
    donor: str | None = None
    trainable: str | None = None
    objective: Mapping[str, Any] | None = None
    sources: Sequence[str] = ()
    share: float = 1
    attempt: int = 0

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """What `record` made plain values of. Raises `TypeError` for an unknown or a missing name."""
        return cls(**record)
