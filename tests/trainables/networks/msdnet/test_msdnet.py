"""MSDNet: its construction to the digit, and images that really leave."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.execution.rows import take
from trainables.networks.msdnet import exits as exits_module
from trainables.networks.msdnet.exits import ExitNetwork, confidence, confidence_of, leaves, thresholds_of
from trainables.networks.msdnet.network import Layout, MSDNet, Stem, Transition, exits_of, named
from trainables.networks.msdnet.operations import operations_of_exits

torch.set_num_threads(1)

# (classes, exits): parameters, MACs at each exit (None: the total alone is known)
PUBLISHED = {
    (100, 4): (1_419_516, 37_735_424),
    (100, 5): (2_078_924, 58_087_936),
    (100, 6): (2_852_392, 88_562_688),
    (100, 7): (3_966_664, 136_565_248),
    (10, 5): (2_020_874, 58_030_336),
    (10, 6): (2_782_732, 88_493_568),
    (10, 8): (5_217_684, 191_729_664),
}
MACS_OF_EXITS = {
    5: [6_792_704, 14_209_024, 27_278_848, 41_373_696, 58_087_936],
    7: [6_792_704, 14_209_024, 27_041_280, 48_054_272, 75_900_416, 108_191_744, 136_565_248],
}


def build(task: Task | None = None, *, spread: float = 40.0, **layout: Any) -> MSDNet:
    """A network in eval mode whose untrained exits disagree in confidence (the linear layers are scaled)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MSDNet(None, task or Task(), Layout(**layout)).eval()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= spread
    return network


@cache
def small() -> tuple[MSDNet, Tensor, Tensor]:
    """A network with four exits at 16 pixels, 24 images and all exits' logits (4, 24, 7)."""
    network = build(Task(classes=7, size=16, channels=1), exits=4, growth=4, channels=8, head=16)
    images = torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return network, images, torch.stack(network(images).logits)


def medians(logits: Tensor) -> list[float]:
    """Thresholds at which about half of the images leave at each exit."""
    return confidence(logits)[:-1].median(dim=1).values.tolist()


@pytest.mark.parametrize(("classes", "exits"), PUBLISHED)
def test_parameters_and_macs_are_those_of_the_published_networks(classes: int, exits: int) -> None:
    network = build(Task(classes=classes), exits=exits)
    assert (sum(p.numel() for p in network.parameters()), network.macs_full) == PUBLISHED[classes, exits]
    assert sum(network.params_by_part().values()) == PUBLISHED[classes, exits][0]
    assert network.fixed_macs == 0 and network.macs_full == sum(u.macs for u in network.units)
    assert network.macs_min == network.exits[0].macs == sum(u.macs for u in network.units[:2])
    assert [u.name for u in network.units[:3]] == ["stage-1", "exit-1", "stage-2"]
    assert [u.kind for u in network.units] == ["block", "exit"] * exits
    if classes == 100 and exits in MACS_OF_EXITS:
        assert [e.macs for e in network.exits] == MACS_OF_EXITS[exits]


# step: parameters, MACs, channels that the classifiers read, operations per exit
IMAGENET: dict[int, tuple[int, int, list[int], list[int]]] = {
    4: (
        23_958_440,
        1_355_606_016,
        [384, 384, 352, 304, 560],
        [339_902_824, 685_456_720, 1_008_156_120, 1_254_472_688, 1_360_529_624],
    ),
    6: (56_529_304, 2_735_131_968, [512, 544, 496, 880, 792], []),
    7: (62_314_472, 3_246_180_864, [576, 640, 608, 528, 976], []),
}


@pytest.mark.parametrize("step", IMAGENET)
def test_imagenet_networks_are_the_published_ones(step: int) -> None:
    body = named(f"msdnet-5-imagenet{step}")
    layout = Layout(
        exits=5,
        kind=body.kind,
        channels=body.channels,
        growth=body.growth,
        factors=(1, 2, 4, 4),
        head=0,
        step_mode=body.step_mode,
        step=body.step,
        base=body.step,
    )
    with torch.device("meta"):
        network = MSDNet(None, Task(classes=1000, size=224), layout)
    params, macs, widths, operations = IMAGENET[step]
    assert (sum(p.numel() for p in network.parameters()), network.macs_full) == (params, macs)
    assert [classifier[-1].in_features for classifier in network.classifiers] == widths  # type: ignore[index]
    assert layout.sizes(224) == [56, 28, 14, 7]
    if operations:
        with torch.device("meta"):
            assert operations_of_exits(network) == operations


