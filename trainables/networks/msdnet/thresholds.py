r"""Exit thresholds for a budget: which confidence suffices at every exit so that the images spread as asked.

Budgeted batch classification as in G. Huang et al., "Multi-scale dense networks for resource
efficient image classification", ICLR 2018, arXiv 1703.09844, section 5.2, and anytime
classification, in which every image leaves at one exit.

Shape legend: n images, C classes, K exits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from trainables.networks.msdnet.exits import NOBODY, confidence_of, leaves

QUANTILES = 40
"""The papers sweep q = p / 20 for p = 1 ... 40."""


def exit_settings(exits: int, points: int) -> tuple[dict[str, Any], ...]:
    """What a curve asks for: `points` values of q between the settings of the K exits by themselves.

    The sweep stands in the middle, where diagnostics look for what is usual.
    """
    steps = [1 + round((QUANTILES - 1) * i / (points - 1)) for i in range(points)]
    alone = [{"exit": i} for i in range(1, exits + 1)]
    return (*alone[: exits // 2], *({"q": p / 20} for p in steps), *alone[exits // 2 :])


def exit_shares(q: float, exits: int) -> list[float]:
    r"""The share of images that each exit is to answer: :math:`\pi_i = q^i / \sum_j q^j`, i = 1 ... K.

    Raises `ValueError` unless q is a positive number.
    """
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < math.inf:
        raise ValueError(f"q = {q!r}: must be a positive number; below 1 images leave early, above 1 late")
    # divided by the largest power first: q^i alone may leave the range of floats
    powers = [q ** (i - (exits if q > 1 else 1)) for i in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def quantile_thresholds(confidences: Tensor, q: float) -> list[float]:
    """The K - 1 thresholds at which exit i answers its share of images (K, n).

    Exit by exit, the images still there are walked down by confidence until floor(n pi_i) are found:
    the last one's confidence is the threshold. `NOBODY` where none or not enough are found.
    """
    exits, count = confidences.shape
    left = torch.zeros(count, dtype=torch.bool, device=confidences.device)
    thresholds = []
    for sure, share in zip(confidences[:-1], exit_shares(q, exits)[:-1], strict=True):
        wanted = math.floor(count * share + 1e-9)  # 9 * (1 / 3) is three images
        ranked = sure[~left].sort(descending=True).values
        threshold = ranked[wanted - 1].item() if 1 <= wanted <= len(ranked) else NOBODY
        left |= leaves(sure, threshold)
        thresholds.append(threshold)
    return thresholds


def calibrate(setting: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
    """The thresholds for a setting from all exits' logits (K, n, C) on calibration images.

    ``{"q": q}`` spreads the images over the exits (`exit_shares`); ``{"exit": i}`` sends all to
    exit i, from 1. Raises `ValueError` for another setting, or an exit that does not exist.
    """
    exits = len(logits)
    if set(setting) == {"q"}:
        return {"thresholds": quantile_thresholds(confidence_of(logits), setting["q"])}
    if set(setting) != {"exit"}:
        raise ValueError(f"setting {dict(setting)!r}: must be {{'q': number}} or {{'exit': 1 to {exits}}}")
    wanted = setting["exit"]
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= exits:
        raise ValueError(f"exit = {wanted!r}: must be a whole number from 1 to {exits}")
    return {"thresholds": [NOBODY if i < wanted else 0.0 for i in range(1, exits)]}


def anytime(logits: Tensor, labels: Tensor) -> list[float]:
    """Accuracy, in [0, 1], of every exit on all images: logits (K, n, C), labels (n,)."""
    return logits.argmax(dim=-1).eq(labels).double().mean(dim=-1).tolist()
