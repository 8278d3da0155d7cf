"""SkipNet's second stage: rewards, the policy's gradient, and who learns from what."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.trainables.methods.test_skipnet import build, spread, varied
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.methods.skipnet import METHOD, policy_loss, rewards

torch.set_num_threads(1)


def test_rewards_are_those_of_the_worked_example() -> None:
    actions, loss = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([0.7])
    assert torch.allclose(rewards(actions, loss, alpha=0.3, beta=1.0), torch.tensor([[-0.5, -0.5, -0.6]]))
    assert torch.allclose(rewards(actions, loss, alpha=0.0, beta=2.0), torch.full((1, 3), -1.4))
    # discount: 0.1 (0.5 + 0.25) - 0.125 * 0.7, 0.1 (1 + 0.5) - 0.25 * 0.7, 0.1 - 0.5 * 0.7
    expected = torch.tensor([[-0.0125, -0.025, -0.25]])
    assert torch.allclose(rewards(actions, loss, alpha=0.3, beta=1.0, discount=0.5), expected)


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_the_policy_gradient_is_that_of_the_expected_objective(alpha: float) -> None:
    """Toy of 3 gates, each logit depending on the decisions before: enumeration over all 8 paths."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_()
    coupling = torch.randn(3, 3, generator=generator, dtype=torch.float64).requires_grad_()
    losses = torch.rand(8, generator=generator, dtype=torch.float64)
    paths = torch.tensor([[i >> k & 1 for k in range(3)] for i in range(8)], dtype=torch.float64)
    logits = start + paths @ coupling.tril(-1).T
    probability = torch.exp(-nn.functional.softplus(torch.where(paths == 1, -logits, logits)).sum(dim=1))
    assert float(probability.detach().sum()) == pytest.approx(1)
    objective = (probability * (losses - alpha / 3 * (1 - paths).sum(dim=1))).sum()
    exact = torch.autograd.grad(objective, [start, coupling], retain_graph=True)
    earned = rewards(paths, losses, alpha=alpha, beta=1.0)
    expected = [torch.zeros_like(each) for each in exact]
    for i in range(8):
        term = policy_loss(logits[i : i + 1], paths[i : i + 1], earned[i : i + 1])
        for total, each in zip(expected, torch.autograd.grad(term, [start, coupling], retain_graph=True), strict=True):
            total += probability[i].detach() * each
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(exact, expected, strict=True))


def test_sampled_gradients_of_the_network_average_to_the_exact_one() -> None:
    network = spread(build(variant="hrl_s", alpha=1.0, width=0.5, gate="linear")).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    network.relaxation = "bernoulli"
    image, label = varied(3)[2:], torch.tensor([1])
    bias = network.router.get_parameter("gates.0.fc2.bias")
    objective = torch.zeros(())
    for actions in torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]):
        routed = network(image, decisions=actions[None])
        z = routed.aux["gate_logits"][0]
        probability = torch.exp(-nn.functional.softplus(torch.where(actions == 1, -z, z)).sum())
        loss = nn.functional.cross_entropy(routed.output, label).detach()
        objective = objective + probability * (loss - 0.5 * (1 - actions).sum())
    (exact,) = torch.autograd.grad(objective, bias)
    (phase,) = METHOD.phases(network.config)
    count = 6_000
    batch = Batch(image.expand(count, -1, -1, -1), label.expand(count), generator=torch.Generator().manual_seed(0))
    terms = METHOD.objective(network, batch, phase)
    (sampled,) = torch.autograd.grad(terms["policy"], bias)
    assert exact.abs().max() > 0.05 and torch.allclose(sampled, exact, atol=0.03)


def test_the_phases_of_each_variant() -> None:
    names = {v: [p.name for p in METHOD.phases(METHOD.configure({"variant": v}))] for v in METHOD.variants}
    assert names == {"sp": ["sp"], "hrl_sp": ["sp", "hrl"], "hrl_s": ["hrl"], "rl": ["rl"]}


def test_in_hrl_rewards_teach_the_gates_and_cross_entropy_the_layers() -> None:
    network = spread(build(variant="hrl_sp")).train()
    network.relaxation = "bernoulli"
    batch = Batch(torch.randn(8, 1, 16, 16), torch.arange(8) % 5, generator=torch.Generator().manual_seed(0))
    terms = METHOD.objective(network, batch, METHOD.phases(network.config)[1])
    assert list(terms) == ["cross_entropy", "policy"]
    gates = list(network.router.parameters())
    assert all(
        g is None for g in torch.autograd.grad(terms["cross_entropy"], gates, retain_graph=True, allow_unused=True)
    )
    assert any(g.abs().sum() > 0 for g in torch.autograd.grad(terms["policy"], gates, retain_graph=True))


def test_pure_reinforcement_has_no_supervised_gradient() -> None:
    """Where every sampled label is right and skipping earns nothing, nothing is learned."""
    network = spread(build(Task(classes=2, size=16, channels=1), variant="rl", alpha=0.0)).train()
    network.relaxation = "bernoulli"
    with torch.no_grad():
        network.classifier.fc.weight.zero_()
        network.classifier.fc.bias.copy_(torch.tensor([50.0, -50.0]))
    (phase,) = METHOD.phases(network.config)
    for truth, silent in ((0, True), (1, False)):
        batch = Batch(torch.randn(8, 1, 16, 16), torch.full((8,), truth), generator=torch.Generator().manual_seed(0))
        terms = METHOD.objective(network, batch, phase)
        assert list(terms) == ["policy"]
        network.zero_grad()
        terms["policy"].backward()
        total = sum(float(p.grad.abs().sum()) for p in network.router.parameters() if p.grad is not None)
        assert (total == 0) is silent


@pytest.mark.parametrize("gate", ["rnn", "ff1", "ff2", "linear"])
def test_sharpening_multiplies_the_logits(gate: str) -> None:
    network = spread(build(variant="hrl_sp", gate=gate, hrl_sharpen=0.05))
    images = varied(3)
    everything = torch.ones(3, network.gates)
    before = network(images, decisions=everything).aux["gate_logits"]
    assert METHOD.begin is not None
    first, second = METHOD.phases(network.config)
    with torch.no_grad():
        METHOD.begin(network, first)
        assert torch.equal(network(images, decisions=everything).aux["gate_logits"], before)
        METHOD.begin(network, second)
    assert torch.allclose(network(images, decisions=everything).aux["gate_logits"], 20 * before, rtol=1e-4, atol=1e-4)
