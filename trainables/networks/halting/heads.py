"""Halting heads: the scores that decide after which unit a residual group stops, and their arithmetic.

See `trainables.networks.halting.network` for the equations.

Shape legend: B images, c channels, h height, w width (1 and 1 without spatial halting), m chosen positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.networks.halting.positions import Places, ScoreConv, with_zeros
from trainables.networks.halting.preact import NormAct, PooledNorm, Style

NEVER = 1e6
"""A halting threshold that no sum of scores reaches (JSON has no infinity)."""
FIRST_BIAS = -3.0
"""What the halting scores' logits start from."""


def threshold_of(knobs: Knobs, default: float) -> float:
    """The halting threshold T among the knobs; `ValueError` for another knob or a T that is no number from 0."""
    for name in knobs:
        if name not in ("threshold", "seed"):  # a seed may be stored with any knobs; nothing is drawn here
            raise ValueError(f"unknown knob {name!r}; networks that halt take threshold")
    value = knobs.get("threshold", default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"threshold = {value!r}: the sum of halting scores that stops must be a number of at least 0")
    return min(float(value), NEVER)


def remaining(total: Tensor, running: Tensor | None, threshold: float | Tensor) -> Tensor:
    """What remains behind a unit, r: 1 - `total`, the sum of scores up to it, but 0 where T is or was reached.

    `threshold` is T; `running` tells where the group had not stopped (None: everywhere).
    """
    if isinstance(threshold, Tensor):
        total, reach = total / threshold.clamp(min=1), threshold.clamp(max=1)
    else:
        total, reach = total / max(threshold, 1.0), min(threshold, 1.0)
    goes_on = total < reach if running is None else running & (total < reach)
    return torch.where(goes_on, 1 - total, 0)


class HaltingHead(nn.Module):
    """The score of an image: sigmoid(linear(activation(norm(pooled)))), (B, c, h, w) to (B, 1, 1)."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        slope = None if style.bottleneck else style.slope
        self.norm = PooledNorm(channels, style, slope=slope)
        self.linear = nn.Linear(channels, 1)

    def first_biases(self) -> None:
        """Scores near 0.05."""
        nn.init.constant_(self.linear.bias, FIRST_BIAS)

    def forward(self, features: Tensor) -> Tensor:
        """See the class; float32 at least."""
        logit = self.linear(self.norm(features.mean(dim=(2, 3))))
        return torch.sigmoid(logit.to(torch.promote_types(logit.dtype, torch.float32)))[:, :, None]


class SpatialHead(nn.Module):
    """The score of a position: sigmoid(conv3x3(activation(norm(x))) + linear(activation(norm(pooled)))).

    (B, c, h, w) to (B, h, w). `at` computes it at chosen positions.
    """

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__()
        self.local_norm: nn.Module = LocalNorm(channels, style) if style.bottleneck else NormAct(channels, style)
        self.local = ScoreConv(channels, 1, 3, padding=1)
        self.norm = PooledNorm(channels, style, slope=None if style.bottleneck else style.slope)
        self.linear = nn.Linear(channels, 1, bias=False)

    def first_biases(self) -> None:
        """Scores near 0.05; the bias is the local convolution's."""
        assert self.local.bias is not None
        nn.init.constant_(self.local.bias, FIRST_BIAS)

    def score(self, local: Tensor, pooled: Tensor) -> Tensor:
        """The scores of logits that are added, float32 at least."""
        logit = local + pooled
        return torch.sigmoid(logit.to(torch.promote_types(logit.dtype, torch.float32)))

    def forward(self, features: Tensor, active: int | None = None) -> Tensor:
        """See the class; where only the scores of `active` positions are used, these are charged."""
        pooled = self.linear(self.norm(features.mean(dim=(2, 3))))
        return self.score(self.local(self.local_norm(features), active)[:, 0], pooled[:, :, None])

    def at(self, state: Tensor, pooled: Tensor, image: Tensor, active: Places, wide: Places) -> Tensor:
        """The scores (m,) at `active` positions of a state (B * h * w, c); `wide` are those around them.

        `pooled` (k, c) are the means over positions of the images that have active positions, `image` (m,)
        tells which of these a position belongs to.
        """
        read = with_zeros(self.local_norm(state.index_select(0, wide.flat)))
        local = self.local(read, active.neighbours(wide))[:, 0]
        return self.score(local, self.linear(self.norm(pooled))[:, 0].index_select(0, image))


class LocalNorm(NormAct):
    """Batch norm without an activation: a slope of 1."""

    def __init__(self, channels: int, style: Style) -> None:
        super().__init__(channels, style)
        self.slope = 1.0


def ponder_of(masses: Sequence[Tensor]) -> Tensor:
    """What a group costs, rho = N + R, from r_1 = 1, r_2 ... r_n, of one shape each; N carries no gradient."""
    each = torch.stack(tuple(masses))
    runs = each > 0
    ends = runs & ~F.pad(runs[1:].flatten(1), (0, 0, 0, 1)).view_as(runs)  # the last r above 0
    return runs.sum(dim=0) + (each * ends).sum(dim=0)
