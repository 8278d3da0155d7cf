"""Pre-activation units prepared for inference: see `trainables.inference.prepare.FAST`.

Shape legend: B images, c channels, h height, w width, m chosen positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.execution.fused import FusedConv, folded
from trainables.networks.halting.positions import PositionConv, ScoreConv, gathered
from trainables.networks.halting.preact import NormAct, PreActUnit


class FusedNormAct(nn.Module):
    """Batch norm as a factor and a summand per channel, and the (leaky) ReLU."""

    def __init__(self, norm: NormAct, dtype: torch.dtype) -> None:
        super().__init__()
        self.slope = norm.slope
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight.detach().double() * (norm.running_var.double() + norm.eps).rsqrt()
        shift = norm.bias.detach().double() - norm.running_mean.double() * scale
        self.scale, self.shift = scale.to(dtype), shift.to(dtype)
        self.maps = self.scale[:, None, None], self.shift[:, None, None]

    def forward(self, input: Tensor) -> Tensor:
        """Features (B, c, h, w) or rows (m, c); the shape stays."""
        scale, shift = (self.scale, self.shift) if input.dim() == 2 else self.maps
        output = torch.addcmul(shift, input.to(scale.dtype), scale)
        return output if self.slope == 1 else F.leaky_relu_(output, self.slope)


class FusedPositionConv(FusedConv):
    """A convolution of all or of chosen positions with what follows it: batch norm, and a leaky ReLU of `slope`.

    Called as `PositionConv` is. ``accumulate(input, into)`` adds it to `into` and overwrites that; it takes no slope.
    """

    def __init__(self, convolution: PositionConv, norm: NormAct | None, dtype: torch.dtype) -> None:
        super().__init__(convolution, norm, relu=False, dtype=dtype)
        self.slope = None if norm is None else norm.slope
        weight, _ = folded(convolution, norm)
        self.rows = weight.permute(0, 2, 3, 1).reshape(len(weight), -1).to(dtype)

    def forward(self, input: Tensor, around: Tensor | int | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `PositionConv`."""
        if input.dim() == 2:
            assert not isinstance(around, int)
            output = F.linear(gathered(input.to(self.dtype), around), self.rows, self.bias)
        elif not self.onednn or self.slope is None or not len(input):
            output = super().forward(input)
        else:
            return self.convolved(input, "leaky_relu", [self.slope])
        return output if self.slope is None else F.leaky_relu_(output, self.slope)

    def accumulate(self, input: Tensor, into: Tensor) -> Tensor:
        """`into` (B, c', h', h') plus the convolution of `input`, in the memory of `into`."""
        return super().forward(input, into)


class FusedScoreConv(nn.Module):
    """A convolution with a single output: one per channel, then their sum.

    Convolutions compute several outputs at a time, of which this one would leave all but one unused: a fifth of
    the time on CPUs.
    """

    def __init__(self, convolution: ScoreConv, dtype: torch.dtype) -> None:
        super().__init__()
        channels = convolution.in_channels
        apart = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, device=convolution.weight.device)
        apart.weight = nn.Parameter(convolution.weight.detach().permute(1, 0, 2, 3), requires_grad=False)
        assert convolution.bias is not None and apart.bias is not None
        nn.init.zeros_(apart.bias)
        self.apart = FusedConv(apart, relu=False, dtype=dtype)
        self.bias = convolution.bias.detach().to(dtype)
        self.rows = convolution.matrix().detach().to(dtype)

    def forward(self, input: Tensor, around: Tensor | int | None = None) -> Tensor:
        """See `PositionConv`."""
        if input.dim() == 2:
            assert not isinstance(around, int)
            return F.linear(gathered(input.to(self.rows.dtype), around), self.rows, self.bias)
        return self.apart(input).sum(dim=1, keepdim=True).add_(self.bias)


class FusedPreActUnit(PreActUnit):
    """A pre-activation unit of fused parts."""

    def __init__(self, unit: PreActUnit, dtype: torch.dtype) -> None:
        nn.Module.__init__(self)
        self.activated, self.count = unit.activated, unit.count
        assert isinstance(unit.norm1, NormAct)
        self.norm1 = FusedNormAct(unit.norm1, dtype)
        for i, (convolution, norm) in enumerate(unit.layers(), start=1):
            assert norm is None or isinstance(norm, NormAct)
            self.add_module(f"conv{i}", FusedPositionConv(convolution, norm, dtype))
            if norm is not None:
                self.add_module(f"norm{i + 1}", nn.Identity())
        around = unit.shortcut
        self.shortcut = FusedConv(around, relu=False, dtype=dtype) if isinstance(around, nn.Conv2d) else around

    def overwrite(self, inputs: Tensor) -> Tensor:
        """`forward` whose output may take the place of the inputs."""
        entered = self.norm1(inputs)
        around = self.shortcut(entered if self.activated else inputs)
        *others, (last, _) = self.layers()
        for convolution, _ in others:
            entered = convolution(entered)
        return last.accumulate(entered, around.to(entered.dtype))  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
