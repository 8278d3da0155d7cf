"""Fronts and hypervolumes of operating points: numpy and moocore, nothing of ours.

Two objectives are minimised: the error (1 - accuracy, in [0, 1]) and log10 of the MACs per image.
Arguments are always the pair `error`, `macs`: array-likes of one length n, MACs as they were counted
(the logarithm is taken here).

**What counts as a point**: a finite error with finite, positive MACs. Anything else (NaN from a
diverged training, zero MACs) is no point: on no front, in no volume, in the layer after the last.

**The reference** of a study is (chance error, largest macs_full), fixed when the study is created.
The hypervolume is the area between a front and the reference in (error, log10 MACs), not normalised:
its unit is error times decades of MACs. A point not better than the reference in both adds nothing.

Shape legend: n points, k curves.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Reference = tuple[float, float]

# Volumes closer than this are the same: the order of summation must not decide a standing.
_DECIMALS = 12
# Below this size the prefilter costs more than it saves; the sample shows how dense the front is. Up to
# `_SMALL` points a sort and a loop are quicker than what NumPy takes to begin.
_PREFILTER_ABOVE, _SAMPLE, _DENSE, _SMALL = 20_000, 2_000, 0.1, 64


def _pair(error: ArrayLike, macs: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 of one length; ValueError otherwise."""
    e, m = np.asarray(error, dtype=np.float64), np.asarray(macs, dtype=np.float64)
    if e.ndim != 1 or e.shape != m.shape:
        raise ValueError(f"error {e.shape} and macs {m.shape} must be one-dimensional and of one length")
    return e, m


def _log_reference(reference: Reference) -> tuple[float, float]:
    error, macs = float(reference[0]), float(reference[1])
    if not (math.isfinite(error) and math.isfinite(macs) and macs > 0):
        raise ValueError(f"reference {reference!r}: must be (finite error, finite positive MACs)")
    return error, math.log10(macs)


def _is_point(error: Floats, macs: Floats) -> NDArray[np.bool_]:
    return np.isfinite(error) & np.isfinite(macs) & (macs > 0)


