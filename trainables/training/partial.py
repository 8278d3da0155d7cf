"""Epochs that were interrupted: how many steps are done, and the state to go on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_PREFIX = "partial/"


class Interrupted(Exception):  # nothing went wrong
    """A training was asked to leave in the middle of an epoch; its `save` keeps how far it came."""


@dataclass(frozen=True, slots=True)
class Partial:
    """An epoch that was begun: `steps` are done, whose loss terms are `history` (steps, terms) under `names`.

    `began` and `now` are the states of the training's generator before the epoch and behind those steps.
    """

    steps: int
    names: list[str]
    history: Tensor
    began: Tensor
    now: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it beside `record`."""
        return {f"{_PREFIX}{name}": getattr(self, name) for name in ("history", "began", "now")}

    def record(self) -> dict[str, Any]:
        """The rest, as plain JSON values."""
        return {"steps": self.steps, "names": self.names}

    @classmethod
    def taken(cls, record: Mapping[str, Any] | None, tensors: dict[str, Tensor]) -> Partial | None:
        """What a checkpoint keeps, its tensors taken out of the others; None where it was written behind an epoch."""
        kept = {name.removeprefix(_PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(_PREFIX)}
        return cls(record["steps"], record["names"], **kept) if record else None
