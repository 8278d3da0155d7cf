"""Machine metrics of an epoch: processor time, memory of the process and of the GPU."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

import torch


class Meter:
    """Reads differences: `read` tells what was used since the reading before. A reading takes microseconds."""

    def __init__(self) -> None:
        self._cpu = time.process_time()

    def read(self) -> dict[str, float]:
        """{cpu_seconds, memory_megabytes, own_memory_megabytes} and, where CUDA is in use, gpu_memory_megabytes.

        Processor seconds are of all threads since the last reading; memory is what is resident now
        (where the system does not tell: the most so far), its own without what it shares; the GPU's is the
        most since the last reading.
        """
        before, self._cpu = self._cpu, time.process_time()
        found = {"cpu_seconds": self._cpu - before}
        with contextlib.suppress(OSError, ImportError):
            found["memory_megabytes"] = _resident() / 2**20
            found["own_memory_megabytes"] = own_memory() / 2**20
        if torch.cuda.is_initialized():
            found["gpu_memory_megabytes"] = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.reset_peak_memory_stats()
        return found


DEVICE_CONTEXT = 0.6e9
"""Bytes that CUDA and its libraries take of a GPU's memory for every process, beside PyTorch's own reserve."""


def take_device_memory(share: float) -> None:
    """Give back what PyTorch reserved on the GPU for trials before, and reserve at most `share` of it from here on.

    A process that shares the GPU leaves room for its own `DEVICE_CONTEXT` within its share, but keeps half of it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if share < 1:
        total = torch.cuda.get_device_properties(0).total_memory
        share = max(share - DEVICE_CONTEXT / total, share / 2)
    torch.cuda.set_per_process_memory_fraction(share)


_PAGES = Path("/proc/self/statm")


def own_memory() -> int:
    """Bytes of this process in memory that it shares with no other: without images in Ray's store, and libraries.

    (Where the system does not tell: all that was ever resident.)
    """
    if _PAGES.exists():
        _, resident, shared, *_ = _PAGES.read_text().split()
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return _resident()


def _resident() -> int:
    """Bytes of this process in memory."""
    if _PAGES.exists():
        return int(_PAGES.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
