"""This machine's GPUs: what is wrong with them is one line, and the self-test runs on the simulated device."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.simcuda import sim
from trainables.worker import gpus
from trainables.worker.gpus import Gpu, measured, refusal, report, seen, trouble

TOO_OLD = "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your driver."


@pytest.mark.parametrize(
    ("error", "visible", "says"),
    [
        (TOO_OLD, None, "the NVIDIA driver is too old for this torch"),
        ("CUDA error: MPS client failed to connect to the MPS control daemon", None, "(MPS) refused this process"),
        ("RuntimeError: No CUDA GPUs are available", "7", "CUDA_VISIBLE_DEVICES = '7' names no GPU of this machine"),
        ("RuntimeError: No CUDA GPUs are available", None, "no GPU is to be seen"),
        ("RuntimeError: Found no NVIDIA driver on your system.", "7", "no NVIDIA driver"),
        ("Traceback\nRuntimeError: something else", None, "cannot be used: RuntimeError: something else"),
        ("", None, "no reason given"),
    ],
)
def test_what_keeps_a_gpu_from_being_used_is_one_line(error: str, visible: str | None, says: str) -> None:
    line = trouble(error, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert says in line and "\n" not in line


def test_a_study_that_a_card_cannot_run_is_refused() -> None:
    old, new = Gpu("V100", 16 * 10**9, "7.0", False), Gpu("H200", 141 * 10**9, "9.0", True)
    assert "V100 (compute capability 7.0) has no instructions for it" in refusal([old], 1.0, ["bfloat16"], 1e9)
    assert refusal([old], 1.0, ["auto"], 1e9) == refusal([new], 0.25, ["bfloat16"], 1e9) == ""
    assert "gpus_per_trial = 0.1: that is 1.6 GB of V100" in refusal([old], 0.1, [], 2e9)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_reason_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"no NVIDIA driver|no GPU is to be seen") as caught:
        seen({name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"})
    assert "\n" not in str(caught.value)


def test_the_self_test_captures_a_step_and_agrees_with_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("codinet", {"network": "resnet-8", "width": 0.25, "batch_size": 4, "views": 2})
    monkeypatch.setattr(gpus, "REPORTED", (small, ("static", {"network": "no-such-network"})))
    with sim() as log:
        row = measured(*small, size=8, steps=5, images=6)
        assert row["captured_ms"] > 0 and row["uncaptured"] == "" and row["off"] < 1e-5
    assert not log.faults
    found = report(seconds=1e-9, device="cpu")
    assert found["measured"] == [] and found["left_out"] == 4
    row = measured("static", {"network": "resnet-8", "width": 0.25, "batch_size": 4}, device="cpu", size=8, steps=2)
    assert row["captured_ms"] is None and row["uncaptured"] == "not on this device" and row["written_ms"] > 0
