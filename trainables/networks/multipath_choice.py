"""Whether paths run as one grouped computation or one by one: the faster, as it was measured.

On CPUs a table decides (`tests/benchmarks/bench_paths.py` renews it), so that the same configuration computes
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
CPU_ELEMENTS = {False: 4_096, True: 4_096}
"""On CPUs grouped pays up to so many numbers of one path's input, all images together: in inference, in training."""
_KNOWN: dict[tuple[Any, ...], bool] = {}
_REPEATS = 3


def grouped_pays(run: Callable[[bool], Any], inputs: Tensor, paths: int, what: tuple[Any, ...], training: bool) -> bool:
    """Whether ``run(True)``, all paths at once, is faster than ``run(False)``, on `inputs` (B, ...) of one path.

    `what` tells computations apart that differ by more than their inputs' shape; `run` is called on
    devices that have no table only, without gradients and leaving no trace.
    """
    if paths == 1:
        return True
    if inputs.device.type == "cpu":
        return inputs.numel() <= CPU_ELEMENTS[training]
    key = (*what, paths, tuple(inputs.shape), inputs.dtype, str(inputs.device), training)
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
