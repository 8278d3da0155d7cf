"""Routers prepared for inference: few calls a gate, because calls are what a small gate costs.

The pooled features are a sum over positions; the division by their number is the `alpha` of the
product that reads them. Narrower features than float32 are summed and answered in float32.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from trainables.contracts.router import Router
from trainables.execution.fused import folded
from trainables.execution.rows import sums_of
from trainables.networks.gated.gates import LinearGate, LocalRouter, PointwiseGate, RecurrentRouter


def _wide(tensor: Tensor) -> Tensor:
    """Without a gradient, in float32 at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


class PoolingRouter(Router):
    """A router that reads nothing but the mean over positions.

    ``forward(gate, features, memory, sums)`` takes the sums (B, c) where the caller has them. `alone`
    returns, for one image on a CPU, what answers its gates one after the other by arithmetic of
    numpy, whose calls cost less: ``ask(gate, features, changed)`` is P(run); where the features have
    not changed since the last gate they are not read again.
    """

    pools = True

    def __init__(self, original: Router) -> None:
        super().__init__()
        self._macs = original.macs

    @abstractmethod
    def answer(self, gate: int, sums: Tensor, scale: float, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Z (B,) and the memory, from sums (B, c) that `scale` makes means."""

    @abstractmethod
    def teller(self) -> Callable[[int, np.ndarray], float]:
        """For one image: z from the gate's number and the mean (c,)."""

    def forward(self, gate: int, features: Tensor, memory: Tensor, sums: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        sums = sums_of(features) if sums is None else sums
        return self.answer(gate, sums, 1 / (features.shape[2] * features.shape[3]), memory)

    def alone(self) -> Callable[[int, Tensor, bool], float]:
        """See above; the answers belong to one image."""
        tell, mean, ones = self.teller(), np.zeros(0), np.zeros(0, np.float32)

        def ask(gate: int, features: Tensor, changed: bool) -> float:
            nonlocal mean, ones
            if changed:
                channels, height, width = features.shape[1:]
                if features.dtype != torch.float32:
                    features = features.float()
                if len(ones) != height * width:
                    ones = np.full(height * width, 1 / (height * width), np.float32)
                # a product of numpy takes half the time of torch's sum over so little
                mean = ones.dot(features.numpy().transpose(0, 2, 3, 1).reshape(-1, channels))
            z = tell(gate, mean)
            # rounded as the tensors of many images are: 1 is reached where float32 reaches it
            return float(np.float32(0.0 if z < -100 else 1 / (1 + math.exp(-z))))

        return ask

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        return self._macs(gate)


def _products(gate: nn.Module) -> tuple[Tensor, Tensor, Tensor, Tensor, bool]:
    """W (k, c), b (k,), w_1 - w_0 (k,), b_1 - b_0 (1,) of a gate that pools, and whether it has no ReLU."""
    if isinstance(gate, PointwiseGate):
        weight, bias = folded(gate.conv1, gate.bn1)
        weight, bias = weight.flatten(1).to(gate.conv1.weight.dtype), bias.to(gate.conv1.weight.dtype)
        last, plain = gate.conv2, False
    else:
        assert isinstance(gate, LinearGate)
        weight, bias, last, plain = gate.fc1.weight, gate.fc1.bias, gate.fc2, gate.plain
    assert last.bias is not None
    out, shift = _wide(last.weight).flatten(1), _wide(last.bias)
    return _wide(weight), _wide(bias), out[1] - out[0], shift[1:] - shift[:1], plain


class FusedLinearRouter(PoolingRouter):
    r"""Independent gates of two linear layers on pooled features; the two outputs of each become their difference.

    .. math:: z = (w_1 - w_0) \cdot \mathrm{relu}(W \bar x + b) + b_1 - b_0
    """

    def __init__(self, router: LocalRouter) -> None:
        super().__init__(router)
        self._gates = [_products(gate) for gate in router.gates]
        if not self._gates[0][0].is_cpu:
            return
        self._numbers = [(*(t.numpy() for t in g[:3]), float(g[3]), g[4]) for g in self._gates]

    def answer(self, gate: int, sums: Tensor, scale: float, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `PoolingRouter`."""
        weight, bias, difference, shift, plain = self._gates[gate]
        hidden = torch.addmm(bias, sums, weight.t(), alpha=scale)
        return torch.addmv(shift, hidden if plain else hidden.relu_(), difference), memory

    def teller(self) -> Callable[[int, np.ndarray], float]:
        """See `PoolingRouter`."""
        numbers = self._numbers

        def tell(gate: int, mean: np.ndarray) -> float:
            weight, bias, difference, shift, plain = numbers[gate]
            hidden = weight.dot(mean)
            hidden += bias
            if not plain:
                np.maximum(hidden, 0, out=hidden)
            return float(hidden.dot(difference)) + shift

        return tell


class FusedRecurrentRouter(PoolingRouter):
    """The recurrent gate; its 1 x 1 convolutions are products with means."""

    def __init__(self, router: RecurrentRouter) -> None:
        super().__init__(router)
        self._embed: list[tuple[Tensor, Tensor]] = []
        for layer in router.embed:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            self._embed.append((_wide(layer.weight).flatten(1), _wide(layer.bias)))
        cell = router.lstm
        self._hidden = cell.hidden_size
        self._cell = [_wide(p) for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]
        self._out = _wide(router.out.weight)[0], _wide(router.out.bias)
        if not self._cell[0].is_cpu:
            return
        self._numbers = [(weight.numpy(), bias.numpy()) for weight, bias in self._embed]
        # rows in the order input, forget, output, candidate; sigmoid(x) = (1 + tanh(x / 2)) / 2
        scale = torch.tensor([0.5, 0.5, 0.5, 1.0]).repeat_interleave(self._hidden)
        order = torch.arange(4 * self._hidden).view(4, -1)[[0, 1, 3, 2]].flatten()
        weight, bias = torch.cat(self._cell[:2], dim=1), self._cell[2] + self._cell[3]
        self._gates = (weight[order] * scale[:, None]).numpy(), (bias[order] * scale).numpy()

    def begin(self, images: Tensor) -> Tensor:
        """See `RecurrentRouter`."""
        return images.new_zeros(len(images), 2 * self._hidden, dtype=self._cell[0].dtype)

    def answer(self, gate: int, sums: Tensor, scale: float, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `PoolingRouter`."""
        (weight, bias), (vector, shift) = self._embed[gate], self._out
        embedded = torch.addmm(bias, sums, weight.t(), alpha=scale)
        output, cell = torch.lstm_cell(embedded, memory.split(self._hidden, 1), *self._cell)
        return torch.addmv(shift, output, vector), torch.cat([output, cell], dim=1)

    def teller(self) -> Callable[[int, np.ndarray], float]:
        """See `PoolingRouter`."""
        size, (weight, bias) = self._hidden, self._gates
        vector, shift = self._out[0].numpy(), float(self._out[1])
        inner = np.zeros(weight.shape[1], weight.dtype)  # what the LSTM reads: the embedding and its own output
        embedded, output = inner[:-size], inner[-size:]
        cell, gates = np.zeros(size, weight.dtype), np.zeros(4 * size, weight.dtype)
        sigmoids = gates[: 3 * size]
        enter, keep, leave, candidate = (gates[i * size : (i + 1) * size] for i in range(4))

        def tell(gate: int, mean: np.ndarray) -> float:
            embed, offset = self._numbers[gate]
            np.add(embed.dot(mean), offset, out=embedded)
            np.add(weight.dot(inner), bias, out=gates)
            np.tanh(gates, out=gates)
            np.multiply(np.add(sigmoids, 1, out=sigmoids), 0.5, out=sigmoids)
            np.multiply(cell, keep, out=cell)
            np.add(cell, np.multiply(enter, candidate, out=candidate), out=cell)
            np.multiply(np.tanh(cell, out=output), leave, out=output)
            return float(output.dot(vector)) + shift

        return tell


_POOLING = (LinearGate, PointwiseGate)


def prepared_router(router: Router) -> Router | None:
    """The fast form of a router; None where it has none and stays what it is."""
    if type(router) is RecurrentRouter:
        return FusedRecurrentRouter(router)
    if type(router) is LocalRouter and all(type(gate) in _POOLING for gate in router.gates):
        return FusedLinearRouter(router)
    return None
