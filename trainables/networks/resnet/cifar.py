"""Residual bodies: the CIFAR ResNets of He et al. and the static network over them.

Reference: K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition",
CVPR 2016, arXiv 1512.03385, section 4.2.

A `Body` is a stem, a list of blocks and a classifier. Routed networks take the same body and add
their routers, so that weights carry over by name between a static network and a routed one.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import overwriting

SHORTCUTS = ("A", "B", "pool")
NETWORKS = tuple(f"resnet-{n}" for n in (8, 14, 20, 32, 38, 44, 56, 74, 110, 152))
SMALLEST_IMAGE = 8
"""Pixels below which the third group would see maps of a single position."""

Shape = tuple[int, int, int]


def blocks_per_group(name: str) -> int:
    """The n of the CIFAR network ``resnet-(6n+2)``: blocks in each of its three groups.

    Raises `ValueError` where the name is of another kind or its depth is not 6n + 2.
    """
    match = re.fullmatch(r"resnet-(\d+)", name)
    if match is None:
        raise ValueError(f"network = {name!r}: must be resnet-N with N = 6n + 2, for example resnet-20")
    depth = int(match[1])
    n = max(1, round((depth - 2) / 6))
    if depth != 6 * n + 2:
        raise ValueError(f"network = {name!r}: N of resnet-N must be 6n + 2; the nearest is resnet-{6 * n + 2}")
    return n


class ZeroPadShortcut(nn.Module):
    """A shortcut without weights: halve the resolution, append channels of zeros.

    Option A of He et al. takes every second pixel and pads both sides (``average=False``); the
    pooling option averages 2 x 2 pixels and pads behind.
    """

    def __init__(self, channels: int, stride: int, *, average: bool) -> None:
        super().__init__()
        self.channels, self.stride, self.average = channels, stride, average

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) to (B, channels, ceil(h / stride), ceil(w / stride))."""
        if self.average:
            inputs = F.avg_pool2d(inputs, self.stride, ceil_mode=True)
        else:
            inputs = inputs[:, :, :: self.stride, :: self.stride]
        missing = self.channels - inputs.shape[1]
        before = 0 if self.average else missing // 2
        return F.pad(inputs, (0, 0, 0, 0, before, missing - before))


