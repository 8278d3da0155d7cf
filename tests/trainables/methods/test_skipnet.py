"""SkipNet: sizes to the digit, equivalence with the static network, straight-through training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spaces.skipnet import PAPER
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted
from trainables.methods import static
from trainables.methods.skipnet import METHOD
from trainables.networks.gated.network import GatedResNet

torch.set_num_threads(1)
TINY = Task(classes=5, size=16, channels=1)
ALL_ON, ALL_OFF = {"threshold": 0.0}, {"threshold": 1.01}


def build(task: Task = TINY, **values: Any) -> GatedResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "resnet-8", **values}), task)
    assert isinstance(network, GatedResNet)
    return network.eval()


def varied(count: int) -> torch.Tensor:
    """Images of different contrast, which pooled features can tell apart."""
    return torch.randn(count, 1, 16, 16) * torch.logspace(-1, 1, count)[:, None, None, None]


def spread(network: GatedResNet) -> GatedResNet:
    """Routers that disagree about images, as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in network.router.parameters():
            nn.init.normal_(parameter)
    return network


def params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def tally(network: GatedResNet, images: torch.Tensor, knobs: dict[str, float]) -> dict[str, int]:
    with counted(network) as counts:
        network.infer(images, knobs)
    return counts


OFFICIAL = [
    # depth, gate, classes, parameters, MACs of the gates' convolutions, of the LSTM
    (38, "rnn", 10, 571_913, 6_720, 14_400),
    (74, "rnn", 10, 1_162_109, 13_440, 28_800),
    (110, "rnn", 10, 1_752_305, 20_160, 43_200),
    (110, "rnn", 100, 1_758_155, 20_160, 43_200),
    (38, "ff1", 10, 1_148_798, 13_272_384, 0),
    (110, "ff2", 10, 2_609_798, 31_854_528, 0),
]


@pytest.mark.parametrize("depth,gate,classes,count,conv,lstm", OFFICIAL)
def test_the_official_networks_to_the_digit(
    depth: int, gate: str, classes: int, count: int, conv: int, lstm: int
) -> None:
    network = build(Task(classes=classes), network=f"resnet-{depth}", gate=gate, impl="official")
    assert params(network) == count
    assert network.router_conv_macs == conv
    blocks = (depth - 2) // 2
    assert network.router_macs - conv == lstm + (10 * blocks if gate == "rnn" else 0)
    counts = tally(network, torch.zeros(1, 3, 32, 32), ALL_ON)
    static_conv = {38: 83_279_872, 74: 168_214_528, 110: 253_149_184}[depth]
    static_part = sum(n for name, n in counts.items() if not name.startswith("router."))
    assert static_part == static_conv + 64 * classes
    assert sum(counts.values()) == network.macs_full == static_part + network.router_macs


@pytest.mark.parametrize(
    "depth,count,full,least,gates",
    [
        (38, 571_263, 83_300_362, 5_443_594, 19_850),
        (74, 1_161_459, 168_256_318, 5_464_894, 41_150),
        (110, 1_751_655, 253_212_274, 5_486_194, 62_450),
    ],
)
def test_live_totals_to_the_digit(depth: int, count: int, full: int, least: int, gates: int) -> None:
    network = build(Task(), network=f"resnet-{depth}")
    assert (params(network), network.macs_full, network.macs_min) == (count, full, least)
    assert network.gates == (depth - 2) // 2 - 1
    assert sum(u.macs for u in network.units if u.kind == "router") == gates
    # always: stem, block 0, both projections, classifier
    assert network.fixed_macs == 442_368 + 4_718_592 + 2 * 131_072 + 640
    images = torch.zeros(1, 3, 32, 32)
    assert sum(tally(network, images, ALL_ON).values()) == full
    assert sum(tally(network, images, ALL_OFF).values()) == least


def test_the_deepest_network_has_the_published_gates() -> None:
    assert build(Task(), network="resnet-152").gates == 74


def test_the_papers_cost_counts_convolutions_and_their_gates() -> None:
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(build(Task(), network="resnet-38"))
    assert cost["flops"] == 83_279_872 + 6_080
    cost = METHOD.paper_cost(build(Task(), network="resnet-38", gate="ff1", impl="official"))
    assert cost["flops"] == 83_279_872 + 13_272_384


@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2", "linear"])
@pytest.mark.parametrize("shortcut,transition", [("B", "projection"), ("A", "projection"), ("B", "pool")])
def test_all_gates_open_is_the_static_network(gate: str, shortcut: str, transition: str) -> None:
    network = build(network="resnet-14", gate=gate, shortcut=shortcut, transition=transition)
    donor = static.build(static.METHOD.configure({"network": "resnet-14", "shortcut": shortcut}), TINY).eval()
    missing, unexpected = network.load_state_dict(donor.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("router.") for name in missing)
    images = torch.randn(4, 1, 16, 16)
    expected = donor(images).output
    assert torch.equal(network(images, decisions=torch.ones(4, network.gates)).output, expected)
    assert torch.equal(network.infer(images, ALL_ON).logits, expected)


@pytest.mark.parametrize("transition", ["projection", "pool"])
def test_all_gates_closed_keeps_the_first_block_and_the_transitions(transition: str) -> None:
    network = build(network="resnet-14", transition=transition)
    result = network.infer(torch.randn(2, 1, 16, 16), ALL_OFF)
    assert result.macs.tolist() == [network.macs_min] * 2 and not result.decisions.any()
    projections = network.part_macs(network.block(2).shortcut, 2) + network.part_macs(network.block(4).shortcut, 4)
    fixed = network.stem_macs + network.block_macs[0] + network.classifier_macs
    assert network.fixed_macs == fixed + (projections if transition == "projection" else 0)
    with counted(network) as counts:
        network.infer(torch.randn(2, 1, 16, 16), ALL_OFF)
    assert sum(counts.values()) == 2 * network.macs_min


