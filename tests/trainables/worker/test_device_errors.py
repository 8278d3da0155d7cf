"""Errors of the GPU in a worker: what ends the process, what is said of memory, what is asked of Ray."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cluster.resources import amounts
from trainables.worker.ray_trainable import _broken, _trouble
from trainables.worker.shelf import note_of

ROOT = Path(__file__).resolve().parents[3]
ILLEGAL = "CUDA error: an illegal memory access was encountered"
WORKER = """
import json, sys
from tests.support.noise import noise
from trainables.training import training
from trainables.worker.ray_trainable import RoutedTrainable

def fail(*_):
    raise RuntimeError(sys.argv[2])

training.train_epoch = fail

class Here(RoutedTrainable):
    def setup(self, config):
        super().setup(config, noise(16, 8, 5, 12))

print(Here(json.loads(sys.argv[1])).step()["report"])
"""


def _worker(folder: Path, error: str) -> subprocess.CompletedProcess[str]:
    order = {
        "trial": "t0000", "method": "static", "config": {"network": "resnet-8", "width": 0.25}, "seed": 5, "epochs": 1,
        "evaluate_at": [1], "checkpoints": str(folder),
    }  # fmt: skip
    words = [sys.executable, "-c", WORKER, json.dumps(order), error]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_process_whose_gpu_failed_ends_and_says_why(tmp_path: Path) -> None:
    """Guards: the process reported it as the trial's own error, was reused, and failed every later trial."""
    ended = _worker(tmp_path, ILLEGAL)
    assert ended.returncode == -signal.SIGKILL and not ended.stdout
    note = note_of(tmp_path / "t0000")
    assert note is not None and note["kind"] == "died" and ILLEGAL in note["why"]


def test_an_error_of_the_trial_itself_is_its_report(tmp_path: Path) -> None:
    ended = _worker(tmp_path, "mat1 and mat2 shapes cannot be multiplied")
    assert ended.returncode == 0 and "mat1 and mat2" in json.loads(ended.stdout)["error"]
    assert note_of(tmp_path / "t0000") is None


@pytest.mark.parametrize(
    ("text", "memory", "broken"),
    [
        (ILLEGAL, False, True),
        ("CUDA error: device-side assert triggered", False, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False, True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(...)`", False, True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, True),
        ("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`", True, True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True, True),
        ("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED", True, True),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", True, False),
        ("CUDA error: no kernel image is available for execution on the device", False, False),
        ("loss term cross_entropy became nan in step 3 of epoch 1", False, False),
    ],
)
def test_what_an_error_says_of_the_gpu(text: str, memory: bool, broken: bool) -> None:
    """Guards: cuBLAS's and cuDNN's lack of memory was taken for the trial's fault, and was not tried again alone."""
    assert _trouble(RuntimeError(text)) == ({"memory": True} if memory else {})
    assert _broken(RuntimeError(text)) is broken
    assert _broken(torch.OutOfMemoryError("CUDA out of memory.")) is False


def test_a_trial_that_is_alone_asks_for_one_whole_gpu() -> None:
    """Guards: five trials' worth of a quarter is 1.25 GPUs, which Ray refuses: the search ended with it."""
    assert amounts(2, 0.25, 5) == {"CPU": 10, "GPU": 1}
    assert amounts(2, 0.25, 2) == {"CPU": 4, "GPU": 1}
    assert amounts(2, 0.25) == {"CPU": 2, "GPU": 0.25}
    assert amounts(2, 0.0, 4) == {"CPU": 8}