def test_scales_that_were_asked_for_are_not_dropped() -> None:
    layout = Layout(exits=3)
    with pytest.raises(ValueError, match="size = 28: msdnet with 3 scales needs images of at least 29 pixels"):
        layout.fitted(28, exactly=True)
    assert layout.fitted(29, exactly=True) == layout and len(layout.fitted(28).factors) == 2
    large = Layout(exits=3, kind="imagenet", factors=(1, 2, 4, 4))
    with pytest.raises(ValueError, match="at least 193 pixels"):
        large.fitted(192, exactly=True)
    assert len(large.fitted(193, exactly=True).factors) == 4
    with pytest.raises(ValueError, match="at least 25 pixels"):
        large.fitted(24)
    assert len(large.fitted(25).factors) == 1


def test_large_batches_are_executed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images, logits = small()
    knobs = [{"thresholds": medians(logits)}, {}]
    whole = network.sweep(images, knobs)
    monkeypatch.setattr(exits_module, "POSITIONS", 5 * 16 * 16)
    assert network.at_once(images) == 5
    for one, other in zip(whole, network.sweep(images, knobs), strict=True):
        assert one.exits is not None and other.exits is not None
        assert torch.equal(one.exits, other.exits) and torch.equal(one.macs, other.macs)
        torch.testing.assert_close(one.logits, other.logits, rtol=1e-5, atol=1e-5)


def test_inputs_are_left_alone() -> None:
    class Echo(nn.Module):
        def forward(self, image: Tensor) -> list[Tensor]:
            return [image]

    heads = [nn.Sequential(nn.Flatten(), nn.Linear(16, 3)) for _ in range(3)]
    network = ExitNetwork(None, Task(classes=3, size=4, channels=1), [Echo() for _ in heads], heads).eval()
    images = torch.randn(9, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    before = images.clone()
    with torch.no_grad():
        logits = torch.stack(network(images).logits)
    result = network.infer(images, {"thresholds": medians(logits)})
    assert result.exits is not None and len(result.exits.unique()) == 3
    assert torch.equal(images, before)


def test_steps_grow_or_stay() -> None:
    assert Layout(exits=7).steps() == (1, 2, 3, 4, 5, 6, 7)
    assert Layout(exits=4, step=2, base=4).steps() == (4, 3, 5, 7)
    assert Layout(exits=3, step_mode="even", step=4, base=2).steps() == (2, 4, 4)
    assert Layout(exits=1, base=3).steps() == (3,)


def test_scales_are_dropped_at_even_distances() -> None:
    entering, leaving = zip(*(Layout(exits=5).scales_before_and_after(n) for n in range(1, 16)), strict=True)
    assert leaving == (3,) * 5 + (2,) * 5 + (1,) * 5
    assert entering == (3, *leaving[:-1])
    even = Layout(exits=2, step_mode="even", step=1, base=1)  # two layers, three scales
    assert [even.scales_before_and_after(n) for n in (1, 2)] == [(3, 3), (3, 2)]


def test_transitions_floor_the_width_of_the_finest_scale() -> None:
    network = build(exits=7, channels=16)
    transitions = [m for m in network.modules() if isinstance(m, Transition)]
    out = [[m.out_channels for m in t.modules() if isinstance(m, nn.Conv2d)] for t in transitions]
    into = [[m.in_channels for m in t.modules() if isinstance(m, nn.Conv2d)] for t in transitions]
    assert into == [[164, 328], [404]]
    assert out == [[82, 164], [200]]  # 101 is floored to 50 before it is multiplied by 4
    assert Layout(exits=1, reduction=0.25).reduced(3) == 1


def test_layout_shapes_every_convolution() -> None:
    plain = build(exits=3, bottleneck=False)
    inside = [m for m in plain.stages.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    in_transitions = [m for t in plain.modules() if isinstance(t, Transition) for m in t.modules()]
    assert inside and all(m in in_transitions for m in inside)
    kept = build(exits=3, reduction=1.0)
    for transition in (t for t in kept.modules() if isinstance(t, Transition)):
        assert all(m.in_channels == m.out_channels for m in transition.modules() if isinstance(m, nn.Conv2d))
    assert build(exits=3, growth=12).macs_full > build(exits=3).macs_full > build(exits=3, channels=8).macs_full
    assert build(exits=3, step_mode="even", step=1).macs_full < build(exits=3).macs_full


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"exits": 4, "bottleneck": False},
        {"exits": 2, "step_mode": "even", "step": 3, "reduction": 0.3},
        {"kind": "imagenet", "head": 0, "growth": 16, "factors": (1, 2, 4, 4)},
    ],
)
def test_weights_are_known_before_anything_is_built(layout: dict[str, Any]) -> None:
    with torch.device("meta"):
        network = MSDNet(None, Task(size=224), Layout(**{"exits": 3, **layout}))
    stem = {id(p) for m in network.modules() if isinstance(m, Stem) for p in m.parameters()}
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sum(network.layout.weights()) == sum(w.numel() for w in convolutions if id(w) not in stem)


