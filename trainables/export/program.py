"""What leaves: the parts of a routed network as modules without a choice, and the program that joins them.

A *program* is a list of steps over *registers*, each of which holds one value an image. A step runs a part on
those images whose flag is set and on no others; flags are registers of booleans that earlier parts wrote, so that
every decision is arithmetic inside some part and a runner only gathers, runs and puts back. What is set by knobs
(*settings*) are scalars or vectors that all images share.

Shape legend: B images, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs, RoutedNetwork


class ExportError(ValueError):
    """A network that cannot leave; one line says which part and why."""


IMAGES, LOGITS, EXIT = "images", "logits", "exit"
"""Registers that every program begins with and ends with; `EXIT` only where the network has exits."""


@dataclass(frozen=True, slots=True)
class Part:
    """A module with a fixed list of tensors in and out.

    `reads`: the registers or settings in the order of the module's arguments; `writes`: those of its results. `module`
    takes tensors with the images first (B, ...), settings without.
    """

    name: str
    module: nn.Module
    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a program.

    Runs `part` where the register (or setting) `when` is true, `unless` where it is false, else for all images.
    `charges`: the units that are executed; `shares`: those of which only a share is, by the register that holds it;
    `exit`: the number of the exit that an image takes for which this step is its last with one.
    """

    part: Part
    when: str = ""
    unless: str = ""
    charges: tuple[str, ...] = ()
    shares: Mapping[str, str] = field(default_factory=dict)
    exit: int | None = None

    def record(self) -> dict[str, Any]:
        """Plain JSON values; what says nothing is left out."""
        said: dict[str, Any] = {
            "part": self.part.name,
            "reads": list(self.part.reads),
            "writes": list(self.part.writes),
        }
        for name in ("when", "unless"):
            if getattr(self, name):
                said[name] = getattr(self, name)
        if self.charges:
            said["charges"] = list(self.charges)
        if self.shares:
            said["shares"] = dict(self.shares)
        if self.exit is not None:
            said["exit"] = self.exit
        return said


@dataclass(frozen=True, slots=True)
class Draw:
    """A step that fills the register `writes` with uniform draws (B, count) that follow from the image and ``seed``.

    They are those of `trainables.networks.gated.gates.image_noise`; `docs/export.md` has the algorithm.
    """

    writes: str
    count: int

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"draw": self.count, "writes": [self.writes]}


@dataclass(slots=True)
class Program:
    """The steps of a network in order, and what turns its knobs into settings.

    `kind`: the family's word. `settings(knobs)`: scalars and lists by name, in the types of the tensors that
    `examples` has for them. `rule`: one line that says what decides, for people.
    """

    kind: str
    rule: str
    steps: list[Step | Draw]
    settings: Any
    examples: dict[str, Tensor] = field(default_factory=dict)
    """One value for every setting, of the type that parts take."""

    def parts(self) -> list[Part]:
        """The parts in the order of their first step."""
        found: dict[str, Part] = {}
        for step in self.steps:
            if isinstance(step, Step):
                found.setdefault(step.part.name, step.part)
        return list(found.values())

    def values(self, knobs: Knobs) -> dict[str, Any]:
        """The settings of some knobs as plain JSON values."""
        return dict(self.settings(knobs))


def no_settings(knobs: Knobs) -> dict[str, Any]:
    """Of a network without a knob."""
    return {}


class Whole(nn.Module):
    """A network without a choice as one part: images (B, c, h, h) to logits (B, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.network(images).output


def whole(network: RoutedNetwork, rule: str) -> Program:
    """The program of a network that computes all of itself for every image."""
    part = Part("network", Whole(network), (IMAGES,), (LOGITS,))
    units = tuple(unit.name for unit in network.units)
    return Program("whole", rule, [Step(part, charges=units)], no_settings)


@torch.no_grad()
def traced(program: Program, images: Tensor) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Example arguments and results of every part by its name, from one pass over all `images` (B, c, h, h).

    Every step runs for every image, whatever was decided, so that each part sees arguments of the right shapes.
    """
    registers: dict[str, Tensor] = {IMAGES: images, **program.examples}
    found: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for step in program.steps:
        if isinstance(step, Draw):
            registers[step.writes] = torch.full((len(images), step.count), 0.5)
            continue
        arguments = [registers[name] for name in step.part.reads]
        results = step.part.module(*arguments)
        outputs = [results] if isinstance(results, Tensor) else list(results)
        found.setdefault(step.part.name, (arguments, outputs))
        if len(outputs) != len(step.part.writes):
            raise ExportError(f"part {step.part.name} gives {len(outputs)} tensors, not {len(step.part.writes)}")
        registers.update(zip(step.part.writes, outputs, strict=True))
    return found
