"""Fast forms of what networks with exits are made of; `fused.prepared` puts them in place.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.networks.msdnet import DenseLayer

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
    """Several 1 x 1 convolutions with ReLU of the same channels-last features, as one matrix product."""

    def __init__(self, parts: Sequence[tuple[Tensor, Tensor]]) -> None:
        nn.Module.__init__(self)  # a Conv2d to whoever counts MACs
        weights, biases = zip(*parts, strict=True)
        self.in_channels, self.groups, self.kernel_size = weights[0].shape[1], 1, (1, 1)
        self.weight = torch.cat([weight.flatten(1) for weight in weights]).t().float().contiguous()
        self.bias = torch.cat(biases).float()
        self.sizes = [len(bias) for bias in biases]

    def forward(self, input: Tensor) -> Tensor:
        """(B, c, h, h) to (B, c', h, h), the parts one behind the other."""
        last = input.permute(0, 2, 3, 1)
        flat = torch.addmm(self.bias, last.reshape(-1, self.in_channels), self.weight).relu_()
        return flat.view(*last.shape[:3], -1).permute(0, 3, 1, 2)


class FastDenseLayer(DenseLayer):
    """A dense layer whose bottlenecks that read one scale are one product where batches are small.

    `layer` has its convolutions prepared already; `bottlenecks` are its 1 x 1 convolutions with batch
    norm folded in, (weight, bias) of the normal and of the strided branch of every scale that enters.
    """

    def __init__(self, layer: DenseLayer, bottlenecks: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> None:
        nn.Module.__init__(self)
        self.dropped, self.downs, self.normals = layer.dropped, layer.downs, layer.normals
        self.points = nn.ModuleList(Pointwise(parts) for parts in bottlenecks)

    def forward(self, *scales: Tensor) -> list[Tensor]:
        """See `DenseLayer`."""
        count, _, height, _ = scales[0].shape
        finest = scales[0]
        if count * height * height > SMALL or finest.device.type != "cpu" or finest.dtype != torch.float32:
            return super().forward(*scales)
        lone = len(self.normals) - len(self.downs)
        inner = [point(x).split(point.sizes, 1) for point, x in zip(self.points, scales, strict=True)]  # type: ignore[arg-type]
        outputs = []
        for k, normal in enumerate(self.normals):
            own = scales[k + self.dropped]
            # the strided branch of a scale is the last part of the finer one's product
            down = [self.downs[k - lone][1](inner[k + self.dropped - 1][-1])] if k >= lone else []  # type: ignore[index]
            outputs.append(torch.cat([own, *down, normal[1](inner[k + self.dropped][0])], dim=1))  # type: ignore[index]
        return outputs


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