class StridedPointwise(nn.Conv2d):
    """A strided 1 x 1 convolution as one of stride 1 over every second (third ...) position: the same sums.

    oneDNN's gradient for the weights of a strided 1 x 1 convolution writes past its memory, on processors without
    AVX-512, where it reads fewer than eight channels, channels last (torch 2.15): the process aborts sooner or later.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, bias: bool = False) -> None:
        super().__init__(channels_in, channels_out, 1, stride=stride, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """(B, c, h, w) to (B, c', ceil(h / stride), ceil(w / stride))."""
        return F.conv2d(every(input, self.stride[0]), self.weight, self.bias)


def every(inputs: Tensor, stride: int) -> Tensor:
    """The positions (0, 0), (0, stride), ... of (B, c, h, w)."""
    return inputs if stride == 1 else inputs[:, :, ::stride, ::stride]


def projection(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Option B of He et al.: a strided 1 x 1 convolution and a batch norm."""
    return nn.Sequential(StridedPointwise(channels_in, channels_out, stride), nn.BatchNorm2d(channels_out))


def shortcut_of(option: str, channels_in: int, channels_out: int, stride: int) -> nn.Module:
    """The shortcut of a block; the identity where the shape stays.

    Raises `ValueError` for an option that is not one of `SHORTCUTS`.
    """
    if option not in SHORTCUTS:
        raise ValueError(f"shortcut = {option!r}: must be one of {', '.join(SHORTCUTS)}")
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    if option == "B":
        return projection(channels_in, channels_out, stride)
    return ZeroPadShortcut(channels_out, stride, average=option == "pool")


class ResidualBlock(nn.Module, ABC):
    """A whole residual block: inner layers, `shortcut`, addition and what follows it.

    ``forward(inputs, short=None)`` takes the shortcut's output where the caller has it already
    (networks in which skipping the block means taking its shortcut), so that it is computed once.
    """

    shortcut: nn.Module
    scale: float = 1.0
    """What `branch` multiplies its layers' output by in eval mode."""

    @abstractmethod
    def branch(self, inputs: Tensor) -> Tensor:
        """The inner layers alone, up to the addition."""

    def forward(self, inputs: Tensor, short: Tensor | None = None) -> Tensor:
        """(B, c, h, w) to the block's output; `short` replaces ``shortcut(inputs)``."""
        around = self.shortcut(inputs) if short is None else short
        return F.relu(self.branch(inputs) + around)


class BasicBlock(ResidualBlock):
    """Two 3 x 3 convolutions with batch norm, added to the shortcut, ReLU."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = shortcut_of(shortcut, channels_in, channels_out, stride)

    def branch(self, inputs: Tensor) -> Tensor:
        """See `ResidualBlock`."""
        return self.bn2(self.conv2(F.relu(self.bn1(self.conv1(inputs)))))


class Classifier(nn.Module):
    """Global average pooling and a linear layer."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to logits (B, classes)."""
        return self.fc(features.mean(dim=(2, 3)))


@dataclass(slots=True)
class Body:
    """The parts of a residual network and the shapes (channels, height, width) between them.

    `shapes[k]` enters block k; the last one leaves the last block.
    """

    stem: nn.Module
    blocks: Sequence[ResidualBlock]
    classifier: nn.Module
    shapes: Sequence[Shape]


def cifar_resnet(name: str, task: Task, *, width: float = 1.0, shortcut: str = "A") -> Body:
    """The parts of ``resnet-(6n+2)``: stem, three groups of n blocks, classifier.

    `width` multiplies the 16, 32 and 64 channels. Raises `ValueError` for a depth that is not
    6n + 2, an unknown shortcut, and images too small for the two strides.
    """
    n = blocks_per_group(name)
    if task.edge < SMALLEST_IMAGE:
        raise ValueError(
            f"size = {task.size!r}: {name} has two strides and is too deep for images "
            f"of less than {SMALLEST_IMAGE} pixels a side"
        )
    base = max(1, round(16 * width))
    stem = nn.Sequential(nn.Conv2d(task.channels, base, 3, padding=1, bias=False), nn.BatchNorm2d(base), nn.ReLU())
    blocks: list[ResidualBlock] = []
    shapes: list[Shape] = [(base, task.height, task.width)]
    for group in range(3):
        for i in range(n):
            channels, height, across = shapes[-1]
            stride = 2 if group > 0 and i == 0 else 1
            out = base * 2**group
            blocks.append(BasicBlock(channels, out, stride, shortcut))
            shapes.append((out, math.ceil(height / stride), math.ceil(across / stride)))
    return Body(stem, blocks, Classifier(shapes[-1][0], task.classes), shapes)


class ResidualNetwork(RoutedNetwork):
    """What static and routed networks over a residual body share: its parts and their MACs.

    `block_macs[k]` is block k with its own shortcut.
    """

    def __init__(self, config: Any, task: Task, body: Body) -> None:
        super().__init__(config, task)
        self.stem = body.stem
        self.blocks = nn.ModuleList(body.blocks)
        self.classifier = body.classifier
        self.shapes = tuple(body.shapes)
        self.stem_macs = macs_of(body.stem, task.image)[0]
        self.classifier_macs = macs_of(body.classifier, self.shapes[-1])[0]
        self.block_macs = tuple(self.part_macs(block, k) for k, block in enumerate(body.blocks))

    def unit_groups(self) -> tuple[int, ...]:
        """Blocks whose outputs have one shape are a group. A unit's number is that of its block; what has
        none belongs to the first group, what lies behind the last block to the last.
        """
        shapes = list(dict.fromkeys(self.shapes[1:]))
        groups = [shapes.index(shape) for shape in self.shapes[1:]]
        numbers = [unit.name.rpartition("-")[2] for unit in self.units]
        return tuple(groups[min(int(k), len(groups) - 1)] if k.isdigit() else 0 for k in numbers)

    def block(self, k: int) -> ResidualBlock:
        """Block k."""
        block = self.blocks[k]
        assert isinstance(block, ResidualBlock)
        return block

    def regions(self) -> list[nn.Module]:
        """See `RoutedNetwork`: the blocks."""
        return list(self.blocks)

    def part_macs(self, part: nn.Module, k: int) -> int:
        """MACs per image of a part that reads what enters block k."""
        return macs_of(part, self.shapes[k])[0]


class StaticResNet(ResidualNetwork):
    """A residual network without a choice: no decisions, every block a unit that always runs."""

    def __init__(self, config: Any, task: Task, body: Body) -> None:
        super().__init__(config, task, body)
        units = [Unit(f"block-{k}", "block", macs) for k, macs in enumerate(self.block_macs)]
        fixed = self.stem_macs + self.classifier_macs
        total = fixed + sum(self.block_macs)
        self.describe_units(units, fixed=fixed, full=total, least=total)

    def _logits(self, inputs: Tensor) -> Tensor:
        features = self.stem(inputs)
        for block in self.blocks:
            features = overwriting(block)(features)
        return self.classifier(features)

    def _path(self, inputs: Tensor) -> Tensor:
        return torch.ones(len(inputs), len(self.units), device=inputs.device)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Logits (B, C); `decisions` are (B, 0), there is nothing to decide or to price."""
        logits = self._logits(inputs)
        none = logits.new_zeros(len(inputs), 0)
        return Routed((logits,), logits, none, self.path_macs(self._path(inputs)))

    @torch.no_grad()
    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The same pass; there is no knob."""
        logits, path = self._logits(inputs), self._path(inputs)
        return Inference(logits, path, self.path_macs(path), logits.new_zeros(len(inputs), 0))
