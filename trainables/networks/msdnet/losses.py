"""Losses of networks with several exits: weighted cross entropies, and distillation from the last exit.

Equations (1), (7) and (8) of H. Li et al., "Improved techniques for training adaptive deep networks",
ICCV 2019, arXiv 1908.06294.

Shape legend: B images, C classes, K exits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from trainables.contracts.recipe import Batch, Mixed

REDUCTIONS = ("batchmean", "elementmean")


def weighted_losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[float],
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    mixed: Mixed | None = None,
) -> dict[str, Tensor]:
    r"""Loss terms ``exit_1`` ... ``exit_K``, whose sum is :math:`L = \sum_i \lambda_i CE_i` (eq. 1).

    `logits` of every exit (B, C), `labels` (B,), `weights` the K lambdas, `smoothing` that of the labels,
    `class_weights` (C,) what an image of a class counts, `mixed` what the images were mixed with.
    """
    batch = Batch(logits[0], labels, class_weights=class_weights, mixed=mixed)
    return {
        f"exit_{i}": weight * batch.cross_entropy(each, smoothing)
        for i, (weight, each) in enumerate(zip(weights, logits, strict=True), start=1)
    }


def distillation(
    student: Tensor, teacher: Tensor, *, temperature: float, reduction: str = "batchmean", squared: bool = True
) -> Tensor:
    r"""The divergence of a student's logits (B, C) from its teacher's (B, C), times T^2 if `squared`.

    .. math:: KLD_i = \sum_c p_k^T(c) \log \frac{p_k^T(c)}{p_i^T(c)}, \quad p^T = softmax(z / T)

    (eq. 8), averaged over images (``batchmean``), or over images and classes (``elementmean``). No
    gradient reaches the teacher.
    """
    target = (teacher.detach() / temperature).log_softmax(dim=1)
    learnt = (student / temperature).log_softmax(dim=1)
    divergence = F.kl_div(learnt, target, reduction="batchmean", log_target=True)
    if reduction == "elementmean":
        divergence = divergence / student.shape[1]
    return divergence * temperature**2 if squared else divergence


def distilled_losses(
    logits: Sequence[Tensor],
    labels: Tensor,
    teacher: Tensor,
    weights: Sequence[float],
    *,
    alpha: float,
    temperature: float,
    reduction: str = "batchmean",
    squared: bool = True,
    smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    mixed: Mixed | None = None,
) -> dict[str, Tensor]:
    r"""Terms ``exit_i`` and ``distil_i`` of :math:`L_i = \alpha CE_i + (1 - \alpha) KLD_i`, :math:`L_k = CE_k`.

    (eq. 7), times lambda_i. `teacher` (B, C); the last exit is taught by the labels alone.
    """
    terms = weighted_losses(logits, labels, weights, smoothing, class_weights, mixed)
    for i, (weight, each) in enumerate(zip(weights[:-1], logits[:-1], strict=True), start=1):
        divergence = distillation(each, teacher, temperature=temperature, reduction=reduction, squared=squared)
        terms[f"exit_{i}"] = alpha * terms[f"exit_{i}"]
        terms[f"distil_{i}"] = (1 - alpha) * weight * divergence
    return terms
