"""Classes of different sizes: drawn alike, or weighted in the loss."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.support.noise import noise
from trainables.contracts.recipe import TrainingConfig
from trainables.data.augment import batches, to_device
from trainables.data.splits import Data, Split
from trainables.registry import METHODS

LABELS = np.array([0] * 30 + [1] * 8 + [2] * 2)


def uneven(balance: str) -> Data:
    data = noise(40, 8, 5, 8)
    train = Split(data.train.images[: len(LABELS)], LABELS)
    classes = ("a", "b", "c")
    data = dataclasses.replace(data, train=train, classes=classes, task=dataclasses.replace(data.task, classes=3))
    return data.for_config(TrainingConfig(balance=balance))


def drawn(data: Data, seed: int = 0) -> list:
    images, labels = to_device(data.train, "cpu")
    return list(batches(images, labels, data, batch_size=8, generator=torch.Generator().manual_seed(seed)))


def test_sampled_classes_come_alike_and_an_epoch_keeps_its_length() -> None:
    counts = torch.zeros(3)
    for seed in range(60):
        found = drawn(uneven("sampled"), seed)
        assert sum(len(batch.labels) for batch in found) == 40 and found[0].class_weights is None
        counts += torch.bincount(torch.cat([batch.labels for batch in found]), minlength=3)
    assert (counts / counts.sum() - 1 / 3).abs().max() < 0.03  # 2,400 draws: four deviations
    again = [torch.cat([batch.labels for batch in drawn(uneven("sampled"))]) for _ in range(2)]
    assert torch.equal(*again)


def test_weights_of_the_loss_are_inverse_frequencies() -> None:
    data = uneven("loss")
    assert data.class_weights() == pytest.approx((40 / 90, 40 / 24, 40 / 6))
    batch = drawn(data)[0]
    assert batch.class_weights is not None
    assert batch.class_weights.tolist() == pytest.approx(list(data.class_weights()))
    assert sum(len(each.labels) for each in drawn(data)) == 40
    assert drawn(uneven("none"))[0].class_weights is None


@pytest.mark.parametrize("name", ["static", "aig", "exits"])
def test_methods_weigh_their_cross_entropy(name: str) -> None:
    method = METHODS[name]
    data = uneven("loss")
    network = method.build(method.configure({"network": "resnet-8"}), data.task).eval()
    batch, (phase,) = drawn(data)[0], method.phases(network.config)
    last = list(method.objective(network, batch, phase).values())
    expected = F.cross_entropy(network(batch.images).output, batch.labels, weight=batch.class_weights)
    assert min(abs(term.item() - expected.item()) for term in last) < 1e-5
    plain = method.objective(network, dataclasses.replace(batch, class_weights=None), phase)
    assert [term.item() for term in plain.values()] != [term.item() for term in last]


def test_what_cannot_be_balanced_is_refused() -> None:
    for name in ("skipnet", "blockdrop", "decide"):
        with pytest.raises(ValueError, match=r"balance = 'loss': .* learns by rewards"):
            METHODS[name].configure({"balance": "loss"})
        METHODS[name].configure({"balance": "sampled"})
    with pytest.raises(ValueError, match=r"balance = 'evenly': must be one of none, sampled, loss"):
        METHODS["static"].configure({"balance": "evenly"})
    with pytest.raises(ValueError, match=r"cached features are drawn as they are"):
        METHODS["imta"].configure({"variant": "all", "cached_views": 2, "balance": "sampled"})
