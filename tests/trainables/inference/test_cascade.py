"""A cascade executes its members on the images that come to them, and work of one network once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.inference.cascade import Cascade, Step
from trainables.inference.predictions import probabilities
from trainables.inference.prepare import prepared
from trainables.inference.rules import doubt, scaled, scores
from trainables.normalisation import Normalisation
from trainables.registry import get_method

TASK = Task(classes=10, size=8, channels=1)
PLAIN = Normalisation((0.5,), (0.5,))


@pytest.fixture(scope="module")
def networks() -> dict[str, torch.nn.Module]:
    built = {}
    for name, values in {
        "static": {"network": "resnet-8", "width": 0.25},
        "skipnet": {"network": "resnet-14", "width": 0.25},
        "imta": {"network": "msdnet-4", "width": 0.25},
    }.items():
        torch.manual_seed(len(built))
        method = get_method(name)
        built[name] = method.build(method.configure(values), TASK).eval()
    return built


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def steps(networks, *wanted) -> list[Step]:
    return [Step(networks[name], PLAIN, knobs, temperature) for name, knobs, temperature in wanted]


THREE = (("static", {}, 1.0), ("skipnet", {"threshold": 0.5}, 0.7), ("imta", {"thresholds": [0.1, 0.1, 0.1]}, 1.5))


def by_hand(found: list[Step], pixels: torch.Tensor, thresholds: list[float], answer: str) -> list[tuple]:
    """Image by image: label, MACs, last member."""
    rows = []
    for image in pixels:
        macs, total = 0.0, None
        for place, step in enumerate(found):
            with torch.no_grad():
                result = step.network.infer(PLAIN.apply(image[None]), step.knobs)
            macs += float(result.macs)
            shares = scaled(probabilities(result.logits), step.temperature)
            weight = 2**place if answer == "weighted" else 1
            total = scores(shares) if total is None or answer == "last" else total + scores(shares, weight)
            if place == len(found) - 1 or not doubt(shares, "margin")[0] > thresholds[place]:
                rows.append((int(total.argmax()), macs, place))
                break
    return rows


@pytest.mark.parametrize("answer", ["last", "mean", "weighted"])
def test_a_cascade_is_its_members_image_by_image(networks, pixels: torch.Tensor, answer: str) -> None:
    found = steps(networks, *THREE)
    first = doubt(probabilities(networks["static"].infer(PLAIN.apply(pixels), {}).logits), "margin")
    limits = [float(np.median(first)), 0.5]
    answered = Cascade(found, "margin", answer).infer(pixels, limits)
    expected = by_hand(found, pixels, limits, answer)
    assert answered.member.tolist() == [row[2] for row in expected] and {0, 1, 2} >= set(answered.member) > {0}
    assert np.allclose(answered.macs, [row[1] for row in expected])
    assert answered.probabilities.argmax(1).tolist() == [row[0] for row in expected]
    assert np.allclose(answered.probabilities.sum(1), 1, atol=3e-3)
    units = len(Cascade(found, "margin", answer).units)
    assert answered.path.shape == (40, units) and (answered.path[answered.member == 0, 9:] == 0).all()


def test_batches_mix_without_changing_an_answer(networks, pixels: torch.Tensor) -> None:
    cascade = Cascade(steps(networks, *THREE), "entropy", "mean")
    whole, parts = cascade.infer(pixels, [1.9, 1.9]), [cascade.infer(part, [1.9, 1.9]) for part in pixels.split(7)]
    assert (whole.member == np.concatenate([part.member for part in parts])).all()
    assert np.allclose(whole.probabilities, np.concatenate([part.probabilities for part in parts]), atol=2e-3)


@pytest.mark.parametrize("fast", [False, True])
def test_settings_of_one_network_share_what_both_execute(networks, pixels: torch.Tensor, fast: bool) -> None:
    network = prepared(networks["imta"]) if fast else networks["imta"]
    knobs = [{"thresholds": [0.0, 0.0, 0.0]}, {"thresholds": [1.0, 1.0, 0.0]}, {"thresholds": [1.0, 0.0, 0.0]}]
    inputs = PLAIN.apply(pixels)
    with torch.no_grad():
        alone = [network.infer(inputs, each) for each in knobs]
    cascade = Cascade([Step(network, PLAIN, each) for each in knobs], "probability", "last")
    assert cascade.runs == [[0, 1, 2]]
    first = doubt(probabilities(alone[0].logits), "probability")
    limits = [float(np.median(first)), -1.0]
    with counted(networks["imta"]) as tally:
        answered = cascade.infer(pixels, limits)
    goes = first > limits[0]
    assert (answered.member == np.where(goes, 2, 0)).all()  # the third, whose exit was passed before, costs nothing
    deepest = np.maximum(alone[0].macs.numpy(), alone[1].macs.numpy())
    assert np.allclose(answered.macs, np.where(goes, deepest, alone[0].macs.numpy()))
    if not fast:
        assert np.isclose(sum(tally.values()), answered.macs.sum())  # it is computed once, not only charged once
    labels = np.where(goes, alone[2].logits.argmax(1).numpy(), alone[0].logits.argmax(1).numpy())
    assert (answered.probabilities.argmax(1) == labels).mean() > 0.95


def test_no_images_are_answered_and_wrong_thresholds_are_one_line(networks, pixels: torch.Tensor) -> None:
    cascade = Cascade(steps(networks, *THREE), "probability", "last")
    assert cascade.infer(pixels[:0], [0.1, 0.1]).probabilities.shape == (0, 10)
    with pytest.raises(ValueError, match="1 thresholds; 3 members take 2"):
        cascade.infer(pixels, [0.1])
    with pytest.raises(ValueError, match="a cascade has at least two"):
        Cascade(steps(networks, THREE[0]), "probability", "last")
