r"""Two fronts against each other: computation at equal accuracy, accuracy at equal computation.

Of two fronts A and B with stairs :math:`m_A(a)`, the least MACs that reach accuracy a, and :math:`a_A(m)`, the best
accuracy within m MACs:

.. math:: r = \exp \frac{1}{|I|} \int_I \log \frac{m_B(a)}{m_A(a)} \, da, \qquad
          d = \frac{1}{|J|} \int_J (a_A(m) - a_B(m)) \, d \log m

I are the accuracies that both reach, above the cheapest point of either; J the budgets that both have points for. So r
is how many times fewer MACs A takes at equal accuracy (Bjøntegaard's rate difference, VCEG-M33, for stairs in place of
polynomials), and d log10 of the budgets' ratio is the area between the curves.

Intervals are of validation images: every accuracy is drawn again from the binomial of right images, `DRAWS` times, for
the points that are on a front. Both studies' points are drawn apart; that they were measured on the same images would
make the intervals narrower. Other seeds are in them only as far as a configuration was trained with several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.units import show_count

DRAWS = 1_000
_STEPS = 400
_LEVEL = (2.5, 97.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What was found: figures of the fronts as they were measured, with intervals of the draws.

    `fewer`: how many times fewer MACs `one` takes at equal accuracy. `better`: by how much it is more accurate at equal
    MACs. `accuracies`, `macs`: where the fronts can be compared; None where they meet nowhere. `area`: between the
    curves, in accuracy times decades of MACs. `seeds`: how many front members of each have more than one seed, of how
    many.
    """

    one: str
    other: str
    fewer: float | None
    fewer_interval: tuple[float, float] | None
    better: float | None
    better_interval: tuple[float, float] | None
    area: float | None
    accuracies: tuple[float, float] | None
    macs: tuple[float, float] | None
    seeds: tuple[tuple[int, int], tuple[int, int]]

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def words(self) -> list[str]:
        """What that means, a sentence each."""
        said = []
        if self.fewer is None or self.fewer_interval is None or self.accuracies is None:
            said.append(f"{self.one} and {self.other} reach no accuracy in common: MACs cannot be compared")
        else:
            low, high = self.fewer_interval
            said.append(
                f"{self.one} takes {self.fewer:.2f} times fewer MACs than {self.other} at equal accuracy, on average"
                f" from {_share(self.accuracies[0])} to {_share(self.accuracies[1])} (95 % interval {low:.2f} to"
                f" {high:.2f}): {_verdict(low, high, 1.0)}"
            )
        if self.better is None or self.better_interval is None or self.macs is None:
            said.append("they have no budget in common: accuracies cannot be compared")
        else:
            low, high = (100 * each for each in self.better_interval)
            said.append(
                f"{self.one} is {100 * self.better:+.2f} points more accurate at equal MACs, on average from"
                f" {show_count(self.macs[0])} to {show_count(self.macs[1])} (95 % interval {low:+.2f} to {high:+.2f}):"
                f" {_verdict(low, high, 0.0)}; the area between the curves is {self.area:+.4f}"
            )
        (mine, of_mine), (theirs, of_theirs) = self.seeds
        said.append(
            f"of the members of the fronts {mine} of {of_mine} and {theirs} of {of_theirs} were trained with several"
            " seeds; what other seeds would show of the rest is in no interval (routefront confirm trains them)"
        )
        return said


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _verdict(low: float, high: float, nothing: float) -> str:
    """Whether an interval leaves out that there is no difference."""
    if low > nothing or high < nothing:
        return "more than chance in the images"
    return "no more than chance in the images may bring"


def compare(
    one: Sequence[FrontPoint], other: Sequence[FrontPoint], names: tuple[str, str], seed: int = 0
) -> Comparison:
    """How two fronts (first layers) compare; `InputError` where one is empty."""
    for points, name in zip((one, other), names, strict=True):
        if not points:
            raise InputError(f"study {name!r} has no operating point to compare")
    a, b = _arrays(one), _arrays(other)
    measured = _gaps(a[0], a[1], b[0], b[1])
    random = np.random.default_rng(seed)
    drawn = [_gaps(_again(a, random), a[1], _again(b, random), b[1])[:2] for _ in range(DRAWS)]
    fewer, better, accuracies, macs = measured
    return Comparison(
        one=names[0],
        other=names[1],
        fewer=fewer,
        fewer_interval=None if fewer is None else _interval([f for f, _ in drawn if f is not None]),
        better=better,
        better_interval=None if better is None else _interval([d for _, d in drawn if d is not None]),
        area=None if better is None or macs is None else better * float(np.log10(macs[1] / macs[0])),
        accuracies=accuracies,
        macs=macs,
        seeds=(_seeds(one), _seeds(other)),
    )


def _seeds(points: Sequence[FrontPoint]) -> tuple[int, int]:
    return sum(point.seeds > 1 for point in points), len(points)


def _arrays(points: Sequence[FrontPoint]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Accuracies, MACs and numbers of images, cheapest first."""
    ordered = sorted(points, key=lambda point: point.macs)
    return (
        np.array([point.accuracy for point in ordered]),
        np.array([point.macs for point in ordered]),
        np.array([point.count or 0 for point in ordered]),
    )


def _again(front: tuple[np.ndarray, np.ndarray, np.ndarray], random: np.random.Generator) -> NDArray[np.float64]:
    accuracy, _, count = front
    drawn = random.binomial(np.maximum(count, 1), np.clip(accuracy, 0, 1)) / np.maximum(count, 1)
    return np.where(count > 0, drawn, accuracy)


def _interval(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    low, high = np.percentile(values, _LEVEL)
    return float(low), float(high)


Gaps = tuple[float | None, float | None, tuple[float, float] | None, tuple[float, float] | None]


def _gaps(one: np.ndarray, one_macs: np.ndarray, other: np.ndarray, other_macs: np.ndarray) -> Gaps:
    """r, d, the accuracies and the MACs that both have; None where they meet nowhere."""
    best, best_other = np.maximum.accumulate(one), np.maximum.accumulate(other)
    fewer, accuracies = None, None
    low, high = max(best[0], best_other[0]), min(best[-1], best_other[-1])
    if high > low or (high == low and low in best and low in best_other):
        levels = low + (high - low) * (np.arange(_STEPS) + 0.5) / _STEPS
        needs = [m[np.searchsorted(b, levels - 1e-12)] for b, m in ((best, one_macs), (best_other, other_macs))]
        fewer, accuracies = float(np.exp(np.log(needs[1] / needs[0]).mean())), (float(low), float(high))
    better, macs = None, None
    cheap, dear = max(one_macs[0], other_macs[0]), max(one_macs[-1], other_macs[-1])
    if dear > cheap:
        budgets = np.exp(np.log(cheap) + np.log(dear / cheap) * (np.arange(_STEPS) + 0.5) / _STEPS)
        had = [
            b[np.searchsorted(m, budgets, side="right") - 1] for b, m in ((best, one_macs), (best_other, other_macs))
        ]
        better, macs = float((had[0] - had[1]).mean()), (float(cheap), float(dear))
    return fewer, better, accuracies, macs
