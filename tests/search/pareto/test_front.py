from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.pareto import front as pareto
from search.pareto.front import Archive

REFERENCE = (1.0, 1e6)
# Coarse grids: equal and weakly dominated points are the cases where fronts go wrong.
ERRORS = st.integers(0, 11).map(lambda i: i / 10)
MACS = st.integers(0, 13).map(lambda i: 10 ** (i / 2))
POINTS = st.lists(st.tuples(ERRORS, MACS), max_size=30)
CURVES = st.lists(st.lists(st.tuples(ERRORS, MACS), min_size=1, max_size=5), min_size=1, max_size=7)


def arrays(points):
    return np.array([p[0] for p in points], dtype=float), np.array([p[1] for p in points], dtype=float)


def dominates(a, b):
    return a[0] <= b[0] and a[1] <= b[1] and a != b


def brute_mask(points):
    return [not any(dominates(q, p) for q in points) and p not in points[:i] for i, p in enumerate(points)]


def brute_volume(points, reference=REFERENCE):
    """The union of boxes, cell by cell of the grid that all coordinates span."""
    inside = [(e, np.log10(m)) for e, m in points if e < reference[0] and m < reference[1]]
    es = sorted({e for e, _ in inside} | {reference[0]})
    xs = sorted({x for _, x in inside} | {np.log10(reference[1])})
    return sum(
        (e1 - e0) * (x1 - x0)
        for e0, e1 in pairwise(es)
        for x0, x1 in pairwise(xs)
        if any(e <= e0 and x <= x0 for e, x in inside)
    )


@given(POINTS)
def test_non_dominated_is_the_brute_force_one(points):
    assert pareto.non_dominated(*arrays(points)).tolist() == brute_mask(points)


@given(POINTS)
def test_hypervolume_is_the_brute_force_one(points):
    assert pareto.hypervolume(*arrays(points), REFERENCE) == pytest.approx(brute_volume(points), abs=1e-9)


@given(POINTS)
def test_layers_are_peeled_one_by_one(points):
    layers = pareto.front_layers(*arrays(points))
    left, layer = list(range(len(points))), 0
    while left:
        front = [i for i in left if not any(dominates(points[j], points[i]) for j in left)]
        assert all(layers[i] == layer for i in front)
        left, layer = [i for i in left if i not in front], layer + 1


@given(POINTS)
def test_archive_equals_the_bulk_front(points):
    archive = Archive(REFERENCE)
    for i, (e, m) in enumerate(points):
        archive.add(e, m, i)
    mask = pareto.non_dominated(*arrays(points))
    assert sorted(item for _, _, item in archive) == np.flatnonzero(mask).tolist()
    assert archive.hypervolume == pytest.approx(pareto.hypervolume(*arrays(points), REFERENCE), abs=1e-9)
    macs = [m for _, m, _ in archive]
    assert macs == sorted(macs)
    bulk = Archive(REFERENCE)
    bulk.extend(*arrays(points))
    assert [p[:2] for p in bulk] == [p[:2] for p in archive]


@settings(deadline=None)
@given(CURVES)
def test_exclusive_hypervolume_is_what_leaving_out_loses(curves):
    pairs = [arrays(c) for c in curves]
    whole = brute_volume([p for c in curves for p in c])
    expected = [
        whole - brute_volume([p for j, c in enumerate(curves) if j != i for p in c]) for i in range(len(curves))
    ]
    assert pareto.exclusive_hypervolume(pairs, REFERENCE) == pytest.approx(expected, abs=1e-9)


@given(CURVES, st.randoms(use_true_random=False))
def test_standings_do_not_depend_on_the_order(curves, random):
    order = list(range(len(curves)))
    random.shuffle(order)
    ranks = pareto.standings([arrays(c) for c in curves], REFERENCE)
    shuffled = pareto.standings([arrays(curves[i]) for i in order], REFERENCE)
    assert shuffled == pytest.approx(ranks[order])
    assert ranks.min() >= 0 and ranks.max() <= 1
    if len(curves) > 1:
        assert ranks.mean() == pytest.approx(0.5)


@given(CURVES)
def test_a_dominated_curve_never_stands_above(curves):
    ranks = pareto.standings([arrays(c) for c in curves], REFERENCE)
    for i, better in enumerate(curves):
        for j, worse in enumerate(curves):
            if all(any(p[0] <= q[0] and p[1] <= q[1] for p in better) for q in worse):
                assert ranks[i] >= ranks[j]


