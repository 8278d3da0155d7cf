r"""How sure a front is: the probability that each point is on it, by bootstrap over images and seeds.

A front is chosen by measured accuracies, and the validation split has only so many images and most
configurations only one seed. Each of `draws` draws makes the measurement again:

* *images*: where it is known which images a point got right, all such points are scored on the same
  resampled images (Efron, 1979), so that the likeness of networks counts: two that fail on the same
  images differ by less than their intervals say. Elsewhere the number of right images is drawn from
  the binomial of correct / count, independently of all others.
* *seeds*: points of one configuration, epoch and setting under several seeds are one contender,
  whose accuracy is the mean over as many seeds drawn with replacement. All of them share its
  probability, so a lucky seed is judged by its siblings. A single seed says nothing of seeds.

MACs are kept as they were measured (the mean over seeds). A share that is 0 or 1 has no spread under
resampling: its interval says what the number of images allows. Shape legend: n points, g contenders, i images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

DRAWS = 1_000
MOST = 3_000
"""At most so many points near a front are drawn."""
_FAR = 4.0  # standard errors between a point and the front beyond which neither can reach the other
_NORMAL = 25.0  # images squared: a variance from which the binomial is drawn as a normal, thirty times as fast
_IMAGES_AT_ONCE = 8_000_000


def near_front(error: ArrayLike, macs: ArrayLike, count: ArrayLike, front: ArrayLike) -> NDArray[np.intp]:
    """Rows of the points (n,) that a redrawn measurement may put on the front or beat a member with.

    `front` are the rows of its members, `count` the images of every point. Kept are the members and
    those that come within four standard errors of both to the best accuracy at no more MACs; at most
    `MOST`, the nearest in standard errors.
    """
    e, m = np.asarray(error, dtype=float), np.asarray(macs, dtype=float)
    n, members = np.maximum(np.asarray(count, dtype=float), 1.0), np.asarray(front, dtype=np.intp)
    members = members[np.argsort(m[members])]
    if not len(members):
        return members
    # the stairs in front of every point; what is cheaper than all members is a member itself
    place = np.clip(np.searchsorted(m[members], m, side="right") - 1, 0, None)
    best = e[members][place]
    spread = np.sqrt(_variance(e, n) + _variance(best, n[members][place]))
    behind = np.where(np.isfinite(e) & (m > 0), (e - best) / spread, np.inf)
    behind[members] = -np.inf
    rows = np.flatnonzero(behind < _FAR)
    if len(rows) > MOST:
        rows = rows[np.argpartition(behind[rows], MOST - 1)[:MOST]]
    return np.sort(rows)


def _variance(error: np.ndarray, count: np.ndarray) -> np.ndarray:
    # one image more of each kind, so that a share of 0 or 1 has a spread too
    share = (error * count + 1) / (count + 2)
    return share * (1 - share) / count


def membership(
    correct: ArrayLike,
    count: ArrayLike,
    macs: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    bits: Sequence[NDArray[np.bool_] | None] | None = None,
    shift: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Probability (n,) of each point to be non-dominated among these n.

    `correct` of `count` images are right; `groups` (n,) names what are repeats of one another under
    other seeds (each for itself by default); `bits[k]` (i,) says which images point k got right, or
    None. `shift` (n,) is added to the accuracies that are drawn, where a figure is known to be too high. Equal
    accuracies at equal MACs do not dominate each other. The same `seed` gives the same figures.
    Cost: O(draws (n + bits)), vectorised.
    """
    right, total, cost = np.asarray(correct), np.asarray(count), np.asarray(macs, dtype=float)
    if not len(right):
        return np.zeros(0)
    random = np.random.default_rng(seed)
    known: list[NDArray[np.bool_] | None] = list(bits) if bits is not None else [None] * len(right)
    accuracy = _redrawn(right, total, known, draws, random)
    if shift is not None:
        accuracy += np.asarray(shift, dtype=np.float32)[:, None]
    names = np.arange(len(right)) if groups is None else np.asarray(groups)
    _, group = np.unique(names, return_inverse=True)
    group = group.reshape(-1)
    accuracy, cost = _over_seeds(accuracy, cost, group, random)
    return _share_on_front(accuracy, cost)[group]


