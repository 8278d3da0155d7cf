"""The bodies of multi-path networks: plain CNNs, VGG-13 and residual networks with X parallel paths.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450,
table 1 and sections 6 and 7. A body is a shared trunk and segments: a routing layer and the layers of every
path behind it. Where routing attaches, `multipath_names` says.

Shape legend: X paths.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trainables.network import Task
from trainables.networks.imagenet import GROUPS, SMALLEST_IMAGENET_IMAGE, Bottleneck
from trainables.networks.memory import require_memory
from trainables.networks.multipath_layers import (
    Average,
    PathBlock,
    PathConv,
    PathExcitation,
    PathLinear,
    PathNorm,
    PathSequence,
)
from trainables.networks.multipath_names import PLAIN, Layout, chosen_places
from trainables.networks.resnet import SMALLEST_IMAGE, blocks_per_group
from trainables.networks.routing_layers import Copies, RoutingLayer, routing_layer

MANY_PATHS = 16
"""Up to so many nobody asks whether the memory is enough."""


@dataclass(slots=True)
class Segment:
    """A routing layer, the place it is at, and what every path computes behind it."""

    place: str
    router: RoutingLayer
    stage: PathSequence


@dataclass(slots=True)
class Body:
    """What all paths share, and the segments up to each path's logits."""

    trunk: nn.Module
    segments: list[Segment]


class _Builder:
    """Puts layers behind routing layers."""

    def __init__(self, layout: Layout) -> None:
        self.layout, self.places = layout, chosen_places(layout)
        self.segments: list[Segment] = []

    def begins(self, *places: str) -> bool:
        """Whether one of these places has a routing layer."""
        return any(place in self.places for place in places)

    def route(self, place: str, width: int, **how: Any) -> None:
        """A routing layer, from one input where it is the first."""
        inputs = self.layout.paths if self.segments else 1
        layer = routing_layer(
            self.layout.routing, inputs, self.layout.paths, width, gate_size=self.layout.gate_size, **how
        )
        self._open(place, layer)

    def copy(self, place: str, width: int) -> None:
        """All paths get the same."""
        self._open(place, Copies(self.layout.paths, width))

    def _open(self, place: str, router: RoutingLayer) -> None:
        self.segments.append(Segment(place, router, PathSequence(self.layout.paths)))

    def add(self, *layers: nn.Module | None) -> None:
        """Layers of every path."""
        self.segments[-1].stage.layers.extend(layer for layer in layers if layer is not None)


def body_of(layout: Layout, task: Task) -> Body:
    """The parts of a body, initialised as PyTorch does.

    Raises `ValueError` where images are too small or the pools cannot halve them, for an unknown place, and
    where so many paths need more memory than the machine has.
    """
    if layout.paths > MANY_PATHS:
        _check_memory(layout, task)
    return residual_body(layout, task) if layout.residual else plain_body(layout, task)


def _check_memory(layout: Layout, task: Task) -> None:
    """Parameters are a polynomial of degree 2 in X: three small bodies say what many paths would need."""
    counts = []
    with torch.device("meta"):
        for paths in (1, 2, 3):
            body = body_of(replace(layout, paths=paths), task)
            modules: Iterable[nn.Module] = [body.trunk, *(m for s in body.segments for m in (s.router, s.stage))]
            counts.append(sum(p.numel() for module in modules for p in module.parameters()))
    x, (one, two, three) = layout.paths, counts
    bend = three - 2 * two + one
    needed = one + (x - 1) * (two - one) + (x - 1) * (x - 2) // 2 * bend
    require_memory([needed], f"paths = {x!r}: {layout.family} with so many")


