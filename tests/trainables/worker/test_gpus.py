"""This machine's GPUs: what is wrong with them is one line, and the self-test runs on the simulated device."""

from __future__ import annotations

import os

import pytest
import torch

from tests.support.simcuda import sim
from trainables.worker import gpu_report
from trainables.worker.gpu_report import report
from trainables.worker.gpus import Gpu, described, hindered, measured, refusal, seen, trouble

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
    said = described([old, new])
    assert said["GPU 0"] == "V100, 16 GB, compute capability 7.0, no bfloat16" and said["GPU 1"].endswith(
        "9.0, bfloat16"
    )
    assert said.keys() >= {"driver", "MPS", "NVLink", "CUDA of torch"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_the_reason_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"no NVIDIA driver|no GPU is to be seen") as caught:
        seen({name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"})
    assert "\n" not in str(caught.value)
    assert hindered(0.5, [], 1e9) == f"resources.gpus_per_trial = 0.5, and {caught.value}"


def test_the_self_test_captures_a_step_and_agrees_with_the_cpu() -> None:
    small = {"network": "resnet-8", "width": 0.25, "batch_size": 4, "views": 2}
    with sim() as log:
        row = measured("codinet", small, size=8, steps=5, images=6)
        assert row["captured_ms"] > 0 and row["uncaptured"] == "" and row["off"] < 1e-5
    assert not log.faults
    row = measured("static", {"network": "resnet-8", "width": 0.25, "batch_size": 4}, device="cpu", size=8, steps=2)
    assert row["captured_ms"] is None and row["uncaptured"] == "not on this device" and row["written_ms"] > 0


def test_the_report_of_a_gpu_says_all_that_it_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part but those of other processes on the simulated device; what fails is a row that says why."""
    networks = [*gpu_report.NETWORKS[:2], ("static", {"network": "resnet-20", "dropout": 1}), gpu_report.NETWORKS[3]]
    monkeypatch.setattr(gpu_report, "NETWORKS", tuple(networks))
    monkeypatch.setattr(gpu_report, "PRECISIONS", ("float32",))
    monkeypatch.setattr(gpu_report, "COMPILED", ())
    monkeypatch.setattr(gpu_report, "TRIALS", ())
    monkeypatch.setattr(gpu_report._Run, "constants", lambda run: {"launch_us": 1.0})
    with sim() as log:
        found = report(600, "cuda", tiny=True)
    parts = found["parts"]
    assert not log.faults and not found["left_out"] and len(parts["networks"]) == 4
    assert sum("error" in row for rows in parts.values() for row in rows) == 1  # the network that there is not
    good = [row for row in parts["networks"] if "error" not in row]
    assert all(row["captured_ms"] > 0 and row["off"] < 1e-5 and row["epoch_of_50000_s"] > 0 for row in good)
    assert [row["deterministic"] for row in parts["repeats"]] == [0, 0]
    for row in parts["batches"]:
        assert 0 < row["macs"] <= 1 and all(row[f"{how}_{size}_ms"] > 0 for how in ("hard", "dense") for size in (1, 4))


def test_several_trials_at_once_are_processes_that_count_together() -> None:
    row = gpu_report._Run("cpu", tiny=True).shared(2)
    assert row["trials"] == 2 and 0 < 2 * row["slowest_steps_s"] <= row["steps_s"]


def test_behind_its_time_the_report_leaves_out_what_is_left() -> None:
    found = report(1e-9, "cpu", tiny=True)
    assert not any(found["parts"].values()) and len(found["left_out"]) > 20
