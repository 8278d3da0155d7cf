"""Prepared networks: the same answers as their originals, which stay what they were."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.contracts.network import Inference, RoutedNetwork, Task
from trainables.contracts.recipe import TrainingConfig
from trainables.execution.fused import FusedConv, folded
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve, evaluate
from trainables.inference.prepare import prepared
from trainables.networks.gated.fast import FusedLinearRouter, FusedRecurrentRouter
from trainables.networks.gated.gates import GATES, router_of
from trainables.networks.gated.network import SKIPS, GatedResNet
from trainables.networks.resnet.cifar import (
    SHORTCUTS,
    Body,
    Classifier,
    ResidualBlock,
    StaticResNet,
    cifar_resnet,
    shortcut_of,
)
from trainables.networks.resnet.fast import FusedBlock
from trainables.registry import METHODS, get_method

torch.set_num_threads(1)

TASK = Task(classes=4, size=11, channels=2)
MIDDLE = {"threshold": 0.5}
KNOBS = [{"threshold": t} for t in (0.0, 0.3, 0.5, 0.7, 1.01)]


def lived_in(network: RoutedNetwork, seed: int = 0) -> Any:
    """As training leaves a network: statistics and scales that are no 0 and 1, routers that disagree about images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name, module in network.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.2)  # pyright: ignore
                module.running_var.uniform_(0.5, 1.5)  # pyright: ignore
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.2)
            elif name.startswith("router") and isinstance(module, nn.Linear | nn.Conv2d | nn.LSTMCell):
                for parameter in module.parameters():
                    nn.init.normal_(parameter)
    return network.eval()


def gated(gate: str = "linear", shortcut: str = "A", skip: str = "own", task: Task = TASK, **more: Any) -> GatedResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = cifar_resnet("resnet-14", task, width=0.5, shortcut=shortcut)
        positions = more.pop("gated", range(len(body.blocks)))
        shapes = [body.shapes[k] for k in positions]
        read = [*shapes, *([body.shapes[-1]] if more.get("trailing") else [])]
        router = router_of(gate, read, image=task.image)
        given = {"skip": skip, "relaxation": "softmax", "gated": positions, **more}
        return lived_in(GatedResNet(TrainingConfig(), task, body, router, **given))


def images_of(count: int, task: Task = TASK, seed: int = 1) -> Tensor:
    noise = torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(seed))
    return noise * torch.logspace(-1, 1, max(count, 1))[:count, None, None, None]


def assert_same(ours: Inference, theirs: Inference) -> None:
    assert torch.allclose(ours.decisions, theirs.decisions, rtol=0, atol=5e-4) and torch.equal(ours.path, theirs.path)
    assert torch.equal(ours.macs, theirs.macs)
    assert ours.logits.shape == theirs.logits.shape
    if theirs.logits.numel():
        assert (ours.logits - theirs.logits).abs().max() <= 1e-5 * theirs.logits.abs().max()


def compare(network: RoutedNetwork, images: Tensor, knobs: Any = KNOBS) -> list[Inference]:
    fast = prepared(network)
    before = images.clone()
    theirs = network.sweep(images, knobs)
    for ours, other, each in zip(fast.sweep(images, knobs), theirs, knobs, strict=True):
        assert_same(ours, other)
        assert_same(fast.infer(images, each), other)
    assert torch.equal(images, before)
    return theirs


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("count", [1, 7])
def test_every_router(gate: str, count: int) -> None:
    network = gated(gate)
    theirs = compare(network, images_of(count))
    assert theirs[0].decisions.all() and not theirs[-1].decisions.any()  # all on, all off
    middle = theirs[2].decisions
    assert count == 1 or 0 < middle.sum() < middle.numel()


@pytest.mark.parametrize(("shortcut", "skip"), list(itertools.product(SHORTCUTS, SKIPS)))
def test_every_shortcut_and_skip(shortcut: str, skip: str) -> None:
    network = gated(shortcut=shortcut, skip=skip)
    compare(network, images_of(5))
    compare(network, images_of(1))


@pytest.mark.parametrize("shortcut", SHORTCUTS)
def test_gates_on_the_branch_alone(shortcut: str) -> None:
    network = gated(shortcut=shortcut, skip="shortcut", mixing="branch", gated=[0, 2, 5])
    compare(network, images_of(5))
    compare(network, images_of(1))


def test_blocks_without_gates_and_a_trailing_gate() -> None:
    for gate in ("linear", "rnn", "ff2"):
        network = gated(gate, skip="shortcut", gated=[1, 2, 4], trailing=True)
        compare(network, images_of(5))
        compare(network, images_of(1))


def test_plain_linear_gates() -> None:
    network = gated()
    network.router = router_of("linear", network.shapes[:-1], plain=True)
    compare(lived_in(network), images_of(5))


