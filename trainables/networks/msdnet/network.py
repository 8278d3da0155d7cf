"""MSDNet: dense layers on several scales at once, with classifiers on the way.

Reference: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, "Multi-scale dense
networks for resource efficient image classification", ICLR 2018, arXiv 1703.09844.

Shape legend: B images, c_s channels of scale s; scales are listed from the finest to the coarsest.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from trainables.network import Task
from trainables.networks.exits import ExitNetwork
from trainables.networks.memory import require_memory
from trainables.networks.msdnet_names import Layout


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


def imagenet_stem(channels_in: int, channels_out: int) -> nn.Sequential:
    """A strided 7 x 7 convolution (with a bias, as published), batch norm, ReLU and strided pooling."""
    convolution = nn.Conv2d(channels_in, channels_out, 7, stride=2, padding=3)
    norm, relu = nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)
    return nn.Sequential(convolution, norm, relu, nn.MaxPool2d(3, stride=2, padding=1))


class Stem(nn.Module):
    """The image to the first features of every scale, each from the next finer one."""

    def __init__(self, channels_in: int, layout: Layout) -> None:
        super().__init__()
        first, *coarser = (layout.channels * factor for factor in layout.factors)
        finest = imagenet_stem(channels_in, first) if layout.kind == "imagenet" else conv_bn_relu(channels_in, first, 3)
        widths = [first, *coarser]
        downs = [conv_bn_relu(*pair, 3, stride=2) for pair in pairwise(widths)]
        self.scales = nn.ModuleList([finest, *downs])

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, channels, size, size) to one (B, c_s, size / 2^s, size / 2^s) per scale, finest first.

        On ImageNet the finest scale has a quarter of the image's pixels a side.
        """
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
    """An MSDNet of some layout, with fewer scales where images are small (not with `exactly`).

    Raises `ValueError` where images are too small, or the machine's memory for training is.
    """

    def __init__(self, config: Any, task: Task, layout: Layout, *, exactly: bool = False) -> None:
        fitted = layout.fitted(task.size, exactly=exactly)
        layers = f"{sum(fitted.steps())} layers of growth {fitted.growth}"
        require_memory(fitted.weights(), f"exits = {fitted.exits!r}: msdnet with so many ({layers})")
        stages, channels = stages_of(fitted, task.channels)
        super().__init__(config, task, stages, [classifier_of(c, fitted.head or c, task.classes) for c in channels])
        self.layout = fitted
