r"""Balanced accuracy: the mean of the shares of images that are right in each class, and how sure it is.

.. math:: b = \frac{1}{C} \sum_c p_c, \qquad p_c = k_c / n_c

(Brodersen et al., "The balanced accuracy and its posterior distribution", ICPR 2010; scikit-learn's
``balanced_accuracy_score``). Classes without an image are left out. Its variance is that of C independent shares,

.. math:: V = \frac{1}{C^2} \sum_c \frac{p_c (1 - p_c)}{n_c},

and everything that is computed with intervals here takes a share of a number of images. So b stands as a share of
:math:`b (1 - b) / V` images, which have the same variance: as many as there are where classes are alike, fewer where a
small class weighs as much as a large one. In both, :math:`(k_c + 1) / (n_c + 2)` stands for :math:`p_c` (Agresti and
Coull, 1998, one image of each kind more), so that a class of which all images are right is not certain.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def balanced(correct: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """accuracy, correct and count of a point by images that are right, (n,) bool, of classes (n,).

    `accuracy` is balanced, and `count` the images that a plain share of the same variance has; `correct` are so many of
    these. Besides: `plain_accuracy` and `images`.
    """
    sizes = np.bincount(labels)
    right = np.bincount(labels[correct], minlength=len(sizes))[sizes > 0]
    sizes = sizes[sizes > 0]
    share = float((right / sizes).mean())
    likely = (right + 1) / (sizes + 2)
    variance = float((likely * (1 - likely) / sizes).sum()) / len(sizes) ** 2
    middle = float(likely.mean())
    count = max(1, round(middle * (1 - middle) / variance))
    return {
        "accuracy": share,
        "correct": round(share * count),
        "count": count,
        "plain_accuracy": float(correct.mean()),
        "images": len(labels),
    }