def test_networks_too_large_for_the_machine_are_refused_at_once() -> None:
    line = r"exits = 999: .*499500 layers of growth 6\) has at least [\d,]{15,} parameters, .* GiB; this machine has"
    with pytest.raises(ValueError, match=line):
        MSDNet(None, Task(), Layout(exits=999))
    with pytest.raises(ValueError, match=r"exits = 3: .* growth 1000000"):
        MSDNet(None, Task(), Layout(exits=3, growth=1_000_000))


@pytest.mark.parametrize(
    ("size", "channels", "scales"), [(64, 3, 3), (33, 2, 3), (29, 3, 3), (28, 1, 2), (16, 1, 2), (9, 1, 1), (8, 3, 1)]
)
def test_hooks_count_what_is_reported_at_any_size(size: int, channels: int, scales: int) -> None:
    network = build(Task(classes=5, size=size, channels=channels), exits=3, growth=4, channels=8, head=8)
    assert len(network.layout.factors) == scales
    with counted(network) as tally, torch.no_grad():
        logits = network(torch.randn(2, channels, size, size)).logits
    assert sum(tally.values()) == 2 * network.macs_full
    assert [x.shape for x in logits] == [(2, 5)] * 3


def test_impossible_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="size = 7: msdnet needs images of at least 8"):
        build(Task(size=7), exits=3)
    for name in ("msdnet-0", "msdnet-x", "msdnet", "msdnet--1", "msdnet-03", "msdnet-1000", "resnet-20", "msdnet-3 "):
        with pytest.raises(ValueError, match=r"network = .*must be msdnet-K"):
            exits_of(name)
    assert exits_of("msdnet-12") == 12
    assert (named("msdnet-3-imagenet7").exits, named("msdnet-3-imagenet7").step) == (3, 7)


def test_images_that_leave_cost_nothing_further() -> None:
    network, images, logits = small()
    seen: list[int] = []
    handles = [stage.register_forward_hook(lambda m, i, o: seen.append(len(o[0]))) for stage in network.stages]
    with counted(network) as tally:
        result = network.infer(images, {"thresholds": medians(logits)})
    for handle in handles:
        handle.remove()
    assert result.exits is not None
    assert seen == [int((result.exits >= i).sum()) for i in range(4)] and len(set(seen)) > 2
    assert sum(tally.values()) == result.macs.sum()
    assert torch.equal(result.macs, torch.tensor([e.macs for e in network.exits]).double()[result.exits])
    assert torch.equal(result.decisions.argmax(dim=1), result.exits)


def test_replay_agrees_with_execution() -> None:
    network, images, logits = small()
    for thresholds in (medians(logits), [0.9, 0.2, 0.5], [1e8, 0.4, 1e8], confidence(logits)[:-1, 5].tolist()):
        knobs = {"thresholds": thresholds}
        executed, replayed = network.infer(images, knobs), network.replay(logits, knobs)
        assert executed.exits is not None and replayed.exits is not None
        assert torch.equal(executed.exits, replayed.exits)
        assert torch.equal(executed.path, replayed.path) and torch.equal(executed.macs, replayed.macs)
        torch.testing.assert_close(executed.logits, replayed.logits, rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            soft = network(images, decisions=executed.decisions)
        torch.testing.assert_close(soft.output, executed.logits, rtol=1e-5, atol=1e-5)
        assert torch.equal(soft.macs, executed.macs)


def test_a_sweep_is_every_setting_by_itself() -> None:
    network, images, logits = small()
    knobs = [{"thresholds": t} for t in ([0.0] * 3, medians(logits), [0.9, 0.9, 0.2], [1e8] * 3)]
    for together, alone in zip(network.sweep(images, knobs), (network.infer(images, k) for k in knobs), strict=True):
        assert torch.equal(together.path, alone.path) and torch.equal(together.decisions, alone.decisions)
        torch.testing.assert_close(together.logits, alone.logits, rtol=1e-5, atol=1e-5)
    assert network.sweep(images, []) == []


def test_the_ends_of_the_sweep_are_the_static_networks() -> None:
    network, images, logits = small()
    with torch.no_grad():
        routed = network(images)
    for last in (network.infer(images, {"thresholds": [1e8] * 3}), network.infer(images, {})):
        assert torch.equal(last.logits, logits[-1]) and torch.equal(last.logits, routed.output)
        assert (last.macs == network.macs_full).all() and (last.path == 1).all()
    assert torch.equal(routed.macs, last.macs) and torch.equal(routed.decisions, last.decisions)
    for low in (0.0, -math.inf):
        first = network.infer(images, {"thresholds": [low, 1e8, 0.5]})
        assert (first.macs == network.macs_min).all() and torch.equal(first.logits, logits[0])
        assert torch.equal(first.path[0], torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]))


