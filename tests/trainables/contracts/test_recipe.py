"""The shared recipe: schedules, what weight decay acts on, label smoothing, noise under autocast."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, Optimiser, TrainingConfig, kernel, plan
from trainables.networks.gated.gates import relax
from trainables.registry import get_method


def network_of(method: str, **values: Any) -> RoutedNetwork:
    """A network, initialised."""
    torch.manual_seed(0)
    return get_method(method).build(get_method(method).configure(values), Task(channels=1, size=16))


def test_the_rate_anneals_along_a_cosine_unless_steps_are_asked_for() -> None:
    cosine = Optimiser.of(TrainingConfig(lr=0.2))
    assert [cosine.lr_at(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.1, 0.0])
    steps = Optimiser.of(TrainingConfig(lr=0.2, schedule="step", lr_decay_at=(0.5,), lr_decay=0.1))
    assert [steps.lr_at(share) for share in (0.49, 0.51)] == pytest.approx([0.2, 0.02])


def test_a_warm_up_rises_linearly_or_stays_at_its_own_rate() -> None:
    linear = Optimiser.of(TrainingConfig(lr=0.1, schedule="step", warmup=0.1))
    assert linear.lr_at(0.0) < 0.002 and linear.lr_at(0.05) == pytest.approx(0.05, rel=0.02)
    constant = Optimiser.of(TrainingConfig(lr=0.1, schedule="step", warmup=0.1, warmup_lr=0.01))
    assert [constant.lr_at(share) for share in (0.0, 0.09, 0.11)] == pytest.approx([0.01, 0.01, 0.1])


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_decay_of_kernels_leaves_biases_and_norms_alone(kind: str) -> None:
    network = network_of("act", network="preact-resnet-26")
    named = list(network.named_parameters())
    optimiser = Optimiser(lr=0.1, kind=kind, weight_decay=0.5, decayed="kernels")
    made = optimiser.over([parameter for _, parameter in named])
    decayed, free = made.param_groups
    assert len(decayed["params"]) == 35 and len(free["params"]) == 126 - 35  # the public code's, four units a group
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.5, 0.0)
    order = [parameter for group in made.param_groups for parameter in group["params"]]
    assert all(a is b for a, (_, b) in zip(order, optimiser.ordered(named), strict=True))
    before = {name: parameter.detach().clone() for name, parameter in named}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    made.step()
    moved = {name for name, parameter in named if not torch.equal(parameter, before[name])}
    assert moved == {name for name, parameter in named if kernel(parameter)}


def test_act_decays_kernels_and_others_everything() -> None:
    for name, wanted in (("act", "kernels"), ("sact", "kernels"), ("static", "all"), ("skipnet", "all")):
        method = get_method(name)
        phase = plan(method.phases(method.configure({})), 9)[0][0]
        assert phase.optimiser.decayed == wanted, name


@pytest.mark.parametrize(
    ("method", "values"),
    [
        ("static", {"network": "resnet-8"}),
        ("codinet", {"network": "resnet-8", "variant": "vanilla", "gamma": 0.0}),
        ("skipnet", {"network": "resnet-8"}),
        ("aig", {"network": "resnet-8"}),
        ("blockdrop", {"network": "resnet-8"}),
        ("sdv", {"network": "resnet-8"}),
        ("imta", {"network": "msdnet-2", "variant": "none", "width": 0.25}),
        ("act", {"network": "preact-resnet-14"}),
        ("multipath", {"network": "basecnn-2", "width": 0.25}),
        ("ensemble", {"network": "basecnn", "width": 0.25, "members": 2}),
        ("decide", {"network": "pyramid-static-2"}),
    ],
)
def test_labels_are_smoothed_in_every_method(method: str, values: dict[str, Any]) -> None:
    record = get_method(method)
    torch.manual_seed(1)
    images, labels = torch.randn(8, 1, 16, 16), torch.arange(8)
    losses = []
    for smoothing in (0.0, 0.5):
        network = network_of(method, **values, label_smoothing=smoothing).train()
        phase = plan(record.phases(network.config), 9)[0][0]
        network.relaxation = phase.relaxation
        generator = torch.Generator().manual_seed(2)
        terms = record.objective(network, Batch(images=images, labels=labels, generator=generator), phase)
        losses.append(terms)
    first = next(iter(losses[0]))
    assert losses[0][first].item() != pytest.approx(losses[1][first].item(), rel=1e-4)
    if method == "static":
        network = network_of(method, **values).train()
        logits = network(images).output
        assert losses[1][first].item() == pytest.approx(F.cross_entropy(logits, labels, label_smoothing=0.5).item())


@pytest.mark.parametrize("name", ["gumbel", "gumbel_straight_through", "bernoulli"])
def test_noise_is_drawn_in_float32_whatever_the_logits_are(name: str) -> None:
    def drawn(logit: Tensor) -> Tensor:
        return relax(name, logit, generator=torch.Generator().manual_seed(3)).float()

    low, high = (drawn(torch.full((20_000,), 0.5, dtype=dtype)) for dtype in (torch.bfloat16, torch.float32))
    assert torch.allclose(low, high, atol=1e-6)
    if name == "gumbel":
        assert len(low.unique()) > 10_000  # bfloat16 draws have some 660 values, one in 500 of them a forced skip
        assert low.logit().min() > -20 + math.log(0.5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decayed": "biases"}, "decayed = 'biases': must be all or kernels"),
        ({"label_smoothing": 1.0}, r"label_smoothing = 1.0: must be in \[0, 1\)"),
        ({"warmup_lr": -1.0}, "warmup_lr = -1.0: a learning rate lies above 0 and below 100; 0 is"),
        ({"nesterov": True, "momentum": 0.0}, "momentum = 0.0: Nesterov's must be above 0"),
    ],
)
def test_impossible_recipes_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**values)
