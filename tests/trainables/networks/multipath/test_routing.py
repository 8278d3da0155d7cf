"""Routing layers: conservation, closed-form gradients, permutations, what they refuse, grouped against the loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.networks.multipath.layers import PathBlock, PathConv, PathExcitation, PathLinear, PathNorm, PathSequence
from trainables.networks.multipath.routing import (
    CrossConnection,
    CrossPrediction,
    CrossStitch,
    Gates,
    RoutingLayer,
    routing_layer,
)

torch.set_num_threads(1)


def tensors(count: int, width: int = 6, images: int = 4, maps: bool = True) -> list[Tensor]:
    shape = (images, width, 5, 5) if maps else (images, width)
    return [torch.randn(shape, dtype=torch.float64) for _ in range(count)]


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).detach().abs().max() <= 1e-5 * other.detach().abs().max())


@pytest.mark.parametrize("maps", [True, False], ids=["maps", "vectors"])
@pytest.mark.parametrize("m,n", [(1, 1), (1, 3), (2, 2), (3, 2), (2, 4)])
def test_gates_are_distributions_and_connections_conserve_the_sum(m: int, n: int, maps: bool) -> None:
    layer, inputs = CrossConnection(m, n, 6).double(), tensors(m, maps=maps)
    assert layer.gates is not None
    gates, outputs = layer.gates(inputs), layer(inputs)
    assert gates.shape == (4, m, n) and len(outputs) == n
    assert torch.allclose(gates.sum(dim=2), torch.ones(4, m, dtype=torch.float64))
    assert torch.allclose(sum(outputs), sum(inputs))  # pyright: ignore
    for i, x in enumerate(inputs):  # the equations, input by input
        z = x.mean(dim=(2, 3)) if maps else x
        first, second = layer.gates.hidden.pieces()[i], layer.gates.score.pieces()[i]
        assert torch.allclose(gates[:, i], F.linear(F.relu(F.linear(z, *first)), *second).softmax(dim=1))
        assert torch.allclose(layer.gates.one(i, x), gates[:, i])
    nn.init.zeros_(layer.gates.score.weight)
    nn.init.zeros_(layer.gates.score.bias)
    for output in layer(inputs):  # equal gates
        assert torch.allclose(output, sum(inputs) / n)  # pyright: ignore


def test_one_to_one_layers_are_what_they_replace() -> None:
    (x,) = tensors(1)
    assert torch.equal(CrossConnection(1, 1, 6).double()([x])[0], x)
    prediction = CrossPrediction(1, 1, 6, 8).double()
    assert isinstance(prediction.predict, PathConv)
    expected = F.relu(F.conv2d(x, prediction.predict.weight, prediction.predict.bias, padding=1))
    assert torch.allclose(prediction([x])[0], expected)
    stitch = CrossStitch(3, 3, 6).double()
    with torch.no_grad():
        stitch.coefficients.copy_(torch.eye(3))
    inputs = tensors(3)
    assert all(torch.equal(y, x) for x, y in zip(inputs, stitch(inputs), strict=True))
    assert CrossStitch(1, 3, 6).coefficients.tolist() == [[1.0] * 3]
    assert torch.allclose(CrossStitch(2, 2, 6).coefficients, torch.tensor([[0.9, 0.1], [0.1, 0.9]]))


@pytest.mark.parametrize("kernel", [3, 0], ids=["convolution", "linear"])
def test_cross_prediction_is_its_equation(kernel: int) -> None:
    layer, inputs = CrossPrediction(2, 3, 6, 4, kernel=kernel).double(), tensors(2, maps=bool(kernel))
    gates = layer.weigh(inputs)
    assert gates is not None
    for j, output in enumerate(layer(inputs)):
        total = torch.zeros_like(output)
        for i, x in enumerate(inputs):
            weight, bias = (part[4 * j : 4 * (j + 1)] for part in layer.predict.pieces()[i])  # pyright: ignore
            predicted = F.conv2d(x, weight, bias, padding=1) if kernel else F.linear(x, weight, bias)
            total = total + gates[:, i, j].view(4, *[1] * (x.dim() - 1)) * predicted
            edge = layer.edge(i, j, x, gates[:, i, j])
            assert torch.allclose(edge, gates[:, i, j].view(4, *[1] * (x.dim() - 1)) * predicted)
        assert torch.allclose(output, F.relu(total))


def test_closed_form_gradients_of_a_connection_with_one_dense_gate() -> None:
    """The paper's equations 8 and 9 on vectors, a gate being softmax(W X)."""
    m, n, width = 2, 3, 5
    inputs = [torch.randn(1, width, dtype=torch.float64, requires_grad=True) for _ in range(m)]
    weights = [torch.randn(n, width, dtype=torch.float64, requires_grad=True) for _ in range(m)]
    gates = torch.stack([(x @ w.T).softmax(dim=1) for x, w in zip(inputs, weights, strict=True)], dim=1)
    outputs = CrossConnection(m, n, width).double()(inputs, gates=gates)
    upstream = [torch.randn(1, width, dtype=torch.float64) for _ in range(n)]
    sum((y * d).sum() for y, d in zip(outputs, upstream, strict=True)).backward()  # pyright: ignore
    for i in range(m):
        x, w, g = inputs[i].detach()[0], weights[i].detach(), gates.detach()[0, i]
        of_gates = torch.stack([(d[0] * x).sum() for d in upstream])
        of_scores = (torch.diag(g) - torch.outer(g, g)) @ of_gates
        of_input = sum(g[j] * upstream[j][0] for j in range(n)) + w.T @ of_scores  # pyright: ignore
        assert torch.allclose(weights[i].grad, torch.outer(of_scores, x), atol=1e-12)  # pyright: ignore
        assert torch.allclose(inputs[i].grad[0], of_input, atol=1e-12)  # pyright: ignore