def test_neither_order_nor_batch_size_matters() -> None:
    network, images, logits = small()
    knobs = {"thresholds": medians(logits)}
    whole = network.infer(images, knobs)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    shuffled = network.infer(images[order], knobs)
    assert torch.equal(shuffled.path, whole.path[order])
    torch.testing.assert_close(shuffled.logits, whole.logits[order], rtol=1e-5, atol=1e-5)
    alone = torch.cat([network.infer(image[None], knobs).path for image in images])
    assert torch.equal(alone, whole.path)
    assert network.infer(images[:0], knobs).logits.shape == (0, 7)


def test_memory_format_is_kept_where_images_leave() -> None:
    network, images, logits = small()
    knobs = {"thresholds": medians(logits)}
    result = network.infer(images.contiguous(memory_format=torch.channels_last), knobs)
    assert torch.equal(result.path, network.infer(images, knobs).path)
    features = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert take(features, torch.tensor([0, 2])).is_contiguous(memory_format=torch.channels_last)


def test_soft_decisions_weigh_outputs_and_cost() -> None:
    network, images, logits = small()
    decisions = torch.full((len(images), 4), 0.25, requires_grad=True)
    routed = network(images, decisions=decisions)
    torch.testing.assert_close(routed.output, logits.mean(dim=0))
    assert routed.macs[0].item() == pytest.approx(sum(e.macs for e in network.exits) / 4)
    routed.macs.sum().backward()
    assert decisions.grad is not None
    assert decisions.grad[0].tolist() == pytest.approx([e.macs for e in network.exits])


@pytest.mark.parametrize(
    "knobs",
    [
        {"thresholds": [0.5, 0.5]},
        {"thresholds": [0.5] * 4},
        {"thresholds": 0.5},
        {"thresholds": None},
        {"thresholds": [0.5, "0.5", 0.5]},
        {"thresholds": [0.5, True, 0.5]},
        {"thresholds": [0.5, math.nan, 0.5]},
        {"thresholds": [0.5, 1.5, 0.5]},
        {"thresholds": [-0.1, 0.5, 0.5]},
        {"threshold": 0.5},
    ],
)
def test_bad_knobs_are_refused(knobs: dict[str, Any]) -> None:
    network, images, logits = small()
    with pytest.raises(ValueError, match="threshold"):
        network.infer(images, knobs)
    with pytest.raises(ValueError, match="threshold"):
        network.replay(logits, knobs)


def test_logits_of_another_network_are_not_replayed() -> None:
    network, _, logits = small()
    with pytest.raises(ValueError, match="logits of 3 exits"):
        network.replay(logits[:3], {"thresholds": [0.5] * 3})


def test_one_exit_is_a_static_network() -> None:
    network = build(Task(size=16), exits=1)
    images = torch.randn(2, 3, 16, 16)
    result = network.infer(images, {"thresholds": []})
    assert network.macs_min == network.macs_full and (result.macs == network.macs_full).all()
    assert thresholds_of({}, 1) == [-math.inf]


def test_only_rounding_is_forgiven() -> None:
    sure = torch.tensor([0.59, 0.5999999, 0.6, 0.61]).double()
    assert leaves(sure, 0.6).tolist() == [False, True, True, True]
    near_one = 1 - torch.tensor([2e-9, 1e-9, 0.0]).double()
    assert leaves(near_one, 1 - 1e-9).tolist() == [False, True, True]
    assert not leaves(sure, 1e8).any() and not leaves(sure, math.inf).any()
    assert leaves(sure, 0.0).all() and leaves(sure, -math.inf).all()
    assert confidence(torch.tensor([[math.nan, 1.0], [0.0, 0.0]])).tolist() == [0.0, 0.5]


def test_training_reaches_every_parameter() -> None:
    network = build(Task(size=16), exits=3, growth=4, channels=8, head=8).train()
    routed = network(torch.randn(4, 3, 16, 16))
    torch.stack([x.square().mean() for x in routed.logits]).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_loss_of_an_exit_does_not_reach_what_lies_behind() -> None:
    network, images, _ = small()
    network.zero_grad()
    network(images[:2]).logits[1].sum().backward()
    reached = {n.split(".")[1] for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    network.zero_grad()
    assert reached == {"0", "1"}


def test_confidences_are_kept_while_the_logits_stay_as_they_are() -> None:
    logits = torch.randn(3, 4, 5)
    first = confidence_of(logits)
    assert confidence_of(logits) is first
    logits.mul_(2)
    assert torch.equal(confidence_of(logits), confidence(logits)) and not torch.equal(first, confidence(logits))
