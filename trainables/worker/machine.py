"""What a machine computes quickly, and what an epoch costs it: processor time, memory of the process and the GPU."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from pathlib import Path

import torch


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for products of bfloat16.

    Other processors emulate them: a step of ResNet-20 takes ten times as long there as in float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() or platform.machine() == "arm64"


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
