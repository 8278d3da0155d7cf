"""SACT: positions that have stopped, the two ways of computing the others, equality with ACT."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spaces.sact import PAPER, SPACE
from trainables.contracts.network import Inference, Task
from trainables.execution.macs import counted
from trainables.inference.prepare import prepared
from trainables.methods.act import METHOD as ACT
from trainables.methods.act import SPATIAL as METHOD
from trainables.networks.halting.fast import FusedScoreConv
from trainables.networks.halting.network import SpatialHaltingNetwork
from trainables.networks.halting.positions import (
    Places,
    PositionConv,
    ScoreConv,
    dilated,
    features_of,
    rows_of,
    with_zeros,
)

torch.set_num_threads(1)
TINY = Task(classes=5, size=16, channels=1)
WAYS = {"gathered": True, "masked": False}


def build(task: Task = TINY, **values: Any) -> SpatialHaltingNetwork:
    """A network whose heads disagree about positions, as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "preact-resnet-20", "width": 0.5, **values}), task).eval()
        torch.manual_seed(2)
        for parameter in network.get_submodule("router").parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
    assert isinstance(network, SpatialHaltingNetwork)
    return network


def images_of(count: int, task: Task = TINY) -> Tensor:
    noise = torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(1))
    return noise * torch.logspace(-1, 1, max(count, 1))[:count, None, None, None]


def by(network: SpatialHaltingNetwork, way: str) -> SpatialHaltingNetwork:
    network.sparse_pays = lambda k, wide, positions: WAYS[way]  # type: ignore[method-assign]
    return network


def assert_same(one: Inference, other: Inference) -> None:
    assert torch.equal(one.path, other.path) and torch.equal(one.macs, other.macs)
    assert torch.allclose(one.decisions, other.decisions, atol=5e-5)
    assert torch.allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)


def test_a_constant_halting_map_is_act() -> None:
    """The same weights and scores that do not depend on the position: the same states, outputs, units and costs."""
    scores = (0.3, 0.5, 0.4)
    spatial = build(network="preact-resnet-26")
    whole = ACT.build(ACT.configure({"network": "preact-resnet-26", "width": 0.5}), TINY).eval()
    body = {name: tensor for name, tensor in spatial.state_dict().items() if not name.startswith("router")}
    whole.load_state_dict(body, strict=False)
    for network in (spatial, whole):
        for step in network.steps():  # type: ignore[operator]
            if step.head is None:
                continue
            biased = step.head.local if network is spatial else step.head.linear
            for part in (step.head.linear, biased):
                nn.init.zeros_(part.weight)
            nn.init.constant_(biased.bias, torch.tensor(scores[step.place]).logit().item())
    images = images_of(3)
    for way in WAYS:
        ours, theirs = by(spatial, way).infer(images, {}), whole.infer(images, {})
        assert torch.allclose(ours.logits, theirs.logits, atol=1e-5)
        assert ours.length is not None and ours.length.tolist() == [9] * 3
    with torch.no_grad():
        one, other = spatial(images).aux, whole(images).aux
    assert torch.allclose(one["ponder"], torch.full((3, 3), 3.2))
    assert torch.allclose(one["ponder"], other["ponder"]) and not one["ponder_std"].any()
    assert torch.allclose(one["probabilities"], other["probabilities"])


@pytest.mark.parametrize("network", ["preact-resnet-20", "preact-resnet-50-imagenet"])
@pytest.mark.parametrize("size", [32, 39])
def test_gathered_and_masked_positions_give_the_same(network: str, size: int) -> None:
    task = Task(classes=4, size=size)
    ours = build(task, network=network, width=0.125 if "imagenet" in network else 0.5)
    fast = prepared(ours)
    images = images_of(3, task)
    partly = 0
    for threshold in (0.0, 0.6, 0.99, 1.5, 3.0):
        told = {"threshold": threshold}
        results = []
        for way in WAYS:
            with counted(by(ours, way)) as tally:
                results.append(ours.infer(images, told))
            assert sum(tally.values()) == float(results[-1].macs.sum())
            assert isinstance(fast, SpatialHaltingNetwork)
            results.append(by(fast, way).infer(images, told))
        for other in results[1:]:
            assert_same(other, results[0])
        routed = ours(images, decisions=results[0].decisions)
        assert torch.equal(routed.macs, results[0].macs)
        assert torch.allclose(routed.output, results[0].logits, rtol=1e-5, atol=1e-5 * routed.output.abs().max().item())
        partly += int(((results[0].path > 0) & (results[0].path < 1)).any())
    assert partly >= 2


def test_a_unit_runs_its_first_convolution_on_the_dilated_mask() -> None:
    """One active position of 8 x 8 in the first group: 9 of conv1 (4 in a corner), 1 of conv2 and of the local head."""
    network = build(network="preact-resnet-20", width=1.0)
    for row, column, wide in ((3, 4, 9), (0, 0, 4), (15, 5, 6)):
        mass = torch.zeros(1, 16, 16)
        mass[0, row, column] = 0.5
        maps = [torch.ones(1, 16, 16), mass, mass * 0.5, *(torch.zeros(1, s, s) for s in (8, 8, 4, 4))]
        decisions = torch.cat([each.flatten(1) for each in maps[1:]], dim=1)
        routed = network(images_of(1), decisions=decisions)
        always = network.macs_min
        convolution, local = 16 * 16 * 9, 16 * 9
        units = 2 * (wide + 1) * convolution + local + 16  # units 2 and 3 of the first group, a head between
        assert int(routed.macs) == always + units
    gradient = torch.autograd.grad(network(images_of(1), decisions=decisions.requires_grad_()).macs.sum(), decisions)[0]
    assert (gradient >= 0).all() and (gradient > 0).any()


