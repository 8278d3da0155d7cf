"""Captured steps on the simulated device: as written ones to the last bit, and given up where they are not."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.noise import noise
from tests.support.simcuda import Log, sim
from trainables.contracts.method import Method
from trainables.registry import get_method
from trainables.training.training import Training


@pytest.fixture
def device() -> Iterator[Log]:
    with sim() as log:
        yield log


SMALL: dict[str, Any] = {"width": 0.25, "batch_size": 4}
CASES: list[tuple[str, dict[str, Any]]] = [  # all others, with fewer replays: tests/support/on_device.py
    ("skipnet", {"network": "resnet-8", "gate": "linear"}),
    ("decide", {"network": "pyramid-3", "dynamic_k_cpt": True, "tau_half_life": 0.1, "lr_half_life": 0.1}),
]


def _training(method: Method, values: dict[str, Any], epochs: int, **more: Any) -> Training:
    config = method.configure({**SMALL, **values})
    return Training(method, config, noise(22, 8, 5, 6), epochs=epochs, seed=3, device="cuda", **more)


@pytest.mark.parametrize(("name", "values"), CASES, ids=[name for name, _ in CASES])
def test_it_is_the_written_step(name: str, values: dict[str, Any], device: Log) -> None:
    """Learning rates, temperatures, draws, images: all that changes from step to step reaches the captured one."""
    method = get_method(name)
    epochs = 2 * len(method.phases(method.configure(values)))
    captured, written = (_training(method, values, epochs, capture=how) for how in ("auto", "off"))
    for _ in range(epochs):
        one, other = captured.step(), written.step()
        assert one["captured_steps"] > 0 and "uncaptured" not in one, one
        assert other["captured_steps"] == 0
        assert one["losses"] == other["losses"]
    for mine, others in zip(captured.network.state_dict().values(), written.network.state_dict().values(), strict=True):
        assert torch.equal(mine, others)
    assert torch.equal(captured.generator.get_state(), written.generator.get_state())
    assert not device.faults


def _changed(change: Any) -> Method:
    """The static method with an objective that does more."""
    method, steps = get_method("static"), [0]

    def objective(network: Any, batch: Any, phase: Any) -> dict[str, Tensor]:
        terms = method.objective(network, batch, phase)
        steps[0] += 1
        return {"cross_entropy": change(terms["cross_entropy"], batch, steps[0])}

    return dataclasses.replace(method, objective=objective)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda loss, batch, step: loss * (1 + 0 * loss.item()), "not permitted when stream is capturing: item"),
        (lambda loss, batch, step: loss + 0 * batch.images[batch.labels > 2].sum(), "boolean mask"),
        (lambda loss, batch, step: loss + 0 * torch.tensor([1.0], device=batch.images.device).sum(), "torch.tensor"),
        (
            lambda loss, batch, step: loss + 0 * torch.rand((), generator=_other(), device="cuda"),
            "CUDA generator not in capture mode",
        ),
        (lambda loss, batch, step: loss * (1 + batch.share), "a captured step differs from a written one: losses"),
        (lambda loss, batch, step: loss * step, "the losses of two written steps from one state differ"),
    ],
    ids=[
        "reads a value",
        "a size that values decide",
        "a list for the device",
        "another generator",
        "a share",
        "counts",
    ],
)
def test_what_cannot_be_captured_goes_on_as_it_is_written(
    change: Any, why: str, device: Log, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        training = _training(_changed(change), {"network": "resnet-8"}, 2)
        first, second = training.step(), training.step()
    assert why in first["uncaptured"] and first["uncaptured"] == second["uncaptured"]
    assert len([record for record in caplog.records if "no longer captured" in record.message]) == 1
    assert training.done and first["captured_steps"] == second["captured_steps"] <= 1


def _other() -> torch.Generator:
    return torch.Generator("cuda")


def test_a_broken_capture_leaves_the_training_as_if_it_had_not_been_tried(device: Log) -> None:
    reads = _changed(lambda loss, batch, step: loss * (1 + 0 * loss.item()))
    tried, never = (_training(reads, {"network": "resnet-8"}, 2, capture=how) for how in ("auto", "off"))
    for _ in range(2):
        assert tried.step()["losses"] == never.step()["losses"]
    for mine, others in zip(tried.network.state_dict().values(), never.network.state_dict().values(), strict=True):
        assert torch.equal(mine, others)


def test_what_is_not_captured_is_said_once(device: Log, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for name, more in (("sdv", {"variant": "original"}), ("static", {"capture": "off"})):
            method = get_method(name)
            values = {"network": "resnet-8", **{k: v for k, v in more.items() if k != "capture"}}
            training = _training(method, values, 2, capture=more.get("capture", "auto"))
            training.step()
            training.step()
    said = [record.message for record in caplog.records if "not captured" in record.message]
    assert len(said) == 2 and "needs the host" in said[0] and "capture = off" in said[1]
    with pytest.raises(ValueError, match="capture = 'on': must be auto or off"):
        _training(get_method("static"), {}, 1, capture="on")
