"""Early exits on any backbone: losses, phases, what is refused."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.methods import exits
from trainables.networks.backbones.network import ExitBackbone

TASK = Task(classes=4, size=16)
METHOD = exits.METHOD


def network_of(**values: Any) -> ExitBackbone:
    return exits.build(METHOD.configure({"network": "resnet-8", "exits": 3, **values}), TASK)


def batch() -> Batch:
    draw = torch.Generator().manual_seed(0)
    return Batch(torch.randn(6, 3, 16, 16, generator=draw), torch.arange(6) % 4, generator=draw)


def test_exits_of_a_resnet_stand_behind_its_groups() -> None:
    network = network_of()
    shapes = [tuple(features.shape[1:]) for features in _features(network)]
    assert shapes == [(16, 16, 16), (32, 8, 8), (64, 4, 4)]
    assert [leaving.name for leaving in network.exits] == ["exit-1", "exit-2", "exit-3"]
    # stem 16 * 27 * 256, a block 2 * 16 * 144 * 256, the head 16 * 4
    assert network.exits[0].macs == 16 * 27 * 256 + 2 * 16 * 144 * 256 + 64


def _features(network: ExitBackbone) -> list[torch.Tensor]:
    features, found = [torch.zeros(1, 3, 16, 16)], []
    for stage in network.eval().stages:
        features = stage(*features)
        found.append(features[-1])
    return found


def test_shares_are_even_in_computation() -> None:
    network = network_of(network="resnet-32", exits=4, where="shares")
    shares = exits.paper_cost(network)["shares"]
    assert shares[:3] == pytest.approx([0.25, 0.5, 0.75], abs=0.05) and shares[3] == 1.0


def test_joint_weights_and_given_ones() -> None:
    network, images = network_of(early_weight=0.25), batch()
    logits = network.train()(images.images).logits
    each = [torch.nn.functional.cross_entropy(one, images.labels).item() for one in logits]
    terms = METHOD.objective(network, images, METHOD.phases(network.config)[0])
    assert [term.item() for term in terms.values()] == pytest.approx([each[0] / 4, each[1] / 4, each[2]], rel=1e-4)
    given = network_of(exit_weights=(0.0, 2.0, 1.0))
    assert list(METHOD.objective(given, images, METHOD.phases(given.config)[0])) == ["exit_2", "exit_3"]


def test_sdn_weights_rise_to_the_share_of_the_computation() -> None:
    network = network_of(variant="sdn")
    (phase,) = METHOD.phases(network.config)
    assert METHOD.anneal is not None
    assert exits.exit_weights(network, phase) == [0.01, 0.01, 1.0]
    METHOD.anneal(network, 1.0, 10)
    full = network.exits[-1].macs
    expected = [network.exits[0].macs / full, network.exits[1].macs / full, 1.0]
    assert exits.exit_weights(network, phase) == pytest.approx(expected)


def test_heads_are_trained_on_a_trunk_that_stays() -> None:
    network = network_of(variant="frozen", trunk_share=0.5)
    trunk, heads = METHOD.phases(network.config)
    names = [name for name, _ in network.named_parameters()]
    assert {n.split(".")[0] + n.split(".")[1] for n in names if trunk.trains(n)} == {
        "stages0", "stages1", "stages2", "classifiers2",
    }  # fmt: skip
    assert {n[:13] for n in names if heads.trains(n)} == {"classifiers.0", "classifiers.1"}
    assert list(METHOD.objective(network, batch(), trunk)) == ["exit_3"]
    assert list(METHOD.objective(network, batch(), heads)) == ["exit_1", "exit_2"]
    assert not trunk.comparable


def test_with_pretrained_weights_nothing_is_trained_but_classifiers() -> None:
    config = METHOD.configure(
        {"network": "torchvision:resnet18", "variant": "frozen", "trunk_share": 0, "pretrained": "some.pth"}
    )
    (heads,) = METHOD.phases(config)
    assert heads.trained == ("classifiers.",) and not heads.frozen and heads.eval_mode == ("stages",)
    assert config.normalise == "imagenet"  # as these weights want it


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"exits": 1}, "exits = 1: a network has from 2 to 9 exits"),
        ({"where": "anywhere"}, "where = 'anywhere': exits takes one of stages, shares"),
        ({"exit_weights": (1.0,)}, "must be 3 numbers, one per exit"),
        ({"variant": "frozen", "trunk_share": 0.0}, "heads alone need pretrained weights below them"),
        ({"network": "torchvision:resnet19"}, "torchvision has no classifier 'resnet19'; did you mean 'resnet18'"),
        pytest.param(
            {"network": "timm:convnext_atto"},
            "timm is not installed",
            marks=pytest.mark.skipif(find_spec("timm") is not None, reason="timm is installed"),
        ),
        ({"network": "photos"}, "must be torchvision:MODEL, timm:MODEL, FILE.py:FUNCTION or resnet-N"),
        ({"resolution": 0.0}, "resolution = 0.0"),
        ({"pretrained": "cache:IMAGENET", "network": "torchvision:resnet18"}, "has no weights 'IMAGENET'"),
        ({"pretrained": "some.pth"}, "there are no weights of resnet-8"),
    ],
)
def test_what_cannot_be_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        METHOD.configure({"network": "resnet-8", "exits": 3, **values})
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_more_exits_than_places_are_refused() -> None:
    with pytest.raises(ValueError, match=r"exits = 9: resnet-8 can be cut in \d places"):
        network_of(exits=9)


@pytest.mark.parametrize("head", ["pool", "mixed", "conv"])
def test_every_head_is_charged_for_what_it_computes(head: str) -> None:
    network = network_of(head=head)
    own = {"pool": 16 * 4, "mixed": 16 * 16 * 4, "conv": 16 * 144 * 256 + 16 * 4}[head]
    assert next(unit.macs for unit in network.units if unit.name == "exit-1") == own
