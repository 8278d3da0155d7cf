r"""Routing layers between parallel paths: cross-prediction, cross-connection, cross-stitch, one-to-many.

D. Tissera, R. Wijesinghe, K. Vithanage, A. Xavier, S. Fernando, R. Rodrigo, "End-to-end data-dependent
routing in multi-path neural networks", arXiv 2107.02450, sections 3 to 5; I. Misra, A. Shrivastava, A. Gupta,
M. Hebert, "Cross-stitch networks for multi-task learning", CVPR 2016, arXiv 1604.03539.

A layer takes m tensors of one shape, maps (B, c, h, h) or vectors (B, c), and gives n. Input i has a
gate for every output j, computed from its own global average (equations 1 to 3):

.. math:: Z_i = \mathrm{GAP}(X_i), \quad A_i = W_2\,\mathrm{ReLU}(W_1 Z_i + b_1) + b_2, \quad
    G_i = \mathrm{softmax}(A_i), \quad \sum_j g_{ij} = 1

(the biases are ours: the paper's equation has none). One-to-many is any of the layers with m = 1. The
upper limit n of the sum in the paper's equation 4 is taken as m, as its algorithm 1 has it.

Shape legend: B images, m inputs, n outputs, c channels, h height (= width), k some of the images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.networks.multipath.layers import (
    PathConv,
    PathExcitation,
    PathLinear,
    PathNorm,
    Paths,
    apart,
    average,
    call,
    pieces_of,
    spread,
    weighted_sums,
    wide,
)

ROUTINGS = ("cc", "cp", "stitch", "none")
GATE_SIZE = 16
SMALLEST_GATE = 1e-30
"""No softmax is smaller: a gate of exactly 0 says that a path was left out."""


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} = {value!r}: must be a whole number of at least 1")


class Gates(nn.Module):
    """The gates of m inputs with `width` channels each: two linear layers an input, then a softmax over the outputs."""

    def __init__(self, inputs: int, outputs: int, width: int, hidden: int = GATE_SIZE) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("outputs", outputs), ("width", width), ("gate_size", hidden)):
            _whole(name, value)
        self.inputs, self.outputs, self.width = inputs, outputs, width
        self.hidden = PathLinear(inputs, width, hidden)
        self.score = PathLinear(inputs, hidden, outputs)

    def scores(self, averages: Tensor, pieces: tuple[Any, Any] = (None, None)) -> Tensor:
        """A: all inputs' (B, m * width) to (B, m * n), or one input's own."""
        return call(self.score, F.relu(call(self.hidden, averages, pieces[0])), pieces[1])

    def forward(self, inputs: Paths) -> Tensor:
        """G, (B, m, n): softmax over the outputs, at least `SMALLEST_GATE`."""
        if isinstance(inputs, Tensor):
            averages = average(inputs)
        else:
            averages = wide([average(each) for each in inputs])
        return self.of(self.scores(averages).unflatten(1, (self.inputs, self.outputs)))

    @staticmethod
    def of(scores: Tensor) -> Tensor:
        """Gates from scores, over the last dimension."""
        return scores.softmax(dim=-1).clamp_min(SMALLEST_GATE)

    def one(self, i: int, features: Tensor) -> Tensor:
        """The gates (k, n) of input i alone."""
        pieces = self.hidden.pieces()[i], self.score.pieces()[i]
        return self.of(self.scores(average(features), pieces))


class RoutingLayer(nn.Module, ABC):
    """What all kinds share: m inputs of `width` channels, n outputs, gates or none.

    ``layer(inputs)`` takes a list of m tensors, or one of m * width channels, and gives a list of n.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        for name, value in (("inputs", inputs), ("outputs", outputs), ("width", width)):
            _whole(name, value)
        self.inputs, self.outputs, self.width = inputs, outputs, width
        self.gates: Gates | None = None

    def check(self, inputs: Paths) -> None:
        """Raise `ValueError` unless there are m tensors of the layer's width and one shape."""
        kind = type(self).__name__
        if isinstance(inputs, Tensor):
            if inputs.shape[1] != self.inputs * self.width:
                raise ValueError(
                    f"{kind} takes {self.inputs} inputs of {self.width} channels, not {inputs.shape[1]} in all"
                )
            return
        if len(inputs) != self.inputs:
            raise ValueError(f"{kind} takes {self.inputs} inputs, not {len(inputs)}")
        widths = [each.shape[1] for each in inputs]
        if set(widths) != {self.width}:
            raise ValueError(f"{kind} takes inputs of width {self.width}, not of {', '.join(map(str, widths))}")
        if len({each.shape for each in inputs}) > 1:
            raise ValueError(f"{kind} takes inputs of one shape, not {', '.join(str(tuple(i.shape)) for i in inputs)}")

    def weigh(self, inputs: Paths) -> Tensor | None:
        """The gates (B, m, n), or None where the layer has none."""
        return None if self.gates is None else self.gates(inputs)

    @abstractmethod
    def mix(self, inputs: Paths, gates: Tensor | None, grouped: bool = False) -> Paths:
        """The outputs under gates (B, m, n), wide where `grouped`."""

    @abstractmethod
    def edge(self, i: int, j: int, features: Tensor, gate: Tensor) -> Tensor:
        """What input i with `features` (k, ...) and gates (k,) adds to output j, before `finish`."""

    def finish(self, j: int, total: Tensor) -> Tensor:
        """Output j from the sum over its inputs."""
        return total

    def forward(self, inputs: Sequence[Tensor] | Tensor, gates: Tensor | None = None) -> list[Tensor]:
        """The outputs; `gates` (B, m, n) replace the layer's own.

        Raises `ValueError` where the number or the shapes of the inputs do not fit.
        """
        given: Paths = inputs if isinstance(inputs, Tensor) else list(inputs)
        self.check(given)
        return apart(self.mix(given, self.weigh(given) if gates is None else gates), self.outputs)


