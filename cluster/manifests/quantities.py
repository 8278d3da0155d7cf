"""Amounts of memory and time as people and schedulers write them."""

from __future__ import annotations

import re
from typing import Any

_MEMORY = {"M": 10**6, "G": 10**9, "T": 10**12, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_TIME = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def memory_bytes(text: Any) -> int:
    """``"64Gi"`` in bytes, a multiple of 1 MiB. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([MGT]i?)", text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is not an amount of memory; write for example '16Gi' or '512Mi'")
    found = int(float(match[1]) * _MEMORY[match[2]]) // 2**20
    if found < 1:
        raise ValueError(f"{text!r} is less than '1Mi'")
    return found * 2**20


def seconds(text: Any) -> int:
    """``"90s"``, ``"5m"``, ``"24h"`` or ``"2d"`` in seconds. Raises `ValueError` for anything else."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd])", text) if isinstance(text, str) else None
    if match is None or (found := round(float(match[1]) * _TIME[match[2]])) < 1:
        raise ValueError(f"{text!r} is not a time; write for example '90s', '5m' or '24h'")
    return found


def mebibytes(size: int) -> int:
    """Bytes as whole MiB."""
    return size // 2**20


def slurm_time(duration: int) -> str:
    """Seconds as Slurm's ``D-HH:MM:SS``."""
    minutes, second = divmod(duration, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02d}:{minute:02d}:{second:02d}"
