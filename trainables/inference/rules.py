r"""When a cascade goes on from one network to the next, and what it answers: arithmetic on kept probabilities.

A cascade is an ordered list of operating points. The first answers; an image goes on to the next where the *doubt* of
the answer is above a threshold:

* ``probability``: :math:`1 - \max_c p_c` (Viola and Jones, CVPR 2001, for detectors; X. Wang et al., "Wisdom of
  Committees", ICLR 2022, section 3),
* ``margin``: :math:`1 - (p_{(1)} - p_{(2)})` of the two largest,
* ``entropy``: :math:`-\sum_c p_c \log p_c` (S. Teerapittayanon et al., "BranchyNet", ICPR 2016).

p are a member's probabilities, scaled by its temperature T: :math:`p_c^{1/T} / \sum_k p_k^{1/T}` (C. Guo et al., "On
calibration of modern neural networks", ICML 2017). The answer is that of the last member that was executed, or the
mean of all that were, alike (``mean``) or each with twice the weight of the one before it (``weighted``).

Everything is computed in NumPy from probabilities as they are kept (`trainables.inference.predictions`), so that a
cascade that is served decides as it did when it was composed. Shape legend: n images, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DOUBTS = ("probability", "margin", "entropy")
ANSWERS = ("last", "mean", "weighted")
MOST_WEIGHT = 15
"""Weights of a mean are whole numbers, together at most so large (four members): scores then fit into 32 bits."""
_UNIT, _TIE = 1 << 14, 1 << 12
MOST_CLASSES = {"mean": _TIE // 4, "weighted": _TIE // 16}
"""Classes of which no two have equal scores, by answer, for up to four members."""


def factor(answer: str) -> int:
    """How many times the weight of a member the next one has, where the answer is a mean."""
    return 2 if answer == "weighted" else 1


def scaled(probabilities: np.ndarray, temperature: float) -> NDArray[np.float32]:
    """Probabilities (n, C) with a temperature above 0; 1 leaves them as they are."""
    if temperature == 1.0:
        return probabilities.astype(np.float32, copy=False)
    raised = np.power(probabilities.astype(np.float64), 1.0 / temperature)
    return (raised / np.maximum(raised.sum(axis=1, keepdims=True), 1e-300)).astype(np.float32)


def doubt(probabilities: np.ndarray, kind: str) -> NDArray[np.float32]:
    """The doubt (n,) of answers, at least 0, in steps that are fine where it is small.

    1 - max p is summed up from the other probabilities: half precision knows them better than what is near 1.
    Raises `ValueError` for an unknown kind.
    """
    if kind not in DOUBTS:
        raise ValueError(f"rule {kind!r}: must be one of {', '.join(DOUBTS)}")
    others = probabilities.astype(np.float64)
    rows = np.arange(len(others))
    others[rows, others.argmax(axis=1)] = 0.0
    rest = others.sum(axis=1)
    if kind == "margin":
        rest = rest + others.max(axis=1)
    elif kind == "entropy":
        logs = np.log(others, out=np.zeros_like(others), where=others > 0)
        largest = np.clip(1.0 - rest, 1e-12, 1.0)
        rest = -(others * logs).sum(axis=1) - largest * np.log(largest)
    return rest.astype(np.float32)


def scores(probabilities: np.ndarray, weight: int = 1) -> NDArray[np.int32]:
    """Whole numbers (n, C) whose sums over members rank the classes as the weighted mean does; no two are equal.

    Of classes that are equally probable (to 1 / 2^14) the first wins.
    """
    count = probabilities.shape[1]
    if count > max(MOST_CLASSES.values()):
        raise ValueError(f"{count} classes: means of members are computed for at most {max(MOST_CLASSES.values())}")
    whole = np.rint(probabilities.astype(np.float64) * _UNIT).astype(np.int32)
    return weight * (whole * _TIE) + np.arange(count - 1, -1, -1, dtype=np.int32)


def mean_of(total: np.ndarray, weight: int) -> NDArray[np.float64]:
    """The mean probabilities (n, C) behind sums of `scores` whose weights are together `weight`; the largest is kept.

    Sums are divided by what they sum to, which changes no order.
    """
    shares = total.astype(np.float64) / (weight * _UNIT * _TIE)
    return shares / shares.sum(axis=1, keepdims=True)


def temperature_of(probabilities: np.ndarray, labels: np.ndarray, most: int = 2000) -> float:
    """The temperature of the least cross entropy on these images, out of 25 between 1/4 and 4 (Guo et al., 2017).

    `most`: every k-th image is looked at, so that they are no more than these.
    """
    step = max(1, -(-len(labels) // most))
    logs = np.log(np.maximum(probabilities[::step].astype(np.float64), 1e-7))
    truth = labels[::step]
    found, least = 1.0, np.inf
    for temperature in np.exp(np.linspace(np.log(0.25), np.log(4.0), 25)).tolist():
        z = logs / temperature
        top = z.max(axis=1)
        loss = float((np.log(np.exp(z - top[:, None]).sum(axis=1)) + top - z[np.arange(len(z)), truth]).mean())
        if loss < least:
            found, least = temperature, loss
    return round(found, 6)
