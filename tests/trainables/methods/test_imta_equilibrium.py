"""Gradient equilibrium: the gradients that the equation asks for, on all scales or as the public code has it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.methods.imta import METHOD
from trainables.networks.msdnet.collaboration import EquilibriumMSDNet, rescale_gradient
from trainables.networks.msdnet.network import MSDNet

torch.set_num_threads(1)


def build(task: Task, **values: Any) -> MSDNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"growth": 4, "channels": 8, **values}), task)
    assert isinstance(network, MSDNet)
    return network


def batch(count: int, task: Task) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, task.channels, task.size, task.size, generator=generator)
    return Batch(images, torch.randint(task.classes, (count,), generator=generator))


def gradients(network: MSDNet, data: Batch) -> tuple[list[Tensor], list[list[list[Tensor]]]]:
    """All exits' logits, and the gradients of loss j behind stages i <= j: [j][i], finest scale first.

    A stage's finer scales have none where nothing behind reads them: only the coarsest is listed at i = j.
    """
    features: list[Any] = []
    handles = [stage.register_forward_hook(lambda m, i, o: features.append(o)) for stage in network.stages]
    logits = list(network(data.images).logits)
    for handle in handles:
        handle.remove()
    result = []
    for j, each in enumerate(logits):
        loss = F.cross_entropy(each, data.labels)
        read = [*features[:j], features[j][-1:]]
        found = iter(torch.autograd.grad(loss, [f for scales in read for f in scales], retain_graph=True))
        result.append([[next(found) for _ in scales] for scales in read])
    return logits, result


def compared(scales: str) -> tuple[list[list[list[Tensor]]], list[list[list[Tensor]]]]:
    """Gradients of the plain network and of the one with equilibrium, 5 exits, double precision."""
    task = Task(classes=100)
    data = batch(2, task)
    data.images = data.images.double()
    plain = build(task, network="msdnet-5").double()
    equal = build(task, network="msdnet-5", variant="ge", ge_scales=scales).double()
    assert isinstance(equal, EquilibriumMSDNet) and not isinstance(plain, EquilibriumMSDNet)
    (logits, before), (same, after) = gradients(plain, data), gradients(equal, data)
    assert all(torch.equal(a, b) for a, b in zip(logits, same, strict=True))
    return before, after


def test_every_loss_reaches_a_stage_divided_by_the_exits_that_are_left() -> None:
    before, after = compared("all")
    for j in range(5):
        for i in range(j + 1):
            for old, new in zip(before[j][i], after[j][i], strict=True):
                torch.testing.assert_close(new, old / (5 - i), rtol=1e-9, atol=1e-15)


def test_the_sum_of_losses_stays_below_the_largest() -> None:
    before, after = compared("all")
    for i in range(4):
        for s in range(len(before[i + 1][i])):
            summed = torch.stack([after[j][i][s] for j in range(i + 1, 5)]).sum(dim=0).norm()
            assert summed <= max(before[j][i][s].norm() for j in range(i + 1, 5))


def test_the_public_code_has_other_ratios_on_finer_scales() -> None:
    before, after = compared("coarsest")

    def ratio(loss: int, stage: int) -> float:
        old, new = before[loss - 1][stage - 1][0], after[loss - 1][stage - 1][0]
        return float((old * new).sum() / old.square().sum())

    assert ratio(loss=2, stage=1) == pytest.approx(0.25)  # the equation asks for 1 / 5
    assert ratio(loss=5, stage=4) == pytest.approx(1.0)  # and here for 1 / 2
    for j in range(5):
        torch.testing.assert_close(after[j][j][0], before[j][j][0] / (5 - j), rtol=1e-9, atol=1e-15)


def test_equilibrium_leaves_the_classifiers_alone() -> None:
    task = Task(classes=5, size=16, channels=1)
    data = batch(4, task)
    plain, equal = (build(task, network="msdnet-3", variant=variant) for variant in ("none", "ge"))
    for network in (plain, equal):
        terms = METHOD.objective(network, data, METHOD.phases(network.config)[0])
        torch.stack(list(terms.values())).sum().backward()
    for a, b in zip(plain.classifiers.parameters(), equal.classifiers.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)
    first, scaled = next(plain.stages.parameters()).grad, next(equal.stages.parameters()).grad
    assert first is not None and scaled is not None and scaled.norm() < first.norm()


def test_rescaling_is_the_identity_going_forward() -> None:
    x = torch.randn(3, requires_grad=True)
    y = rescale_gradient(x, 0.25)
    assert torch.equal(x, y)
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0.25] * 3
    fixed = torch.ones(2)
    assert rescale_gradient(fixed, 0.5) is fixed
