"""A study whose trials want a GPU, on a machine whose GPUs cannot be used: one line before the first trial."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.support.command import Run
from trainables.worker import gpus
from trainables.worker.gpus import Gpu

STUDY = """
name = "wants-a-gpu"
[data]
name = "digits"
image_size = 8
limit = 64
[budget]
trials = 1
epochs = 3
[methods.static]
network = "resnet-8"
{precision}
[resources]
gpus_per_trial = {share}
"""


def _search(cli: Run, folder: Path, share: float = 1.0, precision: str = "") -> str:
    """The one line that a search ends with before it starts Ray; the journal has no trial then."""
    file = folder / "study.toml"
    file.write_text(STUDY.format(share=share, precision=precision))
    code, _, err = cli("search", file, "--studies", folder, "--tracking", "off")
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and "starting Ray" not in err, err
    return lines[0]


def test_more_than_one_gpu_is_refused(cli: Run, tmp_path: Path) -> None:
    assert "gpus_per_trial = 1.5: a trial uses one GPU at most; take 1 or a share" in _search(cli, tmp_path, 1.5)
    assert not (tmp_path / "wants-a-gpu").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_nothing_starts(cli: Run, tmp_path: Path) -> None:
    said = _search(cli, tmp_path)
    assert "gpus_per_trial = 1, and no " in said


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ("the NVIDIA driver is too old for this torch", "RuntimeError: The NVIDIA driver on your system is too old"),
        ("CUDA_VISIBLE_DEVICES = '7' names no GPU of this machine", "RuntimeError: No CUDA GPUs are available"),
        ("(MPS) refused this process", "RuntimeError: CUDA error: MPS client failed to connect to the MPS server"),
    ],
)
def test_gpus_that_cannot_be_used(
    says: str, error: str, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As PyTorch says it in the process that is asked: here another program stands for that process."""
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{error}' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(gpus.sys, "executable", str(python))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    assert says in _search(cli, tmp_path)


@pytest.mark.parametrize(
    ("says", "share", "precision"),
    [
        ('precision = "bfloat16": V100 (compute capability 7.0) has no instructions', 1.0, 'precision = "bfloat16"'),
        ("resources.gpus_per_trial = 0.02: that is 0.3 GB of V100, and a small network of the study takes", 0.02, ""),
    ],
)
def test_a_card_that_is_not_enough(
    says: str, share: float, precision: str, cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "seen", lambda environment=os.environ: [Gpu("V100", 16 * 10**9, "7.0", False)])
    assert says in _search(cli, tmp_path, share, precision)
