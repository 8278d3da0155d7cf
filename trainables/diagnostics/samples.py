"""Diagnostics of a sample of the images, kept for pictures: confidences of exits, halting maps.

Shape legend: n images, m of them drawn, C classes, K exits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MOST_CONFIDENCES, MOST_MAPS = 2_000, 64
"""Images at most: 60 kB of confidences at ten exits, 130 kB of maps of 32 x 32 positions."""


def log_odds(logits: Tensor) -> Tensor:
    """ln(p / (1 - p)) of the largest softmax probability p: (..., C) to (...), exact where p rounds to 1."""
    ranked = logits.float().sort(dim=-1, descending=True).values
    return ranked[..., 0] - ranked[..., 1:].logsumexp(dim=-1)


def of_some(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays of a sample of the n images.

    From ``confidence`` and ``exit_right`` (n, K): confidence (K, m), the log-odds of the largest probability
    (half precision holds those near 1 apart), exit_right (K, m), confidence_rows (m,), which of the n. From
    ``ponder_map`` (n, h, w): ponder (m, h, w), ponder_rows (m,).
    """
    arrays = {}
    if "confidence" in tensors:
        rows = arrays["confidence_rows"] = _drawn(len(tensors["confidence"]), MOST_CONFIDENCES)
        largest = torch.finfo(torch.half).max
        odds = torch.nan_to_num(tensors["confidence"][rows], nan=-largest).clamp(-largest, largest)
        arrays["confidence"] = odds.T.half().contiguous()
        arrays["exit_right"] = tensors["exit_right"][rows].T.contiguous()
    if "ponder_map" in tensors:
        rows = arrays["ponder_rows"] = _drawn(len(tensors["ponder_map"]), MOST_MAPS)
        arrays["ponder"] = tensors["ponder_map"][rows].half()
    return arrays


def _drawn(count: int, most: int) -> Tensor:
    """At most `most` of `count` rows in their order, always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].sort().values.int()
