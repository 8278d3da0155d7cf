"""Networks prepared for inference: batch norm folded, convolution, ReLU and addition in one pass.

`prepared` copies a trained network and replaces what it knows by faster modules that compute the
same. What it does not know stays the module that it was, so it may be called on any network.

On CPUs the convolutions are oneDNN's with weights packed once (`torch.ops.mkldnn`, as TorchInductor
calls them); elsewhere, and in types that oneDNN lacks, the same modules call PyTorch's own.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.fused_exits import FastDenseLayer, Pooled, bottlenecks_of, pools_all
from trainables.fused_routers import folded, prepared_router
from trainables.gates import Router
from trainables.network import RoutedNetwork
from trainables.networks.msdnet import DenseLayer
from trainables.networks.multipath_folding import fold_norms
from trainables.networks.resnet import ResidualBlock, StridedPointwise

LAST = torch.channels_last
_COMMON = frozenset(vars(nn.Module()))


def _has_onednn(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether oneDNN computes fused convolutions of this type here."""
    if device.type != "cpu" or not torch.backends.mkldnn.is_available() or not torch.backends.mkldnn.enabled:
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


@runtime_checkable
class SelfPreparing(Protocol):
    """A part of a network that knows its own fast form."""

    def prepared(self, dtype: torch.dtype) -> nn.Module:
        """The fast form for arithmetic of a type; the part itself stays as it was."""
        ...


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
        self.packed: Tensor | None = None
        self.alone: Tensor | None = None
        if _has_onednn(dtype, weight.device):
            # no size of the input: the packing that serves all batch sizes
            self.packed = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *self._geometry, [])
            self.weight = self.weight.new_empty(0)  # oneDNN's copy is enough
            if alone:
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
        if self.packed is None:
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
        return _accumulate(into, input, self.packed, self.bias, *self._geometry, "add", 1.0, unary, [], "")

    def convolved(self, input: Tensor, unary: str, scalars: Sequence[float] = ()) -> Tensor:
        """The convolution by oneDNN and a function of its output, by oneDNN's name and parameters."""
        input = input.to(self.dtype).contiguous(memory_format=LAST)
        return _convolve(input, self.packed, self.bias, *self._geometry, unary, list(scalars), "")


if hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
    _convolve = torch.ops.mkldnn._convolution_pointwise.default
    _accumulate = torch.ops.mkldnn._convolution_pointwise_.binary


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


def _layers_of(block: ResidualBlock) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """The convolutions and batch norms conv1, bn1, conv2, bn2, ... of a block that has nothing else; else none."""
    children = dict(block.named_children())
    children.pop("shortcut", None)
    layers = []
    for k in itertools.count(1):
        pair = children.pop(f"conv{k}", None), children.pop(f"bn{k}", None)
        if not (_foldable(pair[0]) and isinstance(pair[1], nn.BatchNorm2d) and pair[1].track_running_stats):
            break
        layers.append(pair)
    # a ReLU has no weights and says nothing about where it stands: `_same` decides
    rest = [child for child in children.values() if not isinstance(child, nn.ReLU)]
    return [] if rest or len(layers) < 2 else layers


def _foldable(module: nn.Module | None) -> bool:
    """Whether a module is a plain convolution; one with hooks (spectral norm, say) may be more than its weight."""
    if not isinstance(module, nn.Conv2d) or type(module) not in (nn.Conv2d, StridedPointwise):
        return False
    if module._forward_pre_hooks or module._forward_hooks:
        return False
    return module.padding_mode == "zeros" and not isinstance(module.padding, str)


def _same(block: ResidualBlock) -> bool:
    """Whether a fused block computes what its original does: names alone do not say how layers are joined."""
    exact = copy.deepcopy(block).double().eval()
    layers = _layers_of(exact)
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, layers[0][0].in_channels, 8, 8, generator=draw, dtype=torch.float64)
    inputs = inputs.to(layers[0][0].weight.device)
    expected, output = exact(inputs), FusedBlock(layers, exact.shortcut, torch.float64, exact.scale)(inputs)
    return expected.shape == output.shape and bool(torch.allclose(output, expected, rtol=1e-6, atol=1e-6))


