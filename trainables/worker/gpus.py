"""The GPUs of this machine: what they are, what is wrong with them, and whether they compute what a CPU does.

Nothing of this runs in a study's driver, which would hold a part of the GPU's memory from then on: `seen` asks in a
process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.contracts.network import RoutedNetwork, Task
from trainables.data.splits import Augment, Data, Split
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.training.training import Training

_PATIENCE = 120.0
_ASK = "import json; from trainables.worker.gpus import facts; print(json.dumps(facts()))"
_REASONS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"driver.*too old|insufficient for CUDA runtime", re.I), "the NVIDIA driver is too old for this torch"),
    (re.compile(r"\bMPS\b", re.I), "CUDA's multi-process service (MPS) refused this process"),
    (re.compile(r"no NVIDIA driver|not compiled with CUDA|libcuda", re.I), "no NVIDIA driver, or a torch without CUDA"),
    (re.compile(r"no CUDA-capable device|No CUDA GPUs", re.I), "no GPU is to be seen"),
)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU. `memory` in bytes, `capability` as "9.0", `bfloat16`: whether it has instructions for it."""

    name: str
    memory: int
    capability: str
    bfloat16: bool


def facts() -> list[dict[str, Any]]:
    """The GPUs that this process sees, as plain values of `Gpu`; begins CUDA here.

    Raises `RuntimeError` as PyTorch does where there is none.
    """
    torch.cuda.init()
    found = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        capability = f"{device.major}.{device.minor}"
        fast = (device.major, device.minor) >= (8, 0)
        found.append({"name": device.name, "memory": device.total_memory, "capability": capability, "bfloat16": fast})
    return found


def seen(environment: Mapping[str, str] | None = None) -> list[Gpu]:
    """The GPUs that a worker on this machine would see.

    Raises `ValueError` with one line where there is none, or it refuses to be used.
    """
    environment = dict(os.environ if environment is None else environment)
    try:
        asked = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", _ASK],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the GPU said nothing for {_PATIENCE:.0f} s") from None
    if asked.returncode:
        raise ValueError(trouble(asked.stderr, environment))
    found = [Gpu(**each) for each in json.loads(asked.stdout.splitlines()[-1])]
    if not found:
        raise ValueError(trouble("No CUDA GPUs are available", environment))
    return found


def trouble(error: str, environment: Mapping[str, str]) -> str:
    """What keeps this machine's GPUs from being used, in one line, from what PyTorch said."""
    last = next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "no reason given")
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    known = next((words for pattern, words in _REASONS if pattern.search(error)), "")
    if visible is not None and known == "no GPU is to be seen":
        return (
            f"CUDA_VISIBLE_DEVICES = {visible!r} names no GPU of this machine; unset it, or give its number (0, 1 ...)"
        )
    return f"{known} ({last})" if known else f"the GPU cannot be used: {last}"


def refusal(gpus: Sequence[Gpu], share: float, precisions: Sequence[str], least: float) -> str:
    """Why trials of a study cannot run on these GPUs, in one line; empty where they can.

    `share` of a GPU that a trial has, `precisions` that the study fixes, `least` bytes of its smallest network.
    """
    poor = [gpu for gpu in gpus if not gpu.bfloat16]
    if poor and "bfloat16" in precisions:
        return (
            f'precision = "bfloat16": {poor[0].name} (compute capability {poor[0].capability}) has no instructions for'
            ' it; take "auto" or "float32"'
        )
    largest = max(gpus, key=lambda gpu: gpu.memory)
    if least > share * largest.memory:
        has = f"{share * largest.memory / 1e9:.1f} GB of {largest.name}"
        return (
            f"resources.gpus_per_trial = {share:g}: that is {has}, and a small network of the study takes about"
            f" {least / 1e9:.1f} GB; take a larger share or a smaller batch"
        )
    return ""


def hindered(share: float, precisions: Sequence[str], least: float) -> str:
    """Why trials of a study cannot run on the GPUs of this node of a cluster, in one line; empty where they can.

    As `refusal`. Ray hides the GPUs from a process that holds none: it is asked without its ``CUDA_VISIBLE_DEVICES``.
    """
    environment = {name: value for name, value in os.environ.items() if (name, value) != ("CUDA_VISIBLE_DEVICES", "")}
    try:
        return refusal(seen(environment), share, precisions, least)
    except ValueError as error:
        return f"resources.gpus_per_trial = {share:g}, and {error}"


def described(gpus: Sequence[Gpu]) -> dict[str, str]:
    """GPUs, driver, MPS and NVLink of this machine, a line of words each."""
    cards = {
        f"GPU {index}": f"{gpu.name}, {gpu.memory / 1e9:.0f} GB, compute capability {gpu.capability},"
        f" {'bfloat16' if gpu.bfloat16 else 'no bfloat16'}"
        for index, gpu in enumerate(gpus)
    }
    return {**cards, **surroundings()}


