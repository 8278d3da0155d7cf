"""MSDNet: dense layers on several scales at once, with classifiers on the way (CIFAR form).

Reference: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, "Multi-scale dense
networks for resource efficient image classification", ICLR 2018, arXiv 1703.09844.

Shape legend: B images, c_s channels of scale s; scales are listed from the finest to the coarsest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from trainables.network import Task
from trainables.networks.exits import ExitNetwork

NETWORKS = tuple(f"msdnet-{k}" for k in (3, 4, 5, 6, 7, 8))
STEP_MODES = ("lin_grow", "even")
HEAD = 128
"""Channels inside a classifier."""
COARSEST = 8
"""Pixels a side that the coarsest scale must keep: every classifier halves it twice and pools 2 x 2."""


def exits_of(name: str) -> int:
    """The K of the network ``msdnet-K``; `ValueError` where the name is of another kind."""
    match = re.fullmatch(r"msdnet-([1-9]\d*)", name)
    if match is None:
        raise ValueError(f"network = {name!r}: must be msdnet-K with K exits, at least 1, for example msdnet-5")
    return int(match[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The measures of an MSDNet.

    `channels` and `growth`: channels of the stem and channels that a layer adds, both on the finest
    scale; scale s has ``factors[s]`` times as many. `head`: channels inside a classifier.
    `bottleneck`: a 1 x 1 convolution before every 3 x 3 one. `reduction`: the share of channels
    kept where a scale is dropped. Stage 1 has `base` layers, stage i + 1 has ``step * i + 1``
    (`lin_grow`) or `step` (`even`).
    """

    exits: int
    channels: int = 16
    growth: int = 6
    factors: tuple[int, ...] = (1, 2, 4)
    head: int = HEAD
    bottleneck: bool = True
    reduction: float = 0.5
    step_mode: str = "lin_grow"
    step: int = 1
    base: int = 1

    def steps(self) -> tuple[int, ...]:
        """Layers of each stage."""
        later = range(1, self.exits)
        return (self.base, *(self.step * i + 1 if self.step_mode == "lin_grow" else self.step for i in later))

    def scales_before_and_after(self, layer: int) -> tuple[int, int]:
        """Scales that enter and leave layer 1, 2, ...: they are dropped one by one at even distances."""
        scales = len(self.factors)
        interval = math.ceil(sum(self.steps()) / scales)
        return scales - max(0, layer - 2) // interval, scales - (layer - 1) // interval

    def reduced(self, channels: int) -> int:
        """Channels on the finest scale behind a transition; other scales have multiples of these."""
        return max(1, math.floor(self.reduction * channels))

    def fitted(self, size: int) -> Layout:
        """The layout with as many scales as images of `size` pixels allow.

        Raises `ValueError` where not even one scale leaves `COARSEST` pixels.
        """
        sizes = [size]
        while len(sizes) < len(self.factors):
            sizes.append(math.ceil(sizes[-1] / 2))
        scales = sum(each >= COARSEST for each in sizes)
        if scales == 0:
            raise ValueError(f"size = {size!r}: msdnet needs images of at least {COARSEST} pixels a side")
        return replace(self, factors=self.factors[:scales])


def conv_bn_relu(channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution without bias that keeps the resolution but for its stride, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True))


def grow(channels_in: int, channels_out: int, factor: int, stride: int, bottleneck: bool) -> nn.Sequential:
    """New features from one scale: 3 x 3, behind 1 x 1 to at most ``factor * channels_out`` channels."""
    if not bottleneck:
        return conv_bn_relu(channels_in, channels_out, 3, stride)
    inner = min(channels_in, factor * channels_out)
    return nn.Sequential(conv_bn_relu(channels_in, inner, 1), conv_bn_relu(inner, channels_out, 3, stride))