def _undominated_rows(error: Floats, macs: Floats) -> NDArray[np.intp]:
    """Indices that a thinned sample does not already dominate: a superset of the front.

    Most of a large cloud lies far behind its front, so the front of a small sample removes nearly
    all of it. Where the sample is mostly front itself, there is nothing to remove and all stay.
    """
    everything = np.arange(len(error))
    if len(error) < _PREFILTER_ABOVE:
        return everything
    rows = everything[:: len(error) // _SAMPLE]
    front = rows[moocore.is_nondominated(np.column_stack((error[rows], macs[rows])))]
    if len(front) > _DENSE * len(rows):
        return everything
    front = front[np.argsort(macs[front])]
    # The least error of the sample at no more MACs; strictly worse is strictly dominated.
    stairs = np.concatenate(([np.inf], error[front]))
    return np.flatnonzero(error <= stairs[np.searchsorted(macs[front], macs, side="right")])


def non_dominated(error: ArrayLike, macs: ArrayLike) -> NDArray[np.bool_]:
    """Mask (n,) of the points that no other point dominates; of equal points the first.

    A point dominates another that is no better in either objective and differs from it. The sweep
    is that of Kung, Luccio and Preparata (JACM 1975), as moocore implements it: O(n log n).
    """
    e, m = _pair(error, macs)
    mask = np.zeros(len(e), dtype=bool)
    rows = np.flatnonzero(_is_point(e, m))
    if len(rows):
        rows = rows[_undominated_rows(e[rows], m[rows])]
        mask[rows[moocore.is_nondominated(np.column_stack((e[rows], m[rows])))]] = True
    return mask


def hypervolume(error: ArrayLike, macs: ArrayLike, reference: Reference) -> float:
    """Area dominated up to `reference` = (error, MACs), in error times decades of MACs; 0.0 for no point.

    Zitzler and Thiele (PPSN 1998). ValueError for a reference without a logarithm.
    """
    (e, m), (error_ref, x_ref) = _pair(error, macs), _log_reference(reference)
    rows = non_dominated(e, m) if len(e) > _SMALL else slice(None)
    points: Iterator[tuple[float, float]] = zip(m[rows].tolist(), e[rows].tolist(), strict=True)
    area, least = 0.0, error_ref
    # Inside the box and cheapest first: equal regions then give bitwise equal areas.
    for cost, error in sorted(p for p in points if 0 < p[0] < reference[1] and -math.inf < p[1] < error_ref):
        area += max(0.0, least - error) * (x_ref - math.log10(cost))
        least = min(least, error)
    return area


def front_layers(error: ArrayLike, macs: ArrayLike) -> NDArray[np.int64]:
    """Layer (n,) of each point: 0 the front, 1 the front of the rest, and so on; equal points share one.

    Non-dominated sorting (Deb et al., NSGA-II, 2002). What is no point gets the layer after the last.
    """
    e, m = _pair(error, macs)
    valid = _is_point(e, m)
    layers = np.zeros(len(e), dtype=np.int64)
    if valid.any():
        layers[valid] = moocore.pareto_rank(np.column_stack((e[valid], m[valid])))
        layers[~valid] = layers[valid].max() + 1
    return layers


def _joined(curves: Sequence[tuple[ArrayLike, ArrayLike]]) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """All points of all curves in one, with the index of the curve each belongs to."""
    pairs = [_pair(error, macs) for error, macs in curves]
    if not pairs:
        return np.empty(0), np.empty(0), np.empty(0, dtype=np.int64)
    owner = np.repeat(np.arange(len(pairs)), [len(e) for e, _ in pairs])
    return np.concatenate([e for e, _ in pairs]), np.concatenate([m for _, m in pairs]), owner


def exclusive_hypervolume(curves: Sequence[tuple[ArrayLike, ArrayLike]], reference: Reference) -> Floats:
    """For each of k curves (error, macs): the hypervolume lost when that curve alone is left out, (k,).

    One sweep over all points by MACs keeps the best error so far, whose it is, and the best of
    anyone else; the curve in front owns the strip between the two: O(n log n) for all curves.
    """
    (error_ref, x_ref), (e, m, owner) = _log_reference(reference), _joined(curves)
    inside = np.flatnonzero(_is_point(e, m) & (e < error_ref) & (m < reference[1]))
    rows = inside[np.lexsort((e[inside], m[inside]))]
    x = np.log10(m[rows])
    widths = np.diff(x, append=x_ref).tolist()
    lost = [0.0] * len(curves)
    best = second = error_ref
    leader = -1
    for error, curve, width in zip(e[rows].tolist(), owner[rows].tolist(), widths, strict=True):
        if curve == leader:
            best = min(best, error)
        elif error < best:
            best, second, leader = error, best, curve
        elif error < second:
            second = error
        lost[leader] += (second - best) * width
    return np.array(lost, dtype=np.float64)


def standings(
    curves: Sequence[tuple[ArrayLike, ArrayLike]], reference: Reference, missed: Sequence[float] | None = None
) -> Floats:
    """Standing (k,) of each curve (error, macs) among these: the share of the others it beats, 1 the best.

    Curves compare by the best front layer that any of their points reaches among all points; then
    by the hypervolume that is lost without them among the curves of that layer; then by their own.
    Curves equal in all three share the mean of their places; a single curve stands at 1. Points at or above
    the reference's error (no better than guessing) or above its MACs reach no layer, and a curve without any
    other stands below all that have one. A curve whose every point another matches or beats is never placed
    above that other. `missed` (k,) tells how far each is from what a study asks for (`search.state.constraints`):
    the farther, the lower, before anything else.
    """
    count = len(curves)
    if count < 2:
        return np.ones(count)
    best, lost, own = _best_layers(curves, reference), np.zeros(count), np.zeros(count)
    for layer in np.unique(best).tolist():
        members = np.flatnonzero(best == layer)
        if len(members) > 1:
            lost[members], own[members] = _within_layer([curves[i] for i in members.tolist()], reference)
    keys = (-np.asarray(missed or np.zeros(count)), -best, lost, own)
    _, place, ties = np.unique(np.column_stack(keys), axis=0, return_inverse=True, return_counts=True)
    below = np.cumsum(ties) - ties
    return (below + (ties - 1) / 2)[place.reshape(-1)] / (count - 1)


def place_among(
    curves: Sequence[tuple[ArrayLike, ArrayLike]],
    mine: int,
    reference: Reference,
    missed: Sequence[float] | None = None,
) -> int:
    """1 + how many of these curves stand higher than curve number `mine` (see `standings`), for less work."""
    if missed is not None and missed[mine] > 0:  # then it has no point, and those that miss less stand higher
        return 1 + sum(other < missed[mine] for other in missed)
    best = _best_layers(curves, reference)
    members = np.flatnonzero(best == best[mine]).tolist()
    lost, own = _within_layer([curves[i] for i in members], reference)
    at = members.index(mine)
    higher = (lost > lost[at]) | ((lost == lost[at]) & (own > own[at]))
    return 1 + int((best < best[mine]).sum()) + int(higher.sum())


def _best_layers(curves: Sequence[tuple[ArrayLike, ArrayLike]], reference: Reference) -> NDArray[np.int64]:
    """The best front layer (k,) that any point of each curve reaches among all points."""
    e, m, owner = _joined(curves)
    inside = np.where((e < reference[0]) & (m <= reference[1]), e, np.nan)
    # One more that is no point tells the layer of curves without any.
    layers = front_layers(np.append(inside, np.nan), np.append(m, np.nan))
    best = np.full(len(curves), layers[-1])
    np.minimum.at(best, owner, layers[:-1])
    return best


def _within_layer(curves: Sequence[tuple[ArrayLike, ArrayLike]], reference: Reference) -> tuple[Floats, Floats]:
    """Exclusive hypervolumes (k,) of curves of one layer, and, of those that this leaves equal, their own."""
    lost = exclusive_hypervolume(curves, reference).round(_DECIMALS)
    own = np.zeros(len(curves))
    _, place, ties = np.unique(lost, return_inverse=True, return_counts=True)
    for i in np.flatnonzero(ties[place.reshape(-1)] > 1).tolist():
        own[i] = round(hypervolume(*curves[i], reference), _DECIMALS)
    return lost, own


def knee(error: ArrayLike, macs: ArrayLike) -> int | None:
    """Index of the front's knee: where more MACs begin to buy little accuracy; None without points.

    The front member (the cheapest of equals) farthest above the chord between the front's two ends, both
    axes scaled to [0, 1] (Das, 1999; Satopaa et al., "Kneedle", 2011).
    """
    e, m = _pair(error, macs)
    front = np.flatnonzero(non_dominated(e, m))
    if not len(front):
        return None
    front = front[np.argsort(m[front])]
    x, accuracy = np.log10(m[front]), -e[front]
    if len(front) < 3 or x[-1] == x[0]:
        return int(front[0])
    above = (accuracy - accuracy[0]) / (accuracy[-1] - accuracy[0]) - (x - x[0]) / (x[-1] - x[0])
    return int(front[np.argmax(above.round(_DECIMALS))])


class Archive:
    """A front that grows point by point, with its hypervolume so far.

    Lists sorted by MACs: an insertion is a bisection. `items` are what the caller wants back. The same
    points give the front of `non_dominated`, and the volume of `hypervolume` up to rounding.
    """

    def __init__(self, reference: Reference) -> None:
        self.reference = (float(reference[0]), float(reference[1]))
        self._error_ref, self._x_ref = _log_reference(reference)
        self._errors: list[float] = []
        self._macs: list[float] = []
        self._items: list[Any] = []
        self.hypervolume = 0.0

    def __len__(self) -> int:
        return len(self._macs)

    def __iter__(self) -> Iterator[tuple[float, float, Any]]:
        """(error, macs, item) of the front, cheapest first."""
        return zip(self._errors, self._macs, self._items, strict=True)

    def add(self, error: float, macs: float, item: Any = None) -> bool:
        """Insert one point; True where it joins the front (it may leave later). No point: False."""
        errors, cheapest = self._errors, self._macs
        if not (macs > 0 and macs < math.inf and math.isfinite(error)):
            return False
        cheaper = bisect_right(cheapest, macs)
        if cheaper and errors[cheaper - 1] <= error:
            return False
        start = stop = bisect_left(cheapest, macs)
        while stop < len(errors) and errors[stop] >= error:
            stop += 1
        self.hypervolume += self._gain(error, macs, start, stop)
        errors[start:stop], cheapest[start:stop], self._items[start:stop] = [error], [macs], [item]
        return True

    def extend(self, error: ArrayLike, macs: ArrayLike, items: Sequence[Any] | None = None) -> int:
        """Insert many points (n,): their front first, then one by one. How many joined the front."""
        e, m = _pair(error, macs)
        rows = np.flatnonzero(non_dominated(e, m)).tolist()
        return sum(self.add(float(e[i]), float(m[i]), None if items is None else items[i]) for i in rows)

    def _gain(self, error: float, macs: float, start: int, stop: int) -> float:
        """Area between the old stairs and a new point that replaces the members start..stop-1."""
        if error >= self._error_ref or macs >= self.reference[1]:
            return 0.0
        gain, left = 0.0, math.log10(macs)
        height = min(self._errors[start - 1], self._error_ref) if start else self._error_ref
        for i in range(start, len(self._macs)):
            right = min(math.log10(self._macs[i]), self._x_ref)
            gain += (right - left) * (height - error)
            if i >= stop or right >= self._x_ref:
                return gain
            left, height = right, min(self._errors[i], self._error_ref)
        return gain + (self._x_ref - left) * (height - error)


def spread(macs: ArrayLike, most: int) -> NDArray[np.intp]:
    """The places of at most `most` members of a front whose MACs (n,) rise: for budgets evenly over log MACs the best.

    The cheapest and the dearest are among them.
    """
    rising = np.asarray(macs, dtype=float)
    if len(rising) <= most:
        return np.arange(len(rising))
    budgets = np.geomspace(rising[0], rising[-1], most)
    return np.unique(np.searchsorted(rising, budgets * (1 + 1e-12), side="right") - 1)
