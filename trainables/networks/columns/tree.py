"""Columns over a pyramid of scales: the parts of the actor and critic networks, and how they are joined.

M. McGill, P. Perona, "Deciding how to decide: dynamic routing in artificial neural networks",
ICML 2017, arXiv 1703.06217, figure 3. A column computes features on several scales at once, each from
the same scale of the column before it and from the next finer scale of its own.

**What a pyramid holds.** An image is halved until its edge would fall below `COARSEST` = 4 pixels, at
most `MOST_SCALES` = 4 scales: 32 pixels have four (32, 16, 8, 4), 16 have three, 8 have two, 4 have one.
Every scale carries two columns, then the finest one is dropped and the channels double (16, 32, 64,
128). So S scales hold 2 S columns: eight at 32 pixels, as published, six at 16, four at 8, two at 4.

Columns are numbered from 0, as the paper's code has it.

Shape legend: B images, c channels, h height (= width) of a scale; scales are listed from the finest to
the coarsest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from trainables.networks.columns.layers import Column

COARSEST = 4
"""Pixels a side that every scale keeps at least."""
MOST_SCALES = 4
CHANNELS = 16
"""Channels of the first two columns at width 1."""
FORKS = 3
"""Columns behind which the published tree goes on in two."""
PYRAMIDS = ("subsample", "bilinear")
_LENGTHS = range(2, 2 * MOST_SCALES + 1)
ROUTED_NETWORKS = tuple(
    name for kind in ("pyramid", "pyramid-tree") for name in (kind, *(f"{kind}-{n}" for n in _LENGTHS))
)
STATIC_NETWORKS = tuple(f"pyramid-static-{n}" for n in (1, *_LENGTHS))
NETWORKS = (*ROUTED_NETWORKS, *STATIC_NETWORKS)


def kind_and_length(name: str) -> tuple[str, int]:
    """(``static``, ``chain`` or ``tree``, columns from end to end; 0: as many as the pyramid holds).

    Raises `ValueError` where the name is of another kind.
    """
    match = re.fullmatch(r"pyramid(?:-(static|tree))?(?:-([1-9]\d*))?", name)
    if match is None or name not in NETWORKS:
        raise ValueError(
            f"network = {name!r}: must be pyramid-static-N (N = 1 to {_LENGTHS[-1]}), pyramid[-N] or"
            f" pyramid-tree[-N] (N = 2 to {_LENGTHS[-1]}; without N as many columns as the images' pyramid holds)"
        )
    return match[1] or "chain", int(match[2] or 0)


def scales_of(size: int) -> list[int]:
    """Edges of the scales of an image of `size` pixels, finest first (see the module)."""
    sizes = [size]
    while len(sizes) < MOST_SCALES and sizes[-1] // 2 >= COARSEST:
        sizes.append(math.ceil(sizes[-1] / 2))
    return sizes


def length_for(name: str, size: int) -> int:
    """Columns from end to end of a network for images of `size` pixels.

    Raises `ValueError` where the pyramid does not hold as many as the name asks for.
    """
    _, length = kind_and_length(name)
    scales = scales_of(size)
    held = 2 * len(scales)
    if length > held:
        pixels = COARSEST * 2 ** (math.ceil(length / 2) - 1)
        raise ValueError(
            f"network = {name!r}: images of {size} pixels have a pyramid of {len(scales)} scales, which holds"
            f" {held} columns; take {name.rpartition('-')[0]}-{held} or images of at least {pixels} pixels"
        )
    return length or held


@dataclass(frozen=True, slots=True)
class Node:
    """A column in a network. Its sinks are its classifier, where it has one, and then its `children`.

    `depth`: columns before it. `parent`: the index of the column that it reads, -1 for the first.
    """

    name: str
    depth: int
    parent: int
    children: tuple[int, ...]
    answers: bool = True

    @property
    def sinks(self) -> int:
        """Where an image may go from here; 2 or more are a junction."""
        return self.answers + len(self.children)


def nodes_of(kind: str, length: int, forks: int = FORKS) -> list[Node]:
    """The columns of a network, parents before children, level by level.

    A chain has a two-way junction (classify, go on) behind every column but the last; a tree forks
    behind the first `forks` columns (classify, two children) and goes on in chains; in a static
    network only the last column has a classifier.
    """
    forks = min(forks, length - 1) if kind == "tree" else 0
    widths = [2 ** min(depth, forks) for depth in range(length)]
    starts = [sum(widths[:depth]) for depth in range(length + 1)]
    nodes = []
    for depth, width in enumerate(widths):
        ways = 0 if depth == length - 1 else 2 if depth < forks else 1
        before = widths[depth - 1] if depth else 0
        for k in range(width):
            nodes.append(
                Node(
                    name=f"{depth}" if width == 1 else f"{depth}-{k}",
                    depth=depth,
                    parent=starts[depth - 1] + k * before // width if depth else -1,
                    children=tuple(starts[depth + 1] + ways * k + way for way in range(ways)),
                    answers=kind != "static" or not ways,
                )
            )
    return nodes


class Pyramid(nn.Module):
    """An image on several scales: every second, fourth ... pixel, or bilinear means of neighbours.

    The paper's code resizes bilinearly on a grid whose points fall on pixels: plain subsampling.
    ``bilinear`` puts the points between pixels.
    """

    def __init__(self, size: int | tuple[int, int], how: str, scales: int) -> None:
        super().__init__()
        sizes = [size if isinstance(size, tuple) else (size, size)]
        while len(sizes) < scales:
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        self.how, self.sizes = how, sizes

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, channels, size, size) to one (B, channels, h, h) per scale, finest first."""
        if self.how == "subsample":
            # strided views would be copied by every convolution that reads them
            return [image, *(image[..., :: 2**i, :: 2**i].contiguous() for i in range(1, len(self.sizes)))]
        return [image, *(F.interpolate(image, each, mode="bilinear") for each in self.sizes[1:])]