class Stem(nn.Module):
    """The image to the first features of every scale, each from the next finer one."""

    def __init__(self, channels_in: int, layout: Layout) -> None:
        super().__init__()
        widths = [channels_in, *(layout.channels * factor for factor in layout.factors)]
        self.scales = nn.ModuleList(
            conv_bn_relu(widths[s], widths[s + 1], 3, stride=1 if s == 0 else 2) for s in range(len(layout.factors))
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, channels, size, size) to one (B, c_s, size / 2^s, size / 2^s) per scale, finest first."""
        features = []
        for scale in self.scales:
            image = scale(image)
            features.append(image)
        return features


class DenseLayer(nn.Module):
    """One layer on all kept scales: old features and new ones from the same and the next finer scale.

    `channels` are those on the finest of all scales. Where the layer drops the finest scale that
    enters it (`before` > `after`), that scale still feeds the one that becomes the finest.
    """

    def __init__(self, channels: int, layout: Layout, before: int, after: int) -> None:
        super().__init__()
        self.dropped = before - after
        first = len(layout.factors) - after
        self.downs, self.normals = nn.ModuleList(), nn.ModuleList()
        for s in range(first, len(layout.factors)):
            factor, added = layout.factors[s], layout.growth * layout.factors[s]
            if s > first or self.dropped:
                finer, added = layout.factors[s - 1], added // 2
                self.downs.append(grow(channels * finer, added, finer, 2, layout.bottleneck))
            self.normals.append(grow(channels * factor, added, factor, 1, layout.bottleneck))

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """Features of the scales that enter, finest first, to those of the scales that are kept."""
        lone = len(self.normals) - len(self.downs)  # 1 where the finest kept scale has none above it
        outputs = []
        for k, normal in enumerate(self.normals):
            own = scales[k + self.dropped]
            down = [self.downs[k - lone](scales[k + self.dropped - 1])] if k >= lone else []
            outputs.append(torch.cat([own, *down, normal(own)], dim=1))
        return outputs


class Transition(nn.Module):
    """A 1 x 1 convolution on every kept scale, to fewer channels."""

    def __init__(self, channels_in: int, channels_out: int, factors: Sequence[int]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(conv_bn_relu(channels_in * f, channels_out * f, 1) for f in factors)

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """The same scales with fewer channels."""
        return [module(features) for module, features in zip(self.scales, scales, strict=True)]


class Stage(nn.Module):
    """The layers between two exits (the first stage begins with the stem)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """Features of all scales that enter (the image, for the first stage) to those that leave."""
        features = list(scales)
        for layer in self.layers:
            features = layer(*features)
        return features


def stages_of(layout: Layout, channels_in: int) -> tuple[list[Stage], list[int]]:
    """The stages of a network and the channels on the coarsest scale behind each."""
    channels, number = layout.channels, 0
    stages, coarsest = [], []
    for step in layout.steps():
        layers: list[nn.Module] = [] if stages else [Stem(channels_in, layout)]
        for _ in range(step):
            number += 1
            before, after = layout.scales_before_and_after(number)
            layers.append(DenseLayer(channels, layout, before, after))
            channels += layout.growth
            if before > after:
                # the base width is rounded, not each scale's: 101 becomes 50, and 200 on the coarsest
                fewer = layout.reduced(channels)
                layers.append(Transition(channels, fewer, layout.factors[-after:]))
                channels = fewer
        stages.append(Stage(layers))
        coarsest.append(channels * layout.factors[-1])
    return stages, coarsest


def classifier_of(channels: int, width: int, classes: int) -> nn.Sequential:
    """An exit: two strided 3 x 3 convolutions on the coarsest scale, pooling, a linear layer.

    Pooling is over all positions, which are the 2 x 2 of the published head at 32 pixels.
    """
    convolutions = (conv_bn_relu(channels, width, 3, stride=2), conv_bn_relu(width, width, 3, stride=2))
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


class MSDNet(ExitNetwork):
    """An MSDNet of some layout, with fewer scales where images are small.

    Raises `ValueError` where images are too small for a single one.
    """

    def __init__(self, config: Any, task: Task, layout: Layout) -> None:
        fitted = layout.fitted(task.size)
        stages, channels = stages_of(fitted, task.channels)
        super().__init__(config, task, stages, [classifier_of(c, fitted.head, task.classes) for c in channels])
        self.layout = fitted
