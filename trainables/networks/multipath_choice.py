"""Whether paths run as one grouped computation or one by one: the faster, as it was measured.

On CPUs a rule decides that `tests/benchmarks/bench_paths.py` gave, so that the same configuration computes
the same in every process. On other devices every shape is tried once, both ways, when it first occurs, and
the answer is kept; results differ by rounding at most.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

COMPUTATIONS = ("auto", "grouped", "loop")
CPU_MACS = 16e6
"""On CPUs grouped pays up to so many MACs of one path, all images of the batch together, times the paths.

Below, the loop's many calls cost more than they compute; above, oneDNN's grouped convolutions are slower
than its plain ones (x86, one thread, channels last; X = 2 to 4, widths 8 to 128, inference and training alike).
"""
_KNOWN: dict[tuple[Any, ...], bool] = {}
_REPEATS = 3


def grouped_pays(
    run: Callable[[bool], Any], inputs: Tensor, paths: int, macs: int, what: tuple[Any, ...], training: bool
) -> bool:
    """Whether ``run(True)``, all paths at once, is faster than ``run(False)``, on `inputs` (B, ...) of one path.

    `macs` are those of one path and image. On devices without a rule `run` is called, both ways, the first time
    that a shape occurs; `what` tells computations apart that differ by more than their inputs' shape.
    """
    if paths == 1:
        return True
    if inputs.device.type == "cpu":
        return len(inputs) * macs <= paths * CPU_MACS
    key = (*what, paths, macs, tuple(inputs.shape), inputs.dtype, str(inputs.device), training)
    if key not in _KNOWN:
        _KNOWN[key] = _seconds(lambda: run(True), inputs.device) <= _seconds(lambda: run(False), inputs.device)
    return _KNOWN[key]


def _seconds(call: Callable[[], Any], device: torch.device) -> float:
    """The quickest of some calls, after one that warms up."""
    best = float("inf")
    for repeat in range(_REPEATS + 1):
        torch.accelerator.synchronize(device)
        started = time.perf_counter()
        call()
        torch.accelerator.synchronize(device)
        if repeat:
            best = min(best, time.perf_counter() - started)
    return best
