"""Residual blocks prepared for inference: each convolution with what follows it in one pass.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.execution.fused import FusedConv
from trainables.networks.resnet.cifar import ResidualBlock


class FusedBlock(ResidualBlock):
    """A residual block of two or more convolutions: each but the last with a ReLU, then addition and ReLU.

    `scale` multiplies the branch.
    """

    def __init__(
        self,
        layers: Sequence[tuple[nn.Conv2d, nn.BatchNorm2d]],
        shortcut: nn.Module,
        dtype: torch.dtype,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        *inner, last = layers
        convolutions = [FusedConv(*layer, relu=True, dtype=dtype) for layer in inner]
        self.layers = nn.ModuleList([*convolutions, FusedConv(*last, relu=True, dtype=dtype, scale=scale)])
        self.shortcut = shortcut
        self._identity = isinstance(shortcut, nn.Identity)
        *self._inner, self._last = list(self.layers)

    def branch(self, inputs: Tensor) -> Tensor:
        """See `ResidualBlock`."""
        for layer in self._inner:
            inputs = layer(inputs)
        return self._last(inputs, bare=True)

    def forward(self, inputs: Tensor, short: Tensor | None = None) -> Tensor:
        """See `ResidualBlock`; neither argument is changed."""
        around = self.shortcut(inputs) if short is None else short
        return self.overwrite(inputs, around.clone() if around is inputs or around is short else around)

    def overwrite(self, inputs: Tensor, short: Tensor | None = None) -> Tensor:
        """`forward` whose output takes the place of `short`, or of `inputs` where they are the shortcut."""
        around = short
        if around is None:
            around = inputs if self._identity else self.shortcut(inputs)
        for layer in self._inner:
            inputs = layer(inputs)
        return self._last(inputs, around.to(inputs.dtype))
