"""Whether a device computes bfloat16 quickly."""

from __future__ import annotations

import platform

import torch


def computes_bfloat16(device: torch.device | str) -> bool:
    """Whether a device has instructions for products of bfloat16.

    Other processors emulate them: a step of ResNet-20 takes ten times as long there as in float32.
    """
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() or platform.machine() == "arm64"
