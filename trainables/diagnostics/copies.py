"""Augmented copies of images, and how far a network's answer for a copy is from that for the original.

CoDiNet (arXiv 2005.14439), section 4.4.1 and figure 10: random crops, horizontal and vertical flips
and rotations, one copy of every image each.

Shape legend: n images, B of them in a batch, C channels or classes, S pixels along an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.data.augment import augment
from trainables.data.splits import Augment, Data

AUGMENTATIONS = ("crop", "hflip", "vflip", "rotation")
MIXTURE = "mixture"
COPIES = (*AUGMENTATIONS, MIXTURE)
"""The order of the rows of ``kl`` and ``same``; of the mixture every image draws one of the four."""
DEGREES = 15.0
"""Rotations are uniform in [-15, 15] degrees; the papers name none."""
KL_LOW, KL_HIGH, KL_BINS = -6, 2, 32
"""The histogram of KL: quarters of decades from 10^-6 to 10^2; the first and last bin take what lies outside."""


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Images (B, C, S, S) turned about their centres by `degrees` (B,), bilinear, black outside; float32."""
    angle = torch.deg2rad(degrees.float())
    zero = torch.zeros_like(angle)
    rows = torch.stack([angle.cos(), -angle.sin(), zero]), torch.stack([angle.sin(), angle.cos(), zero])
    grid = F.affine_grid(torch.stack(rows).permute(2, 0, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images.float(), grid, align_corners=False)


def copy_of(images: Tensor, how: str, data: Data, generator: torch.Generator) -> Tensor:
    """One augmented copy of every image (B, C, S, S), before normalisation.

    `how` is one of `AUGMENTATIONS`. Crops shift by the data set's own padding (an eighth of the edge
    where it has none). Raises `ValueError` for another word.
    """
    if how == "crop":
        pad = data.augment.pad or Augment.natural(images.shape[-1]).pad
        return augment(images, Augment(pad=pad, fill=data.augment.fill), generator)
    if how in ("hflip", "vflip"):
        return images.flip(3 if how == "hflip" else 2)
    if how != "rotation":
        raise ValueError(f"augmentation {how!r}: must be one of {', '.join(AUGMENTATIONS)}")
    turns = torch.rand(len(images), generator=generator, device=generator.device).to(images.device)
    return rotate(images, (2 * turns - 1) * DEGREES)


def divergence(original: Tensor, copy: Tensor) -> Tensor:
    """KL(p_original || p_copy) in nats of the softmax of logits (B, C) -> (B,) float64."""
    p, q = original.double().log_softmax(dim=1), copy.double().log_softmax(dim=1)
    return (p.exp() * (p - q)).sum(dim=1).clamp(min=0)


def kl_histogram(kl: Tensor) -> list[int]:
    """How many of the divergences (n,) fall into each of the `KL_BINS` bins."""
    powers = kl.double().clamp(min=1e-300).log10()
    width = (KL_HIGH - KL_LOW) / KL_BINS
    bins = ((powers - KL_LOW) / width).floor().clamp(0, KL_BINS - 1).long()
    return torch.bincount(bins, minlength=KL_BINS).tolist()


def agreement(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Scalars of ``kl`` and ``same`` (copies, n): images whose path stayed, mean KL and its histogram, by copy;
    the bins are (lowest, highest power of ten, how many).
    """
    kl, same = tensors["kl"], tensors["same"]
    return {
        "consistency": dict(zip(COPIES, same.sum(dim=1).tolist(), strict=True)),
        "kl_aug": dict(zip(COPIES, kl.mean(dim=1).tolist(), strict=True)),
        "kl_bins": [KL_LOW, KL_HIGH, KL_BINS],
        "kl_histogram": {how: kl_histogram(values) for how, values in zip(COPIES, kl, strict=True)},
    }
