"""A residual network that reads its images at several sizes: small ones cost less, and one set of weights serves all.

Global average pooling lets a residual network take images of any size that its strides leave positions of. At the size
of its training alone it loses more than it should at others (H. Touvron et al., "Fixing the train-test resolution
discrepancy", NeurIPS 2019), so that every batch is read at one of the sizes, drawn evenly (as T. Yang et al.,
"MutualNet", ECCV 2020, without its widths and its distillation). All sizes share the statistics of batch norms.

Each size is an operating point, and two of them make a cascade of one checkpoint: they share no work.

Shape legend: B images, K sizes, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import Inference, Knobs, Routed, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import overwriting
from trainables.networks.resnet.cifar import Body, ResidualNetwork


def sizes_from(smallest: float) -> tuple[float, ...]:
    """The sizes at which images are read, as shares of their own: the smallest, the one between, the whole."""
    return (1.0,) if smallest == 1 else (smallest, (1 + smallest) / 2, 1.0)


def _shown(pixels: tuple[int, int]) -> str:
    """``16``, or of images that are not square ``16x24``."""
    height, width = pixels
    return str(height) if height == width else f"{height}x{width}"


class SizedResNet(ResidualNetwork):
    """A residual network over K rising `sizes`, shares of the images' own. Its decisions (B, K) say which one is read,
    its units are the whole network at each size. Raises `ValueError` where a size has less than `least` pixels.
    """

    def __init__(self, config: Any, task: Task, body: Body, sizes: Sequence[float], least: int) -> None:
        super().__init__(config, task, body)
        self.sizes = tuple(sizes)
        self.pixels = tuple((round(size * task.height), round(size * task.width)) for size in self.sizes)
        edges = [min(pixels) for pixels in self.pixels]
        if len(set(self.pixels)) < len(self.pixels) or edges[0] < least:
            raise ValueError(
                f"smallest_size = {self.sizes[0]:g}: images of {task.pixels} pixels would be read at"
                f" {', '.join(map(_shown, self.pixels))}; {config.network} takes at least {least}, all different"
            )
        whole = nn.Sequential(self.stem, *self.blocks, self.classifier)
        macs = [macs_of(whole, (task.channels, *p))[0] for p in self.pixels]
        units = [Unit(f"size-{_shown(p)}", "path", cost) for p, cost in zip(self.pixels, macs, strict=True)]
        self.describe_units(units, fixed=0, full=macs[-1], least=macs[0])

    def unit_groups(self) -> tuple[int, ...]:
        """Every size is a group of its own."""
        return tuple(range(len(self.units)))

    def _logits(self, inputs: Tensor, place: int) -> Tensor:
        """Logits (B, C) at one size. Resizing costs no multiplication that is counted."""
        pixels = self.pixels[place]
        if pixels != (self.task.height, self.task.width):
            small = F.interpolate(inputs.float(), size=pixels, mode="bilinear", antialias=True)
            inputs = small.to(inputs.dtype)
        features = self.stem(inputs)
        for block in self.blocks:
            features = overwriting(block)(features)
        return self.classifier(features)

    def _chosen(self, inputs: Tensor, place: int) -> Tensor:
        chosen = torch.zeros(len(inputs), len(self.units), device=inputs.device)
        chosen[:, place] = 1
        return chosen

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """In training all images at one size, which `generator` draws, else at their own.

        `decisions` (B, K) weigh the logits of all sizes.
        """
        if decisions is not None:
            shares = decisions.to(inputs.dtype)
            logits = sum(self._logits(inputs, k) * shares[:, k : k + 1] for k in range(len(self.units)))
            assert isinstance(logits, Tensor)
            return Routed((logits,), logits, decisions, self.path_macs(decisions))
        place = len(self.units) - 1
        if self.training:
            device = inputs.device if generator is None else generator.device
            place = int(torch.randint(len(self.units), (1,), generator=generator, device=device))
        logits, chosen = self._logits(inputs, place), self._chosen(inputs, place)
        return Routed((logits,), logits, chosen, self.path_macs(chosen))

    @torch.no_grad()
    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """At the size that the knob ``size`` names, a share of the images' own; at their own where it is not there.

        Raises `ValueError` for a size that is none of `sizes`.
        """
        size = knobs.get("size", 1.0)
        if size not in self.sizes:
            raise ValueError(f"size = {size!r}: must be one of {', '.join(f'{each:g}' for each in self.sizes)}")
        place = self.sizes.index(size)
        logits, chosen = self._logits(inputs, place), self._chosen(inputs, place)
        return Inference(logits, chosen, self.path_macs(chosen), chosen.clone())
