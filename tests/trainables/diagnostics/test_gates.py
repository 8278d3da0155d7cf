"""What is measured of soft routing, against the network asked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from trainables.contracts.network import Task
from trainables.data.augment import normalise
from trainables.data.splits import Augment, Data, Split
from trainables.diagnostics.gates import BINS, weight_histograms
from trainables.diagnostics.measure import diagnose, usual_setting
from trainables.networks.multipath.network import MultiPathNetwork
from trainables.registry import get_method

torch.set_num_threads(1)
METHOD = get_method("multipath")


@pytest.fixture(scope="module")
def data() -> Data:
    random = np.random.RandomState(0)

    def split(count: int) -> Split:
        images = random.uniform(0, 255, (count, 1, 8, 8)) * random.uniform(0.05, 1, (count, 1, 1, 1))
        return Split(images.astype(np.uint8), np.arange(count) % 4)

    parts = {"train": split(8), "validation": split(30), "test": split(4)}
    looks = {"mean": (0.3,), "std": (0.3,), "augment": Augment(pad=1), "hash": "0" * 64}
    made = Data(name="noise", task=Task(classes=4, size=8, channels=1), classes=tuple("abcd"), **parts, **looks)
    return made.for_config(METHOD.Config())


def build(data: Data, **values: object) -> MultiPathNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "basecnn-3", "width": 0.125, **values}), data.task)
    assert isinstance(network, MultiPathNetwork)
    return network


@pytest.mark.parametrize("variant,places", [("cc", "published"), ("cp", "last")])
def test_gates_and_sizes_are_those_of_the_papers_forward(data: Data, variant: str, places: str) -> None:
    network = build(data, variant=variant, places=places).eval()
    found = diagnose(METHOD, network, data)
    assert found.record["setting"] == {"threshold": 0.0} and not network.measures
    images = normalise(torch.from_numpy(data.validation.images), data)
    with torch.no_grad():
        gates = network(images).decisions
        assert torch.allclose(found.arrays["relaxed"].float(), gates, atol=1e-3)
        x, sizes, expected = images, found.arrays["strengths"].float(), []
        for segment in network.segments:
            inputs = list(x.chunk(segment.router.inputs, dim=1))
            outputs = segment.router(inputs)
            expected += [each.abs().flatten(1).mean(dim=1) for each in (*inputs, *outputs)]
            x = segment.stage(torch.cat(outputs, dim=1))
    assert torch.allclose(sizes, torch.stack(expected, dim=1), rtol=2e-3, atol=1e-4)
    layers = found.record["routes"]["layers"]
    assert [layer["place"] for layer in layers] == [segment.place for segment in network.segments]
    assert [v for layer in layers for v in layer["gates"]] == pytest.approx(gates.mean(dim=0).tolist(), rel=1e-3)
    means = torch.stack(expected, dim=1).mean(dim=0).tolist()
    assert [v for layer in layers for v in layer["strengths"]] == pytest.approx(means, rel=1e-3)
    json.dumps(found.record, allow_nan=False)


def test_networks_without_gates_have_no_routes(data: Data) -> None:
    for values in ({"variant": "none"}, {"variant": "stitch"}, {"network": "basecnn"}):
        network = build(data, **values)
        assert usual_setting(METHOD, network.config) == {}
        assert "routes" not in diagnose(METHOD, network, data).record


def test_weights_are_counted_by_path(data: Data) -> None:
    network = build(data)
    entries = weight_histograms(network)
    assert [entry["layer"] for entry in entries] == [1, 4, 6, 9]
    assert [entry["kind"] for entry in entries] == ["convolution"] * 3 + ["linear"]
    first = network.stages[0].layers[0].weight  # pyright: ignore
    for path, counts in enumerate(entries[0]["counts"]):
        mine = first.chunk(3)[path].detach().clamp(entries[0]["low"], entries[0]["high"])
        by_hand, _ = np.histogram(mine.numpy(), bins=BINS, range=(entries[0]["low"], entries[0]["high"]))
        assert sum(counts) == mine.numel() and np.abs(by_hand - counts).sum() <= 2
