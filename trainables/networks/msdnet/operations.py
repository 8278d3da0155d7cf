"""The MSDNet papers' own unit of cost, which they call MADDs or FLOPs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from trainables.execution.macs import macs_of
from trainables.networks.msdnet.network import MSDNet


def _pooled(part: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """Elements that the windows of a pooling layer read; the adaptive ones here never overlap."""
    if isinstance(part, nn.MaxPool2d):
        window = part.kernel_size if isinstance(part.kernel_size, tuple) else (part.kernel_size,) * 2
        return output.numel() * window[0] * window[1]
    return inputs.numel()


def operations(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[int, Any]:
    """The papers' unit of cost per image, and the shape of the output.

    MACs, one operation per bias of a linear layer, per element of a ReLU and per element that a
    pooling window reads.
    """
    extra = 0

    def add(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        pooling = isinstance(part, nn.AdaptiveAvgPool2d | nn.MaxPool2d)
        extra += _pooled(part, inputs[0], output) if pooling else output.numel()

    kinds = nn.ReLU | nn.Linear | nn.AdaptiveAvgPool2d | nn.MaxPool2d
    handles = [part.register_forward_hook(add) for part in module.modules() if isinstance(part, kinds)]
    try:
        macs, shape = macs_of(module, *shapes)
    finally:
        for handle in handles:
            handle.remove()
    return macs + extra, shape


def operations_of_exits(network: MSDNet) -> list[int]:
    """Operations of an image that leaves at exit 1 ... K, earlier exits included.

    The public counter knows the classifiers of the first phase only: knowledge paths are left out.
    """
    shapes: Any = [network.task.image]
    total, costs = 0, []
    for stage, classifier in zip(network.stages, network.classifiers, strict=True):
        in_stage, shapes = operations(stage, *shapes)
        in_exit, _ = operations(classifier, shapes[-1])
        total += in_stage + in_exit
        costs.append(total)
    return costs


def parameters_of_exits(network: MSDNet) -> list[int]:
    """Parameters that an image has met that leaves at exit 1 ... K, as they are served."""
    total, counts = 0, []
    for i, stage in enumerate(network.stages):
        parts = [stage, *network.answering(i)]
        total += sum(p.numel() for part in parts for p in part.parameters())
        counts.append(total)
    return counts