class CrossConnection(RoutingLayer):
    r"""CC, equation 5: :math:`Y_j = \sum_{i=1}^m g_{ij} X_i`. No weights but the gates', no ReLU."""

    def __init__(self, inputs: int, outputs: int, width: int, gate_size: int = GATE_SIZE) -> None:
        super().__init__(inputs, outputs, width)
        self.gates = Gates(inputs, outputs, width, gate_size)

    def mix(self, inputs: Paths, gates: Tensor | None, grouped: bool = False) -> Paths:
        """See `RoutingLayer`."""
        assert gates is not None
        return weighted_sums(inputs, gates, grouped)

    def edge(self, i: int, j: int, features: Tensor, gate: Tensor) -> Tensor:
        """See `RoutingLayer`."""
        return features * spread(gate, features)


class CrossStitch(RoutingLayer):
    r"""Misra et al.: :math:`Y_j = \sum_i a_{ij} X_i` with learned numbers that no image changes.

    They start at 0.9 on the diagonal, the rest is spread over the others; one input is copied.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__(inputs, outputs, width)
        start = torch.ones(inputs, outputs)
        if inputs > 1:
            start = torch.full((inputs, outputs), 0.1 / max(1, outputs - 1))
            start.fill_diagonal_(0.9 if outputs > 1 else 1.0)
        self.coefficients = nn.Parameter(start)

    def mix(self, inputs: Paths, gates: Tensor | None, grouped: bool = False) -> Paths:
        """See `RoutingLayer`; there are no gates."""
        return weighted_sums(inputs, self.coefficients[None], grouped)

    def edge(self, i: int, j: int, features: Tensor, gate: Tensor) -> Tensor:
        """See `RoutingLayer`."""
        return features * self.coefficients[i, j]


class Copies(RoutingLayer):
    """No routing: one input, the same for all outputs."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__(1, outputs, width)

    def mix(self, inputs: Paths, gates: Tensor | None, grouped: bool = False) -> Paths:
        """See `RoutingLayer`."""
        each = apart(inputs, 1) * self.outputs
        return wide(each) if grouped else each

    def edge(self, i: int, j: int, features: Tensor, gate: Tensor) -> Tensor:
        """See `RoutingLayer`."""
        return features


