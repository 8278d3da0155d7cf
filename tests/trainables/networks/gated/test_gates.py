"""Routers and relaxations: sizes to the digit, memory that follows its row, exact hard decisions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainables.networks.gated.gates import GATES, RELAXATIONS, hard_at, image_noise, relax, router_of

torch.set_num_threads(1)

SHAPES = ((16, 32, 32), (32, 16, 16), (64, 8, 8))

# gate: (parameters, MACs) of a gate that reads each of SHAPES
COUNTS = {
    "linear": ((306, 1_122, 4_290), (288, 1_088, 4_224)),
    "ff1": ((4_706, 18_626, 74_114), (737_312, 737_344, 737_408)),
    "ff2": ((2_370, 9_346, 37_122), (589_856, 589_888, 589_952)),
    "conv1x1": ((338, 594, 1_106), (288, 544, 1_056)),
    "rnn": ((1_061, 1_221, 1_541), (970, 1_130, 1_450)),  # with the 880 + 11 parameters that gates share
}


@pytest.mark.parametrize("kind", COUNTS)
@pytest.mark.parametrize("which", range(3))
def test_gates_have_the_published_parameters_and_macs(kind: str, which: int) -> None:
    router = router_of(kind, [SHAPES[which]])
    assert sum(p.numel() for p in router.parameters()) == COUNTS[kind][0][which]
    assert router.macs(0)[0] == COUNTS[kind][1][which]


def test_recurrent_gates_share_their_lstm() -> None:
    router = router_of("rnn", SHAPES)
    assert sum(p.numel() for p in router.parameters()) == 880 + 11 + sum(10 * c + 10 for c, _, _ in SHAPES)


def answers(kind: str, features: list[Tensor]) -> tuple[Tensor, ...]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        router = router_of(kind, SHAPES, image=SHAPES[0]).eval()
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter)
    memory = router.begin(features[0])
    logits = []
    for gate, each in enumerate(features):
        logit, memory = router(gate, each, memory)
        logits.append(logit)
    return torch.stack(logits, dim=1), memory


@pytest.mark.parametrize("kind", GATES)
def test_images_are_answered_alone_and_in_any_order(kind: str) -> None:
    features = [torch.randn(5, *shape) for shape in SHAPES]
    logits, memory = answers(kind, features)
    assert logits.shape == (5, 3) and len(memory) == 5
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled, shuffled_memory = answers(kind, [f[order] for f in features])
    assert torch.allclose(shuffled, logits[order], rtol=1e-4, atol=1e-5)
    assert torch.allclose(shuffled_memory, memory[order], rtol=1e-4, atol=1e-5)
    alone, _ = answers(kind, [f[2:3] for f in features])
    assert torch.allclose(alone, logits[2:3], rtol=1e-4, atol=1e-5)


def test_the_recurrent_state_is_carried_along_the_depth() -> None:
    features = [torch.randn(2, *shape) for shape in SHAPES]
    before, _ = answers("rnn", features)
    after, _ = answers("rnn", [features[0] + 1, *features[1:]])
    assert not torch.allclose(before[:, 2], after[:, 2])


def test_the_plain_linear_gate_is_linear() -> None:
    x, y = torch.randn(2, 3, 16, 4, 4)
    for plain, same in ((True, True), (False, False)):
        gate = router_of("linear", [(16, 4, 4)], plain=plain).get_submodule("gates.0")
        assert torch.allclose(gate(x) + gate(y), gate(x + y) + gate(0 * x), atol=1e-5) is same


def test_unknown_gates_and_relaxations_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"gate = 'lstm'.*linear, ff1, ff2, rnn"):
        router_of("lstm", SHAPES)
    with pytest.raises(ValueError, match="policy network reads images"):
        router_of("policy", SHAPES)
    with pytest.raises(ValueError, match=r"relaxation = 'soft'.*gumbel, softmax"):
        relax("soft", torch.zeros(2))


def test_softmax_is_the_two_way_softmax_of_the_scores() -> None:
    scores = torch.randn(7, 2)
    expected = torch.softmax(scores / 0.7, dim=1)[:, 1]
    assert torch.allclose(relax("softmax", scores[:, 1] - scores[:, 0], temperature=0.7), expected)


def test_gumbel_samples_run_as_often_as_the_probability_says() -> None:
    generator = torch.Generator().manual_seed(0)
    for z in (-1.5, 0.0, 2.0):
        sample = relax("gumbel", torch.full((40_000,), z), temperature=0.5, generator=generator)
        assert sample.isfinite().all() and 0 <= sample.min() and sample.max() <= 1
        # P(v >= 1/2) = P(z + logistic >= 0) at any temperature; 4 standard errors
        assert float(hard_at(sample).mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(z))), abs=0.01)


def test_gumbel_noise_comes_from_the_generator() -> None:
    logit = torch.zeros(6)
    draws = [relax("gumbel", logit, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_straight_through_is_hard_forward_and_soft_backward() -> None:
    logit = torch.cat([torch.linspace(-9, 9, 301), torch.zeros(1)]).requires_grad_()
    decision = relax("straight_through", logit)
    assert set(decision.tolist()) == {0.0, 1.0} and decision[-1] == 1  # the tie runs
    weights = torch.randn(302)
    (got,) = torch.autograd.grad((weights * decision).sum(), logit)
    (soft,) = torch.autograd.grad((weights * relax("softmax", logit)).sum(), logit)
    assert torch.equal(got, soft)


def test_sampled_decisions_run_with_their_probability_and_have_no_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    for z in (-1.5, 0.0, 2.0):
        logit = torch.full((40_000,), z, requires_grad=True)
        sample = relax("bernoulli", logit, generator=generator)
        assert not sample.requires_grad and set(sample.unique().tolist()) <= {0.0, 1.0}
        assert float(sample.mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(z))), abs=0.01)


def test_hard_gumbel_samples_carry_the_gradient_of_the_soft_ones() -> None:
    logit, weights = torch.randn(64, requires_grad=True), torch.randn(64)
    hard_sample = relax("gumbel_straight_through", logit, generator=torch.Generator().manual_seed(3))
    soft = relax("gumbel", logit, generator=torch.Generator().manual_seed(3))
    assert torch.equal(hard_sample, hard_at(soft))
    (got,) = torch.autograd.grad((weights * hard_sample).sum(), logit)
    (expected,) = torch.autograd.grad((weights * soft).sum(), logit)
    assert torch.equal(got, expected)


def test_the_noise_of_an_image_follows_from_its_pixels_and_the_seed() -> None:
    images = torch.randn(50, 3, 8, 8)
    noise = image_noise(images, 0, 40)
    assert noise.shape == (50, 40) and noise.min() >= 0 and noise.max() < 1
    order = torch.randperm(50)
    assert torch.equal(image_noise(images[order], 0, 40), noise[order])
    assert torch.equal(image_noise(images[3:4].contiguous(memory_format=torch.channels_last), 0, 40), noise[3:4])
    assert torch.equal(image_noise(images, 0, 7), noise[:, :7])
    nearly = images.clone()
    nearly[:, 0, 0, 0] += 1e-6
    for other in (image_noise(images, 1, 40), image_noise(nearly, 0, 40), noise.roll(1, 0), noise.roll(1, 1)):
        assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), other.flatten()]))[0, 1])) < 0.1
    draws = image_noise(torch.randn(400, 1, 4, 4), 5, 25).flatten().sort().values
    assert float((draws - torch.linspace(0, 1, 10_000)).abs().max()) < 0.02  # Kolmogorov-Smirnov at 0.1 %


def test_hard_decisions_have_no_gradient() -> None:
    logit = torch.randn(4, requires_grad=True)
    assert not relax("hard", logit).requires_grad
    assert torch.equal(relax("hard", logit), (logit >= 0).float())


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_batch_of_one_is_decided(name: str) -> None:
    assert relax(name, torch.zeros(1)).shape == (1,)
