"""Constant tensors, brought to a device once: a list that is made a tensor of a GPU makes the host wait for it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Numbers = tuple[float, ...] | tuple[tuple[float, ...], ...]
_holders: list[list[Tensor]] = []


def constant(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The tensor of these numbers on a device, the same one whenever it is asked for: never write into it."""
    found = _made(values, dtype, device)
    for holder in _holders:
        holder.append(found)
    return found


@contextmanager
def held() -> Iterator[list[Tensor]]:
    """The constants that are asked for within: who uses their memory without asking again has to keep them."""
    holder: list[Tensor] = []
    _holders.append(holder)
    try:
        yield holder
    finally:
        _holders.pop()


@functools.lru_cache(maxsize=4096)
def _made(values: Numbers, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # an inference tensor could take no part in a training later
        return torch.tensor(values, dtype=dtype, device=device)


def forget() -> None:
    """Make all constants anew from here on (a test's device is gone)."""
    _made.cache_clear()
