"""DenseNets as static networks: their construction to the digit."""

from __future__ import annotations

import pytest
import torch

from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.inference.prepare import prepared
from trainables.methods.static import METHOD
from trainables.networks.resnet.densenet import dense_layers

torch.set_num_threads(1)

PUBLISHED = {
    "densenet-bc-40": (176_122, 72_365_352),
    "densenet-bc-52": (264_586, 105_819_852),
    "densenet-bc-64": (368_122, 144_103_536),
    "densenet-bc-88": (620_410, 235_158_456),
    "densenet-bc-100": (769_162, 287_929_692),
    "densenet-40": (1_019_722, 264_812_928),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_macs_are_the_published_ones(name: str) -> None:
    network = METHOD.build(METHOD.configure({"network": name}), Task())
    assert (sum(p.numel() for p in network.parameters()), network.macs_full) == PUBLISHED[name]
    assert network.macs_min == network.macs_full == network.fixed_macs + sum(unit.macs for unit in network.units)
    assert METHOD.paper_cost is not None
    assert METHOD.paper_cost(network)["flops"] == network.macs_full - 10 * network.classifier[-1].in_features  # type: ignore[index, operator]


def test_a_small_one_is_counted_executed_and_prepared() -> None:
    network = METHOD.build(
        METHOD.configure({"network": "densenet-bc-10", "width": 0.5}), Task(classes=5, size=9)
    ).eval()
    images = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with counted(network) as tally:
        result = network.infer(images, {})
    assert sum(tally.values()) == float(result.macs.sum()) == 3 * network.macs_full
    with torch.no_grad():
        torch.testing.assert_close(network(images).output, result.logits)
    torch.testing.assert_close(prepared(network).infer(images, {}).logits, result.logits, rtol=1e-4, atol=1e-5)
    assert result.path.shape == (3, 3) and result.decisions.shape == (3, 0)


@pytest.mark.parametrize("name", ["densenet-bc-41", "densenet-bc-4", "densenet-41", "densenet", "densenet-bc-x"])
def test_impossible_depths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"network = '{name}'"):
        METHOD.configure({"network": name})


def test_other_bad_input() -> None:
    assert dense_layers("densenet-bc-100") == (16, True) and dense_layers("densenet-40") == (12, False)
    with pytest.raises(ValueError, match=r"pretrained = 'x\.pth': densenet-40 takes no weights"):
        METHOD.configure({"network": "densenet-40", "pretrained": "x.pth"})
