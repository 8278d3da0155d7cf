"""Convolutions for inference: batch norm folded, convolution, ReLU and addition in one pass.

On CPUs they are oneDNN's with weights packed once (`torch.ops.mkldnn`, as TorchInductor calls them);
elsewhere, and in types that oneDNN lacks, the same modules call PyTorch's own.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAST = torch.channels_last
_LAYOUT_BY_SIZE = not torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def _has_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN computes fused convolutions of this type here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


class FusedConv(nn.Conv2d):
    """A convolution with its batch norm folded in, times `scale`, then, with `relu`, a ReLU.

    With `alone` a single image is left to PyTorch's own convolution and stays channels first: for few
    channels that is quicker than a call of oneDNN.

    ``forward(inputs, into=x)`` adds its output to x before the ReLU and overwrites x. The result is
    channels-last. Stays on the device and in the type that it was made for; has no gradient.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: nn.BatchNorm2d | None = None,
        *,
        relu: bool,
        dtype: torch.dtype,
        scale: float = 1.0,
        alone: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # a Conv2d to whoever counts MACs; its tensors are plain attributes, quick to reach
        for name in nn.Conv2d.__constants__:
            setattr(self, name, getattr(convolution, name))
        self.relu, self.dtype = relu, dtype
        weight, bias = (scale * each for each in folded(convolution, norm))
        self.weight, self.bias = weight.to(dtype).contiguous(memory_format=LAST), bias.to(dtype)
        self._geometry = list(self.padding), list(self.stride), list(self.dilation), self.groups
        self._strided = list(self.stride), list(self.padding), list(self.dilation), self.groups
        self.onednn = _has_onednn(dtype, weight.device)
        self._packed: tuple[tuple[int, ...], Tensor] | None = None  # for inputs of this height and width
        self.alone: Tensor | None = None
        if self.onednn and alone:
            self.alone = weight.to(dtype).contiguous()

    def _size(self, extent: int, axis: int) -> int:
        padding, stride, dilation, _ = self._geometry
        reach = dilation[axis] * (self.kernel_size[axis] - 1) + 1
        return (extent + 2 * int(padding[axis]) - reach) // stride[axis] + 1

    def forward(self, input: Tensor, into: Tensor | None = None, *, bare: bool = False) -> Tensor:
        """(B, c, h, h) to (B, c', h', h'); `into` has the shape of the output; `bare` leaves the ReLU out."""
        relu = self.relu and not bare
        if input.dtype != self.dtype:
            input = input.to(self.dtype)
        if not self.onednn:
            output = F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # pyright: ignore[reportArgumentType]
            output = output if into is None else into.add_(output)
            return output.relu_() if relu else output
        if self.alone is not None and len(input) == 1 and into is None:
            output = torch.conv2d(input.contiguous(), self.alone, self.bias, *self._strided)  # pyright: ignore[reportArgumentType, reportCallIssue]
            return output.relu_() if relu else output
        if not len(input):
            return input.new_empty(0, self.out_channels, self._size(input.shape[2], 0), self._size(input.shape[3], 1))
        # oneDNN works in the layout of what it is given
        input = input.contiguous(memory_format=LAST)
        if into is None:
            return self.convolved(input, "relu" if relu else "none")
        into, unary = into.contiguous(memory_format=LAST), "relu" if relu else None
        return _accumulate(into, input, self.packed(input), self.bias, *self._geometry, "add", 1.0, unary, [], "")

    def packed(self, input: Tensor) -> Tensor:
        """The weight in oneDNN's layout for inputs of this size; for batches of any size the layout is the same.

        With AVX-512 the layout for no size in particular serves all. On other CPUs oneDNN computes small images in
        another layout and would bring that one into it at every call, which takes ten times as long as the convolution.
        """
        size, known = tuple(input.shape[2:]) if _LAYOUT_BY_SIZE else (), self._packed
        if known is not None and known[0] == size:
            return known[1]
        weight = self.weight if known is None else known[1].to_dense().contiguous(memory_format=LAST)
        shape = list(input.shape) if _LAYOUT_BY_SIZE else []
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, shape)
        self._packed = size, packed
        self.weight = self.weight.new_empty(0)  # oneDNN's copy is enough
        return packed

    def convolved(self, input: Tensor, unary: str, scalars: Sequence[float] = ()) -> Tensor:
        """The convolution by oneDNN and a function of its output, by oneDNN's name and parameters."""
        input = input.to(self.dtype).contiguous(memory_format=LAST)
        return _convolve(input, self.packed(input), self.bias, *self._geometry, unary, list(scalars), "")


if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    _convolve = torch.ops.mkldnn._convolution_pointwise.default
    _accumulate = torch.ops.mkldnn._convolution_pointwise_.binary


def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    r"""Weight and bias of a convolution with the batch norm behind it, computed in float64.

    .. math:: w' = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} w, \quad
              b' = \beta + (b - \mu) \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}
    """
    weight = convolution.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.affine:
        scale = scale * norm.weight.detach().double()
    bias = (bias - norm.running_mean.double()) * scale
    return weight * scale[:, None, None, None], (bias + norm.bias.detach().double() if norm.affine else bias)