@pytest.mark.parametrize("kind", ["cc", "cp"])
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    layer = routing_layer(kind, 2, 2, 3, gate_size=4).double()
    inputs = [torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *xs: tuple(layer(list(xs))), inputs, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", ["cc", "cp", "stitch"])
def test_permuting_paths_with_their_weights_permutes_the_outputs(kind: str) -> None:
    layer, inputs = routing_layer(kind, 3, 3, 6).double(), tensors(3)
    outputs = layer(inputs)
    order = [2, 0, 1]

    def blocks(tensor: Tensor, rows: bool = True, columns: bool = True) -> Tensor:
        """Rows grouped by input, in each of which outputs are grouped."""
        parts = list(tensor.chunk(3))
        if columns:
            parts = [torch.cat([part.chunk(3)[j] for j in order]) for part in parts]
        return torch.cat([parts[i] for i in order]) if rows else torch.cat(parts)

    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name == "coefficients":
                parameter.copy_(parameter[order][:, order])
            else:
                parameter.copy_(blocks(parameter, columns="hidden" not in name))
    permuted = layer([inputs[i] for i in order])
    assert all(torch.allclose(y, outputs[j]) for y, j in zip(permuted, order, strict=True))


LAYERS: dict[str, Any] = {
    "conv": lambda x: PathConv(x, 6, 8, 3, stride=2),
    "norm": lambda x: PathNorm(x, 6),
    "excitation": lambda x: PathExcitation(x, 6, 2),
    "block": lambda x: PathBlock(x, 6, [(3, 8, 2), (3, 8, 1)], "B"),
    "padded block": lambda x: PathBlock(x, 6, [(3, 8, 2), (3, 8, 1)], "A"),
    "pooled block": lambda x: PathBlock(x, 6, [(1, 2, 1), (3, 2, 2), (1, 8, 1)], "pool", norm=False),
    "linear": lambda x: PathLinear(x, 6, 4),
}


@pytest.mark.parametrize("paths", [1, 3])
@pytest.mark.parametrize("kind", list(LAYERS))
@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
def test_layers_are_the_same_grouped_and_one_by_one(kind: str, paths: int, last: bool) -> None:
    stage = PathSequence(paths, [LAYERS[kind](paths)]).double()
    inputs = torch.cat(tensors(paths, maps=kind != "linear"), dim=1)
    if last and inputs.dim() == 4:
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    runs = []
    for grouped in (True, False):
        stage.zero_grad()
        for module in stage.modules():
            if isinstance(module, PathNorm):
                module.reset_running_stats()
        x = inputs.clone().requires_grad_()
        output = stage.run(x, grouped)
        output = output if isinstance(output, Tensor) else torch.cat(output, dim=1)
        (output * torch.linspace(-1, 2, output.numel(), dtype=torch.float64).view_as(output)).sum().backward()
        statistics = [b.clone() for b in stage.buffers()]
        runs.append([output, x.grad, *(p.grad for p in stage.parameters()), *statistics])
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(*runs, strict=True))


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["cc", "cp", "stitch"]),
    m=st.integers(1, 4),
    n=st.integers(1, 4),
    width=st.integers(1, 9),
    hidden=st.integers(1, 9),
    maps=st.booleans(),
    last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mixing_is_the_same_grouped_and_one_by_one(
    kind: str, m: int, n: int, width: int, hidden: int, maps: bool, last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    how = {"kernel": 3 if maps else 0} if kind == "cp" else {}
    layer = routing_layer(kind, m, n, width, gate_size=hidden, **how)
    inputs = [x.float() for x in tensors(m, width, 3, maps)]
    together = torch.cat(inputs, dim=1)
    if last and maps:
        together = together.contiguous(memory_format=torch.channels_last)
    gates = layer.weigh(inputs)
    found = layer.mix(together, layer.weigh(together), grouped=True)
    assert isinstance(found, Tensor)
    expected = layer.mix(inputs, gates)
    expected = expected if isinstance(expected, Tensor) else torch.cat(expected, dim=1)
    assert close(found, expected)  # both may be all zeros behind a ReLU
    whole = gates if gates is not None else torch.ones(3, m, n)
    for j, output in enumerate(expected.chunk(n, dim=1)):  # what pruned passes compute edge by edge
        total = sum(layer.edge(i, j, inputs[i], whole[:, i, j]) for i in range(m))
        assert torch.allclose(layer.finish(j, total), output, rtol=1e-4, atol=1e-5)  # pyright: ignore


@pytest.mark.parametrize(
    "make,inputs,message",
    [
        (lambda: routing_layer("cp", 2, 2, 6), tensors(1) + tensors(1, 8), "width 6, not of 6, 8"),
        (lambda: routing_layer("cc", 2, 2, 6), tensors(3), "takes 2 inputs, not 3"),
        (lambda: routing_layer("cc", 2, 2, 6), [torch.randn(2, 9, 4, 4)], "takes 2 inputs, not 1"),
        (lambda: routing_layer("cc", 2, 2, 6), torch.randn(2, 9, 4, 4), "2 inputs of 6 channels, not 9 in all"),
        (lambda: routing_layer("stitch", 2, 2, 6), [*tensors(1), *tensors(1, images=3)], "inputs of one shape"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(make: Any, inputs: Any, message: str) -> None:
    layer: RoutingLayer = make()
    with pytest.raises(ValueError, match=message):
        layer(inputs)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"routing": "cx", "inputs": 2}, "routing = 'cx': must be one of cc, cp, stitch, none"),
        ({"routing": "cc", "inputs": 0}, "inputs = 0: must be a whole number of at least 1"),
        ({"routing": "cp", "inputs": 2, "gate_size": 0}, "gate_size = 0"),
        ({"routing": "cc", "inputs": 2, "width_out": 8}, "width_out = 8: cc keeps the width of its inputs, 6"),
        ({"routing": "none", "inputs": 2}, "one input to copy"),
    ],
)
def test_layers_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        routing_layer(values.pop("routing"), values.pop("inputs"), 2, 6, **values)


def test_a_gate_is_never_exactly_zero() -> None:
    gates = Gates.of(torch.tensor([[0.0, 500.0]]))
    assert gates[0, 0] > 0 and gates[0, 1] == 1