class _Preparation:
    """One walk over a network's modules; a kind of block is compared with its original once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.known: dict[tuple, bool] = {}
        self.few = False  # inside a dense layer: few channels

    def module(self, module: nn.Module) -> nn.Module:
        """The fast form of a module, or the module itself with its children replaced."""
        if hasattr(module, "fused"):
            return module.fused(self.dtype)  # pyright: ignore[reportCallIssue]
        if isinstance(module, ResidualBlock) and (block := self.block(module)) is not None:
            return block
        if isinstance(module, SelfPreparing):
            return module.prepared(self.dtype)
        if isinstance(module, Router) and (router := prepared_router(module)) is not None:
            return router
        if type(module) is DenseLayer:
            return self.dense(module)
        if type(module) is nn.Sequential:
            return self.sequence(list(module))
        fold_norms(module)  # of parallel paths
        for name, child in module.named_children():
            setattr(module, name, self.module(child))
        if self.dtype != torch.float32:
            for store in (module._parameters, module._buffers):
                for name, tensor in store.items():
                    if tensor is not None and tensor.dtype == torch.float32:
                        cast = tensor.detach().to(self.dtype)
                        store[name] = nn.Parameter(cast, False) if store is module._parameters else cast  # pyright: ignore
        return module

    def sequence(self, layers: list[nn.Module]) -> nn.Module:
        """Convolutions with the batch norm and the ReLU behind them made one."""
        done: list[nn.Module] = []
        while layers:
            layer = layers.pop(0)
            if pools_all(layer) and layers and type(layers[0]) is nn.Flatten:
                layers.pop(0)
                done.append(Pooled())
                continue
            if not _foldable(layer):
                done.append(self.module(layer))
                continue
            norm = layers[0] if layers and isinstance(layers[0], nn.BatchNorm2d) else None
            if norm is not None and not norm.track_running_stats:
                norm = None
            if norm is not None:
                layers.pop(0)
            relu = bool(layers) and type(layers[0]) is nn.ReLU
            if relu:
                layers.pop(0)
            assert isinstance(layer, nn.Conv2d)
            done.append(FusedConv(layer, norm, relu=relu, dtype=self.dtype, alone=self.few))
        return done[0] if len(done) == 1 else nn.Sequential(*done)

    def dense(self, layer: DenseLayer) -> DenseLayer:
        """A layer of an MSDNet; its 1 x 1 convolutions serve small batches as products."""
        reading = [[folded(each[0], each[1]) for each in parts] for parts in bottlenecks_of(layer)]  # pyright: ignore[reportArgumentType]
        self.few = True
        for name, child in layer.named_children():
            setattr(layer, name, self.module(child))
        self.few = False
        return FastDenseLayer(layer, reading) if reading and self.dtype == torch.float32 else layer

    def block(self, block: ResidualBlock) -> FusedBlock | None:
        """A residual block whose layers are known and joined as usual; else None."""
        layers = _layers_of(block)
        if not layers:
            return None
        # a kind of block may also differ by what was set on it: names and values that no module has by itself
        own = sorted((name, repr(value)) for name, value in vars(block).items() if name not in _COMMON)
        shapes = ((layer.kernel_size, layer.stride) for layer, _ in layers)
        kind = (type(block), type(block.shortcut), *own, *shapes)
        if kind not in self.known:
            self.known[kind] = _same(block)
        return FusedBlock(layers, self.module(block.shortcut), self.dtype, block.scale) if self.known[kind] else None


@torch.no_grad()
def prepared(network: RoutedNetwork, *, dtype: torch.dtype | None = None) -> RoutedNetwork:
    """A copy of a trained network for inference, in eval mode, where the network is now.

    Same class, same `infer`, `sweep`, `replay` and eval-mode `forward`; logits are equal to rounding
    (1e-5 of the largest in float32), so that a decision whose probability is that close to its
    threshold may fall the other way. `dtype` is the type of the arithmetic, the network's own by
    default; routers of the kinds in `fused_routers` always decide in float32. The copy has no
    gradients and stays on its device; parameters that it did not have to change are shared with the
    original, which is left as it was. Prepare again after more training.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    clone = copy.deepcopy(network, shared).eval()  # pyright: ignore[reportArgumentType]
    own = next((p.dtype for p in network.parameters()), torch.float32)
    walked = _Preparation(dtype or own).module(clone)
    assert isinstance(walked, RoutedNetwork)
    return walked
