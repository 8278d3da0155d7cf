"""How a GPU multiplies float32, and whether it adds up in the same order every time.

Processors without a GPU multiply in IEEE float32 and are not touched by anything here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def ieee_float32() -> Iterator[None]:
    """Within, float32 products on a GPU are those of IEEE 754; then again whatever they were before.

    cuDNN's convolutions round the factors to 10 bits (TF32) unless they are told not to, which moves logits by about
    1e-3 of the largest: prepared networks would miss their 1e-5, and ties at thresholds would fall differently from
    batch to batch. Curves, latencies, diagnostics and served answers are computed within; trainings are not.
    """
    cudnn: Any = torch.backends.cudnn  # a module whose attributes are properties
    products = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32
    try:
        cudnn.allow_tf32 = products.allow_tf32 = False
        yield
    finally:
        cudnn.allow_tf32, products.allow_tf32 = before


@contextmanager
def deterministic_on(device: torch.device, on: bool) -> Iterator[None]:
    """Within, with `on`, a GPU computes the same from the same: kernels that add in a fixed order, none chosen by time.

    A kernel that has no such form runs as it is, and PyTorch warns once with its name. On a CPU nothing changes.
    """
    if not on or device.type != "cuda":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when the process first calls cuBLAS
    cudnn: Any = torch.backends.cudnn
    filling: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    settings = cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = True, False, False
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        cudnn.deterministic, cudnn.benchmark, filling.fill_uninitialized_memory = settings