@settings(max_examples=15, deadline=None)
@given(
    count=st.integers(0, 9),
    size=st.sampled_from([8, 9, 16, 32]),
    gate=st.sampled_from(GATES),
    seed=st.integers(0, 99),
    threshold=st.floats(0, 1.1),
    last=st.booleans(),
)
def test_any_batch_of_any_size(count: int, size: int, gate: str, seed: int, threshold: float, last: bool) -> None:
    task = Task(size=size)
    network = lived_in(gated(gate, task=task), seed)
    images = images_of(count, task, seed)
    if last:
        images = images.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        probabilities = network(images).aux["probabilities"]
    if ((probabilities - threshold).abs() < 1e-4).any():
        threshold = 0.0  # a tie may fall either way
    compare(network, images, [{"threshold": threshold}])


@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str) -> None:
    method = get_method(name)
    body = method.networks[0] if name != "imta" else "msdnet-3"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lived_in(method.build(method.configure({"network": body}), Task(size=16)))
    images = images_of(6, Task(size=16))
    fast = prepared(network)
    assert type(fast) is type(network) and not fast.training
    with torch.no_grad():
        ours, theirs = fast(images), network(images)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()
    if method.calibrate is None:
        compare(network, images, list(method.settings(network.config)))
    else:
        found = method.calibrate(method.settings(network.config)[1], torch.stack(theirs.logits))
        assert_same(fast.infer(images, found), network.infer(images, found))
    if name not in ("exits", "blocks"):  # networks that others wrote are served as they are
        assert not [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]


def test_branches_that_are_scaled_are_fused_too() -> None:
    method = get_method("sdv")
    config = method.configure({"network": "resnet-14", "variant": "original"})
    network = lived_in(method.build(config, TASK))
    scales = [network.block(k).scale for k in range(6)]
    assert len(set(scales)) == 6 and min(scales) < 1
    fast = prepared(network)
    assert all(isinstance(block, FusedBlock) for block in fast.blocks)
    compare(network, images_of(5), [{}])


def test_given_decisions_are_mixed_as_before() -> None:
    for mixing in ("block", "branch"):
        network = gated(skip="shortcut", shortcut="B", mixing=mixing)
        images, decisions = images_of(4), torch.rand(4, network.gates, generator=torch.Generator().manual_seed(3))
        with torch.no_grad():
            ours, theirs = prepared(network)(images, decisions=decisions), network(images, decisions=decisions)
        assert (ours.output - theirs.output).abs().max() <= 1e-5 * theirs.output.abs().max()


def test_what_is_counted_is_what_runs() -> None:
    network = gated("rnn", shortcut="B")
    fast = prepared(network)
    for knobs in KNOBS:
        with counted(fast) as tally:
            result = fast.infer(images_of(7), knobs)
        # pooled routers are arithmetic without layers that could be counted
        assert sum(tally.values()) == float(result.macs.sum()) - 7 * network.router_macs


def test_the_original_is_left_alone_and_trains_on() -> None:
    network = gated("rnn", skip="shortcut", shortcut="B").train()
    state = copy.deepcopy(network.state_dict())
    parameters = {name: id(p) for name, p in network.named_parameters()}
    fast = prepared(network)
    fast.infer(images_of(5), MIDDLE)
    assert network.training and all(module.training for module in network.modules())
    assert list(network.state_dict()) == list(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in network.state_dict().items())
    assert {name: id(p) for name, p in network.named_parameters()} == parameters
    before = fast.infer(images_of(5), MIDDLE).logits
    loss = F.cross_entropy(network(images_of(5)).output, torch.arange(5) % 4)
    loss.backward()
    assert all(p.grad is not None and p.requires_grad for p in network.parameters())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.sub_(0.1 * parameter.grad)  # pyright: ignore
    compare(network.eval(), images_of(5), [MIDDLE])  # prepared again, it is the new network
    assert not torch.allclose(prepared(network).infer(images_of(5), MIDDLE).logits, before)


class Bottleneck(ResidualBlock):
    """1 x 1, 3 x 3, 1 x 1."""

    def __init__(self, channels_in: int, inner: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, channels_out, 1, bias=False), nn.BatchNorm2d(channels_out)
        self.shortcut = shortcut_of("B", channels_in, channels_out, stride)

    def branch(self, inputs: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(inputs)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))


class Odd(Bottleneck):
    """The same layers, joined in another way."""

    def branch(self, inputs: Tensor) -> Tensor:
        inner = torch.tanh(self.bn1(self.conv1(inputs)))
        return self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)))))


@pytest.mark.parametrize(("kind", "fused"), [(Bottleneck, True), (Odd, False)])
def test_blocks_are_known_by_what_they_compute(kind: type[Bottleneck], fused: bool) -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
    blocks = [kind(8, 4, 16, 1), kind(16, 4, 16, 1), kind(16, 8, 32, 2)]
    body = Body(stem, blocks, Classifier(32, 4), [(8, 6, 6), (16, 6, 6), (16, 6, 6), (32, 3, 3)])
    network = lived_in(StaticResNet(TrainingConfig(), TASK, body))
    assert any(isinstance(m, FusedBlock) for m in prepared(network).modules()) is fused
    compare(network, images_of(3), [{}])
    router = router_of("linear", body.shapes[:-1])
    routed = GatedResNet(TrainingConfig(), TASK, body, router, gated=range(3), skip="own", relaxation="softmax")
    compare(lived_in(routed), images_of(5))


