"""CoDiNet: sizes to the digit, losses with known answers, two stages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces.codinet import PAPER
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch, Phase
from trainables.execution.macs import counted
from trainables.methods import static
from trainables.methods.codinet import (
    METHOD,
    auxiliary_losses,
    block_costs,
    consistency_loss,
    cost_loss,
    diversity_loss,
    target_loss,
)
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


def params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    "depth,ten,hundred,router_params,conv,router_macs",
    [
        (32, 491_512, 497_362, 24_606, 69_124_096, 24_064),
        (74, 1_212_050, 1_217_900, 64_632, 168_214_528, 63_264),
        (110, 1_829_654, 1_835_504, 98_940, 253_149_184, 96_864),
    ],
)
def test_the_published_networks_to_the_digit(
    depth: int, ten: int, hundred: int, router_params: int, conv: int, router_macs: int
) -> None:
    network = build(Task(), network=f"resnet-{depth}")
    parts = network.params_by_part()
    assert (params(network), parts["router"], parts["skips"]) == (ten, router_params, 2_752)
    assert params(build(Task(classes=100), network=f"resnet-{depth}")) == hundred
    kinds = [u.kind for u in network.units]
    blocks = (depth - 2) // 2
    assert (kinds.count("block"), kinds.count("skip"), kinds.count("router")) == (blocks, 2, blocks)
    assert [u.macs for u in network.units if u.kind == "skip"] == [131_072] * 2
    assert network.router_macs == router_macs
    # the published column adds the skip convolutions, which run only where a block does not
    assert network.macs_full == conv - 262_144 + router_macs + 640
    assert (network.macs_min, network.fixed_macs) == (442_368 + router_macs + 640 + 262_144, 442_368 + 640)
    with counted(network) as counts:
        network(torch.zeros(1, 3, 32, 32))  # the mixture computes both ways around
    assert sum(n for name, n in counts.items() if name.startswith("router.")) == router_macs
    assert sum(counts.values()) == conv + router_macs + 640
    for knobs, total in ((ALL_ON, network.macs_full), (ALL_OFF, network.macs_min)):
        with counted(network) as counts:
            network.infer(torch.zeros(1, 3, 32, 32), knobs)
        assert sum(counts.values()) == total


def test_the_papers_cost_is_two_per_mac() -> None:
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(build(Task(), network="resnet-110"))
    assert cost["gflops"] == pytest.approx(2 * 0.252887040) and round(cost["gflops"], 1) == 0.5


@pytest.mark.parametrize("gate", ["linear", "rnn", "ff2"])
def test_all_gates_open_is_the_static_network(gate: str) -> None:
    network = build(network="resnet-14", gate=gate)
    donor = static.build(static.METHOD.configure({"network": "resnet-14"}), TINY).eval()
    missing, unexpected = network.load_state_dict(donor.state_dict(), strict=False)
    assert not unexpected and all(name.startswith(("router.", "skips.")) for name in missing)
    images = torch.randn(4, 1, 16, 16)
    expected = donor(images).output
    assert torch.equal(network(images, decisions=torch.ones(4, 6)).output, expected)
    assert torch.equal(network.infer(images, ALL_ON).logits, expected)


def test_all_gates_closed_keep_only_stem_and_skips() -> None:
    network = build(network="resnet-14")
    images = torch.randn(3, 1, 16, 16)
    features = network.stem(images)
    for skip in network.skips:
        features = skip(features)
    result = network.infer(images, ALL_OFF)
    assert torch.equal(result.logits, network.classifier(features))
    assert result.macs.tolist() == [network.macs_min] * 3


ORACLE = torch.tensor([[[1.0, 0, 1], [1, 1, 1]], [[0, 0, 1], [0, 0, 0.5]]])  # L = 2 images, M = 2 views, N = 3


def test_losses_have_their_known_values() -> None:
    assert float(consistency_loss(ORACLE, 0.2)) == pytest.approx(0.04625, abs=1e-7)
    assert float(diversity_loss(ORACLE, 0.5)) == 0
    assert float(diversity_loss(ORACLE, 2.0)) == pytest.approx(0.7299243, abs=1e-6)
    official = torch.cat([ORACLE, 1 - ORACLE], dim=2)
    assert float(consistency_loss(official, 0.2)) == pytest.approx(0.1403680, abs=1e-6)
    assert float(diversity_loss(official, 2.0)) == pytest.approx(0.1442593, abs=1e-6)
    assert float(target_loss(ORACLE.flatten(0, 1), 2.0)) == 1.5
    assert float(cost_loss(ORACLE.flatten(0, 1), torch.tensor([1.0, 2.0, 4.0]))) == pytest.approx(18 / 4)


def test_losses_vanish_and_peak_where_they_must() -> None:
    same = torch.rand(3, 1, 5).expand(3, 4, 5)
    assert float(consistency_loss(same, 0.0)) == 0
    near = same + 0.01 * torch.rand(3, 4, 5)
    assert float(consistency_loss(near, 0.2)) == 0
    coinciding = torch.rand(1, 1, 5).expand(3, 4, 5)
    assert float(diversity_loss(coinciding, 0.7)) == pytest.approx(0.49)
    assert float(diversity_loss(10 * torch.eye(3)[:, None], 0.7)) == 0
    assert float(diversity_loss(torch.rand(1, 4, 5), 0.7)) == 0  # one image differs from nobody


def test_losses_do_not_care_about_the_order_of_blocks() -> None:
    paths, order = torch.rand(4, 3, 6), torch.randperm(6)
    for loss, margin in ((consistency_loss, 0.1), (diversity_loss, 2.0)):
        assert torch.allclose(loss(paths, margin), loss(paths[..., order], margin))


@pytest.mark.parametrize("shape", [(3, 1, 5), (3, 4, 5), (1, 4, 5)])
def test_gradients_stay_finite_where_paths_coincide(shape: tuple[int, int, int]) -> None:
    paths = torch.full(shape, 0.5, requires_grad=True)
    for margin in (0.0, 0.2):
        (gradient,) = torch.autograd.grad(consistency_loss(paths, margin) + diversity_loss(paths, margin), paths)
        assert gradient.isfinite().all() and not gradient.any()


def test_the_cost_adds_gamma_times_c_to_every_gradient() -> None:
    network = build(network="resnet-14")
    decisions = torch.rand(4, 6, requires_grad=True)
    costs = block_costs(network, "block", torch.zeros(1))
    (gradient,) = torch.autograd.grad(0.3 * cost_loss(decisions, costs), decisions)
    assert torch.allclose(gradient, 0.3 * costs.expand(4, -1) / 4)


def test_cost_units() -> None:
    network = build(Task(), network="resnet-110")
    macs = torch.tensor(network.gated_macs, dtype=torch.float64)
    assert float(macs.mean()) == pytest.approx(4_674_901.33, abs=0.01)
    assert float(block_costs(network, "block", torch.zeros(1)).sum()) == pytest.approx(54, rel=1e-6)
    assert float(block_costs(network, "fraction", torch.zeros(1)).sum()) == pytest.approx(1, rel=1e-6)
    assert float(block_costs(network, "gflops", torch.zeros(1))[0]) == pytest.approx(2 * 4_718_592 / 1e9)


def batch(seed: int = 0, views: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 1, 16, 16, generator=generator)
    labels = (torch.arange(8) // views) % 5
    return Batch(images, labels, views, generator)


def enter(network: GatedResNet, phase: Phase) -> list[nn.Parameter]:
    """What `fit` does when a phase begins."""
    network.relaxation = phase.relaxation
    network.train()
    for name, module in network.named_modules():
        if phase.eval_mode and name.startswith(phase.eval_mode):
            module.eval()
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains(name))
        parameter.grad = None
    return [p for p in network.parameters() if p.requires_grad]


@pytest.mark.parametrize(
    "values,terms",
    [
        ({}, ["cross_entropy", "consistency", "diversity", "cost"]),
        ({"variant": "con_only"}, ["cross_entropy", "consistency", "cost"]),
        ({"variant": "vanilla"}, ["cross_entropy", "cost"]),
        ({"variant": "vanilla", "gamma": 0.0, "views": 1}, ["cross_entropy"]),
        ({"cost": "target_l1", "impl": "official"}, ["cross_entropy", "consistency", "diversity", "cost"]),
        ({"relaxation": "softmax", "gate": "rnn"}, ["cross_entropy", "consistency", "diversity", "cost"]),
    ],
)
def test_stage_1_trains_everything_by_the_variants_losses(values: dict[str, Any], terms: list[str]) -> None:
    network = build(**values)
    phase = METHOD.phases(network.config)[0]
    enter(network, phase)
    losses = METHOD.objective(network, batch(views=network.config.views), phase)
    assert list(losses) == terms
    torch.stack(list(losses.values())).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_terms_are_weighted_losses_of_the_relaxed_paths() -> None:
    network = build(alpha=0.3, beta=0.7, gamma=0.05, relaxation="softmax")
    phase = METHOD.phases(network.config)[0]
    enter(network, phase)
    decisions = network(batch().images).decisions
    paths = decisions.unflatten(0, (2, 4))
    losses = METHOD.objective(network, batch(), phase)
    assert torch.allclose(losses["consistency"], 0.3 * consistency_loss(paths, 0.2))
    assert torch.allclose(losses["diversity"], 0.7 * diversity_loss(paths, 0.5))
    assert torch.allclose(losses["cost"], 0.05 * cost_loss(decisions, block_costs(network, "block", torch.zeros(1))))


def test_official_paths_are_longer_by_the_square_root_of_two() -> None:
    paths = torch.rand(2, 4, 3)
    official = auxiliary_losses(build(impl="official", alpha=1.0, margin_consistency=0.0), paths.flatten(0, 1), 4)
    assert torch.allclose(official["consistency"], 2 * consistency_loss(paths, 0.0))


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("gate", ["linear", "rnn", "ff2"])
@pytest.mark.parametrize("stage2_losses", [False, True])
def test_stage_2_freezes_the_routers_and_decides_hard(gate: str, stage2_losses: bool) -> None:
    network = build(gate=gate, stage2_losses=stage2_losses, margin_consistency=0.0, margin_diversity=2.0)
    stage2 = METHOD.phases(network.config)[1]
    trained = enter(network, stage2)
    before, blocks = snapshot(network.router), snapshot(network.blocks)
    optimiser = torch.optim.SGD(trained, lr=0.1, momentum=0.9, weight_decay=1e-2)
    for seed in range(2):
        losses = METHOD.objective(network, batch(seed), stage2)
        assert list(losses)[:1] == ["cross_entropy"] and (len(losses) == 4) is stage2_losses
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
    assert all(p.grad is None for p in network.router.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.router.state_dict().items())
    assert any(not torch.equal(value, blocks[name]) for name, value in network.blocks.state_dict().items())
    routed = [network(batch().images, generator=torch.Generator().manual_seed(s)) for s in (1, 2)]
    assert torch.equal(routed[0].decisions, routed[1].decisions)  # no noise
    hard = (routed[0].decisions >= 0.5).float()
    assert torch.equal(routed[0].output, network(batch().images, decisions=hard).output)  # blocks are mixed by 0 and 1
    assert torch.equal(routed[0].decisions, hard) is not stage2_losses  # losses over paths read


def test_stage_2_losses_reach_the_blocks_through_the_frozen_routers() -> None:
    network = build(network="resnet-14", stage2_losses=True, margin_consistency=0.0)
    phase = METHOD.phases(network.config)[1]
    enter(network, phase)
    METHOD.objective(network, batch(), phase)["cost"].backward()
    assert network.stem.get_parameter("0.weight").grad is not None


def test_the_official_stage_2_mixes_without_a_gradient_and_judges_soft_paths() -> None:
    network = build(network="resnet-14", impl="official", margin_consistency=0.0)
    phase = METHOD.phases(network.config)[1]
    enter(network, phase)
    routed = network(batch().images, generator=torch.Generator().manual_seed(1))
    soft = routed.decisions.detach()
    assert 0 < soft.min() and soft.max() < 1
    assert torch.equal(routed.output, network(batch().images, decisions=(soft >= 0.5).float()).output)
    gates = torch.autograd.grad(routed.output.square().sum(), routed.decisions, allow_unused=True, retain_graph=True)
    assert gates[0] is None  # cross entropy knows nothing of the decisions
    assert torch.autograd.grad(routed.decisions.sum(), network.stem.get_parameter("0.weight"))[0].abs().sum() > 0


def test_evaluation_has_no_noise() -> None:
    network = build(network="resnet-14")
    images = torch.randn(6, 1, 16, 16)
    first, second = (network(images, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert torch.equal(first.output, second.output)
    assert torch.equal(first.decisions, network.infer(images, {}).decisions)


def test_phases_follow_the_shares_of_the_configuration() -> None:
    stage1, stage2 = METHOD.phases(METHOD.configure({"stage2_share": 0.2}))
    assert (stage1.share, stage2.share) == (0.8, 0.2)
    assert [stage2.optimiser.lr_at(share) for share in (0.0, 0.6)] == pytest.approx([0.01, 0.001])
    assert len(METHOD.phases(METHOD.configure({"stage2_share": 0.0}))) == 1
    stage1, _ = METHOD.phases(METHOD.configure(PAPER))
    rates = [stage1.optimiser.lr_at(epoch / 220) for epoch in (149, 151, 199, 201)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize(
    "values,message",
    [
        ({"views": 1}, r"views = 1.*consistency"),
        ({"views": 0}, r"views = 0"),
        ({"margin_consistency": -0.1}, r"margin_consistency = -0.1: must not be negative"),
        ({"margin_diversity": -1.0}, r"margin_diversity = -1"),
        ({"alpha": -0.2}, r"alpha = -0.2"),
        ({"temperature": 0.0}, r"temperature = 0.0: must be positive"),
        ({"gate": "lstm"}, r"gate = 'lstm': codinet takes one of linear, ff1, ff2, rnn"),
        ({"relaxation": "straight_through"}, r"relaxation = 'straight_through'.*gumbel, softmax"),
        ({"cost_unit": "flops"}, r"cost_unit = 'flops'"),
        ({"variant": "none"}, r"variant = 'none'.*full, con_only, vanilla"),
        ({"batch_size": 4}, r"batch_size = 4.*2 image\(s\) of 4 views need 8"),
        ({"stage2_share": 1.0}, r"stage2_share = 1.0"),
        ({"network": "resnet-49"}, r"nearest is resnet-50"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure(values)
