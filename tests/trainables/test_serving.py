"""The dense form of a hard pass answers as the skipping one and charges for all; served models take the faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from tests.support.noise import noise
from tests.support.simcuda import sim
from trainables.contracts.network import evaluating
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.serving import Forms, load_prepared
from trainables.training.training import Training

RESNET: dict[str, Any] = {"network": "resnet-14", "width": 0.5}
CASES: list[tuple[str, dict[str, Any], list[dict[str, Any]]]] = [
    ("skipnet", RESNET, [{}, {"threshold": 0.0}, {"threshold": 2.0}, {"threshold": 0.5, "sampling": "bernoulli"}]),
    ("codinet", RESNET, [{}, {"threshold": 0.45}]),
    ("aig", {**RESNET, "impl": "official"}, [{}, {"threshold": 0.6}]),
    ("blockdrop", {**RESNET, "policy_width": 0.5}, [{}, {"threshold": 0.4}]),
    ("sdv", RESNET, [{}, {"drop": 0.5, "seed": 3}]),
    ("imta", {"network": "msdnet-3", "width": 0.5, "variant": "none"}, [{}, {"thresholds": [0.2, 0.2]}]),
]


@pytest.mark.parametrize(("name", "values", "knobs"), CASES, ids=[name for name, *_ in CASES])
def test_the_dense_form_decides_alike_and_charges_for_all(
    name: str, values: dict[str, Any], knobs: list[dict[str, Any]]
) -> None:
    method = get_method(name)
    network = method.build(method.configure(values), noise(2, 16, 5, 2).task)
    images = torch.randn(9, 3, 16, 16)
    with evaluating(network), torch.inference_mode():
        for form in (network, prepared(network)):
            for each in knobs:
                dense, skipping = form.dense(images, each), form.infer(images, each)
                assert dense is not None
                assert torch.equal(dense.decisions, skipping.decisions)
                assert torch.allclose(dense.logits, skipping.logits, rtol=1e-4, atol=1e-5)
                assert bool((dense.path == 1).all())
                assert bool((dense.macs == network.fixed_macs + network.unit_macs.sum()).all())
                assert bool((dense.macs >= skipping.macs).all())


def test_a_served_model_takes_the_faster_form_by_its_batch(tmp_path: Path) -> None:
    with sim() as log:
        method = get_method("skipnet")
        config = method.configure({"network": "resnet-8", "width": 0.25, "batch_size": 4})
        training = Training(method, config, noise(10, 8, 5, 6), epochs=1, device="cuda")
        training.step()
        training.save(tmp_path / "kept")
        with patch.object(Forms.__init__, "__defaults__", ((2,),)):
            assert load_prepared(tmp_path / "kept", "cuda").infer is not None  # measured where it is loaded
        network = prepared(training.network)
        forms = Forms(network, "cuda", sizes=(2, 4))
        assert forms.faster_dense.keys() == {2, 4}
        images = training.validation
        assert isinstance(images, torch.Tensor)
        for faster, charged in (({2: True, 4: False}, [True, True, False, False]), ({2: False, 4: True}, [False] * 2)):
            forms.faster_dense = faster
            all_of_it = network.fixed_macs + network.unit_macs.sum()
            for count, whole in zip((1, 2, 3, 5), charged, strict=False):
                found = forms.infer(images[:count], {"threshold": 2.0})
                assert bool((found.macs == all_of_it).all()) is whole
    assert not log.faults


def test_networks_without_a_dense_form_skip() -> None:
    with sim():
        method = get_method("act")
        network = method.build(method.configure({"network": "preact-resnet-14", "width": 0.25}), noise(2, 8).task)
        forms = Forms(prepared(network.to("cuda")), "cuda", sizes=(2,))
    assert forms.faster_dense == {2: False}