def test_a_block_leaves_its_arguments_alone_unless_it_is_told_to_use_them() -> None:
    for empty in (nn.Identity(), nn.Sequential()):
        network = gated(skip="shortcut")
        network.block(0).shortcut = empty
        block, inputs = prepared(network).blocks[0], torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
        assert isinstance(block, FusedBlock)
        kept, expected = inputs.clone(), network.block(0)(inputs).detach()
        for output in (block(inputs), block(inputs, inputs)):
            assert torch.equal(inputs, kept) and torch.allclose(output, expected, atol=1e-5)
        assert torch.allclose(block.overwrite(inputs), expected, atol=1e-5)
        compare(network, images_of(3))


def test_convolutions_with_hooks_stay_what_they_are() -> None:
    network, seen = gated(), []
    network.block(1).conv1.register_forward_hook(lambda *_: seen.append(1))  # pyright: ignore
    fast = prepared(network)
    assert [isinstance(block, FusedBlock) for block in fast.blocks] == [True, False, *[True] * 4]
    fast.infer(images_of(2), {"threshold": 0.0})
    assert seen == [1]


@pytest.mark.parametrize("onednn", [True, False])
def test_one_convolution(onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not onednn:
        monkeypatch.setattr("trainables.execution.fused._has_onednn", lambda dtype, device: False)
    torch.manual_seed(0)
    convolution = nn.Conv2d(6, 4, 3, stride=2, padding=1, groups=2)
    norm = nn.BatchNorm2d(4, eps=0.1)
    norm.running_mean, norm.running_var = torch.randn(4), torch.rand(4) + 0.5
    inputs, base = torch.randn(3, 6, 9, 7), torch.randn(3, 4, 5, 4)
    expected = norm.eval()(convolution(inputs)).detach()
    with torch.no_grad():
        fused = FusedConv(convolution, norm, relu=True, dtype=torch.float32)
        assert fused.onednn is (onednn and torch.backends.mkldnn.is_available())
        assert torch.allclose(fused(inputs), expected.relu(), atol=1e-5)
        assert torch.allclose(fused(inputs, bare=True), expected, atol=1e-5)
        assert torch.allclose(fused(inputs, base.clone()), (base + expected).relu(), atol=1e-5)
        assert fused(inputs[:0]).shape == (0, 4, 5, 4)
        weight, bias = folded(convolution, None)
        assert torch.equal(weight.float(), convolution.weight) and torch.equal(bias.float(), convolution.bias)


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("by_size", [True, False])
def test_images_of_other_sizes_take_turns(groups: int, by_size: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.execution.fused._LAYOUT_BY_SIZE", by_size)
    torch.manual_seed(0)
    convolution = nn.Conv2d(8, 64, 3, padding=1, groups=groups)
    with torch.no_grad():
        fused = FusedConv(convolution, None, relu=False, dtype=torch.float32)
        for size, count in ((8, 1), (32, 2), (8, 3), (5, 1)):
            inputs = torch.randn(count, 8, size, size)
            assert torch.allclose(fused(inputs), convolution(inputs), atol=1e-5)


def test_without_onednn_the_answers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.execution.fused._has_onednn", lambda dtype, device: False)
    compare(gated("rnn", shortcut="B"), images_of(5))


def test_routers_that_pool_are_quick_and_others_stay() -> None:
    assert isinstance(prepared(gated("linear")).router, FusedLinearRouter)
    assert isinstance(prepared(gated("conv1x1")).router, FusedLinearRouter)
    assert isinstance(prepared(gated("rnn")).router, FusedRecurrentRouter)
    network = gated("ff1")
    fast = prepared(network)
    assert type(fast.router) is type(network.router) and fast.router is not network.router


def test_other_types() -> None:
    network = gated("rnn", shortcut="B")
    compare(copy.deepcopy(network).double(), images_of(5).double())
    narrow = prepared(network, dtype=torch.bfloat16).infer(images_of(5), {"threshold": 0.0})
    wide = network.infer(images_of(5), {"threshold": 0.0})
    assert torch.equal(narrow.macs, wide.macs)
    assert (narrow.logits.float() - wide.logits).abs().max() <= 0.05 * wide.logits.abs().max()
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_curves_are_those_of_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    method = get_method("codinet")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = lived_in(method.build(method.configure({"network": "resnet-8"}), Task(size=8)))
    images, labels = images_of(24, Task(size=8)), torch.arange(24) % 10
    ours, point = curve(method, network, images, labels), evaluate(network, images, labels, MIDDLE)
    monkeypatch.setattr("trainables.inference.evaluation.prepared", lambda network: network)
    theirs = curve(method, network, images, labels)
    assert ours.points == theirs.points and (ours.correct == theirs.correct).all()
    assert len({each["macs"] for each in ours.points}) > 2
    assert point.points[0]["macs"] == evaluate(network, images, labels, MIDDLE).points[0]["macs"]
