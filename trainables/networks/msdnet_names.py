"""Names and measures of MSDNets: what `msdnet` builds.

Reference: G. Huang, D. Chen, T. Li, F. Wu, L. van der Maaten, K. Weinberger, "Multi-scale dense
networks for resource efficient image classification", ICLR 2018, arXiv 1703.09844.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

NETWORKS = (*(f"msdnet-{k}" for k in (3, 4, 5, 6, 7, 8)), *(f"msdnet-5-imagenet{t}" for t in (4, 6, 7)))
STEP_MODES = ("lin_grow", "even")
FACTORS = ("1", "1-2", "1-2-4", "1-2-4-4")
HEAD = 128
"""Channels inside a classifier of the CIFAR networks."""
COARSEST = {"cifar": 8, "imagenet": 7}
"""Pixels a side that the coarsest scale must keep: every classifier halves it twice and pools 2 x 2."""


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
