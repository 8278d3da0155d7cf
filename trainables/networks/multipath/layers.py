"""Layers of parallel paths: X copies with weights of their own, computed as one layer or one by one.

Activations of X paths are either *wide*, one tensor (B, X * c, h, w) or (B, X * c) whose channels are those
of path 1, then those of path 2, ..., or a list of X tensors. A layer holds the weights of all its
paths in one tensor. ``layer(wide)`` is one grouped convolution or batched matrix product; ``layer(x, piece)``
is a single path, `piece` being one of ``layer.pieces()``. Both give the same to rounding. Which is
faster depends on shape, batch and device: `grouped_pays`.

On CPUs a rule decides that `tests/benchmarks/inference/bench_paths.py` gave, so that the same configuration computes
the same in every process. On other devices every shape is tried once, both ways, when it first occurs, and
the answer is kept; results differ by rounding at most.

Shape legend: B images, X paths, c channels of a path, h height (= width).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.networks.resnet.cifar import ZeroPadShortcut, every

COMPUTATIONS = ("auto", "grouped", "loop")
CPU_MACS = 16e6
"""On CPUs grouped pays up to so many MACs of one path, all images of the batch together, times the paths.

Below, the loop's many calls cost more than they compute; above, oneDNN's grouped convolutions are slower
than its plain ones (x86, one thread, channels last; X = 2 to 4, widths 8 to 128, inference and training alike).
"""
_KNOWN: dict[tuple[Any, ...], bool] = {}
_REPEATS = 3

Paths = Tensor | list[Tensor]
"""Activations of all paths: wide, or one tensor a path."""


def wide(activations: Paths) -> Tensor:
    """The activations as one tensor."""
    if isinstance(activations, Tensor):
        return activations
    return activations[0] if len(activations) == 1 else torch.cat(activations, dim=1)


def apart(activations: Paths, paths: int) -> list[Tensor]:
    """The activations as a list of one tensor a path."""
    if paths == 1 and isinstance(activations, Tensor):
        return [activations]  # ONNX exporters take the only chunk for two
    return list(activations.chunk(paths, dim=1)) if isinstance(activations, Tensor) else activations


def average(features: Tensor) -> Tensor:
    """Means over positions, (B, c, h, h) to (B, c); vectors (B, c) stay what they are."""
    return features.mean(dim=(2, 3)) if features.dim() == 4 else features


def spread(scales: Tensor, like: Tensor) -> Tensor:
    """One number per image and channel (B, c), or per image (B,), shaped to multiply `like`."""
    scales = scales[:, None] if scales.dim() == 1 else scales
    return (scales[:, :, None, None] if like.dim() == 4 else scales).to(like.dtype)


def weighted_sums(inputs: Paths, weights: Tensor, grouped: bool) -> Paths:
    """sum_i w_ij X_i for every j: weights (B, m, n), or (1, m, n) for all images alike."""
    count = weights.shape[1]
    if grouped and isinstance(inputs, Tensor):
        last = inputs.dim() == 4 and inputs.is_contiguous(memory_format=torch.channels_last)
        if last and not inputs.is_contiguous():  # positions lie outside, the paths' channels side by side
            rows = inputs.permute(0, 2, 3, 1).unflatten(3, (count, -1))
            mixed = torch.matmul(weights.transpose(1, 2)[:, None, None].to(rows.dtype), rows)
            return mixed.flatten(3).permute(0, 3, 1, 2)
        rows = inputs.unflatten(1, (count, -1)).flatten(2)
        mixed = torch.matmul(weights.transpose(1, 2).to(rows.dtype), rows)
        return mixed.unflatten(2, (-1, *inputs.shape[2:])).flatten(1, 2)
    each, outputs = apart(inputs, count), []
    for column in weights.unbind(2):
        first, *rest = column.unbind(1)
        total = each[0] * spread(first, each[0])
        for features, weight in zip(each[1:], rest, strict=True):
            total = torch.addcmul(total, features, spread(weight, features))
        outputs.append(total)
    return wide(outputs) if grouped else outputs


class PathModule(nn.Module):
    """What knows its paths apart."""

    def pieces(self) -> list[Any]:
        """What each path's ``layer(x, piece)`` needs: views of the weights, cut once a pass."""
        raise NotImplementedError


def pieces_of(layer: nn.Module, paths: int) -> list[Any]:
    """The pieces of a layer; None for those without weights, whose paths are all alike."""
    cut = getattr(layer, "pieces", None)
    return [None] * paths if cut is None else cut()


