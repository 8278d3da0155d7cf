"""What leaves: the parts of a routed network as modules without a choice, and the program that joins them.

A *program* is a list of steps over *registers*, each of which holds one value an image. A step runs a part on
those images whose flag is set and on no others; flags are registers of booleans that earlier parts wrote, so that
every decision is arithmetic inside some part and a runner only gathers, runs and puts back. What is set by knobs
(*settings*) are scalars or vectors that all images share.

Shape legend: B images, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs, RoutedNetwork


class ExportError(ValueError):
    """A network that cannot leave; one line says which part and why."""


IMAGES, LOGITS, EXIT, UNREAD = "images", "logits", "exit", "unread"
"""Registers that every program begins with and ends with; `EXIT` only where the network has exits. `UNREAD` is computed
since it is charged, and read by nobody."""


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


class Chain(nn.Module):
    """Parts one behind the other as one: registers by name from part to part; `reads` in, `writes` out."""

    def __init__(self, parts: Sequence[Part], reads: Sequence[str], writes: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.module for part in parts)
        self.names = [(part.reads, part.writes) for part in parts]
        self.reads, self.writes = tuple(reads), tuple(writes)

    def forward(self, *given: Tensor) -> Any:
        """See the class."""
        registers = dict(zip(self.reads, given, strict=True))
        for part, (reads, writes) in zip(self.parts, self.names, strict=True):
            found = part(*(registers[name] for name in reads))
            registers.update(zip(writes, [found] if isinstance(found, Tensor) else found, strict=True))
        results = tuple(registers[name] for name in self.writes)
        return results[0] if len(results) == 1 else results


def joined(steps: Sequence[Step | Draw]) -> list[Step | Draw]:
    """The same program in fewer calls: what all images run next is joined to what some of them ran before.

    A step without a flag becomes the end of the step before it; behind a pair of branches, of one flag, the end of both
    branches, so that a gated block and the router behind it are one graph, and that router alone another one for images
    without the block. The parts of a joined step are called one after the other, whatever their results are read by.
    """
    runs: list[_Run | Draw] = []
    for step in steps:
        last = runs[-1] if runs else None
        if isinstance(step, Draw):
            runs.append(step)
        elif not (step.when or step.unless):
            if not isinstance(last, _Run):
                runs.append(last := _Run(""))
            for branch in (last.then, last.rest) if last.flag else (last.then,):
                branch.append(step)
            last.closed = True
        else:
            flag = step.when or step.unless
            if not isinstance(last, _Run) or last.flag != flag or last.closed:
                runs.append(last := _Run(flag))
            (last.then if step.when else last.rest).append(step)
    found: list[Step | Draw] = []
    read = {LOGITS, UNREAD}
    for run in reversed(runs):
        if isinstance(run, Draw):
            found.append(run)
            continue
        after = set(read)
        for branch, kind in ((run.rest, "unless"), (run.then, "when")):
            if branch:
                step = _chained(branch, after, {kind: run.flag} if run.flag else {})
                found.append(step)
                read |= {*step.part.reads, *step.shares.values()}
        read |= {run.flag} if run.flag else set()
    return found[::-1]


class _Run:
    """Steps that become one, or two of one `flag`; `closed`: behind it came what all images run."""

    def __init__(self, flag: str) -> None:
        self.flag, self.closed = flag, False
        self.then: list[Step] = []
        self.rest: list[Step] = []


def _chained(steps: Sequence[Step], read: set[str], flag: Mapping[str, str]) -> Step:
    """One step of several, which writes what is `read` behind it."""
    first, shares = steps[0], {unit: name for step in steps for unit, name in step.shares.items()}
    if len(steps) == 1:
        return replace(first, **flag)
    reads: list[str] = []
    written: list[str] = []
    for step in steps:
        reads += [name for name in step.part.reads if name not in written and name not in reads]
        written += [name for name in step.part.writes if name not in written]
    writes = [name for name in written if name in read or name in shares.values()]
    parts = [step.part for step in steps]
    part = Part("+".join(part.name for part in parts), Chain(parts, reads, writes), tuple(reads), tuple(writes))
    charges = tuple(unit for step in steps for unit in step.charges)
    exits = [step.exit for step in steps if step.exit is not None]
    return Step(part, charges=charges, shares=shares, exit=exits[-1] if exits else None, **flag)


class Whole(nn.Module):
    """A network without a choice as one part: images (B, c, h, h) to logits (B, C)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """See the class. Static networks are asked for logits alone: their table of MACs fixes the number of rows."""
        logits = getattr(self.network, "_logits", None)
        return self.network(images).output if logits is None else logits(images)


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
