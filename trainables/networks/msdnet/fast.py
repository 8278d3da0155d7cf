"""Fast forms of what networks with exits are made of; `inference.prepare.prepared` puts them in place.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from trainables.networks.msdnet.network import DenseLayer

if TYPE_CHECKING:
    from trainables.execution.fused import FusedConv

SMALL = 2048
"""Positions of a batch up to which a matrix product is quicker than a call of a 1 x 1 convolution (B h h)."""


def pools_all(layer: nn.Module) -> bool:
    """Whether a layer averages over all positions."""
    return type(layer) is nn.AdaptiveAvgPool2d and layer.output_size in (1, (1, 1))


class Pooled(nn.Module):
    """Global average pooling and flattening in one."""

    def forward(self, features: Tensor) -> Tensor:
        """(B, c, h, h) to (B, c)."""
        return features.mean(dim=(2, 3))


class Pointwise(nn.Conv2d):
    """Several 1 x 1 convolutions with ReLU of the same features, as one matrix product."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        nn.Module.__init__(self)  # a Conv2d to whoever counts MACs
        weights, biases = zip(*parts, strict=True)
        self.in_channels, self.groups, self.kernel_size = weights[0].shape[1], 1, (1, 1)
        self.weight = torch.cat([weight.flatten(1) for weight in weights]).float()
        self.row = torch.cat(biases).float()
        self.turned, self.column = self.weight.t().contiguous(), self.row[:, None]
        self.sizes = [len(bias) for bias in biases]

    def forward(self, input: Tensor) -> Tensor:
        """(B, c, h, h) to (B, c', h, h), the parts one behind the other; channels last unless B is 1."""
        if len(input) == 1:
            return torch.addmm(self.column, self.weight, input.flatten(2)[0]).relu_().view(1, -1, *input.shape[2:])
        last = input.permute(0, 2, 3, 1)
        flat = torch.addmm(self.row, last.reshape(-1, self.in_channels), self.turned).relu_()
        return flat.view(*last.shape[:3], -1).permute(0, 3, 1, 2)


class FastDenseLayer(DenseLayer):
    """A dense layer for small batches: the bottlenecks that read one scale are one product.

    A single image is kept channels first: parts of a product and what is concatenated are then
    contiguous, and PyTorch's own convolutions take a third less time than calls of oneDNN.

    `layer` has its convolutions prepared already; `bottlenecks` are its 1 x 1 convolutions with batch
    norm folded in, (weight, bias) of the normal and of the strided branch of every scale that enters.
    """

    def __init__(self, layer: DenseLayer, bottlenecks: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        nn.Module.__init__(self)
        self.dropped, self.downs, self.normals = layer.dropped, layer.downs, layer.normals
        self.points = nn.ModuleList(Pointwise(parts) for parts in bottlenecks)
        # as lists: looking them up in containers takes longer than some of the convolutions
        self._lone = len(self.normals) - len(self.downs)
        branches = ([cast("FusedConv", branch[1]) for branch in each] for each in (self.normals, self.downs))  # type: ignore[index]
        self._normals, self._downs = branches
        self._products = [(point.weight, point.column, point.sizes) for point in cast("list[Pointwise]", self.points)]

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """See `DenseLayer`."""
        finest = scales[0]
        count, _, height, _ = finest.shape
        if not 0 < count * height * height <= SMALL or finest.device.type != "cpu" or finest.dtype != torch.float32:
            return super().forward(*scales)
        if count == 1:
            scales = tuple(each.contiguous() for each in scales)
            if not self._normals[0]._forward_hooks and self._normals[0].alone is not None:  # nobody counts
                return self._alone(scales)
        inner = [point(x).split(point.sizes, 1) for point, x in zip(self.points, scales, strict=True)]  # type: ignore[arg-type]
        outputs = []
        for k, normal in enumerate(self._normals):
            parts = [scales[k + self.dropped]]
            if k >= self._lone:  # the strided branch of a scale is the last part of the finer one's product
                parts.append(self._downs[k - self._lone](inner[k + self.dropped - 1][-1]))
            parts.append(normal(inner[k + self.dropped][0]))
            outputs.append(torch.cat(parts, dim=1))
        return outputs

    def _alone(self, scales: Sequence[Tensor]) -> list[Tensor]:
        """`forward` of one image, without a call of a module: those take longer than the work."""
        inner = []
        for (weight, column, sizes), x in zip(self._products, scales, strict=True):
            flat = torch.addmm(column, weight, x.view(weight.shape[1], -1)).relu_()
            inner.append(flat.view(1, -1, *x.shape[2:]).split(sizes, 1))
        outputs = []
        for k, normal in enumerate(self._normals):
            parts = [scales[k + self.dropped]]
            if k >= self._lone:
                parts.append(_single(self._downs[k - self._lone], inner[k + self.dropped - 1][-1]))
            parts.append(_single(normal, inner[k + self.dropped][0]))
            outputs.append(torch.cat(parts, dim=1))
        return outputs


def _single(layer: FusedConv, image: Tensor) -> Tensor:
    return torch.conv2d(image, layer.alone, layer.bias, layer.stride, layer.padding).relu_()  # type: ignore[arg-type]


def bottlenecks_of(layer: DenseLayer) -> list[list[nn.Sequential]]:
    """The 1 x 1 convolutions with their batch norms that read each scale that enters; none without bottlenecks."""
    if any(len(branch) != 2 or not isinstance(branch[0], nn.Sequential) for branch in layer.normals):  # type: ignore[arg-type, index]
        return []
    lone = len(layer.normals) - len(layer.downs)
    reading: list[list[nn.Sequential]] = [[] for _ in range(len(layer.normals) + layer.dropped)]
    for k, normal in enumerate(layer.normals):
        reading[k + layer.dropped].append(normal[0])  # type: ignore[index]
    for k, down in enumerate(layer.downs, start=lone):
        reading[k + layer.dropped - 1].append(down[0])  # type: ignore[index]
    return reading