def _redrawn(
    right: np.ndarray, total: np.ndarray, bits: list[NDArray[np.bool_] | None], draws: int, random: np.random.Generator
) -> NDArray[np.float32]:
    """Accuracies (n, draws) of measurements made again."""
    accuracy = np.empty((len(right), draws), dtype=np.float32)
    lengths = {len(b) for b in bits if b is not None}
    for images in sorted(lengths):  # a split has one length; another one is another split
        rows = [k for k, b in enumerate(bits) if b is not None and len(b) == images]
        found = np.stack([bits[k] for k in rows]).astype(np.float32)  # type: ignore[arg-type]
        step = max(1, _IMAGES_AT_ONCE // images)
        for start in range(0, draws, step):
            size = min(step, draws - start)
            picked = random.integers(0, images, (size, images)) + images * np.arange(size)[:, None]
            weights = np.bincount(picked.reshape(-1), minlength=size * images).reshape(size, images)
            accuracy[rows, start : start + size] = found @ (weights.T.astype(np.float32) / images)
    rest = np.array([k for k, b in enumerate(bits) if b is None], dtype=np.intp)
    if len(rest):
        accuracy[rest] = _binomial(right[rest], np.maximum(total[rest], 1), draws, random)
    return accuracy


def _binomial(right: np.ndarray, total: np.ndarray, draws: int, random: np.random.Generator) -> NDArray[np.float32]:
    """Shares (k, draws) of binomial draws; where the variance is large, of their normal limit, rounded to images."""
    share = right / total
    variance = total * share * (1 - share)
    wide = variance >= _NORMAL
    drawn = np.empty((len(right), draws), dtype=np.float32)
    # the last axis has one probability, so the generator sets itself up once a point
    drawn[~wide] = random.binomial(total[~wide, None], share[~wide, None], (int((~wide).sum()), draws))
    normal = random.standard_normal((int(wide.sum()), draws), dtype=np.float32)
    normal *= np.sqrt(variance[wide], dtype=np.float32)[:, None]
    normal += right[wide, None].astype(np.float32)
    drawn[wide] = np.clip(np.rint(normal, out=normal), 0, total[wide, None])
    drawn /= total[:, None].astype(np.float32)
    return drawn


def _over_seeds(
    accuracy: np.ndarray, cost: np.ndarray, group: np.ndarray, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracies (g, draws) and MACs (g,) of the contenders: means over seeds drawn with replacement."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    starts = np.cumsum(sizes) - sizes
    merged = accuracy[order[starts]]
    draws = accuracy.shape[1]
    for g in np.flatnonzero(sizes > 1).tolist():
        rows = order[starts[g] : starts[g] + sizes[g]]
        drawn = rows[random.integers(0, len(rows), (len(rows), draws))]
        merged[g] = accuracy[drawn, np.arange(draws)].mean(axis=0)
    return merged, np.bincount(group, cost) / sizes


def _share_on_front(accuracy: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """The share of draws in which each contender is non-dominated: accuracy (g, draws), MACs (g,)."""
    order = np.argsort(cost, kind="stable")
    accuracy, cost = accuracy[order], cost[order]
    _, starts, step = np.unique(cost, return_index=True, return_inverse=True)
    step = step.reshape(-1)
    tallest = np.maximum.reduceat(accuracy, starts, axis=0)  # of each cost
    before = np.full_like(tallest, -1.0)
    np.maximum.accumulate(tallest[:-1], axis=0, out=before[1:])
    # float sums of one and the same count differ in the last digits from one product to the next
    slack = np.float32(1e-6)
    on = (accuracy >= tallest[step] - slack) & (accuracy > before[step] + slack)
    share = np.empty(len(cost))
    share[order] = on.mean(axis=1)
    return share


def wilson(correct: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """The Wilson score interval of a share, 95 % by default (Wilson, JASA 1927)."""
    share, n = correct / count, count
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if correct == 0 else middle - half), (1.0 if correct == count else middle + half)
