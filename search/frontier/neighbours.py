"""Sets the operating points of studies against their neighbours (`search.frontier.expected`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from search.frontier.expected import Neighbours, Shown, own_share
from search.frontier.point import FrontPoint
from search.frontier.pool import StudyPoints
from search.frontier.stored_bits import bits_of
from search.pareto.front import non_dominated
from search.state.kept import Kept
from search.units import parsed
from spaces.space import Space

MOST_TRIALS = 800
"""Of more trials of a method in a study those count whose curves come nearest to the front."""
_BITS = 48  # points whose images are compared, to see how far networks err on the same ones


def expected(sources: Sequence[StudyPoints], points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """The points with `expected` and its interval, where enough trials of their method are there to tell."""
    if not points:
        return []
    shown: list[Shown] = []
    place: dict[tuple[str, str, int], int] = {}
    spaces: dict[str, Space] = {}
    for source in sources:
        own = {(point.trial, point.epoch) for point in points if point.study in ("", source.name)}
        spaces = {**Kept.of(source.created).spaces, **spaces}
        for (trial, epoch), each in _curves(source, own):
            place[source.name, trial, epoch] = len(shown)
            shown.append(each)
    neighbours = Neighbours(spaces, shown, kappa=_kappa(sources, points))
    found = []
    for point in points:
        index = place.get((point.study or sources[0].name, point.trial, point.epoch))
        told = None if index is None else neighbours.expected(index, point.macs)
        if told is not None:
            point = replace(
                point, expected=1 - told.error, expected_low=1 - told.high, expected_high=1 - told.low
            )  # fmt: skip
        found.append(point)
    return found


def front_by_expected(points: Iterable[FrontPoint]) -> list[FrontPoint]:
    """Those that no other one beats in expected accuracy and MACs, cheapest first.

    A point of which nothing is expected counts with what was measured.
    """
    told = list(points)
    error = np.array([1 - shown_accuracy(point) for point in told])
    macs = np.array([point.macs for point in told])
    rows = np.flatnonzero(non_dominated(error, macs)) if told else np.zeros(0, dtype=np.intp)
    unique = {(float(macs[row]), float(error[row])): row for row in rows[::-1].tolist()}
    return [replace(told[row], layer=0) for _, row in sorted(unique.items())]


def shown_accuracy(point: FrontPoint) -> float:
    """The expected accuracy of a point, or the measured one where nothing is expected."""
    return point.accuracy if point.expected is None else point.expected


def _curves(source: StudyPoints, own: set[tuple[str, int]]) -> list[tuple[tuple[str, int], Shown]]:
    """By (trial, epoch) the last curve of every trial of a study, and those in `own`."""
    table = source.read(["trial", "epoch", "method", "config", "count", "accuracy", "macs"])
    if not len(table):
        return []
    codes = table["trial"].combine_chunks().dictionary_encode()
    names, code = codes.dictionary.to_pylist(), codes.indices.to_numpy()
    epoch, count = table["epoch"].to_numpy(), np.nan_to_num(table["count"].to_numpy().astype(float), nan=0.0)
    error, macs = 1 - table["accuracy"].to_numpy(), table["macs"].to_numpy()
    last = np.zeros(len(names), dtype=epoch.dtype)
    np.maximum.at(last, code, epoch)
    trials = set(_nearest(table, names, code, epoch == last[code], error, macs))
    wanted = (epoch == last[code]) & np.isin(code, [i for i, name in enumerate(names) if name in trials])
    for trial, at in own:
        if trial in names:
            wanted |= (code == names.index(trial)) & (epoch == at)
    rows = np.flatnonzero(wanted & (count > 0))
    if not len(rows):
        return []
    order = rows[np.lexsort((epoch[rows], code[rows]))]
    configs = table["config"].take(pa.array(order)).to_pylist()
    starts = np.flatnonzero(np.diff(code[order], prepend=-1) | np.diff(epoch[order], prepend=-1))
    found = []
    for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        mine = order[start:end]
        each = Shown(
            parsed(configs[start]), int(epoch[mine[0]]), macs[mine].tolist(), error[mine].tolist(), int(count[mine[0]])
        )
        found.append(((names[code[mine[0]]], int(epoch[mine[0]])), each))
    return found


def _nearest(
    table: pa.Table, names: list[str], code: np.ndarray, last: np.ndarray, error: np.ndarray, macs: np.ndarray
) -> list[str]:
    """Of every method the `MOST_TRIALS` trials whose last curves come nearest to the front of the last curves."""
    if len(names) <= MOST_TRIALS:
        return names
    rows = np.flatnonzero(last)
    front = rows[non_dominated(error[rows], macs[rows])]
    front = front[np.argsort(macs[front])]
    stairs = np.clip(np.searchsorted(macs[front], macs[rows], side="right") - 1, 0, None)
    behind = np.full(len(names), np.inf)
    np.minimum.at(behind, code[rows], error[rows] - error[front][stairs])
    methods = np.empty(len(names), dtype=object)
    methods[code[rows]] = table["method"].take(pa.array(rows)).to_pylist()
    found: list[str] = []
    for method in sorted({name for name in methods if name is not None}):
        mine = np.flatnonzero(methods == method)
        found += [names[i] for i in mine[np.argsort(behind[mine], kind="stable")][:MOST_TRIALS]]
    return found


def _kappa(sources: Sequence[StudyPoints], points: Sequence[FrontPoint]) -> float:
    """`own_share` of the points whose images are known, of one split; 1 where none are."""
    by_name = {source.name: source for source in sources}
    known = []
    for point in points[:: max(1, len(points) // _BITS)]:
        source = by_name.get(point.study or sources[0].name)
        if source is not None and point.count and point.correct is not None:
            bits = bits_of(source.study, point.checkpoint, point.index, point.correct, point.count)
            if bits is not None and (not known or len(bits) == len(known[0])):
                known.append(bits)
    return own_share(np.array(known)) if len(known) > 1 else 1.0
