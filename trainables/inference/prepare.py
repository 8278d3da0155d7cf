"""Networks prepared for inference.

`prepared` copies a trained network and replaces what it knows by faster modules that compute the
same: convolutions with their batch norms and ReLUs in one pass (`trainables.execution.fused`), and the fast forms that
each family of networks brings. What it does not know stays the module that it was, so it may be called on any network.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trainables.contracts.network import RoutedNetwork
from trainables.contracts.router import Router
from trainables.execution.fused import FusedConv, folded
from trainables.networks.gated.fast import prepared_router
from trainables.networks.halting.fast import FusedNormAct, FusedPreActUnit, FusedScoreConv
from trainables.networks.halting.positions import ScoreConv
from trainables.networks.halting.preact import NormAct, PreActUnit
from trainables.networks.msdnet.fast import FastDenseLayer, Pooled, bottlenecks_of, pools_all
from trainables.networks.msdnet.network import DenseLayer
from trainables.networks.multipath.fast import fold_norms
from trainables.networks.resnet.cifar import ResidualBlock, StridedPointwise
from trainables.networks.resnet.fast import FusedBlock

_COMMON = frozenset(vars(nn.Module()))


@runtime_checkable
class SelfPreparing(Protocol):
    """A part of a network that knows its own fast form."""

    def prepared(self, dtype: torch.dtype) -> nn.Module:
        """The fast form for arithmetic of a type; the part itself stays as it was."""
        ...


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


FAST: dict[type[nn.Module], Callable[[Any, torch.dtype], nn.Module]] = {
    NormAct: FusedNormAct,
    ScoreConv: FusedScoreConv,
    PreActUnit: FusedPreActUnit,
    FusedPreActUnit: lambda unit, dtype: unit,  # prepared already
}
"""What makes the fast form of a module of exactly this type, for arithmetic of a type."""


class _Preparation:
    """One walk over a network's modules; a kind of block is compared with its original once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.known: dict[tuple, bool] = {}
        self.few = False  # inside a dense layer: few channels

    def module(self, module: nn.Module) -> nn.Module:
        """The fast form of a module, or the module itself with its children replaced."""
        if type(module) in FAST:
            return FAST[type(module)](module, self.dtype)
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
    default; routers of the kinds in `networks.gated.fast` always decide in float32. The copy has no
    gradients and stays on its device; parameters that it did not have to change are shared with the
    original, which is left as it was. Prepare again after more training.
    """
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    clone = copy.deepcopy(network, shared).eval()  # pyright: ignore[reportArgumentType]
    own = next((p.dtype for p in network.parameters()), torch.float32)
    walked = _Preparation(dtype or own).module(clone)
    assert isinstance(walked, RoutedNetwork)
    return walked