def call(layer: nn.Module, inputs: Tensor, piece: Any = None) -> Tensor:
    """A layer on all paths, or on the one that a piece belongs to."""
    return layer(inputs) if piece is None else layer(inputs, piece)


class PathConv(nn.Conv2d):
    """X convolutions from `channels_in` to `channels_out` channels, side by side."""

    def __init__(
        self, paths: int, channels_in: int, channels_out: int, kernel: int, *, stride: int = 1, bias: bool = True
    ) -> None:
        super().__init__(
            paths * channels_in, paths * channels_out, kernel, stride, kernel // 2, groups=paths, bias=bias
        )

    def pieces(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight and bias of every path."""
        biases = [None] * self.groups if self.bias is None else self.bias.chunk(self.groups)
        return list(zip(self.weight.chunk(self.groups), biases, strict=True))

    def forward(self, input: Tensor, piece: tuple[Tensor, Tensor | None] | None = None) -> Tensor:
        """(B, X * c, h, h) to (B, X * c', h', h'), or one path alone."""
        stride = self.stride
        if self.kernel_size == (1, 1):  # see `networks.resnet.cifar.StridedPointwise`
            input, stride = every(input, stride[0]), (1, 1)
        if piece is None:
            return F.conv2d(input, self.weight, self.bias, stride, self.padding, groups=self.groups)  # pyright: ignore[reportArgumentType,reportCallIssue]
        weight, bias = piece
        return F.conv2d(input, weight, bias, stride, self.padding)  # pyright: ignore[reportArgumentType,reportCallIssue]


class PathLinear(nn.Linear):
    """X linear layers of `features_in` to `features_out`, side by side."""

    def __init__(self, paths: int, features_in: int, features_out: int) -> None:
        super().__init__(features_in, paths * features_out)
        self.paths = paths

    def pieces(self) -> list[tuple[Tensor, Tensor]]:
        """Weight and bias of every path."""
        return list(zip(self.weight.chunk(self.paths), self.bias.chunk(self.paths), strict=True))

    def forward(self, input: Tensor, piece: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, X * features_in) to (B, X * features_out), or one path alone."""
        if piece is not None:
            return F.linear(input, *piece)
        if self.paths == 1:
            return super().forward(input)
        weights = self.weight.unflatten(0, (self.paths, -1)).transpose(1, 2)
        rows = input.unflatten(1, (self.paths, -1)).transpose(0, 1)
        outputs = torch.baddbmm(self.bias.view(self.paths, 1, -1), rows, weights)
        return outputs.transpose(0, 1).flatten(1)


class PathNorm(nn.BatchNorm2d):
    """X batch norms of `channels` each."""

    def __init__(self, paths: int, channels: int) -> None:
        super().__init__(paths * channels)
        self.paths = paths

    def pieces(self) -> list[tuple[Tensor, ...]]:
        """Mean, variance, scale and shift of every path; statistics are views, so that training renews them."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        if self.training:
            self.num_batches_tracked.add_(1)
        each = (self.running_mean, self.running_var, self.weight, self.bias)
        return list(zip(*(tensor.chunk(self.paths) for tensor in each), strict=True))

    def forward(self, input: Tensor, piece: tuple[Tensor, ...] | None = None) -> Tensor:
        """The shape stays."""
        if piece is None:
            return super().forward(input)
        return F.batch_norm(input, *piece, training=self.training, momentum=self.momentum or 0.0, eps=self.eps)


class PathSequence(PathModule):
    """Layers one after the other; those without weights may be any module."""

    def __init__(self, paths: int, layers: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.paths = paths
        self.layers = nn.ModuleList(layers)

    def pieces(self) -> list[tuple[Any, ...]]:
        """A piece of every layer, by path."""
        columns = [pieces_of(layer, self.paths) for layer in self.layers]
        return [tuple(column[path] for column in columns) for path in range(self.paths)]

    def forward(self, inputs: Tensor, piece: tuple[Any, ...] | None = None) -> Tensor:
        """All layers on wide activations, or on those of one path."""
        for k, layer in enumerate(self.layers):
            inputs = call(layer, inputs, None if piece is None else piece[k])
        return inputs

    def run(self, activations: Paths, grouped: bool) -> Paths:
        """All paths, as one or one by one."""
        if grouped or self.paths == 1:
            return self(wide(activations))
        each = zip(apart(activations, self.paths), self.pieces(), strict=True)
        return [self(inputs, piece) for inputs, piece in each]


class PathExcitation(PathModule):
    """Squeeze and excitation (Hu et al., arXiv 1709.01507): channels are scaled by what their averages say."""

    def __init__(self, paths: int, channels: int, ratio: int) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.squeeze, self.excite = PathLinear(paths, channels, hidden), PathLinear(paths, hidden, channels)

    def pieces(self) -> list[tuple[Any, ...]]:
        """Those of its two layers."""
        return list(zip(self.squeeze.pieces(), self.excite.pieces(), strict=True))

    def forward(self, inputs: Tensor, piece: tuple[Any, Any] | None = None) -> Tensor:
        """The shape stays."""
        first, second = (None, None) if piece is None else piece
        scale = torch.sigmoid(call(self.excite, F.relu(call(self.squeeze, average(inputs), first)), second))
        return inputs * scale[:, :, None, None]


class Average(nn.Module):
    """Global average pooling, (B, c, h, h) to (B, c)."""

    def forward(self, inputs: Tensor) -> Tensor:
        """See the class."""
        return average(inputs)


class PathPad(nn.Module):
    """A shortcut without weights, on every path by itself (`ZeroPadShortcut`)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, average: bool) -> None:
        super().__init__()
        self.channels_in = channels_in
        self.one = ZeroPadShortcut(channels_out, stride, average=average)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, X * c, h, h) to (B, X * c', h', h')."""
        if inputs.shape[1] == self.channels_in:
            return self.one(inputs)
        rows = inputs.unflatten(1, (-1, self.channels_in))
        return self.one(rows.flatten(0, 1)).unflatten(0, rows.shape[:2]).flatten(1, 2)


class PathBlock(PathModule):
    """X residual blocks: convolutions with batch norm, added to a shortcut, ReLU.

    `shapes`: (kernel, channels, stride) of every convolution. `shortcut`: A, B or pool, as in
    `networks.resnet.cifar`; the identity where the shape stays.
    """

    def __init__(
        self, paths: int, channels_in: int, shapes: Sequence[tuple[int, int, int]], shortcut: str, norm: bool = True
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        entering = channels_in
        for kernel, channels, stride in shapes:
            layers += [PathConv(paths, entering, channels, kernel, stride=stride, bias=not norm)]
            layers += [PathNorm(paths, channels)] if norm else []
            layers += [nn.ReLU()]
            entering = channels
        self.branch = PathSequence(paths, layers[:-1])
        stride = max(stride for _, _, stride in shapes)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or entering != channels_in:
            if shortcut == "B":
                projection = [PathConv(paths, channels_in, entering, 1, stride=stride, bias=not norm)]
                self.shortcut = PathSequence(paths, projection + ([PathNorm(paths, entering)] if norm else []))
            else:
                self.shortcut = PathPad(channels_in, entering, stride, average=shortcut == "pool")

    def pieces(self) -> list[tuple[Any, Any]]:
        """Those of the branch and of the shortcut."""
        return list(zip(self.branch.pieces(), pieces_of(self.shortcut, self.branch.paths), strict=True))

    def forward(self, inputs: Tensor, piece: tuple[Any, Any] | None = None) -> Tensor:
        """(B, X * c, h, h) to the block's output, or one path alone."""
        inner, around = (None, None) if piece is None else piece
        return F.relu(call(self.branch, inputs, inner) + call(self.shortcut, inputs, around))


def grouped_pays(
    run: Callable[[bool], Any], inputs: Tensor, paths: int, macs: int, what: tuple[Any, ...], training: bool
) -> bool:
    """Whether ``run(True)``, all paths at once, is faster than ``run(False)``, on `inputs` (B, ...) of one path.

    `macs` are those of one path and image. On devices without a rule `run` is called, both ways, the first time
    that a shape occurs; `what` tells computations apart that differ by more than their inputs' shape.
    """
    if paths == 1:
        return True
    if inputs.device.type == "cpu":
        return len(inputs) * macs <= paths * CPU_MACS
    if torch.are_deterministic_algorithms_enabled():  # a choice by time may be another one tomorrow
        return True
    key = (*what, paths, macs, tuple(inputs.shape), inputs.dtype, str(inputs.device), training)
    if key not in _KNOWN:
        _KNOWN[key] = _seconds(lambda: run(True), inputs.device) <= _seconds(lambda: run(False), inputs.device)
    return _KNOWN[key]


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The quickest of some calls, after one that warms up."""
    best = float("inf")
    for repeat in range(_REPEATS + 1):
        torch.accelerator.synchronize(device)
        started = time.perf_counter()
        call()
        torch.accelerator.synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - started)
    return best
