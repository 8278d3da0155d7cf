"""How BlockDrop's policy learns: rewards, gradient, curriculum, and a greedy pass that leaves no trace."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainables.methods.test_blockdrop import build
from trainables.contracts.recipe import Batch, Phase
from trainables.data.datasets import default_root, load
from trainables.methods.blockdrop import (
    METHOD,
    BlockDropNetwork,
    bounded,
    choose,
    entropy,
    free_blocks,
    policy_loss,
    rewards,
)
from trainables.training.training import Training

torch.set_num_threads(1)


def phase_of(network: BlockDropNetwork, name: str) -> Phase:
    """The phase of that name, entered as `fit` does."""
    (phase,) = (each for each in METHOD.phases(network.config) if each.name == name)
    for parameter_name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains(parameter_name))
        parameter.grad = None
    network.train()
    for module_name, module in network.named_modules():
        if phase.eval_mode and module_name.startswith(phase.eval_mode):
            module.eval()
    return phase


def batch_of(count: int = 8, seed: int = 0, share: float = 0.0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 16, 16, generator=generator)
    return Batch(images, torch.arange(count) % 5, 1, generator, share)


def test_rewards_are_those_of_the_worked_example() -> None:
    actions = torch.zeros(3, 54)
    actions[0, :17] = actions[1, :17] = actions[2] = 1
    earned = rewards(actions, torch.tensor([True, False, True]), 5.0)
    assert earned.tolist() == pytest.approx([0.900892, -5.0, 0.0], abs=5e-7)


def test_bounded_probabilities_never_rule_anything_out() -> None:
    p = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert bounded(p, 0.8).tolist() == pytest.approx([0.2, 0.35, 0.5, 0.8])
    assert torch.equal(bounded(p, 1.0), p)


def test_the_entropy_counts_running_alone() -> None:
    p = torch.tensor([[0.5, 0.2], [1.0, 0.8]])
    assert entropy(p).tolist() == pytest.approx([0.5 * 0.6931472 + 0.2 * 1.6094379, 0.8 * 0.2231436])


def enumerated(count: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=count)), dtype=torch.float64)


@pytest.mark.parametrize("free", [4, 2])
def test_the_policy_gradient_is_that_of_the_expected_reward(free: int) -> None:
    """Toy of 4 gates: enumeration over the paths that the policy can choose among."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    forced = torch.ones(2**free, 4 - free, dtype=torch.float64)
    paths = torch.cat([forced, enumerated(free)], dim=1)
    earned = rewards(paths, torch.rand(len(paths), generator=generator) < 0.6, 3.0)
    p = bounded(torch.sigmoid(logits), 0.8)
    chance = torch.where(paths == 1, p, 1 - p)[:, 4 - free :].prod(dim=1)
    assert float(chance.detach().sum()) == pytest.approx(1)
    (exact,) = torch.autograd.grad(-(chance * earned).sum(), logits, retain_graph=True)
    assert exact.abs().max() > 0.01
    greedy = (torch.sigmoid(logits) >= 0.5).double()
    greedy[: 4 - free] = 1
    baseline = earned[(paths == greedy).all(dim=1)]
    terms = policy_loss(p.expand_as(paths), paths, earned - baseline, free)
    (expected,) = torch.autograd.grad((chance.detach() * terms).sum(), logits)
    assert torch.allclose(exact, expected, atol=1e-12)


def test_sampled_gradients_of_the_network_average_to_the_exact_one() -> None:
    network = build(width=0.25, policy_width=0.25, entropy=0.0, curriculum_gamma=2.0)
    with torch.no_grad():  # a body that answers differently on different paths
        network.classifier.fc.weight.mul_(10)
    phase, image = phase_of(network, "curriculum"), batch_of(3).images[2:]
    network.eval()
    paths = enumerated(3).float()
    logits = network.outcomes(image, paths[:, None])[:, 0]
    label = logits.argmax(dim=1).mode().values[None]
    earned = rewards(paths, logits.argmax(dim=1) == label, 2.0)
    assert len(earned.unique()) > 3 and earned.min() == -2
    bias = network.router.get_parameter("head.bias")
    p = bounded(torch.sigmoid(network.router.begin(image)), 0.8)
    chance = torch.where(paths == 1, p, 1 - p).prod(dim=1)
    (exact,) = torch.autograd.grad(-(chance * earned).sum(), bias)
    count = 6_000
    batch = Batch(image.expand(count, -1, -1, -1), label.expand(count), 1, torch.Generator().manual_seed(0), 0.99)
    (sampled,) = torch.autograd.grad(METHOD.objective(network, batch, phase)["policy"], bias)
    assert exact.abs().max() > 0.05 and torch.allclose(sampled, exact, atol=0.02)