def test_positions_that_have_stopped_keep_their_state() -> None:
    network = build()
    steps = network.in_groups()[0]
    state = torch.randn(2, 8, 16, 16)
    mass = (torch.rand(2, 16, 16) < 0.3).float()
    after = network._unit(steps[1], state, mass)
    stays = mass[:, None].expand_as(state) == 0
    assert torch.equal(after[stays], state[stays]) and not torch.equal(after[~stays], state[~stays])


@settings(max_examples=25, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    count=st.integers(1, 3),
    share=st.floats(0.05, 1),
    seed=st.integers(0, 99),
    last=st.booleans(),
)
def test_convolutions_at_positions(height: int, width: int, count: int, share: float, seed: int, last: bool) -> None:
    draw = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 3, height, width, generator=draw)
    features = features.contiguous(memory_format=torch.channels_last) if last else features
    mask = torch.rand(count, height, width, generator=draw) < share
    active, wide = Places.of(mask), Places.of(dilated(mask))
    convolution = PositionConv(3, 4, 3, padding=1)
    if last:
        convolution = convolution.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rows = rows_of(features)
    assert torch.equal(features_of(rows, features.shape), features)
    expected = rows_of(F.conv2d(features, convolution.weight, convolution.bias, padding=1))[active.flat]
    found = convolution(with_zeros(rows[wide.flat]), active.neighbours(wide))
    assert found.shape == (int(mask.sum()), 4) and torch.allclose(found, expected, atol=1e-5)
    point = PositionConv(3, 2, 1)
    expected = rows_of(F.conv2d(features, point.weight, point.bias))[active.flat]
    assert torch.allclose(point(rows[active.flat]), expected, atol=1e-5)


def test_convolutions_are_charged_for_what_is_used() -> None:
    convolution = PositionConv(3, 4, 3, padding=1)
    features = torch.randn(2, 3, 5, 5)
    with counted(convolution) as tally, torch.no_grad():
        whole = convolution(features)
        assert sum(tally.values()) == 50 * 4 * 27
        assert torch.equal(convolution(features, 7), whole)
        assert sum(tally.values()) == 57 * 4 * 27


def test_the_score_of_prepared_heads() -> None:
    torch.manual_seed(0)
    score = ScoreConv(6, 1, 3, padding=1).requires_grad_(False)
    for dtype, count in itertools.product((torch.float32, torch.float64), (0, 3)):
        features = torch.randn(count, 6, 7, 5, dtype=dtype)
        found = FusedScoreConv(score, dtype)(features)
        assert torch.allclose(found, score.to(dtype)(features), atol=1e-5)


@pytest.mark.parametrize("count", [1, 5])
def test_images_that_are_done_leave_the_group(count: int) -> None:
    """The first image stops everywhere behind the first unit: what is computed is that of the others."""
    network = build(network="preact-resnet-20")
    steps = network.in_groups()[0]
    modules = [step.unit for step in steps[1:]]
    seen: list[int] = []
    for module in modules:
        module.norm1.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    head = steps[0].head
    marked = torch.arange(count)

    def first(features: Tensor) -> Tensor:
        return ((marked == 0).float()[:, None, None]).expand(-1, 16, 16).contiguous()

    head.forward = first  # type: ignore[union-attr,method-assign]
    result = by(network, "masked").infer(images_of(count), {"threshold": 1.0})
    assert result.path[0, 3] == 0 and (result.path[1:, 3] == 1).all()
    assert seen == ([] if count == 1 else [count - 1, count - 1])


def test_gathering_pays_for_small_shares_of_much_work() -> None:
    network = build(width=1.0)
    height, width = network.shapes[1][1:]
    everything = 64 * height * width
    assert network.sparse_pays(1, everything // 20, everything)
    assert not network.sparse_pays(1, everything // 2, everything)
    assert not network.sparse_pays(1, 10, height * width)  # a small image alone
    assert network.sparse_pays(7, everything // 64, everything // 16)


def test_float64_and_bfloat16() -> None:
    network = build().double()
    images = images_of(4).double()
    for way in WAYS:
        result = by(network, way).infer(images, {})
        routed = network(images, decisions=result.decisions)
        assert result.decisions.dtype == torch.float64
        assert torch.allclose(routed.output, result.logits, rtol=1e-10, atol=1e-10)
    narrow = prepared(build(), dtype=torch.bfloat16)
    assert isinstance(narrow, SpatialHaltingNetwork)
    for way in WAYS:
        result = by(narrow, way).infer(images_of(4).bfloat16(), {})
        assert result.logits.isfinite().all() and (result.macs >= network.macs_min).all()


def test_published_and_refused() -> None:
    assert METHOD.configure(PAPER).network == "preact-resnet-32" and "tau" in SPACE
    with pytest.raises(ValueError, match=r"variant = 'vanilla': must be ''"):
        METHOD.configure({"variant": "vanilla"})
    with pytest.raises(ValueError, match=r"tau = -1\.0"):
        METHOD.configure({"tau": -1})