def columns_for(nodes: Sequence[Node], channels_in: int, scales: int, width: float) -> list[Column]:
    """One column per node: two to a scale, with twice the channels where the finest scale is dropped."""

    def channels(depth: int) -> int:
        return max(1, round(CHANNELS * 2 ** (depth // 2) * width))

    def kept(depth: int) -> int:
        return scales - depth // 2

    columns = []
    for node in nodes:
        before = channels(node.depth - 1) if node.depth else channels_in
        read = kept(node.depth + 1) if node.children else 1  # a classifier and a router read the coarsest
        columns.append(Column(before, channels(node.depth), kept(node.depth), read))
    return columns


def exits_at(nodes: Sequence[Node]) -> list[int]:
    """Of every column the number of its classifier, -1 where it has none."""
    numbers = iter(range(len(nodes)))
    return [next(numbers) if node.answers else -1 for node in nodes]


def sinks_at(nodes: Sequence[Node]) -> list[slice]:
    """Of every column the places of its sinks among all sinks of all junctions; none where it has no junction."""
    slices, begin = [], 0
    for node in nodes:
        count = node.sinks if node.sinks > 1 else 0
        slices.append(slice(begin, begin + count))
        begin += count
    return slices


def way_to(nodes: Sequence[Node], leaf: int) -> list[tuple[int, int]]:
    """(column, sink taken) from the first column to the classifier behind column `leaf`."""
    way, n, sink = [], leaf, 0
    while n >= 0:
        way.append((n, sink))
        if nodes[n].parent >= 0:
            above = nodes[nodes[n].parent]
            sink = above.answers + above.children.index(n)
        n = nodes[n].parent
    return way[::-1]


def exits_from(nodes: Sequence[Node]) -> list[int]:
    """Of every column how many classifiers lie behind it, its own included."""
    counts = [int(node.answers) for node in nodes]
    for n in reversed(range(1, len(nodes))):
        counts[nodes[n].parent] += counts[n]
    return counts
