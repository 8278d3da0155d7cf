"""Pre-activation residual networks: batch norm and activation before every convolution.

References: K. He, X. Zhang, S. Ren, J. Sun, "Identity mappings in deep residual networks", ECCV 2016,
arXiv 1603.05027; the details are those of the networks of spatially adaptive computation time (arXiv
1612.02297) and their public code, github.com/mfigurnov/sact.

CIFAR, ``preact-resnet-(6n+2)``: leaky ReLU of slope 0.1, of 0.01 between a unit's two convolutions; 3 x 3 stem and
every unit's last convolution with a bias and no batch norm behind; the shortcut of the very first unit is taken
behind its batch norm and activation; where a group begins, average pooling and zero channels on both sides; the
classifier reads pooled features through batch norm and leaky ReLU. ImageNet, ``preact-resnet-50-imagenet`` and 101:
7 x 7 stem,
max pooling, bottlenecks with ReLU whose stride is on the 3 x 3 convolution, 1 x 1 convolutions with a bias as shortcut
(read behind batch norm and ReLU) where a group begins; batch norm and ReLU before the pooling of the classifier.

Deviation: strided windows are padded on both sides, as everywhere here; TensorFlow pads CIFAR's behind.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

import torch.nn.functional as F
from torch import Tensor, nn

from spaces.space import nearest
from trainables.contracts.network import Task
from trainables.networks.halting.positions import Places, PositionConv, dilated, with_zeros
from trainables.networks.resnet.cifar import (
    SMALLEST_IMAGE,
    Body,
    ResidualBlock,
    Shape,
    StridedPointwise,
    ZeroPadShortcut,
    blocks_per_group,
)
from trainables.networks.resnet.imagenet import GROUPS, SMALLEST_IMAGENET_IMAGE

DEPTHS = (8, 14, 20, 32, 38, 44, 56, 74, 110, 152)
IMAGENET_DEPTHS = ("50", "101")
IMAGENET_NETWORKS = tuple(f"preact-resnet-{depth}-imagenet" for depth in IMAGENET_DEPTHS)
PREACT_NETWORKS = (*(f"preact-resnet-{depth}" for depth in DEPTHS), *IMAGENET_NETWORKS)


def units_per_group(name: str) -> tuple[int, ...]:
    """The residual units of each group of a network by name; `ValueError` for an unknown one."""
    if name in IMAGENET_NETWORKS:
        return GROUPS[name.split("-")[2]]
    if re.fullmatch(r"preact-resnet-\d+", name) is None:
        known = "must be preact-resnet-N with N = 6n + 2, for example preact-resnet-32, or one of "
        raise ValueError(f"network = {name!r}: {known}{', '.join(IMAGENET_NETWORKS)}{nearest(name, PREACT_NETWORKS)}")
    try:
        return (blocks_per_group(name.removeprefix("preact-")),) * 3
    except ValueError as error:
        raise ValueError(str(error).replace("resnet-", "preact-resnet-").replace("preact-preact", "preact")) from None


@dataclass(frozen=True, slots=True)
class Style:
    """What CIFAR's and ImageNet's networks differ in: slopes of the activation for negative inputs, batch norm.

    `inner` is the slope between the convolutions of a unit, `slope` that everywhere else.
    """

    slope: float
    inner: float
    eps: float
    momentum: float
    bottleneck: bool = False


CIFAR = Style(slope=0.1, inner=0.01, eps=1e-3, momentum=0.1)
IMAGENET = Style(slope=0.0, inner=0.0, eps=1e-5, momentum=0.003, bottleneck=True)


class NormAct(nn.BatchNorm2d):
    """Batch norm and (leaky) ReLU of features (B, c, h, w), or in eval mode of rows (m, c)."""

    def __init__(self, channels: int, style: Style, *, inner: bool = False) -> None:
        super().__init__(channels, eps=style.eps, momentum=style.momentum)
        self.slope = style.inner if inner else style.slope

    def forward(self, input: Tensor) -> Tensor:
        """The shape stays."""
        if input.dim() == 2:
            known = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.leaky_relu(F.batch_norm(input, *known, eps=self.eps), self.slope)
        return F.leaky_relu(super().forward(input), self.slope)


class PooledNorm(nn.BatchNorm1d):
    """Batch norm of pooled features (B, c) and the activation of a slope (None: without one).

    A single image in training has no variance: it is normalised by the running statistics.
    """

    def __init__(self, channels: int, style: Style, *, slope: float | None) -> None:
        super().__init__(channels, eps=style.eps, momentum=style.momentum)
        self.slope = slope

    def forward(self, input: Tensor) -> Tensor:
        """(B, c) to (B, c)."""
        if len(input) > 1 or not self.training:
            output = super().forward(input)
        else:
            output = F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return output if self.slope is None else F.leaky_relu(output, self.slope)


class PoolShortcut(ZeroPadShortcut):
    """Average pooling, then channels of zeros on both sides."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__(channels, stride, average=True)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, c, h, w) to (B, channels, ceil(h / stride), ceil(w / stride))."""
        pooled = F.avg_pool2d(inputs, self.stride, ceil_mode=True)
        missing = self.channels - pooled.shape[1]
        return F.pad(pooled, (0, 0, 0, 0, missing // 2, missing - missing // 2))


class PreActUnit(ResidualBlock):
    """A residual unit: batch norm, activation, convolution, twice or (bottleneck) three times, and the addition.

    `activated`: the shortcut reads the input behind the first batch norm and activation. ``norm1`` is the entry,
    `inner` what follows it; `at` computes what follows it at chosen positions.
    """

    def __init__(self, channels_in: int, channels: int, stride: int, style: Style, *, activated: bool) -> None:
        super().__init__()
        self.activated = activated
        self.norm1 = NormAct(channels_in, style)
        out = 4 * channels if style.bottleneck else channels
        kernels = (1, 3, 1) if style.bottleneck else (3, 3)
        strided = 1 if style.bottleneck else 0
        for i, kernel in enumerate(kernels):
            last = i == len(kernels) - 1
            reads, writes = channels_in if i == 0 else channels, out if last else channels
            convolution = PositionConv(
                reads, writes, kernel, stride if i == strided else 1, padding=kernel // 2, bias=last
            )
            self.add_module(f"conv{i + 1}", convolution)
            if not last:
                self.add_module(f"norm{i + 2}", NormAct(channels, style, inner=True))
        self.count = len(kernels)
        if channels_in == out:
            self.shortcut = nn.Identity()
        elif style.bottleneck:
            self.shortcut = StridedPointwise(channels_in, out, stride, bias=True)
        else:
            self.shortcut = PoolShortcut(out, stride)

    def layers(self) -> list[tuple[PositionConv, nn.Module | None]]:
        """Convolutions, each with the batch norm and activation behind it (none behind the last)."""
        return [(getattr(self, f"conv{i}"), getattr(self, f"norm{i + 1}", None)) for i in range(1, self.count + 1)]

    def inner(self, entered: Tensor, wide: int | None = None, active: int | None = None) -> Tensor:
        """The residual (B, c', h', w') of what left ``norm1``.

        Where the caller uses the residual at `active` positions alone, for which the first convolution is
        read at `wide`, it says so: these are charged.
        """
        wanted = wide
        for convolution, norm in self.layers():
            entered = convolution(entered, wanted)
            if norm is not None:
                entered = norm(entered)
            wanted = active
        return entered

    def at(self, state: Tensor, active: Places, wide: Places) -> Tensor:
        """The residual (m, c') at `active` positions of a state (B * h * w, c); `wide` are those around them."""
        (first, norm), *others = self.layers()
        if first.kernel_size == (1, 1):
            rows = first(self.norm1(state.index_select(0, wide.flat)))
        else:
            around = Places.of(dilated(wide.mask))
            rows = first(with_zeros(self.norm1(state.index_select(0, around.flat))), wide.neighbours(around))
        between = active.neighbours(wide)
        for convolution, following in others:
            assert norm is not None
            rows = norm(rows)
            rows = convolution(rows) if convolution.kernel_size == (1, 1) else convolution(with_zeros(rows), between)
            norm = following
        return rows

    def branch(self, inputs: Tensor, wide: int | None = None, active: int | None = None) -> Tensor:
        """See `ResidualBlock` and `inner`."""
        return self.inner(self.norm1(inputs), wide, active)

    def forward(self, inputs: Tensor, short: Tensor | None = None) -> Tensor:
        """See `ResidualBlock`; nothing follows the addition."""
        entered = self.norm1(inputs)
        around = short if short is not None else self.shortcut(entered if self.activated else inputs)
        return around + self.inner(entered)


class PooledClassifier(nn.Module):
    """Pooling, batch norm, activation, linear layer; with `before` pooling comes third."""

    def __init__(self, channels: int, classes: int, style: Style, *, before: bool) -> None:
        super().__init__()
        self.before = before
        self.norm = NormAct(channels, style) if before else PooledNorm(channels, style, slope=style.slope)
        self.fc = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to logits (B, classes)."""
        pooled = (self.norm(features) if self.before else features).mean(dim=(2, 3))
        return self.fc(pooled if self.before else self.norm(pooled))


@dataclass(slots=True)
class PreActBody(Body):
    """A body, the units of each of its groups, and its style."""

    groups: tuple[int, ...] = ()
    style: Style = field(default=CIFAR)


def preact_body(name: str, task: Task, *, width: float = 1.0, inner_slope: float = CIFAR.inner) -> PreActBody:
    """The parts of a pre-activation network by name; `width` multiplies the channels.

    `inner_slope`: `Style.inner` of a CIFAR network; ImageNet's has none.

    Raises `ValueError` for an unknown name and for images that are too small.
    """
    groups = units_per_group(name)
    style = IMAGENET if name in IMAGENET_NETWORKS else replace(CIFAR, inner=inner_slope)
    least, halvings = (SMALLEST_IMAGENET_IMAGE, 5) if style.bottleneck else (SMALLEST_IMAGE, 2)
    if task.edge < least:
        raise ValueError(
            f"size = {task.size!r}: {name} halves images {halvings} times and takes at least {least} pixels a side"
        )
    base, height, across = max(1, round((64 if style.bottleneck else 16) * width)), task.height, task.width
    layers: list[nn.Module] = [nn.Conv2d(task.channels, base, 3, padding=1)]
    if style.bottleneck:
        layers = [nn.Conv2d(task.channels, base, 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2, padding=1)]
        height, across = (math.ceil(math.ceil(edge / 2) / 2) for edge in (height, across))
    blocks: list[ResidualBlock] = []
    shapes: list[Shape] = [(base, height, across)]
    for group, count in enumerate(groups):
        for i in range(count):
            stride, channels = 2 if group > 0 and i == 0 else 1, base * 2**group
            activated = i == 0 and (style.bottleneck or group == 0)
            blocks.append(PreActUnit(shapes[-1][0], channels, stride, style, activated=activated))
            height, across = math.ceil(height / stride), math.ceil(across / stride)
            shapes.append((4 * channels if style.bottleneck else channels, height, across))
    classifier = PooledClassifier(shapes[-1][0], task.classes, style, before=style.bottleneck)
    return PreActBody(nn.Sequential(*layers), blocks, classifier, shapes, groups, style)