def test_standings_of_the_extremes():
    best, middle, worst = ([0.1], [1e2]), ([0.2], [1e3]), ([0.3], [1e4])
    assert pareto.standings([middle, worst, best], REFERENCE).tolist() == [0.5, 0.0, 1.0]
    assert pareto.standings([best], REFERENCE).tolist() == [1.0]
    assert pareto.standings([best, best, best], REFERENCE).tolist() == [0.5, 0.5, 0.5]
    assert pareto.standings([], REFERENCE).tolist() == []


def test_a_curve_that_only_guesses_or_has_no_point_stands_last():
    good, cheap_guess, broken = ([0.5], [1e5]), ([1.0], [1e1]), ([np.nan], [1e1])
    ranks = pareto.standings([cheap_guess, good, broken, ([], [])], REFERENCE)
    assert ranks[1] == 1.0 and len(set(ranks[[0, 2, 3]])) == 1
    # The most accurate, most expensive network lies on the reference's edge and still reaches the front.
    assert pareto.standings([([0.01], [1e6]), ([0.6], [1e5]), good], REFERENCE)[0] > 0


def test_the_same_layer_is_told_apart_by_what_would_be_lost():
    wide, narrow = ([0.5, 0.1], [1e1, 1e4]), ([0.45], [10**1.1])
    assert pareto.standings([wide, narrow], REFERENCE).tolist() == [1.0, 0.0]


def test_closed_forms():
    error, macs = [0.4, 0.2, 0.5, 0.2], [1e3, 1e5, 1e4, 1e5]
    assert pareto.non_dominated(error, macs).tolist() == [True, True, False, False]
    assert pareto.front_layers(error, macs).tolist() == [0, 0, 1, 0]
    assert pareto.hypervolume(error, macs, REFERENCE) == pytest.approx(0.6 * 3 + 0.2 * 1)
    assert pareto.exclusive_hypervolume([([0.4], [1e3]), ([0.2], [1e5])], REFERENCE) == pytest.approx([1.2, 0.2])


def test_what_is_no_point():
    error, macs = [np.nan, 0.1, 0.1, 0.5, 0.1], [1e3, 0.0, -5.0, 1e3, np.inf]
    assert pareto.non_dominated(error, macs).tolist() == [False, False, False, True, False]
    assert pareto.front_layers(error, macs).tolist() == [1, 1, 1, 0, 1]
    assert pareto.hypervolume(error, macs, REFERENCE) == pytest.approx(1.5)
    archive = Archive(REFERENCE)
    assert [archive.add(e, m) for e, m in zip(error, macs, strict=True)] == [False, False, False, True, False]
    assert pareto.hypervolume([], [], REFERENCE) == 0.0
    assert pareto.knee([np.nan], [1.0]) is None


@pytest.mark.parametrize("reference", [(1.0, 0.0), (np.nan, 1e6), (1.0, -1.0), (1.0, np.inf)])
def test_a_reference_without_a_logarithm_is_refused(reference):
    with pytest.raises(ValueError, match="reference"):
        pareto.hypervolume([0.5], [1e3], reference)


def test_arrays_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one length"):
        pareto.non_dominated([0.1, 0.2], [1.0])


def test_the_prefilter_changes_nothing():
    random = np.random.default_rng(3)
    for spread in (0.0, 0.02, 1.0):  # all on the front, near it, a cloud
        macs = 10 ** random.uniform(4, 8, 50_000).round(3)
        error = (1 - np.log10(macs) / 10 + spread * random.uniform(0, 0.5, len(macs))).round(4)
        order = np.lexsort((np.arange(len(macs)), error, macs))
        best = np.minimum.accumulate(np.concatenate(([np.inf], error[order][:-1])))
        expected = np.zeros(len(macs), dtype=bool)
        expected[order[error[order] < best]] = True
        assert (pareto.non_dominated(error, macs) == expected).all()


def test_knee():
    error, macs = [0.6, 0.2, 0.15, 0.1, 0.5], [1e3, 1e4, 1e5, 1e6, 1e6]
    assert pareto.knee(error, macs) == 1
    assert pareto.knee([0.5, 0.1], [1e3, 1e4]) == 0
    assert pareto.knee([], []) is None


def test_archive_hypervolume_does_not_drift():
    random = np.random.default_rng(0)
    error, macs = random.uniform(0, 1.1, 5_000), 10 ** random.uniform(1, 6.2, 5_000)
    archive, last = Archive(REFERENCE), 0.0
    for e, m in zip(error.tolist(), macs.tolist(), strict=True):
        archive.add(e, m)
        assert archive.hypervolume >= last
        last = archive.hypervolume
    assert last == pytest.approx(pareto.hypervolume(error, macs, REFERENCE), abs=1e-12)
    assert len(archive) == pareto.non_dominated(error, macs).sum()
