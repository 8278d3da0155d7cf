"""Routers prepared for inference: few calls a gate, because calls are what a small gate costs.

The pooled features are a sum over positions; the division by their number is the `alpha` of the
product that reads them. Narrower features than float32 are summed and answered in float32.

Shape legend: B images, c channels, h height (= width).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.gates import LinearGate, LocalRouter, RecurrentRouter, Router


def _wide(tensor: Tensor) -> Tensor:
    """Without a gradient, in float32 at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def _affine_of_mean(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    """``weight @ mean + bias`` (B, d), the mean over positions of features (B, c, h, h)."""
    scale = 1 / (features.shape[2] * features.shape[3])
    if len(features) == 1:  # products with vectors cost half the call
        return torch.addmv(bias, weight, features[0].flatten(1).sum(1, dtype=weight.dtype), alpha=scale)[None]
    # channels-last features are read in order
    sums = features.permute(0, 2, 3, 1).flatten(1, 2).sum(1, dtype=weight.dtype)
    return torch.addmm(bias, sums, weight.t(), alpha=scale)


class FusedLinear:
    """A linear gate; the two outputs become one, their difference.

    .. math:: z = (w_1 - w_0) \\cdot \\mathrm{relu}(W \\bar x + b) + b_1 - b_0
    """

    def __init__(self, gate: LinearGate) -> None:
        self.weight, self.bias = _wide(gate.fc1.weight), _wide(gate.fc1.bias)
        last, shift = _wide(gate.fc2.weight), _wide(gate.fc2.bias)
        self.difference, self.shift = last[1] - last[0], shift[1:] - shift[:1]
        self.plain = gate.plain

    def __call__(self, features: Tensor) -> Tensor:
        """Features (B, c, h, h) to z (B,)."""
        hidden = _affine_of_mean(self.weight, self.bias, features)
        return torch.addmv(self.shift, hidden if self.plain else hidden.relu_(), self.difference)


class FusedLocalRouter(Router):
    """Independent linear gates."""

    def __init__(self, router: LocalRouter) -> None:
        super().__init__()
        self._costs = [router.macs(gate) for gate in range(len(router.gates))]
        self._gates = [FusedLinear(gate) for gate in router.gates if isinstance(gate, LinearGate)]

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        return self._gates[gate](features), memory

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        return self._costs[gate]


class FusedRecurrentRouter(Router):
    """The recurrent gate; its 1 x 1 convolutions read sums."""

    def __init__(self, router: RecurrentRouter) -> None:
        super().__init__()
        self._costs = [router.macs(gate) for gate in range(len(router.embed))]
        self._embed = []
        for layer in router.embed:
            assert isinstance(layer, nn.Conv2d) and layer.bias is not None
            self._embed.append((_wide(layer.weight).flatten(1), _wide(layer.bias)))
        cell = router.lstm
        self._hidden = cell.hidden_size
        self._cell = [_wide(p) for p in (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)]
        self._out = _wide(router.out.weight)[0], _wide(router.out.bias)

    def begin(self, images: Tensor) -> Tensor:
        """See `RecurrentRouter`."""
        return images.new_zeros(len(images), 2 * self._hidden, dtype=self._cell[0].dtype)

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        weight, bias = self._embed[gate]
        state = memory.split(self._hidden, 1)
        output, cell = torch.lstm_cell(_affine_of_mean(weight, bias, features), state, *self._cell)
        vector, shift = self._out
        return torch.addmv(shift, output, vector), torch.cat([output, cell], dim=1)

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        return self._costs[gate]


def prepared_router(router: Router) -> Router | None:
    """The fast form of a router; None where it has none and stays what it is."""
    if type(router) is RecurrentRouter:
        return FusedRecurrentRouter(router)
    if type(router) is LocalRouter and all(type(gate) is LinearGate for gate in router.gates):
        return FusedLocalRouter(router)
    return None
