"""Data behind the pictures of networks with exits: the tree of exits, curves, ranks. Draws nothing.

Shape legend: K exits, n images, m of them whose confidences were stored, E epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.report.paths.data import TrialPaths


def exit_parents(record: Mapping[str, Any]) -> list[int]:
    """The exit that comes before each, -1 for the first; a chain where the record does not say."""
    return list(record.get("exit_parents", range(-1, len(record["exit_frac"]) - 1)))


def is_chain(record: Mapping[str, Any]) -> bool:
    """Whether the exits follow each other."""
    return exit_parents(record) == list(range(-1, len(record["exit_frac"]) - 1))


def exit_labels(record: Mapping[str, Any]) -> list[str]:
    """Short names for axes: numbers from 1 in a chain, else the names without what they share."""
    count = len(record["exit_frac"])
    if is_chain(record):
        return [str(i) for i in range(1, count + 1)]
    return [str(name).removeprefix("exit-") for name in record.get("exit_names", range(1, count + 1))]


def tree_places(parents: Sequence[int]) -> np.ndarray:
    """Where exits are drawn, (K, 2): how many lie before it, and its row.

    Ends have rows of their own, 0, 1, ...; others stand in the middle of what follows them.
    """
    children: dict[int, list[int]] = {}
    for i, parent in enumerate(parents):
        children.setdefault(parent, []).append(i)
    places = np.zeros((len(parents), 2))
    rows = 0

    def put(i: int, depth: int) -> None:
        nonlocal rows
        for child in children.get(i, []):
            put(child, depth + 1)
        if i in children:
            row = float(np.mean([places[child, 1] for child in children[i]]))
        else:
            row, rows = float(rows), rows + 1
        places[i] = depth, row

    for root in children.get(-1, []):
        put(root, 0)
    return places


def reached(parents: Sequence[int], left: Sequence[float]) -> list[float]:
    """The share of images that comes to each exit, from the shares that leave there; parents come first."""
    shares = [float(share) for share in left]
    for i in range(len(parents) - 1, -1, -1):
        if parents[i] >= 0:
            shares[parents[i]] += shares[i]
    return shares


@dataclass(frozen=True, slots=True)
class Budget:
    """A trial's last curve: what an average budget buys, and each exit alone (`anytime`), both (MACs, accuracy)."""

    points: list[tuple[float, float]]
    anytime: list[tuple[float, float]]


def _alone(setting: Mapping[str, Any]) -> int | None:
    """The exit, from 1, that a setting sends all images to; None for other settings."""
    return int(setting["exit"]) if set(setting) == {"exit"} else None


def budget(trial: TrialPaths) -> Budget:
    """The last curve by MACs, without settings that send all images to one exit; these are `anytime`."""
    curve = trial.curves[max(trial.curves)] if trial.curves else ()
    points = sorted((p["macs"], p["accuracy"]) for p in curve if _alone(p["setting"]) is None)
    record = trial.record
    return Budget(points, list(zip(record.get("exit_macs", ()), record["exit_acc"], strict=False)))


def by_epoch(trial: TrialPaths) -> dict[int, list[tuple[int, float]]]:
    """{exit, from 1: [(epoch, its accuracy on all images)]} for exits that were evaluated alone more than once."""
    found: dict[int, list[tuple[int, float]]] = {}
    for epoch in sorted(trial.curves):
        for point in trial.curves[epoch]:
            alone = _alone(point["setting"])
            if alone is not None:
                found.setdefault(alone, []).append((epoch, point["accuracy"]))
    return {i: found[i] for i in sorted(found) if len(found[i]) > 1}


def routing(trial: TrialPaths) -> tuple[list[int], np.ndarray]:
    """(epochs, exit fractions (E, K)) at the setting of the diagnostics."""
    epochs, shares = [], []
    for epoch in sorted(trial.curves):
        for point in trial.curves[epoch]:
            if point["setting"] == trial.record["setting"] and "exit_fractions" in point:
                epochs.append(epoch)
                shares.append(point["exit_fractions"])
    return epochs, np.array(shares, dtype=float).reshape(len(epochs), len(trial.record["exit_frac"]))


AGREE = ("both right", "only the later exit right", "only the earlier right", "both wrong")
"""Which of two exits are right about an image."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Ranks of images by confidence at two exits that follow each other, from 0 (least) to 1.

    `x`, `y` (m,); `right` (m,) index into `AGREE`; `names`: of the two exits; `correlation`: Spearman's.
    """

    x: np.ndarray
    y: np.ndarray
    right: np.ndarray
    names: tuple[str, str]
    correlation: float


def _ranked(values: np.ndarray) -> np.ndarray:
    """Ranks from 0 to 1; equal values share the mean of theirs."""
    _, at, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts + 1) / 2
    return middle[at] / (len(values) - 1)


def ranks(trial: TrialPaths) -> Ranks | None:
    """Confidence ranks at the first exit and the one behind it; None where none were stored."""
    if "confidence" not in trial.arrays:
        return None
    parents = exit_parents(trial.record)
    if 0 not in parents or trial.arrays["confidence"].shape[1] < 3:
        return None
    pair = (0, parents.index(0))
    odds = trial.arrays["confidence"][list(pair)].astype(np.float64)
    first, second = (_ranked(each) for each in odds)
    early, late = trial.arrays["exit_right"][list(pair)].astype(bool)
    right = np.select([early & late, late, early], [0, 1, 2], 3)
    spread = min(np.ptp(first), np.ptp(second))
    labels = exit_labels(trial.record)
    return Ranks(
        first,
        second,
        right,
        (labels[pair[0]], labels[pair[1]]),
        float(np.corrcoef(first, second)[0, 1]) if spread else 0.0,
    )