class CrossPrediction(RoutingLayer):
    r"""CP, equation 4: :math:`Y_j = \mathrm{ReLU}(\sum_{i=1}^m g_{ij} (W_{ij} * X_i + b_{ij}))`.

    Every input predicts every output by a convolution of `kernel` pixels, or by a linear layer where
    `kernel` is 0 (inputs and outputs are vectors). With `norm` the sum of every output has a batch
    norm before the ReLU; with `se_ratio` squeeze and excitation behind it.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        width_out: int,
        *,
        kernel: int = 3,
        stride: int = 1,
        norm: bool = False,
        gate_size: int = GATE_SIZE,
        se_ratio: int = 0,
    ) -> None:
        super().__init__(inputs, outputs, width)
        _whole("width_out", width_out)
        self.width_out = width_out
        self.gates = Gates(inputs, outputs, width, gate_size)
        if kernel:
            self.predict = PathConv(inputs, width, outputs * width_out, kernel, stride=stride)
        else:
            self.predict = PathLinear(inputs, width, outputs * width_out)
        self.norm: nn.Module | None = PathNorm(outputs, width_out) if norm and kernel else None
        self.excitation = PathExcitation(outputs, width_out, se_ratio) if se_ratio and kernel else None

    def mix(self, inputs: Paths, gates: Tensor | None, grouped: bool = False) -> Paths:
        """See `RoutingLayer`; the outputs are wide."""
        assert gates is not None
        by_channel = gates.repeat_interleave(self.width_out, dim=2)  # (B, m, n * width_out)
        if grouped or self.inputs == 1:
            predicted = self.predict(wide(inputs)).unflatten(1, (self.inputs, -1))
            scales = by_channel[..., None, None] if predicted.dim() == 5 else by_channel
            return self._finish((predicted * scales.to(predicted.dtype)).sum(dim=1))
        total = None
        for features, piece, scale in zip(
            apart(inputs, self.inputs), self.predict.pieces(), by_channel.unbind(1), strict=True
        ):
            predicted = self.predict(features, piece)
            scale = spread(scale, predicted)
            total = predicted * scale if total is None else torch.addcmul(total, predicted, scale)
        assert total is not None
        return self._finish(total)

    def _finish(self, total: Tensor, j: int | None = None) -> Tensor:
        """From the sums of all outputs, or of output j, to what leaves the layer."""
        if self.norm is not None:
            total = call(self.norm, total, None if j is None else pieces_of(self.norm, self.outputs)[j])
        total = F.relu(total)
        if self.excitation is not None:
            total = call(self.excitation, total, None if j is None else self.excitation.pieces()[j])
        return total

    def edge(self, i: int, j: int, features: Tensor, gate: Tensor) -> Tensor:
        """See `RoutingLayer`."""
        weight, bias = self.predict.pieces()[i]
        mine = slice(j * self.width_out, (j + 1) * self.width_out)
        predicted = self.predict(features, (weight[mine], None if bias is None else bias[mine]))
        return predicted * spread(gate, predicted)

    def finish(self, j: int, total: Tensor) -> Tensor:
        """See `RoutingLayer`."""
        return self._finish(total, j)


def routing_layer(
    routing: str, inputs: int, outputs: int, width: int, *, gate_size: int = GATE_SIZE, width_out: int = 0, **how: Any
) -> RoutingLayer:
    """A layer by the word for its kind (cc, cp, stitch; none copies one input).

    `width_out` and `how` are cross-prediction's; the others keep the width. Raises `ValueError` for
    another word, a width that would change where it cannot, no routing between many inputs.
    """
    if routing == "cp":
        return CrossPrediction(inputs, outputs, width, width_out or width, gate_size=gate_size, **how)
    if width_out not in (0, width):
        raise ValueError(f"width_out = {width_out!r}: {routing} keeps the width of its inputs, {width}")
    if routing == "cc":
        return CrossConnection(inputs, outputs, width, gate_size)
    if routing == "stitch":
        return CrossStitch(inputs, outputs, width)
    if routing != "none":
        raise ValueError(f"routing = {routing!r}: must be one of {', '.join(ROUTINGS)}")
    if inputs != 1:
        raise ValueError(f"inputs = {inputs!r}: without routing there is one input to copy")
    return Copies(outputs, width)
