"""MSDNet: dense layers on several scales at once, with classifiers on the way; the networks' names and measures.

Reference: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, "Multi-scale dense
networks for resource efficient image classification", ICLR 2018, arXiv 1703.09844.

Shape legend: B images, c_s channels of scale s; scales are listed from the finest to the coarsest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.networks.memory import require_memory
from trainables.networks.msdnet.exits import ExitNetwork

NETWORKS = (*(f"msdnet-{k}" for k in (3, 4, 5, 6, 7, 8)), *(f"msdnet-5-imagenet{t}" for t in (4, 6, 7)))
STEP_MODES = ("lin_grow", "even")
FACTORS = ("1", "1-2", "1-2-4", "1-2-4-4")
HEAD = 128
"""Channels inside a classifier of the CIFAR networks."""
COARSEST = {"cifar": 8, "imagenet": 7}
"""Pixels a side that the coarsest scale must keep: every classifier halves it twice and pools 2 x 2."""


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
        fitted = layout.fitted(task.edge, exactly=exactly)
        layers = f"{sum(fitted.steps())} layers of growth {fitted.growth}"
        require_memory(fitted.weights(), f"exits = {fitted.exits!r}: msdnet with so many ({layers})")
        stages, channels = stages_of(fitted, task.channels)
        super().__init__(config, task, stages, [classifier_of(c, fitted.head or c, task.classes) for c in channels])
        self.layout = fitted


@dataclass(frozen=True, slots=True)
class Named:
    """What a network's name says: exits, `kind` (cifar or imagenet) and the published measures."""

    exits: int
    kind: str
    growth: int
    channels: int
    factors: str
    step_mode: str
    step: int


def named(name: str) -> Named:
    """What ``msdnet-K`` or ``msdnet-K-imagenetT`` (T layers a stage) stands for.

    Raises `ValueError` where the name is of another kind.
    """
    match = re.fullmatch(r"msdnet-([1-9]\d{0,2})(?:-imagenet([1-9]\d*))?", name)
    if match is None:
        raise ValueError(
            f"network = {name!r}: must be msdnet-K with K exits, 1 to 999, for example msdnet-5,"
            " or msdnet-K-imagenetT with T layers between exits, for example msdnet-5-imagenet4"
        )
    if match[2] is None:
        return Named(int(match[1]), "cifar", 6, 16, "1-2-4", "lin_grow", 1)
    return Named(int(match[1]), "imagenet", 16, 32, "1-2-4-4", "even", int(match[2]))


def exits_of(name: str) -> int:
    """The K of a network's name; `ValueError` where it is of another kind."""
    return named(name).exits


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The measures of an MSDNet.

    `kind`: the stem, 3 x 3 (cifar) or 7 x 7 strided and pooled (imagenet). `channels` and `growth`:
    channels of the stem and channels that a layer adds, both on the finest scale; scale s has
    ``factors[s]`` times as many. `head`: channels inside a classifier, 0 for as many as it reads.
    `bottleneck`: a 1 x 1 convolution before every 3 x 3 one. `reduction`: the share of channels
    kept where a scale is dropped. Stage 1 has `base` layers, stage i + 1 has ``step * i + 1``
    (`lin_grow`) or `step` (`even`).
    """

    exits: int
    kind: str = "cifar"
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

    def sizes(self, size: int) -> list[int]:
        """Pixels a side of every scale, finest first, for images of `size` pixels."""
        sizes = [size if self.kind == "cifar" else math.ceil(math.ceil(size / 2) / 2)]
        while len(sizes) < len(self.factors):
            sizes.append(math.ceil(sizes[-1] / 2))
        return sizes

    def fitted(self, size: int, *, exactly: bool = False) -> Layout:
        """The layout with as many scales as images of `size` pixels allow; with `exactly`, all of them.

        Raises `ValueError` where the coarsest scale would have fewer than `COARSEST` pixels.
        """
        least = COARSEST[self.kind]
        scales = sum(each >= least for each in self.sizes(size))
        if scales == 0 or (exactly and scales < len(self.factors)):
            wanted = len(self.factors) if exactly else 1
            # the smallest size whose coarsest scale is large enough: halving rounds up
            halvings = wanted - 1 + (2 if self.kind == "imagenet" else 0)
            pixels = (least - 1) * 2**halvings + 1
            having = f" with {wanted} scales" if wanted > 1 else ""
            raise ValueError(f"size = {size!r}: msdnet{having} needs images of at least {pixels} pixels a side")
        return replace(self, factors=self.factors[:scales])

    def weights(self) -> Iterator[int]:
        """Weights of the convolutions of each layer and classifier: nearly all parameters, and nothing is built."""

        def grown(entering: int, added: int, factor: int) -> int:
            inner = min(entering, factor * added)
            return inner * (entering + 9 * added) if self.bottleneck else 9 * entering * added

        channels, number = self.channels, 0
        for step in self.steps():
            for _ in range(step):
                number += 1
                before, after = self.scales_before_and_after(number)
                first = len(self.factors) - after
                for s in range(first, len(self.factors)):
                    factor, added = self.factors[s], self.growth * self.factors[s]
                    if s > first or before > after:
                        finer, added = self.factors[s - 1], added // 2
                        yield grown(channels * finer, added, finer)
                    yield grown(channels * factor, added, factor)
                channels += self.growth
                if before > after:
                    fewer = self.reduced(channels)
                    yield channels * fewer * sum(factor**2 for factor in self.factors[-after:])
                    channels = fewer
            read = channels * self.factors[-1]
            width = self.head or read
            yield 9 * width * (read + width)


def layout_of(config: Any) -> Layout:
    """The measures that a configuration with their names asks for; its `width` multiplies all channels."""

    def wide(channels: int) -> int:
        return max(1, round(channels * config.width))

    body = named(config.network)
    factors = body.factors if config.factors == "auto" else config.factors
    return Layout(
        exits=body.exits,
        kind=body.kind,
        channels=wide(config.channels),
        growth=wide(config.growth),
        factors=tuple(map(int, factors.split("-"))),
        head=wide(HEAD) if body.kind == "cifar" else 0,
        bottleneck=config.bottleneck,
        reduction=config.reduction,
        step_mode=config.step_mode,
        step=config.step,
        base=config.base,
    )