def test_the_curriculum_frees_the_blocks_from_the_last() -> None:
    assert [free_blocks(epoch / 5000, 54 / 5000, 54) for epoch in (0, 1, 2, 53, 54, 4999)] == [1, 2, 3, 54, 54, 54]
    assert [free_blocks(share, 0.5, 3) for share in (0.0, 0.1, 0.2, 0.35, 0.6, 0.99)] == [1, 1, 2, 3, 3, 3]
    logits = torch.full((500, 5), -1.0)
    for free in range(1, 6):
        probability, sampled, greedy = choose(logits, 0.8, free)
        assert float(probability[0, 0]) == pytest.approx(0.8 * 0.2689414 + 0.2 * 0.7310586)
        assert sampled[:, : 5 - free].all() and greedy[:, : 5 - free].all()
        assert not greedy[:, 5 - free :].any()
        assert 0.2 < float(sampled[:, 5 - free :].mean()) < 0.5


def test_both_passes_of_the_curriculum_run_the_blocks_that_are_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(network="resnet-14", release=0.5)
    with torch.no_grad():
        nn.init.constant_(network.router.get_parameter("head.bias"), -9.0)
    followed: list[Tensor] = []

    def watched(images: Tensor, choices: Tensor) -> Tensor:
        followed.append(choices)
        return BlockDropNetwork.outcomes(network, images, choices)

    monkeypatch.setattr(network, "outcomes", watched)
    phase = phase_of(network, "curriculum")
    for share in (0.0, 0.2, 0.45):
        METHOD.objective(network, batch_of(64, share=share), phase)
    for choices, free in zip(followed, (1, 3, 6), strict=True):
        sampled, greedy = choices
        assert choices[:, :, : 6 - free].all() and not greedy[:, 6 - free :].any()
        assert 0 < float(sampled[:, 6 - free :].mean()) < 0.6  # p' is at least 1 - alpha


def test_gates_that_are_not_free_learn_from_the_entropy_alone() -> None:
    for weight in (0.0, 0.5):
        network = build(entropy=weight, release=0.9)
        with torch.no_grad():
            network.classifier.fc.weight.mul_(10)
        phase = phase_of(network, "curriculum")
        for share, free in ((0.0, 1), (0.4, 2), (0.95, 3)):
            terms = METHOD.objective(network, batch_of(64, share=share), phase)
            (gradient,) = torch.autograd.grad(
                sum(terms.values(), torch.zeros(())), network.router.get_parameter("head.bias")
            )
            assert (gradient[3 - free :] != 0).all()
            assert ((gradient[: 3 - free] != 0) == (weight > 0)).all()


def buffers(network: nn.Module, prefix: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in network.named_buffers() if name.startswith(prefix)}


def test_the_curriculum_leaves_the_residual_network_bit_identical() -> None:
    network = build()
    layers = ("stem", "blocks", "classifier")
    phase, before = phase_of(network, "curriculum"), buffers(network, layers)
    policy = buffers(network, ("router",))
    METHOD.objective(network, batch_of(), phase)
    assert all(torch.equal(b, before[name]) for name, b in buffers(network, layers).items())
    moved = [name for name, b in buffers(network, ("router",)).items() if not torch.equal(b, policy[name])]
    assert len(moved) == len([name for name in policy if "running" in name or "tracked" in name])
    assert network.router.training and not network.stem.training  # the modes of the phase, again


def test_the_greedy_pass_leaves_no_trace_in_the_finetuning() -> None:
    network, alone = build(), build()
    phase = phase_of(network, "finetune")
    phase_of(alone, "finetune")
    METHOD.objective(network, batch_of(), phase)
    batch = batch_of()
    _, sampled, _ = choose(alone.router.begin(batch.images), 0.8, 3, batch.generator)
    alone.follow(batch.images, sampled)
    expected = buffers(alone)
    assert all(torch.equal(b, expected[name]) for name, b in buffers(network).items())
    assert all(module.training for module in network.modules())


