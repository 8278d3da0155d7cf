"""ConvNet-AIG: sizes to the digit, the loss on rates with known answers, gates that move towards their targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from spaces.aig import IMAGENET, PAPER, imagenet_targets
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted
from trainables.methods import skipnet, static
from trainables.methods.aig import METHOD, RELAXATIONS, target_loss
from trainables.networks.gated.gates import GATES, PointwiseGate
from trainables.networks.gated.network import GatedResNet

torch.set_num_threads(1)
TINY = Task(classes=5, size=8, channels=1)
ALL_ON, ALL_OFF = {"threshold": 0.0}, {"threshold": 1.01}


def build(task: Task = TINY, **values: Any) -> GatedResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "resnet-8", **values}), task)
    assert isinstance(network, GatedResNet)
    return network.eval()


def batch_of(count: int = 8) -> Batch:
    images = torch.randn(count, 1, 8, 8)
    return Batch(images, torch.arange(count) % 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "depth,count,gates,conv,gate_macs",
    [
        (32, 476_328, 9_422, 69_132_768, 8_672),
        (74, 1_171_106, 23_688, 168_236_416, 21_888),
        (110, 1_766_630, 35_916, 253_182_400, 33_216),
    ],
)
def test_the_published_networks_to_the_digit(depth: int, count: int, gates: int, conv: int, gate_macs: int) -> None:
    network = build(Task(), network=f"resnet-{depth}")
    parts = network.params_by_part()
    assert (sum(parts.values()), parts["router"]) == (count, gates)
    assert network.router_macs == network.router_conv_macs == gate_macs
    assert network.macs_full == conv + 640
    # with all gates closed: stem, both projections, gates, classifier
    assert network.macs_min == 442_368 + 2 * 131_072 + gate_macs + 640
    for knobs, total in ((ALL_ON, network.macs_full), (ALL_OFF, network.macs_min)):
        with counted(network) as counts:
            network.infer(torch.zeros(1, 3, 32, 32), knobs)
        assert sum(counts.values()) == total
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(network)
    assert (cost["flops"], cost["flops_min"]) == (conv, network.macs_min - 640)


def test_a_hundred_classes_to_the_digit() -> None:
    network = build(Task(classes=100), network="resnet-110")
    assert sum(p.numel() for p in network.parameters()) == 1_772_480


@pytest.mark.parametrize("shortcut", ["A", "B", "pool"])
def test_all_gates_open_is_the_static_network(shortcut: str) -> None:
    network = build(network="resnet-14", shortcut=shortcut)
    donor = static.build(static.METHOD.configure({"network": "resnet-14", "shortcut": shortcut}), TINY).eval()
    missing, unexpected = network.load_state_dict(donor.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("router.") for name in missing)
    images = torch.randn(4, 1, 8, 8)
    expected = donor(images).output
    assert torch.equal(network(images, decisions=torch.ones(4, 6)).output, expected)
    assert torch.equal(network.infer(images, ALL_ON).logits, expected)


def test_a_closed_gate_takes_away_the_branch_alone() -> None:
    network, images = build(), torch.randn(3, 1, 8, 8)
    features = network.stem(images)
    for k in range(3):
        features = torch.relu(network.block(k).shortcut(features))
    result = network.infer(images, ALL_OFF)
    assert torch.equal(result.logits, network.classifier(features)) and not result.decisions.any()


def test_the_loss_on_rates_has_its_known_values() -> None:
    decisions = torch.cat([torch.ones(5, 2), torch.tensor([[0.0, 1.0]] * 4), torch.tensor([[0.0, 0.0]])])
    assert decisions.mean(dim=0).tolist() == pytest.approx([0.5, 0.9])
    targets = torch.tensor([0.6, 0.6])
    assert float(target_loss(decisions, targets, 2)) == pytest.approx(0.05, abs=1e-7)
    assert float(target_loss(decisions, torch.tensor([0.5, 0.9]), 2)) == pytest.approx(0.0, abs=1e-12)
    # two further blocks without a gate: nothing in the sum, two in the mean; so does a gate with target 1
    assert float(target_loss(decisions, targets, 4)) == pytest.approx(0.025, abs=1e-7)
    three = torch.cat([decisions, torch.zeros(10, 1)], dim=1)
    assert float(target_loss(three, torch.tensor([0.6, 0.6, 1.0]), 4)) == pytest.approx(0.025, abs=1e-7)
    # it is the batch's rate that counts, not an image's: the gradient is the same for every image
    free = decisions.double().requires_grad_()
    (gradient,) = torch.autograd.grad(target_loss(free, targets.double(), 2), free)
    expected = torch.tensor([-2 * 0.1 / 2 / 10, 2 * 0.3 / 2 / 10], dtype=torch.float64)
    assert torch.allclose(gradient, expected.expand(10, 2), rtol=1e-6)


def test_the_objective_weighs_the_loss_on_rates() -> None:
    network = build(targets=[0.4, 1.0, 0.2], target_weight=3.0).train()
    batch = batch_of()
    terms = METHOD.objective(network, batch, METHOD.phases(network.config)[0])
    assert list(terms) == ["cross_entropy", "target"]
    again = network(batch.images, generator=torch.Generator().manual_seed(0))
    missed = torch.tensor([0.4, 0.2]) - again.decisions.detach().mean(dim=0)
    assert float(terms["target"].detach()) == pytest.approx(3.0 * float(missed.square().sum()) / 3, rel=1e-5)
    unweighted = METHOD.objective(build(target_weight=0.0).train(), batch, METHOD.phases(network.config)[0])
    assert list(unweighted) == ["cross_entropy"]


def test_a_rate_of_one_means_no_gate() -> None:
    network = build(network="resnet-14", targets=[1, 0.5, 1, 1, 0.3, 1])
    assert network.gated == (1, 4)
    assert [u.name for u in network.units] == ["block-1", "block-4", "router-1", "router-4"]
    always = [network.block_macs[k] for k in (0, 2, 3, 5)]
    always += [network.part_macs(network.block(4).shortcut, 4), network.stem_macs, network.classifier_macs]
    assert network.fixed_macs == sum(always)
    official = build(network="resnet-14", targets=[1, 0.5, 1, 1, 0.3, 1], impl="official")
    assert official.gated == tuple(range(6))
    batch = batch_of()
    for each in (network, official):
        each.train()
        term = METHOD.objective(each, batch, METHOD.phases(each.config)[0])["target"]
        (gradient,) = torch.autograd.grad(term, each.router.outputs()[-1].weight)
        # the last gate of the official network belongs to a block with rate 1: the loss leaves it alone
        assert bool(gradient.any()) is (each is network)


def test_the_imagenet_rates_fit_their_bodies() -> None:
    fifty, hundred = imagenet_targets("resnet-50-imagenet", 0.4), imagenet_targets("resnet-101-imagenet", 0.3)
    assert (len(fifty), len(hundred)) == (3 + 4 + 6 + 3, 3 + 4 + 23 + 3)
    assert (fifty.count(1), fifty.count(0.4), hundred.count(1), hundred.count(0.3)) == (6, 8, 8, 25)
    with pytest.raises(ValueError, match="network = 'resnet-34'"):
        imagenet_targets("resnet-34", 0.5)
    config = METHOD.configure(IMAGENET)
    assert (config.target, config.target_weight, config.weight_decay) == (0.7, 1.0, 1e-4)
    (phase,) = METHOD.phases(config)
    assert phase.optimiser.lr_at(0.95) == pytest.approx(1e-4)


@pytest.mark.parametrize("gate", GATES)
def test_gates_start_open_with_the_published_probability(gate: str) -> None:
    network = build(gate=gate)
    probabilities = network(torch.randn(50, 1, 8, 8)).aux["probabilities"]
    assert torch.allclose(probabilities, torch.sigmoid(torch.tensor(1.9)), atol=0.01)


def test_training_takes_hard_samples_with_a_gradient() -> None:
    network = build().train()
    (phase,) = METHOD.phases(network.config)
    network.relaxation = phase.relaxation
    routed = network(torch.randn(500, 1, 8, 8))
    assert set(routed.decisions.unique().tolist()) == {0.0, 1.0}
    gap = (routed.decisions.detach() - routed.aux["probabilities"].detach()).mean(dim=0)
    assert float(gap.abs().max()) < 4 * 0.34 / 500**0.5  # four standard errors at P = 0.87
    routed.output.square().sum().backward()
    for name, parameter in network.router.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_every_relaxation_reaches_the_gates(relaxation: str) -> None:
    network = build(relaxation=relaxation, temperature=0.5).train()
    terms = METHOD.objective(network, batch_of(), METHOD.phases(network.config)[0])
    torch.stack(list(terms.values())).sum().backward()
    weight = network.router.outputs()[0].weight
    assert weight.grad is not None and weight.grad.isfinite().all() and weight.grad.any()


def test_other_gated_methods_take_the_gate() -> None:
    network = skipnet.METHOD.build(skipnet.METHOD.configure({"network": "resnet-8", "gate": "conv1x1"}), TINY).train()
    assert isinstance(network, GatedResNet) and network.router_conv_macs == network.router_macs == 2 * 288 + 256
    (phase,) = skipnet.METHOD.phases(network.config)
    skipnet.METHOD.objective(network, batch_of(), phase)["cross_entropy"].backward()
    for name, parameter in network.router.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_the_rates_move_towards_their_targets() -> None:
    network = build(target=0.2, target_weight=10.0).train()
    (phase,) = METHOD.phases(network.config)
    network.relaxation = phase.relaxation
    images = torch.randn(64, 1, 8, 8)
    batch = Batch(images, torch.arange(64) % 5, generator=torch.Generator().manual_seed(0))
    before = network(images).aux["probabilities"].mean(dim=0)
    for _ in range(25):
        loss = torch.stack(list(METHOD.objective(network, batch, phase).values())).sum()
        learned = list(network.router.parameters())
        with torch.no_grad():
            for parameter, gradient in zip(learned, torch.autograd.grad(loss, learned), strict=True):
                parameter -= 0.5 * gradient
    after = network(images).aux["probabilities"].mean(dim=0)
    assert (before > 0.8).all() and (after < 0.4).all()


def test_a_batch_of_one_uses_the_statistics_of_the_gate() -> None:
    gate = PointwiseGate((4, 8, 8)).train()
    gate(torch.randn(16, 4, 8, 8) + 1)
    statistics = {name: value.clone() for name, value in gate.named_buffers()}
    image = torch.randn(1, 4, 8, 8)
    alone = gate(image)
    assert all(torch.equal(value, statistics[name]) for name, value in gate.named_buffers())
    assert torch.equal(alone, gate.eval()(image))
    network = build(batch_size=1).train()
    terms = METHOD.objective(network, batch_of(1), METHOD.phases(network.config)[0])
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert all(b.isfinite().all() for b in network.buffers())


def spread(network: GatedResNet) -> GatedResNet:
    """Gates that disagree about images, as trained ones do."""
    for parameter in network.router.parameters():
        nn.init.normal_(parameter)
    return network


def test_the_official_inference_draws() -> None:
    network = spread(build(impl="official"))
    settings = METHOD.settings(network.config)
    assert all(setting["sampling"] == "bernoulli" for setting in settings)
    assert all(set(setting) == {"threshold"} for setting in METHOD.settings(build().config))
    images: Tensor = torch.randn(40, 1, 8, 8)
    middle = next(setting for setting in settings if setting["threshold"] == 0.5)
    drawn, likely = network.infer(images, middle), network.infer(images, {"threshold": 0.5})
    assert not torch.equal(drawn.decisions, likely.decisions)
    assert torch.equal(network.infer(images[3:5], middle).decisions, drawn.decisions[3:5])


def test_the_published_setting_is_configured() -> None:
    config = METHOD.configure(PAPER)
    assert (config.network, config.shortcut, config.target, config.target_weight) == ("resnet-110", "B", 0.6, 2.0)
    (phase,) = METHOD.phases(config)
    rates = [phase.optimiser.lr_at(epoch / 350) for epoch in (149, 151, 249, 251)]
    assert rates == pytest.approx([0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize(
    "values,message",
    [
        ({"target": 1.2}, r"target = 1.2: a rate must be in \[0, 1\)"),
        ({"target": -0.1}, r"target = -0.1"),
        ({"target": 1.0}, r"target = 1.0.*no block would have a gate"),
        ({"targets": [0.5, 0.5]}, r"resnet-8 has 3 blocks and takes as many rates, not 2"),
        ({"targets": [0.5, 0.5, 1.5]}, r"targets = \(0.5, 0.5, 1.5\): rates must be numbers in \[0, 1\]"),
        ({"targets": [0.5, "x", 0.5]}, r"rates must be numbers"),
        ({"targets": [1, 1, 1]}, r"at least one block needs a gate"),
        ({"target_weight": -1.0}, r"target_weight = -1.0"),
        ({"temperature": 0.0}, r"temperature = 0.0: must be positive"),
        ({"gate": "lstm"}, r"gate = 'lstm': aig takes one of linear, ff1"),
        ({"relaxation": "hard"}, r"relaxation = 'hard'"),
        ({"variant": "full"}, r"variant = 'full': aig has no variants"),
        ({"network": "resnet-9"}, r"nearest is resnet-8"),
        ({"profile": "imagenet"}, r"network = 'resnet-8': the paper has rates per block for resnet-50"),
        ({"profile": "imagenet", "network": "resnet-50"}, r"network = 'resnet-50': the paper has rates per block"),
        ({"profile": "steep"}, r"profile = 'steep': aig takes one of flat, imagenet"),
        ({"impl": "paper"}, r"impl = 'paper'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure({"network": "resnet-8", **values})
