"""What would be wrong on a GPU, shown on the simulated device and by raised errors of the kind."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.noise import noise
from tests.support.simcuda import Log, sim
from trainables.execution.arithmetic import deterministic_on, ieee_float32
from trainables.inference.evaluation import curve
from trainables.networks.multipath import layers
from trainables.registry import get_method
from trainables.training import training as loop
from trainables.training.partial import Interrupted
from trainables.training.training import Training
from trainables.worker.machine import take_device_memory

STATIC: dict[str, Any] = {"network": "resnet-8", "width": 0.25, "batch_size": 8}


@pytest.fixture
def device() -> Iterator[Log]:
    with sim() as log:
        yield log


def _training(name: str, values: dict[str, Any], device: str, epochs: int = 1, **more: Any) -> Training:
    method = get_method(name)
    data = noise(16, 8, 5, 12)
    return Training(method, method.configure(values), data, epochs=epochs, seed=3, device=device, **more)


def test_a_second_phase_is_described_where_its_network_is(device: Log) -> None:
    """Guards: `describe_units` left the MACs of units on the CPU, and diagnostics of two-phase IMTA failed."""
    values = {"network": "msdnet-2", "width": 0.25, "variant": "all", "batch_size": 8}
    training = _training("imta", values, "cuda", epochs=2, diagnostics=True)
    training.step()
    assert training.network.unit_macs.is_cuda
    assert "diagnostics" in training.step() and training.network.unit_macs.is_cuda
    assert not device.faults


def test_evaluation_multiplies_in_ieee_float32_and_training_as_it_did() -> None:
    """Guards: curves that are called float32 were computed by cuDNN's default for convolutions, TF32."""
    training, seen = _training("static", STATIC, "cpu"), dict[bool, set[bool]]()

    def look(module: torch.nn.Module, *_: Any) -> None:
        seen.setdefault(torch.is_grad_enabled(), set()).add(torch.backends.cudnn.allow_tf32)

    handle = torch.nn.modules.module.register_module_forward_hook(look)
    try:
        training.step()
        curve(training.method, training.network, training.validation, training.validation_labels)
    finally:
        handle.remove()
    assert seen == {True: {True}, False: {False}}
    assert torch.backends.cudnn.allow_tf32
    with pytest.raises(ZeroDivisionError), ieee_float32():
        raise ZeroDivisionError
    assert torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def _settings() -> tuple[bool, bool, bool]:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
    )


def test_a_deterministic_training_asks_for_it_and_leaves_the_process_as_it_was(
    device: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards: the same seed did not give the same report; kernels were chosen, and added up, as time had it."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before, seen = _settings(), []
    for on in (True, False):
        training = _training("static", STATIC, "cuda", deterministic=on)
        training.leaving = lambda: bool(seen.append(_settings()))
        training.step()
    assert seen[0] == (True, True, False) and seen[-1] == before == _settings()
    with deterministic_on(torch.device("cuda"), True):  # by a rule, not by the clock
        layers._KNOWN.clear()
        assert layers.grouped_pays(lambda on: None, torch.zeros(2, 3, device="cuda"), 2, 10, ("a",), True)
        assert not layers._KNOWN
    with deterministic_on(torch.device("cpu"), True):
        assert _settings() == before


def test_a_reused_process_gives_its_reserve_back_and_keeps_to_its_share(device: Log) -> None:
    """Guards: an actor kept the reserve of its largest trial, and nothing limited what one of several could take."""
    take_device_memory(1.0)
    assert (device.emptied, device.fraction) == (1, 1.0)
    take_device_memory(0.25)
    assert device.emptied == 2 and 0.2 < device.fraction < 0.25


@pytest.mark.parametrize(("wrote", "goes_on"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_of_another_kind_of_device_goes_on(
    device: Log, tmp_path: Path, caplog: pytest.LogCaptureFixture, wrote: str, goes_on: str
) -> None:
    """Guards: the generator refused the other device's state with a raw error, and the trial failed."""
    training = _training("static", STATIC, wrote, epochs=2)
    training.step()
    training.leaving = lambda: True
    with pytest.raises(Interrupted):
        training.step()
    training.save(tmp_path / "kept")
    losses = []
    for _ in range(2):
        other = _training("static", STATIC, goes_on, epochs=2)
        with caplog.at_level(logging.WARNING):
            other.restore(tmp_path / "kept")
        assert other.partial is not None and other.partial.steps == 1
        losses.append(other.step()["losses"])
        assert other.done
    assert losses[0] == losses[1]
    assert f"epoch 2 goes on on {goes_on} behind a checkpoint of {wrote}" in caplog.text
    assert not device.faults


def test_every_training_of_a_process_may_compile_as_many_shapes_as_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards: the limit counted over all trials of a process, behind which regions silently ran uncompiled."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(loop, "COMPILATIONS", 2)
    compiled = []
    for width in (0.25, 0.5, 1.0):  # one function, another shape each
        counters.clear()
        training = _training("static", {**STATIC, "width": width, "compiled": True}, "cpu")
        region = next(iter(training.network.regions()))
        region._compiled_call_impl = None
        region.compile(dynamic=False, backend="eager")
        with torch.no_grad():
            region(torch.zeros(2, region.get_parameter("conv1.weight").shape[1], 8, 8))
        compiled.append(counters["frames"]["ok"])
    assert compiled[0] and len(set(compiled)) == 1