def surroundings() -> dict[str, str]:
    """Driver, MPS and NVLink in words, as far as the machine tells."""
    found = {"CUDA of torch": str(torch.version.cuda)}
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return {**found, "driver": "unknown: no nvidia-smi here", "MPS": _mps(), "NVLink": "unknown"}
    said = _smi(smi, "--query-gpu=driver_version", "--format=csv,noheader").splitlines()
    links = re.findall(r"Link \d+: ([\d.]+ \S+)", _smi(smi, "nvlink", "--status"))
    wide = f"{len(links)} links of {links[0]}; trials use one GPU each, and no link" if links else "none"
    return {**found, "driver": said[0] if said else "unknown", "MPS": _mps(), "NVLink": wide}


def _smi(*words: str) -> str:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _mps() -> str:
    folder = os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")  # noqa: S108  # MPS's own default, looked at
    there = (Path(folder) / "control").exists()
    return "runs" if there else "does not run: trials that share a GPU take turns on it"


# -- whether it computes, and how fast ------------------------------------------------------------


def random_images(count: int, size: int, classes: int = 10) -> Data:
    """A data set of random images (3 channels), as many for validation as for training."""
    random = np.random.RandomState(0)

    def split(n: int) -> Split:
        images = random.randint(0, 256, (n, 3, size, size)).astype(np.uint8)
        return Split(images, (np.arange(n) % classes).astype(np.int64))

    return Data(
        name="random",
        task=Task(classes=classes, size=size),
        classes=tuple(map(str, range(classes))),
        train=split(count),
        validation=split(count),
        test=split(classes),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        augment=Augment.natural(size),
        hash="random",
    )


def measured(
    name: str, values: Mapping[str, Any], *, device: str = "cuda", size: int = 32, steps: int = 12, images: int = 64
) -> dict[str, Any]:
    """One network on a device: milliseconds of a step, written and captured, of a hard pass, and what a CPU says of it.

    {method, network, parameters, written_ms, captured_ms, uncaptured, hard_ms, dense_ms, off, memory_mb}: `captured_ms`
    is None and `uncaptured` says why where nothing was captured; `dense_ms` is the whole network on the same `images`;
    `off` is the largest deviation of its logits from those of a CPU, as a share of the largest logit.
    """
    method = get_method(name)
    config = method.configure(values)
    each = max(1, config.batch_size // method.views(config))
    data = random_images(max(each * steps, images), size)
    row: dict[str, Any] = {"method": name, "network": config.network, "batch": config.batch_size}
    for how, key in (("off", "written_ms"), ("auto", "captured_ms")):
        training = Training(method, config, data, epochs=4, device=device, capture=how, seed=1)
        training.evaluate_at = set()
        training.step()  # what is chosen, allocated and compared once
        before = time.perf_counter()
        report = training.step()
        settle(device)
        row[key] = 1000 * (time.perf_counter() - before) / -(-len(training.labels) // each)
        row["uncaptured"] = report.get("uncaptured", "" if report.get("captured_steps") else "not on this device")
        if how == "auto" and row["uncaptured"]:
            row[key] = None
    network = training.network.eval()
    row["parameters"] = sum(parameter.numel() for parameter in network.parameters())
    assert isinstance(training.validation, Tensor)
    return {**row, **_passes(network, training.validation[:images], device)}


@torch.inference_mode()
@ieee_float32()
def _passes(network: RoutedNetwork, images: Tensor, device: str) -> dict[str, Any]:
    fast = prepared(network)
    images = images.contiguous(memory_format=torch.channels_last)
    row: dict[str, Any] = {}
    for key, call in (("hard_ms", lambda: fast.infer(images, {})), ("dense_ms", lambda: fast(images))):
        call()
        settle(device)
        before = time.perf_counter()
        call()
        settle(device)
        row[key] = 1000 * (time.perf_counter() - before)
    here = fast(images).output.float().cpu()
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    there = network.to("cpu")(images.cpu()).output.float()
    return {**row, "off": float((here - there).abs().max() / there.abs().max()), "memory_mb": memory}


def settle(device: str) -> None:
    """Wait for what was handed to the device."""
    if device == "cuda":
        torch.cuda.synchronize()


SELF_TEST = ("codinet", {"network": "resnet-20", "batch_size": 64, "views": 2})
MOST_OFF = 1e-3
"""Logits of a GPU that are further from a CPU's, as a share of the largest, are wrong."""


def self_test(device: str = "cuda") -> dict[str, Any]:
    """Some seconds on the device: `measured` of CoDiNet on ResNet-20.

    Raises `RuntimeError` where its logits are not a CPU's.
    """
    row = measured(*SELF_TEST, device=device)
    if not row["off"] <= MOST_OFF:
        raise RuntimeError(f"logits of the GPU are {row['off']:.2g} of the largest off those of the CPU")
    return row