@pytest.mark.parametrize("gate", ["rnn", "ff2"])
def test_results_do_not_depend_on_the_batch(gate: str) -> None:
    network = spread(build(network="resnet-14", gate=gate))
    images = varied(6)
    whole = network.infer(images, {"threshold": 0.5})
    assert 0 < whole.decisions.mean() < 1 and len(whole.decisions.unique(dim=0)) > 1
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    shuffled = network.infer(images[order], {"threshold": 0.5})
    assert torch.equal(shuffled.decisions, whole.decisions[order])
    assert torch.allclose(shuffled.logits, whole.logits[order], rtol=1e-4, atol=1e-5)
    for i in range(6):
        alone = network.infer(images[i : i + 1], {"threshold": 0.5})
        assert torch.equal(alone.decisions, whole.decisions[i : i + 1])
        assert torch.equal(alone.macs, whole.macs[i : i + 1])


@pytest.mark.parametrize("relaxation", ["straight_through", "softmax"])
def test_training_is_hard_or_soft_and_reaches_every_gate(relaxation: str) -> None:
    network = spread(build(relaxation=relaxation)).train()
    (phase,) = METHOD.phases(network.config)
    network.relaxation = phase.relaxation
    routed = network(torch.randn(8, 1, 16, 16))
    binary = set(routed.decisions.unique().tolist()) <= {0.0, 1.0}
    assert binary is (relaxation == "straight_through")
    batch = Batch(torch.randn(8, 1, 16, 16), torch.arange(8) % 5)
    terms = METHOD.objective(network, batch, phase)
    assert list(terms) == ["cross_entropy"]
    terms["cross_entropy"].backward()
    for name, parameter in network.router.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_straight_through_gradients_are_those_of_the_mixture_at_hard_decisions() -> None:
    network = spread(build(network="resnet-14", gate="linear", relaxation="straight_through")).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    images = torch.randn(3, 1, 16, 16)
    routed = network(images)
    injected = routed.decisions.detach().clone().requires_grad_()
    other = network(images, decisions=injected)
    assert torch.equal(other.output, routed.output)
    # the last gate feeds no other: its bias sees dL/dv of the mixture times the sigmoid's slope
    (expected,) = torch.autograd.grad(other.output.square().sum(), injected)
    bias = network.router.get_parameter("gates.4.fc2.bias")
    (got,) = torch.autograd.grad(routed.output.square().sum(), bias)
    p = routed.aux["probabilities"][:, -1].detach()
    slope = (expected[:, -1] * p * (1 - p)).sum()
    assert slope != 0 and torch.allclose(got, torch.stack([-slope, slope]), rtol=1e-4, atol=1e-7)


def test_batch_statistics_of_a_transition_move_once_per_pass() -> None:
    network = build().train()
    norm = network.get_submodule("blocks.1.shortcut.1")
    network(torch.randn(4, 1, 16, 16))
    assert int(norm.num_batches_tracked) == 1  # type: ignore[arg-type]


def test_the_official_trailing_gate_changes_nothing_but_the_cost() -> None:
    ours, official = build(), build(impl="official")
    official.load_state_dict(ours.state_dict(), strict=False)
    images = torch.randn(3, 1, 16, 16)
    one, other = ours.infer(images, {}), official.infer(images, {})
    assert torch.equal(one.logits, other.logits) and torch.equal(one.decisions, other.decisions)
    assert (other.macs - one.macs).tolist() == [official.router.macs(2)[0]] * 3


def test_the_published_setting_is_configured() -> None:
    config = METHOD.configure(PAPER)
    assert config.gate == "rnn" and config.shortcut == "B"
    sp, hrl = METHOD.phases(config)
    assert [sp.optimiser.lr_at(share) for share in (0.1, 0.6, 0.9)] == pytest.approx([0.1, 0.01, 0.001])
    assert [hrl.optimiser.lr_at(share) for share in (0.0, 0.9)] == [1e-4, 1e-4]
    assert hrl.share / sp.share == pytest.approx(10_000 / 64_000)


@pytest.mark.parametrize(
    "values,message",
    [
        ({"gate": "lstm"}, r"gate = 'lstm': skipnet takes one of linear, ff1, ff2, rnn"),
        ({"relaxation": "gumbel"}, r"relaxation = 'gumbel': skipnet takes one of straight_through, softmax"),
        ({"variant": "hrl"}, r"variant = 'hrl': skipnet takes one of sp, hrl_sp, hrl_s, rl"),
        ({"alpha": -1.0}, r"alpha = -1.0: must not be negative"),
        ({"beta": "two"}, r"beta = 'two'"),
        ({"discount": 1.5}, r"discount = 1.5"),
        ({"hrl_sharpen": 0.0}, r"hrl_sharpen = 0.0"),
        ({"transition": "none"}, r"transition = 'none'"),
        ({"rnn_size": 0}, r"rnn_size = 0"),
        ({"network": "resnet-100"}, r"nearest is resnet-98"),
        ({"batch_size": 0}, r"batch_size = 0"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure(values)


@pytest.mark.parametrize("knobs", [{"threshold": "half"}, {"threshold": -0.1}, {"q": 0.5}, {"threshold": float("nan")}])
def test_wrong_knobs_are_refused(knobs: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="threshold"):
        build().infer(torch.zeros(1, 1, 16, 16), knobs)
