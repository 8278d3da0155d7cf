"""DenseNet: every layer reads the features of all layers before it on its resolution.

Reference: G. Huang, Z. Liu, L. van der Maaten, K. Weinberger, "Densely connected convolutional
networks", CVPR 2017, arXiv 1608.06993, section 3: the CIFAR networks, plain and BC (bottleneck layers
and compressing transitions), three blocks of equally many layers.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.execution.macs import macs_of

DENSE_NETWORKS = (*(f"densenet-bc-{depth}" for depth in (40, 52, 64, 88, 100)), "densenet-40")
GROWTH = 12
BLOCKS = 3
SMALLEST_DENSE_IMAGE = 4
"""Pixels a side: the two transitions halve them, and one must be left."""


def dense_layers(name: str) -> tuple[int, bool]:
    """Layers of each block and whether they have bottlenecks, for ``densenet-bc-L`` and ``densenet-L``.

    A layer of BC has two convolutions, so that L = 6n + 4; else L = 3n + 4. Raises `ValueError` for
    another name or depth.
    """
    match = re.fullmatch(r"densenet-(bc-)?(\d+)", name)
    if match is None:
        raise ValueError(f"network = {name!r}: must be densenet-bc-L or densenet-L, for example densenet-bc-40")
    bottleneck, depth = match[1] is not None, int(match[2])
    each = BLOCKS * (2 if bottleneck else 1)
    if depth < 4 + each or (depth - 4) % each:
        raise ValueError(f"network = {name!r}: {depth} is not 4 + {each}n layers; {4 + each} and {4 + 2 * each} are")
    return (depth - 4) // each, bottleneck


def normalised_convolution(channels_in: int, channels_out: int, kernel: int) -> list[nn.Module]:
    """Batch norm, ReLU, convolution without bias."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(channels_in), nn.ReLU(inplace=True), convolution]


class DenseUnit(nn.Module):
    """One layer: what it reads and, behind it, `growth` new channels."""

    def __init__(self, channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        inner = 4 * growth if bottleneck else channels
        first = normalised_convolution(channels, inner, 1) if bottleneck else []
        self.layers = nn.Sequential(*first, *normalised_convolution(inner, growth, 3))

    def forward(self, features: Tensor) -> Tensor:
        """(B, c, h, h) to (B, c + growth, h, h)."""
        return torch.cat([features, self.layers(features)], dim=1)


class DenseNet(RoutedNetwork):
    """A DenseNet without a choice: no decisions, every block a unit that always runs.

    `width` multiplies the growth (and with it the stem of BC, which has twice as many channels).
    Raises `ValueError` for a name of another kind and images that are too small.
    """

    def __init__(self, config: Any, task: Task, name: str, *, width: float = 1.0) -> None:
        super().__init__(config, task)
        count, bottleneck = dense_layers(name)
        if task.edge < SMALLEST_DENSE_IMAGE:
            raise ValueError(f"size = {task.size!r}: {name} takes at least {SMALLEST_DENSE_IMAGE} pixels a side")
        growth = max(1, round(GROWTH * width))
        channels = 2 * growth if bottleneck else max(1, round(16 * width))
        self.stem = nn.Conv2d(task.channels, channels, 3, padding=1, bias=False)
        blocks = []
        for number in range(BLOCKS):
            layers: list[nn.Module] = []
            if number:
                kept = channels // 2 if bottleneck else channels
                layers += [*normalised_convolution(channels, kept, 1), nn.AvgPool2d(2)]
                channels = kept
            for _ in range(count):
                layers.append(DenseUnit(channels, growth, bottleneck))
                channels += growth
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        pooling = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.classifier = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *pooling, nn.Linear(channels, task.classes)
        )
        fixed, shape = macs_of(self.stem, task.image)
        units = []
        for number, block in enumerate(self.blocks):
            macs, shape = macs_of(block, shape)
            units.append(Unit(f"block-{number}", "block", macs))
        self.classifier_macs = macs_of(self.classifier, shape)[0]
        fixed += self.classifier_macs
        total = fixed + sum(unit.macs for unit in units)
        self.describe_units(units, fixed=fixed, full=total, least=total)

    def _logits(self, inputs: Tensor) -> Tensor:
        features = self.stem(inputs)
        for block in self.blocks:
            features = block(features)
        return self.classifier(features)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Logits (B, C); `decisions` are (B, 0), there is nothing to decide or to price."""
        result = self._answer(inputs)
        return Routed((result.logits,), result.logits, result.decisions, result.macs)

    def _answer(self, inputs: Tensor) -> Inference:
        logits = self._logits(inputs)
        path = torch.ones(len(inputs), len(self.units), device=inputs.device)
        return Inference(logits, path, self.path_macs(path), logits.new_zeros(len(inputs), 0))

    @torch.no_grad()
    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The same pass; there is no knob."""
        return self._answer(inputs)

    def unit_groups(self) -> tuple[int, ...]:
        """Every block works at its own resolution."""
        return tuple(range(BLOCKS))
