"""Convolutions at chosen positions: rows are gathered, multiplied by a matrix, and put back.

Shape legend: B images, c channels, h height, w width, m chosen positions, a matrix (B * h * w, c) of features
has the positions of an image as neighbouring rows (the memory of a channels-last tensor).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rows_of(features: Tensor) -> Tensor:
    """Features (B, c, h, w) as a matrix (B * h * w, c): of the same memory where they are channels-last."""
    return features.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


def features_of(rows: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `rows_of`, always of the same memory: (B * h * w, c) to `shape` (B, c, h, w)."""
    images, channels, height, width = shape
    return rows.view(images, height, width, channels).permute(0, 3, 1, 2)


def dilated(mask: Tensor) -> Tensor:
    """The largest value in the 3 x 3 positions around each one: (B, h, w) to (B, h, w).

    What a 3 x 3 convolution reads (with zeros outside) where its output is wanted at `mask`.
    """
    if mask.is_floating_point():
        return F.max_pool2d(mask[:, None], 3, stride=1, padding=1)[:, 0]
    lines = mask.clone()  # shifted and united: ten times quicker than pooling on CPUs
    lines[:, 1:] |= mask[:, :-1]
    lines[:, :-1] |= mask[:, 1:]
    wide = lines.clone()
    wide[:, :, 1:] |= lines[:, :, :-1]
    wide[:, :, :-1] |= lines[:, :, 1:]
    return wide


@dataclass(slots=True)
class Places:
    """The chosen positions of a mask (B, h, w).

    `flat` (m,): their rows in a matrix (B * h * w, c), ascending. `framed` (m,): their numbers on a grid
    (B, h + 2, w + 2), whose frame makes neighbours a matter of adding.
    """

    mask: Tensor
    flat: Tensor
    framed: Tensor

    @classmethod
    def of(cls, mask: Tensor) -> Places:
        """The positions where a mask (B, h, w) of booleans is true."""
        height, width = mask.shape[1:]
        flat = mask.flatten().nonzero().squeeze(1)
        lines = flat.div(width, rounding_mode="floor")
        image = lines.div(height, rounding_mode="floor")
        framed = flat + 2 * lines + 2 * (width + 2) * image + (width + 3)
        return cls(mask, flat, framed)

    def __len__(self) -> int:
        return len(self.flat)

    def neighbours(self, known: Places) -> Tensor:
        """Which of the positions `known` lie in the 3 x 3 around each of these: (m, 9) numbers into `known`.

        What is not among them, or outside the image, is ``len(known)``: the place of a row of zeros.
        """
        images, height, width = self.mask.shape
        width += 2
        number = self.flat.new_full((images * (height + 2) * width,), len(known))
        number[known.framed] = torch.arange(len(known), device=self.flat.device)
        step = torch.arange(-1, 2, device=self.flat.device)
        around = (step[:, None] * width + step).flatten()  # line by line, as the kernel's weights lie
        return number[self.framed[:, None] + around]


def with_zeros(rows: Tensor) -> Tensor:
    """Rows (m, c) and a row of zeros behind them."""
    return F.pad(rows, (0, 0, 0, 1))


class PositionConv(nn.Conv2d):
    """A convolution of stride 1 that can be computed at chosen positions; 1 x 1, or 3 x 3 with padding 1.

    ``forward(features)`` is the convolution; ``forward(rows, around)`` (m', c) to (m, c') its outputs at m positions
    of which `around` (m, 9) are the neighbours' rows (None: 1 x 1, the rows are the positions). ``forward(features,
    wanted)`` computes all, of which the caller uses `wanted` positions (a masked convolution):
    `trainables.execution.macs` charges these.
    """

    def matrix(self) -> Tensor:
        """The kernel as a matrix (c', area * c), without copying where it is channels-last."""
        return self.weight.permute(0, 2, 3, 1).reshape(self.out_channels, -1)

    def forward(self, input: Tensor, around: Tensor | int | None = None) -> Tensor:
        """See the class."""
        if input.dim() == 4:
            return super().forward(input)
        assert not isinstance(around, int)
        return F.linear(gathered(input, around), self.matrix(), self.bias)


class ScoreConv(PositionConv):
    """A 3 x 3 convolution with a single output."""


def gathered(rows: Tensor, around: Tensor | None) -> Tensor:
    """What the kernel reads at each position, (m, 9 c); the rows (m, c) themselves without `around`."""
    if around is None:
        return rows
    return rows.index_select(0, around.flatten()).view(len(around), 9 * rows.shape[1])