def plain_body(layout: Layout, task: Task) -> Body:
    """BaseCNN, WideCNN, DeepCNN or VGG-13: convolutions in groups with pools between them, linear layers, logits."""
    groups, dense, pooled_last = PLAIN[layout.family]
    pools = len(groups) - (not pooled_last)
    if task.size % 2**pools:
        raise ValueError(
            f"size = {task.size!r}: {layout.family} halves images {pools} times; "
            f"the size must be a multiple of {2**pools}"
        )
    paths, build = layout.paths, _Builder(layout)
    how = {"norm": layout.batch_norm, "se_ratio": layout.se_ratio}
    predicts, width = layout.routing == "cp", task.channels
    if not predicts and build.begins("input"):
        build.route("input", width)
    elif not (predicts and build.begins("conv1")):
        build.copy("input", width)
    number = 0
    for g, group in enumerate(groups):
        for k, channels in enumerate(layout.wide(c) for c in group):
            number += 1
            place = f"conv{number}"
            if predicts and build.begins(place):
                build.route(place, width, width_out=channels, **how)
            else:
                norm = PathNorm(paths, channels) if layout.batch_norm else None
                excitation = PathExcitation(paths, channels, layout.se_ratio) if layout.se_ratio else None
                build.add(PathConv(paths, width, channels, 3), norm, nn.ReLU(), excitation)
            if k == len(group) - 1 and g < pools:
                build.add(nn.MaxPool2d(2))
            width = channels
            if not predicts and build.begins(place):
                build.route(place, width)
    build.add(nn.Flatten())
    width *= (task.size // 2**pools) ** 2
    for number, features in enumerate(dense, start=1):
        place = f"dense{number}"
        if predicts and build.begins(place):
            build.route(place, width, width_out=features, kernel=0)
        else:
            build.add(PathLinear(paths, width, features), nn.ReLU())
        width = features
        if not predicts and build.begins(place):
            build.route(place, width)
    build.add(PathLinear(paths, width, task.classes))
    return Body(nn.Identity(), build.segments)


def residual_body(layout: Layout, task: Task) -> Body:
    """ResNet-(6n+2) or an ImageNet ResNet: a stem that paths share (cross-prediction replaces it), stacks, logits."""
    smallest = SMALLEST_IMAGENET_IMAGE if layout.imagenet else SMALLEST_IMAGE
    if task.size < smallest:
        halvings = "five times" if layout.imagenet else "twice"
        raise ValueError(
            f"size = {task.size!r}: {layout.family} halves images {halvings} and takes at least "
            f"{smallest} pixels a side"
        )
    depth = layout.family.partition("-")[2]
    counts = GROUPS[depth] if layout.imagenet else (blocks_per_group(layout.family),) * 3
    kernel, stride, base = (7, 2, layout.wide(64)) if layout.imagenet else (3, 1, layout.wide(16))
    pool = [nn.MaxPool2d(3, stride=2, padding=1)] if layout.imagenet else []
    build, norm = _Builder(layout), layout.batch_norm
    predicts = layout.routing == "cp"
    trunk: nn.Module = nn.Identity()
    if predicts and build.begins("stem"):
        build.route("stem", task.channels, width_out=base, kernel=kernel, stride=stride, norm=norm)
        build.add(*pool)
    else:
        convolution = nn.Conv2d(task.channels, base, kernel, stride, kernel // 2, bias=not norm)
        trunk = nn.Sequential(convolution, *([nn.BatchNorm2d(base)] if norm else []), nn.ReLU(), *pool)
        (build.route if build.begins("stem") else build.copy)("stem", base)
    width, large = base, layout.imagenet and depth not in ("10", "18", "34")
    for group, count in enumerate(counts):
        for i in range(count):
            stride, channels = 2 if group and not i else 1, base * 2**group
            shapes = [(3, channels, stride), (3, channels, 1)]
            if large:
                shapes = [(1, channels, 1), (3, channels, stride), (1, channels * Bottleneck.EXPANSION, 1)]
            build.add(PathBlock(layout.paths, width, shapes, layout.shortcut, norm))
            width = shapes[-1][1]
        place = f"stack{group + 1}"
        if build.begins(place):
            build.route(place, width, **({"norm": norm} if predicts else {}))
    build.add(Average(), PathLinear(layout.paths, width, task.classes))
    return Body(trunk, build.segments)
