"""CoDiNet where decisions are drawn at inference: the Bernoulli router of its Table 9 and the public code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.trainables.methods.test_codinet import build
from trainables.methods.codinet import METHOD

torch.set_num_threads(1)


@pytest.mark.parametrize("values", [{"relaxation": "bernoulli"}, {"impl": "official"}])
def test_decisions_may_be_drawn_at_inference(values: dict[str, Any]) -> None:
    network = build(network="resnet-14", **values)
    settings = METHOD.settings(network.config)
    assert all(setting["sampling"] == "bernoulli" for setting in settings)
    images = torch.randn(400, 1, 8, 8)
    middle = next(setting for setting in settings if setting["threshold"] == 0.5)
    drawn = network.infer(images, middle)
    again, other = network.infer(images[7:9], middle), network.infer(images, {**middle, "seed": 1})
    assert torch.equal(again.decisions, drawn.decisions[7:9]) and not torch.equal(other.decisions, drawn.decisions)
    with torch.no_grad():
        probabilities = network(images, decisions=drawn.decisions).aux["probabilities"]
    gap = (drawn.decisions - probabilities).mean(dim=0)
    assert float(gap.abs().max()) < 4 * 0.5 / 20  # four standard errors of 400 draws
    ends = network.sweep(images, [{**middle, "threshold": 0.0}, {**middle, "threshold": 1.01}])
    assert ends[0].decisions.all() and not ends[1].decisions.any()


def test_drawn_decisions_are_trained_as_the_paper_and_the_code_say() -> None:
    def relaxations(**values: Any) -> list[str]:
        return [phase.relaxation for phase in METHOD.phases(METHOD.configure(values))]

    assert relaxations(relaxation="bernoulli") == ["softmax", "bernoulli"]
    assert relaxations(impl="official") == ["gumbel", "gumbel_detached"]
    assert relaxations(stage2_losses=True) == ["gumbel", "softmax_detached"]