def test_the_public_codes_finetuning_sums_and_leaves_a_trace() -> None:
    ours, official = build(), build(impl="official")
    official.load_state_dict(ours.state_dict(), strict=False)
    with torch.no_grad():
        for network in (ours, official):
            network.classifier.fc.weight.mul_(10)
    terms = [METHOD.objective(n, batch_of(), phase_of(n, "finetune")) for n in (ours, official)]
    norms = [{name: int(b) for name, b in buffers(n).items() if "tracked" in name} for n in (ours, official)]
    for name, count in norms[1].items():
        assert (norms[0][name], count) == (1, 1 if name.startswith("router") else 2)
    assert float(terms[0]["cross_entropy"].detach()) == pytest.approx(float(terms[1]["cross_entropy"].detach()))
    # in eval mode both greedy passes see the same statistics: what is left is a sum against a mean
    for network in (ours, official):
        network.load_state_dict(ours.state_dict(), strict=False)
        network.eval()
    (phase,) = (each for each in METHOD.phases(ours.config) if each.name == "finetune")
    mean, total = (float(METHOD.objective(n, batch_of(), phase)["policy"].detach()) for n in (ours, official))
    assert mean != 0 and total == pytest.approx(8 * mean, rel=1e-4)


def answering(label: int, **values: Any) -> BlockDropNetwork:
    """A network that gives every image one label whatever runs."""
    network = build(**values)
    with torch.no_grad():
        network.classifier.fc.weight.zero_()
        network.classifier.fc.bias.copy_(50.0 * (torch.arange(5) == label))
    return network


@pytest.mark.parametrize("name", ["curriculum", "finetune"])
def test_a_policy_that_loses_nothing_by_dropping_drops(name: str) -> None:
    network = answering(1, entropy=0.0, policy_width=0.5)
    phase, images = phase_of(network, name), torch.randn(32, 1, 16, 16)
    optimiser = torch.optim.Adam(network.router.parameters(), lr=1e-2)
    shares = []
    for _ in range(15):
        batch = Batch(images, torch.ones(32, dtype=torch.long), 1, torch.Generator().manual_seed(len(shares)), 0.9)
        optimiser.zero_grad()
        METHOD.objective(network, batch, phase)["policy"].backward()
        optimiser.step()
        shares.append(float(torch.sigmoid(network.router.begin(images)).detach().mean()))
    assert shares[-1] < 0.25 < 0.35 < shares[0]


def test_a_policy_that_is_always_wrong_learns_nothing() -> None:
    network = answering(1, entropy=0.0)
    phase = phase_of(network, "curriculum")
    batch = Batch(torch.randn(8, 1, 16, 16), torch.zeros(8, dtype=torch.long), 1, torch.Generator(), 0.9)
    METHOD.objective(network, batch, phase)["policy"].backward()
    assert all(not p.grad.any() for p in network.router.parameters() if p.grad is not None)


def test_every_phase_has_its_batches_and_its_part_of_the_curriculum() -> None:
    seen: list[tuple[str, int, float]] = []

    def watched(network: Any, batch: Batch, phase: Phase) -> dict[str, Tensor]:
        seen.append((phase.name, len(batch.images), batch.share))
        return METHOD.objective(network, batch, phase)

    sizes = {"batch_size": 50, "curriculum_batch_size": 100, "finetune_batch_size": 25}
    tiny = {"network": "resnet-8", "width": 0.25, "policy_width": 0.25, "precision": "bfloat16", **sizes}
    data = load("digits", root=default_root(), image_size=16, limit=100)
    method = dataclasses.replace(METHOD, objective=watched)
    training = Training(method, METHOD.configure(tiny), data, epochs=4)
    reports = [training.step() for _ in range(4)]
    assert [report["phase"] for report in reports] == ["pretrain", "pretrain", "curriculum", "finetune"]
    assert [report["comparable"] for report in reports] == [False, False, True, True]
    assert list(reports[2]["losses"]) == ["entropy", "policy"]
    assert list(reports[3]["losses"]) == ["cross_entropy", "policy"]
    for phase, size in zip(("pretrain", "curriculum", "finetune"), sizes.values(), strict=True):
        assert {count for name, count, _ in seen if name == phase} == {size}
    shares = [share for name, _, share in seen if name == "finetune"]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == 1 - 1 / len(shares)
