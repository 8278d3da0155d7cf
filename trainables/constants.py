"""Constant tensors, brought to a device once: a list that is made a tensor of a GPU makes the host wait for it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]


@functools.lru_cache(maxsize=4096)
def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of these numbers on a device, the same one whenever it is asked for: never write into it."""
    with torch.inference_mode(False):  # an inference tensor could take no part in a training later
        return torch.tensor(values, dtype=dtype, device=device)
