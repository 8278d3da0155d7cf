"""Balanced accuracy: the mean over classes, its spread as a number of images, and what a curve says of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from search.pareto.confidence import wilson
from search.spec.study import StudySpec
from tests.support.noise import noise
from trainables.contracts.objective import BALANCED
from trainables.data.augment import in_order, to_device
from trainables.inference.balanced import balanced
from trainables.inference.evaluation import curve, evaluate
from trainables.registry import METHODS
from trainables.training.training import Training

LABELS = np.repeat([0, 1, 2, 4], [60, 25, 10, 5])  # of class 3 there is no image


def test_it_is_scikit_learns_and_spreads_as_draws_do() -> None:
    random, likely = np.random.RandomState(0), np.array([0.9, 0.7, 0.6, 0.0, 0.5])
    found = []
    for _ in range(400):
        right = random.uniform(size=len(LABELS)) < likely[LABELS]
        point = balanced(right, LABELS)
        if len(found) < 4:
            wrong = np.where(LABELS == 0, 1, 0)
            assert point["accuracy"] == pytest.approx(balanced_accuracy_score(LABELS, np.where(right, LABELS, wrong)))
        assert abs(point["accuracy"] - point["correct"] / point["count"]) <= 0.5 / point["count"]
        assert point["images"] == 100 and point["plain_accuracy"] == right.mean()
        found.append((point["accuracy"], *wilson(point["correct"], point["count"])))
    accuracy, low, high = np.array(found).T
    truth = likely[[0, 1, 2, 4]].mean()
    assert 0.9 < np.mean((low <= truth) & (truth <= high)) <= 1  # a 95 % interval
    assert np.mean(high - low) / (2 * 1.96) == pytest.approx(accuracy.std(), rel=0.3)


def test_where_classes_are_alike_it_is_accuracy_with_its_images() -> None:
    labels = np.arange(200) % 4
    right = np.arange(200) % 5 > 0
    point = balanced(right, labels)
    assert point["accuracy"] == pytest.approx(point["plain_accuracy"]) and abs(point["count"] - 200) <= 4
    everything = balanced(np.ones(200, dtype=bool), labels)
    assert everything["accuracy"] == 1 and everything["correct"] == everything["count"] > 100
    assert balanced(np.zeros(3, dtype=bool), np.array([0, 1, 1]))["accuracy"] == 0


@pytest.mark.parametrize("name", ["aig", "exits"])
def test_curves_and_points_weigh_classes_alike(name: str) -> None:
    method, data = METHODS[name], noise(16, 8, 5, len(LABELS))
    data = dataclasses.replace(data, validation=dataclasses.replace(data.validation, labels=LABELS.astype(np.int64)))
    config = method.configure({"network": "resnet-8", "width": 0.25})
    torch.manual_seed(0)
    network = method.build(config, data.task).eval()
    data = data.for_config(config)
    images, labels = to_device(data.validation, "cpu")
    inputs = torch.cat([batch.images for batch in in_order(images, labels, data, batch_size=64)])
    plain, other = (curve(method, network, inputs, labels, merit=merit) for merit in ("accuracy", BALANCED))
    assert np.array_equal(plain.correct, other.correct)
    for before, point, right in zip(plain.points, other.points, other.correct, strict=True):
        shares = [right[LABELS == label].mean() for label in (0, 1, 2, 4)]
        assert point["accuracy"] == pytest.approx(np.mean(shares)) and point["macs"] == before["macs"]
        assert point["plain_accuracy"] == before["accuracy"]
    knobs = other.points[-1]["knobs"]
    again = evaluate(network, inputs, labels, knobs, merit=BALANCED).points[0]
    assert again["count"] >= 1 and again["images"] == len(LABELS)
    training = Training(method, config, dataclasses.replace(data, merit=BALANCED), epochs=1)
    assert {"plain_accuracy", "images"} <= set(training.step()["curve"]["points"][0])


def test_a_study_chooses_it_by_name() -> None:
    spec = StudySpec.parse({"name": "b", "objective": {"merit": "balanced_accuracy"}, "methods": {"static": {}}})
    assert spec.axes.usual and spec.axes.balanced and spec.axes.merit_at(0.25) == 0.25
    assert not StudySpec.parse({"name": "b", "methods": {"static": {}}}).axes.balanced
    with pytest.raises(ValueError, match="cascades are chosen by plain accuracy"):
        StudySpec.parse(
            {"name": "b", "compose": True, "objective": {"merit": "balanced_accuracy"}, "methods": {"static": {}}}
        )
