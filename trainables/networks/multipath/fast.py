"""Multi-path networks prepared for inference: batch norms go into the convolutions before them."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainables.networks.multipath.layers import PathConv, PathModule, PathNorm, PathSequence
from trainables.networks.multipath.routing import CrossPrediction


def fold_norms(module: nn.Module) -> None:
    """Fold the batch norms of a sequence of layers or of cross-predictions; other modules stay as they are.

    The module is changed, the tensors that it had are not: another network may share them.
    """
    if isinstance(module, PathSequence):
        layers: list[nn.Module] = []
        for layer in module.layers:
            before = layers[-1] if layers else None
            if isinstance(layer, PathNorm) and isinstance(before, PathConv):
                layers[-1] = folded_conv(before, layer)
            else:
                layers.append(layer)
        module.layers = nn.ModuleList(layers)
    elif isinstance(module, CrossPrediction) and isinstance(module.norm, PathNorm):
        scale, shift = scale_and_shift(module.norm)
        scale, predict = scale.repeat(module.inputs), copy.copy(module.predict)
        weight = (predict.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
        predict._parameters = {
            "weight": nn.Parameter(weight, requires_grad=False),
            "bias": nn.Parameter(predict.bias * scale, requires_grad=False),  # pyright: ignore[reportOptionalOperand]
        }
        module.predict, module.norm = predict, PathShift(module.outputs, shift)  # the gated sums are shifted


class PathShift(PathModule):
    """What is left of a batch norm whose scale went into the layer before: one number a channel, added."""

    def __init__(self, paths: int, shift: Tensor) -> None:
        super().__init__()
        self.paths = paths
        self.shift = nn.Parameter(shift, requires_grad=False)

    def pieces(self) -> list[tuple[Tensor]]:
        """The numbers of every path."""
        return [(part,) for part in self.shift.chunk(self.paths)]

    def forward(self, inputs: Tensor, piece: tuple[Tensor] | None = None) -> Tensor:
        """The shape stays."""
        return inputs + (self.shift if piece is None else piece[0])[:, None, None]


def scale_and_shift(norm: PathNorm) -> tuple[Tensor, Tensor]:
    """What a batch norm multiplies by in eval mode and what it then adds, (X * c,) each."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - norm.running_mean * scale


def folded_conv(convolution: PathConv, norm: PathNorm) -> PathConv:
    """One convolution that does what the two do in eval mode; neither is changed."""
    scale, shift = scale_and_shift(norm)
    paths = convolution.groups
    channels = convolution.in_channels // paths, convolution.out_channels // paths
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    with torch.device("meta"):
        both = PathConv(paths, *channels, kernel, stride=stride)
    weight = (convolution.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    both.weight = nn.Parameter(weight, requires_grad=False)
    bias = shift if convolution.bias is None else shift + convolution.bias * scale
    both.bias = nn.Parameter(bias, requires_grad=False)
    return both
