r"""An honest front of cascades: chosen on one half of the validation images, scored on the other, both ways.

The most accurate of many thousand cascades are partly the luckiest. What choosing costs is measured as it happens: on
one half of the images the front is searched (temperatures are fitted there, too), its cascades are executed on the
other half, and what they lose is averaged, both ways and over several divisions, by how many MACs they cost. That is
the optimism of a front chosen on n / 2 images. Errors of selection shrink like :math:`n^{-1/2}`, so that the front
chosen on all n images is corrected by

.. math:: \hat a(c) = a_n(c) - \hat o(m_c) / \sqrt 2

where :math:`\hat o` is a kernel average of the losses over log MACs (two-fold cross-validation of a selection: Varma
and Simon, BMC Bioinformatics 2006; a correction of the apparent figure by an estimated optimism: Efron, JASA 1983).
The correction is never below 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from search.cascades.members import Members
from search.cascades.sweep import Answers, Chain, execute, search
from search.pareto.front import non_dominated, spread

_WIDTH = 0.25  # decades of MACs over which losses are averaged
_SHRINKING = 2**-0.5
SHOWN = 48
"""At most so many cascades of a front are told, evenly over log MACs."""


@dataclass(frozen=True, slots=True)
class Rule:
    """How a cascade decides: the kind of doubt and the answer (`trainables.inference.rules`)."""

    kind: str
    answer: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """A cascade of a front, and its figures on the images that it was chosen on: `accuracy`, mean `macs`.

    `expected`: the accuracy that is left when the optimism of the choice is taken off, with a 95 % interval. `going`:
    the share of images that reach each member. `temperatures`: of its members.
    """

    rule: Rule
    chain: Chain
    temperatures: tuple[float, ...]
    accuracy: float
    macs: float
    expected: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    going: tuple[float, ...] = ()
    membership: float | None = None


@dataclass(frozen=True, slots=True)
class Optimism:
    """What fronts that were chosen on half of the images lost on the other half, by MACs."""

    macs: NDArray[np.float64]
    lost: NDArray[np.float64]
    division: NDArray[np.intp]

    def at(self, macs: float) -> tuple[float, float]:
        """The mean loss of a choice on half of the images at so many MACs, and its standard error over divisions."""
        if not len(self.macs):
            return 0.0, 0.0
        weight = np.exp(-0.5 * ((np.log10(self.macs) - np.log10(macs)) / _WIDTH) ** 2) + 1e-12
        by = [float(np.average(self.lost[m], weights=weight[m])) for d in np.unique(self.division)
              if (m := self.division == d).any()]  # fmt: skip
        error = float(np.std(by, ddof=1) / np.sqrt(len(by))) if len(by) > 1 else 0.0
        return float(np.mean(by)), error


@dataclass(slots=True)
class Selection:
    """The front of cascades (and single members) on all images, how many were compared, and what choosing costs."""

    front: list[Chosen]
    compared: int
    optimism: Optimism
    images: int
    splits: int
    rules: list[Rule] = field(default_factory=list)


def halves(labels: NDArray[np.integer], seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two halves of the images with as many of every class, but for one."""
    random, first = np.random.default_rng(seed), []
    spare = 0
    for label in np.unique(labels):
        mine = random.permutation(np.flatnonzero(labels == label))
        take = (len(mine) + (spare % 2)) // 2
        spare += len(mine) % 2
        first.append(mine[:take])
    one = np.sort(np.concatenate(first))
    return one, np.setdiff1d(np.arange(len(labels)), one)


def select(
    members: Members,
    rules: Sequence[Rule],
    *,
    most_members: int = 3,
    splits: int = 2,
    seed: int = 0,
    scale: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Selection:
    """The front of cascades of at most so many members under these rules, with what is expected of each.

    `splits`: how often the images are halved; `scale`: whether members get a temperature.
    """
    every = np.arange(len(members.labels))
    say("comparing cascades on all validation images")
    front, compared, _ = _front(members, rules, every, most_members, scale)
    macs: list[float] = []
    lost: list[float] = []
    division: list[int] = []
    for split in range(splits):
        parts = halves(members.labels, seed + split)
        for turn, (chosen_on, scored_on) in enumerate((parts, parts[::-1])):
            say(f"choosing on one half, scoring on the other: {2 * split + turn + 1} of {2 * splits}")
            half, seen, by_rule = _front(members, rules, chosen_on, most_members, scale)
            compared += seen
            for chosen in half:
                done = execute(by_rule[chosen.rule], chosen.chain)
                macs.append(chosen.macs)
                lost.append(chosen.accuracy - float(done.correct[scored_on].mean()))
                division.append(split)
    optimism = Optimism(np.array(macs), np.array(lost), np.array(division, dtype=np.intp))
    told = [corrected(chosen, optimism, len(every)) for chosen in front]
    return Selection(told, compared, optimism, len(every), splits, list(rules))


def corrected(chosen: Chosen, optimism: Optimism, count: int) -> Chosen:
    """A cascade with what is expected of it on other images, and the 95 % interval of that."""
    mean, error = optimism.at(chosen.macs)
    expected = float(np.clip(chosen.accuracy - max(0.0, mean) * _SHRINKING, 0.0, 1.0))
    share = (expected * count + 1) / (count + 2)
    half = 1.959964 * float(np.sqrt(share * (1 - share) / count + (error * _SHRINKING) ** 2))
    return replace(chosen, expected=expected, low=max(0.0, expected - half), high=min(1.0, expected + half))


def _front(
    members: Members, rules: Sequence[Rule], images: NDArray[np.intp], most_members: int, scale: bool
) -> tuple[list[Chosen], int, dict[Rule, Answers]]:
    """The joint front of all rules on some images, how many were compared, and all images' answers by rule."""
    temperatures = members.temperatures(images) if scale else [1.0] * len(members.members)
    by_rule: dict[Rule, Answers] = {}
    found: list[Chosen] = []
    compared = 0
    for rule in rules:
        by_rule[rule] = members.answers(rule.kind, rule.answer, temperatures)
        part = search(by_rule[rule].on(images), most_members)
        compared += part.compared
        for chain, right, macs in zip(part.chains, part.right, part.macs, strict=True):
            own = tuple(temperatures[i] for i in chain.members)
            found.append(Chosen(rule, chain, own, right / len(images), macs))
    keep = np.flatnonzero(non_dominated([1 - c.accuracy for c in found], [c.macs for c in found]))
    front = sorted((found[i] for i in keep.tolist()), key=lambda c: c.macs)
    return front, compared, by_rule


def thinned(front: Sequence[Chosen], most: int = SHOWN) -> list[Chosen]:
    """Of a front at most so many: for budgets evenly over log MACs the best within each."""
    return [front[i] for i in spread([chosen.macs for chosen in front], most).tolist()]
