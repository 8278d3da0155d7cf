"""Residual networks that read images at several sizes: what they cost, learn and answer, alone and as a cascade."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import routefront.testing as checks
from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.inference.cascade import Cascade, Step
from trainables.inference.predictions import probabilities
from trainables.inference.prepare import prepared
from trainables.inference.rules import doubt
from trainables.normalisation import Normalisation
from trainables.registry import get_method

VALUES = {"network": "resnet-8", "width": 0.25, "smallest_size": 0.5}
CASE = checks.Case(
    method=get_method("static"), values=VALUES, task=Task(classes=10, size=16, channels=1),
    other_tasks=(Task(classes=3, size=33, channels=2),),
)  # fmt: skip
ALONE = checks.a_sweep_is_a_loop_of_single_passes_that_costs_less
"""Two sizes share no work: of this check all but the saving holds."""


@pytest.mark.parametrize("check", [each for each in checks.CHECKS if each is not ALONE])
def test_they_keep_the_contract(check) -> None:
    check(CASE)


def test_nothing_is_shared_between_sizes() -> None:
    with pytest.raises(AssertionError, match="shares no work between settings"):
        ALONE(CASE)


def test_every_size_is_charged_for_itself() -> None:
    network, images = CASE.build().eval(), CASE.images()
    assert [unit.name for unit in network.units] == ["size-8", "size-12", "size-16"]
    costs = []
    for size in (0.5, 0.75, 1.0):
        with counted(network) as tally:
            costs.append(float(network.infer(images, {"size": size}).macs[0]))
        assert sum(tally.values()) == costs[-1] * len(images)
    plain = checks.Case(method=CASE.method, values={**VALUES, "smallest_size": 1.0}, task=CASE.task).build()
    assert costs[2] == plain.macs_full and 3.8 < costs[2] / costs[0] < 4.1 and 1.7 < costs[2] / costs[1] < 1.9
    assert set(plain.state_dict()) == set(network.state_dict())  # one set of weights, whatever it reads


def test_batches_are_read_at_all_sizes_and_drawn_by_the_generator() -> None:
    network, images = CASE.build().train(), CASE.images()

    def drawn(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [int(network(images, generator=generator).decisions[0].argmax()) for _ in range(12)]

    assert set(drawn(0)) == {0, 1, 2} and drawn(0) == drawn(0) != drawn(1)
    assert int(network.eval()(images).decisions[0].argmax()) == 2


def test_two_sizes_of_one_checkpoint_make_a_cascade() -> None:
    network = CASE.build().eval()
    plain = Normalisation((0.5,), (0.5,))
    pixels = torch.randint(0, 256, (40, 1, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    one = network.infer(plain.apply(pixels), {"size": 0.5})
    first = doubt(probabilities(one.logits), "probability")
    limit = float(np.median(first))
    for each in (network, prepared(network)):
        cascade = Cascade([Step(each, plain, {"size": 0.5}), Step(each, plain, {"size": 1.0})], "probability", "last")
        assert cascade.units == ["1:size-8", "1:size-12", "1:size-16", "2:size-8", "2:size-12", "2:size-16"]
        with counted(network) as tally:
            answered = cascade.infer(pixels, [limit])
        expected = network.macs_min + np.where(first > limit, network.macs_full, 0)
        assert np.allclose(answered.macs, expected)
        if each is network:
            assert (answered.member == (first > limit)).all() and sum(tally.values()) == answered.macs.sum()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"smallest_size": 0.1}, "smallest_size = 0.1: a share of the images' size, from 0.25 to 1"),
        ({"smallest_size": 0.5, "network": "densenet-bc-22"}, "densenet-bc-22 reads images at one size alone"),
        ({"smallest_size": 0.5, "network": "torchvision:resnet18"}, "torchvision:resnet18 reads images at one size"),
    ],
)
def test_sizes_that_cannot_be_are_one_line(values: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        CASE.method.configure({"network": "resnet-8", **values})


def test_sizes_that_images_are_too_small_for_are_one_line() -> None:
    small = Task(classes=10, size=12, channels=1)
    with pytest.raises(ValueError, match=r"read at 6, 9, 12; resnet-8 takes at least 8, all different"):
        CASE.build(small)
    with pytest.raises(ValueError, match=r"size = 0.6: must be one of 0.5, 0.75, 1"):
        CASE.build().infer(CASE.images(), {"size": 0.6})
