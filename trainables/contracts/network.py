"""The contract of a routed network: a differentiable pass, a hard pass, and what they cost.

Shape legend: B images, C classes, D decisions, U units, K exits, S settings.

The same contract holds gated networks (D gates), networks with exits (D = K, which exit answers),
trees of columns (D = all sinks of all junctions), soft multi-path networks (D = gates in [0, 1],
every unit executed) and halting maps (D = halting scores; a unit's share of `path` is the share
of positions that were computed). `DECISIONS.md` shows each on paper.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Knobs = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a network is asked to do: classify images of `size` pixels into `classes`.

    `size`: pixels along an edge of square images, else (height, width).
    """

    classes: int = 10
    size: int | tuple[int, int] = 32
    channels: int = 3

    def __post_init__(self) -> None:
        if isinstance(self.size, list | tuple):
            if len(self.size) != 2:
                raise ValueError(f"size = {self.size!r} is not possible; it takes one number, or height and width")
            height, width = self.size
            object.__setattr__(self, "size", height if height == width else (height, width))
        edges = [("size", each, 4) for each in (self.size if isinstance(self.size, tuple) else (self.size,))]
        for name, value, least in (("classes", self.classes, 2), *edges, ("channels", self.channels, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} = {value!r} is not possible; it takes a whole number of at least {least}")

    @property
    def height(self) -> int:
        """Rows of an image."""
        return self.size[0] if isinstance(self.size, tuple) else self.size

    @property
    def width(self) -> int:
        """Columns of an image."""
        return self.size[1] if isinstance(self.size, tuple) else self.size

    @property
    def edge(self) -> int:
        """Pixels along the shorter edge: what strides and scales leave something of."""
        return min(self.height, self.width)

    @property
    def pixels(self) -> str:
        """Height and width in words, ``48 x 64``."""
        return f"{self.height} x {self.width}"

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape (channels, height, width) of an image."""
        return self.channels, self.height, self.width


@dataclass(frozen=True, slots=True)
class Unit:
    """A part of a network that may or may not be executed; `macs` per image when it is, whole."""

    name: str
    kind: str  # block, skip, router, column, exit, path, edge
    macs: int


@dataclass(frozen=True, slots=True)
class Exit:
    """A classifier that may end the computation; `macs` per image of an image that leaves here."""

    name: str
    macs: int


@dataclass(slots=True)
class Routed:
    """What the differentiable pass returns.

    `logits`: one (B, C) per exit (networks without early exits have one). `output`: (B, C), the
    prediction under the decisions (the last exit's where none were injected). `decisions`: (B, D)
    relaxed, in [0, 1]. `macs`: (B,) expected MACs per image, differentiable in the decisions.
    `aux`: whatever else the method's objective needs; of networks with halting maps also
    ``ponder_map`` (B, h, w), the ponder cost of each position, which diagnostics keep for pictures.
    """

    logits: tuple[Tensor, ...]
    output: Tensor
    decisions: Tensor
    macs: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Inference:
    """What the hard pass returns.

    `logits`: (B, C). `path`: (B, U) float in [0, 1], the share of each unit that was executed.
    `macs`: (B,) float64, exact MACs per image, ``fixed_macs + path @ unit_macs``. `decisions`:
    (B, D) hard, in the order that `forward` takes them. `exits`: (B,) index of the exit taken.
    `length`: (B,) length of the path, where it is not the sum of the decisions.
    """

    logits: Tensor
    path: Tensor
    macs: Tensor
    decisions: Tensor
    exits: Tensor | None = None
    length: Tensor | None = None


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; then every module's own mode again (a phase may have mixed them)."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class RoutedNetwork(nn.Module, ABC):
    """A network whose path depends on the image.

    A subclass builds its modules and then calls `describe_units`. `config` is the method's configuration, `task` the
    task. `relaxation`: how decisions are made soft in the present phase; the training loop sets it when a phase begins,
    and the empty word means the method's own way. `routing`: beginnings of the names of the parts that a trained static
    network of the same body does not have (`trainables.training.donors`).
    """

    routing: tuple[str, ...] = ()

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__()
        self.config = config
        self.task = task
        self.relaxation = ""
        self.units: tuple[Unit, ...] = ()
        self.exits: tuple[Exit, ...] = ()
        self.fixed_macs = 0
        self.macs_full = 0
        self.macs_min = 0
        self.register_buffer("unit_macs", torch.zeros(0, dtype=torch.float64), persistent=False)

    def describe_units(
        self, units: Sequence[Unit], *, fixed: int, full: int, least: int, exits: Sequence[Exit] = ()
    ) -> None:
        """Record the units and the MACs: always spent, with everything on, on the cheapest path."""
        self.units = tuple(units)
        self.exits = tuple(exits)
        self.fixed_macs, self.macs_full, self.macs_min = fixed, full, least
        self.unit_macs = self._macs_of_units()

    def _macs_of_units(self) -> Tensor:
        """MACs of every unit (U,) float64, where the network lies now."""
        return torch.tensor([u.macs for u in self.units], dtype=torch.float64, device=self.unit_macs.device)

    def unit_groups(self) -> tuple[int, ...]:
        """The group of every unit, from 0: which units work at one resolution, where a network knows."""
        return (0,) * len(self.units)

    def exit_parents(self) -> tuple[int, ...]:
        """For every exit the one that an image passes before it, -1 where there is none: a chain here, maybe a tree."""
        return tuple(range(-1, len(self.exits) - 1))

    def path_macs(self, path: Tensor) -> Tensor:
        """MACs per image, (B,) float64, of executed shares `path` (B, U)."""
        if self.unit_macs.dtype != torch.float64:  # the network was cast to another type, and its buffers with it
            self.unit_macs = self._macs_of_units()
        return self.fixed_macs + path.double() @ self.unit_macs.to(path.device)

    @abstractmethod
    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """The differentiable pass over `inputs` (B, channels, size, size).

        `decisions` (B, D) replace the network's own; `price` (B,) is the price of computation for
        networks that take one, as a multiple of macs / macs_full; `generator` draws the noise.
        """

    @abstractmethod
    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass: units that are not executed are not computed."""

    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several knobs; a network overrides it where work can be shared."""
        return [self.infer(inputs, k, generator=generator) for k in knobs]

    def dense(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference | None:
        """What `infer` answers, by computing every unit for every image, without waiting for the device.

        `path` and `macs` say what is computed, all of it; `decisions` and `exits` what was decided. None where a
        network has no such form.
        """
        return None

    def all_charged(self, found: Inference) -> Inference:
        """The same answer with a path on which every unit was executed."""
        path = torch.ones_like(found.path)
        return dataclasses.replace(found, path=path, macs=self.path_macs(path))

    def replay(self, logits: Tensor, knobs: Knobs) -> Inference:
        """The hard pass by arithmetic from all exits' logits (K, B, C), where knobs are calibrated."""
        raise TypeError(f"{type(self).__name__} has no exits to replay")

    def begin_open(self, probability: float) -> None:
        """Let routers begin by choosing all of the computation with this probability; their weights hardly matter."""

    def regions(self) -> Sequence[nn.Module]:
        """Parts of the differentiable pass that repeat, worth compiling once for all of a class."""
        return ()

    def strip(self) -> None:
        """Drop for good what only training needs: what is promoted is stored without it."""

    def params_by_part(self) -> dict[str, int]:
        """Learned parameters by top-level part."""
        return {
            name: count
            for name, child in self.named_children()
            if (count := sum(p.numel() for p in child.parameters()))
        }
