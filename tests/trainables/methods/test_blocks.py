"""Skipped blocks on any backbone."""

from __future__ import annotations

import pytest
import torch

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.methods import aig, blocks

TASK = Task(classes=4, size=16)
METHOD = blocks.METHOD


def test_on_a_resnet_the_blocks_are_those_of_aig() -> None:
    mine = blocks.build(METHOD.configure({"network": "resnet-14"}), TASK)
    theirs = aig.build(aig.METHOD.configure({"network": "resnet-14"}), TASK)
    assert mine.units == theirs.units
    assert (mine.macs_full, mine.macs_min, mine.fixed_macs) == (theirs.macs_full, theirs.macs_min, theirs.fixed_macs)
    assert sum(p.numel() for p in mine.parameters()) == sum(p.numel() for p in theirs.parameters())


def test_with_the_same_weights_they_answer_as_aig_does() -> None:
    mine = blocks.build(METHOD.configure({"network": "resnet-14"}), TASK).eval()
    theirs = aig.build(aig.METHOD.configure({"network": "resnet-14"}), TASK).eval()
    values = [value for value in mine.state_dict().values()]
    with torch.no_grad():
        # the same layers in the order of the graph: by shape and order of weights within a block
        assert sorted(tuple(v.shape) for v in values) == sorted(tuple(v.shape) for v in theirs.state_dict().values())
        images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        routed = mine(images, decisions=torch.ones(5, mine.gates))
        hard = mine.infer(images, {"threshold": 0.0})
    assert torch.allclose(routed.output, hard.logits, atol=1e-5) and (hard.macs == mine.macs_full).all()


def test_the_loss_pulls_rates_to_the_target() -> None:
    network = blocks.build(METHOD.configure({"network": "resnet-8", "target": 0.25, "target_weight": 3.0}), TASK)
    batch = Batch(torch.randn(4, 3, 16, 16), torch.arange(4), generator=torch.Generator().manual_seed(0))
    terms = METHOD.objective(network.eval(), batch, METHOD.phases(network.config)[0])
    # in eval mode gates are hard, and open at first: every rate is 1
    assert terms["target"].item() == pytest.approx(3.0 * 0.75**2)


def test_a_network_without_residual_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="network = 'torchvision:vgg11': has no residual block to skip"):
        blocks.build(METHOD.configure({"network": "torchvision:vgg11"}), Task(classes=3, size=32))
