"""The bodies of multi-path networks: plain CNNs, VGG-13 and residual networks with X parallel paths.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450,
table 1 and sections 6 and 7. A body is a shared trunk and segments: a routing layer and the layers of every
path behind it. Routing attaches at *places*, the names of layers: cross-connections and
cross-stitch behind a layer (and its pool), or at ``input``; cross-prediction in the place of a convolution or
linear layer, and in residual networks as a convolution of its own behind a stack.

Shape legend: X paths.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from spaces.space import nearest
from trainables.contracts.network import Task
from trainables.networks.memory import require_memory
from trainables.networks.multipath.layers import (
    Average,
    PathBlock,
    PathConv,
    PathExcitation,
    PathLinear,
    PathNorm,
    PathSequence,
)
from trainables.networks.multipath.routing import GATE_SIZE, Copies, RoutingLayer, routing_layer
from trainables.networks.resnet.cifar import SMALLEST_IMAGE, blocks_per_group
from trainables.networks.resnet.imagenet import GROUPS, SMALLEST_IMAGENET_IMAGE, Bottleneck

# groups of convolutions, linear layers before the classifier, whether the last group is pooled too
PLAIN = {
    "basecnn": (((32, 32), (64, 64), (128, 128)), (32, 32), False),
    "widecnn": (((64, 64), (128, 128), (256, 256)), (32, 32), False),
    "deepcnn": (((32, 32), (64, 64), (128,) * 3, (256,) * 3), (32, 32), False),
    "vgg-13": (((32, 32), (64, 64), (128, 128), (256, 256), (256, 256)), (256, 256), True),
}
_NAME = re.compile(r"(se)?(basecnn|widecnn|deepcnn|vgg-13|resnet-\d+)(?:-(\d+))?(-imagenet)?(?:-(cp|cc|stitch|none))?")
NETWORKS = (
    *PLAIN,
    *(f"{body}-{paths}" for body in ("basecnn", "resnet-20", "resnet-32") for paths in (2, 3, 4)),
    *("vgg-13-2", "resnet-8-2", "resnet-18-2-imagenet", "resnet-34-2-imagenet", "resnet-50-2-imagenet"),
)
SE_RATIO = 16
"""Squeeze and excitation's own (Hu et al.); Tissera et al. name none."""

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
    if task.height % 2**pools or task.width % 2**pools:
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
    width *= (task.height // 2**pools) * (task.width // 2**pools)
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
    if task.edge < smallest:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What a body is built from.

    `places` is ``published``, ``all``, ``first`` or ``last`` (of the published ones), or names with commas between
    them; `width` multiplies the channels of convolutions; `se_ratio` 0 is without squeeze and excitation.
    """

    family: str
    paths: int = 1
    imagenet: bool = False
    routing: str = "none"
    places: str = "published"
    width: float = 1.0
    gate_size: int = GATE_SIZE
    batch_norm: bool = True
    se_ratio: int = 0
    shortcut: str = "B"

    @property
    def residual(self) -> bool:
        """Whether the body is a residual network."""
        return self.family not in PLAIN

    def wide(self, channels: int) -> int:
        """Channels under the multiplier."""
        return max(1, round(channels * self.width))


def parse(name: str) -> Layout:
    """What a name says: ``basecnn``, ``sebasecnn``, ``basecnn-3``, ``resnet-18-2-imagenet`` and the like.

    Each may have -cp, -cc, -stitch or -none behind it, where the routing is not said elsewhere.

    Raises `ValueError` for other names, 0 paths and depths that do not exist; `routing` is empty where the name is
    silent.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        known = "must be basecnn-X, widecnn-X, deepcnn-X, vgg-13-X, resnet-N-X or resnet-N-X-imagenet with X paths"
        raise ValueError(f"network = {name!r}: {known}{nearest(name, NETWORKS)}")
    se, family, paths, imagenet, routing = match.groups()
    if paths is not None and int(paths) < 1:
        raise ValueError(f"network = {name!r}: the number of paths X must be at least 1")
    depth = family.partition("-")[2]
    if family.startswith("resnet"):
        if imagenet and depth not in GROUPS:
            raise ValueError(f"network = {name!r}: ImageNet bodies have {', '.join(GROUPS)} layers, not {depth}")
        if not imagenet:
            blocks_per_group(family)
        if se:
            raise ValueError(f"network = {name!r}: squeeze and excitation is for {', '.join(PLAIN)}")
    elif imagenet:
        raise ValueError(f"network = {name!r}: only resnet-N-X has an ImageNet form; {family} takes any image size")
    return Layout(
        family=family,
        paths=int(paths or 1),
        imagenet=bool(imagenet),
        routing=routing or "",
        se_ratio=SE_RATIO if se else 0,
    )


def places_of(layout: Layout) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(all places that the body has for the routing, the published ones), from the image to the classifier."""
    predicts = layout.routing == "cp"
    if layout.residual:
        stacks = [f"stack{k + 1}" for k in range(4 if layout.imagenet else 3)]
        places = ("stem", *stacks)
        return places, (places[:-1] if predicts else places)
    groups, dense, _ = PLAIN[layout.family]
    firsts, lasts, count = [], [], 0
    for group in groups:
        firsts.append(f"conv{count + 1}")
        count += len(group)
        lasts.append(f"conv{count}")
    layers = [*(f"conv{k + 1}" for k in range(count)), *(f"dense{k + 1}" for k in range(len(dense)))]
    if predicts:
        return tuple(layers), (*firsts, "dense2")
    return ("input", *layers), ("input", *lasts, "dense1")


def chosen_places(layout: Layout) -> tuple[str, ...]:
    """The places where a body routes, in its order.

    Raises `ValueError` with the list of its places where it lacks one that is asked for.
    """
    if layout.routing == "none":
        return ()
    known, published = places_of(layout)
    words = {"published": published, "all": known, "first": published[:1], "last": published[-1:]}
    if layout.places in words:
        return words[layout.places]
    asked = [place.strip() for place in layout.places.split(",")]
    for place in asked:
        if place not in known:
            words_too = f"{', '.join(words)}, or of {', '.join(known)} with commas"
            raise ValueError(
                f"places = {layout.places!r}: {layout.family} has no place {place!r} for {layout.routing}; "
                f"it takes one of {words_too}"
            )
    return tuple(place for place in known if place in asked)
