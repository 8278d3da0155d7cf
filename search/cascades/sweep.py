"""The search for cascades: every pair at every threshold, then a beam to three and four members.

A cascade is built from its end. A *tail* is what stands behind a threshold: a single member, or a cascade of fewer
members. For a first member its images are sorted by doubt, most doubtful first; behind the k-th of them lies one
threshold, and sums over the first k images, of what the tail has right and of what it costs, give accuracy and MACs of
that cascade. So one pass over sorted images evaluates a first member before all tails at all thresholds. For pairs
the front of them is exact; longer cascades take their tails from the best that were found with fewer (a beam).

Shape legend: P members, T tails, n images, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from search.pareto.front import non_dominated

_BEAM, _OWN = 384, 4
NEVER = 1e9
"""A threshold that no doubt is above."""
_AT_ONCE = 1 << 19  # scores that are added at once: they stay in the caches


@dataclass(frozen=True, slots=True)
class Chain:
    """A cascade by its members' places in an `Answers`: an image goes on from member i where its doubt is above
    `thresholds` [i]. One member has no threshold.
    """

    members: tuple[int, ...]
    thresholds: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """What members answer on images, under one rule.

    `doubts` (P, n) float32; `correct` (P, n) whether a member alone is right; `macs` (P, n); `family` (P,) equal where
    two members are settings of one checkpoint between which work is shared. `scores` (P, C, n) int32
    (`trainables.inference.rules.scores`) where the answer is a mean, else None; `labels` (n,). `factor`: how many times
    the weight of a member the next one has in a mean.
    """

    doubts: NDArray[np.float32]
    correct: NDArray[np.bool_]
    macs: NDArray[np.float64]
    family: NDArray[np.int64]
    labels: NDArray[np.integer]
    scores: NDArray[np.int32] | None = None
    factor: int = 1

    def on(self, images: NDArray[np.intp]) -> Answers:
        """The same on some of the images."""
        scores = None if self.scores is None else self.scores[:, :, images]
        parts = self.doubts[:, images], self.correct[:, images], self.macs[:, images]
        return Answers(*parts, self.family, self.labels[images], scores, self.factor)

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class Executed:
    """A cascade executed on the images of an `Answers`: whether right (n,), MACs (n,), the last member's place (n,).

    `run`: the MACs of what the first members of one checkpoint did together; `total` (C, n) the scores of what was
    executed, where the answer is the mean.
    """

    correct: NDArray[np.bool_]
    macs: NDArray[np.float64]
    last: NDArray[np.intp]
    run: NDArray[np.float64]
    total: NDArray[np.int32] | None


def execute(answers: Answers, chain: Chain) -> Executed:
    """Execute a cascade by arithmetic."""
    member = chain.members[0]
    macs, correct = answers.macs[member], answers.correct[member]
    total = None if answers.scores is None else answers.scores[member]
    if len(chain.members) == 1:
        return Executed(correct, macs, np.zeros(answers.images, dtype=np.intp), macs, total)
    tail = execute(answers, Chain(chain.members[1:], chain.thresholds[1:]))
    goes = answers.doubts[member] > chain.thresholds[0]
    same = answers.family[member] == answers.family[chain.members[1]]
    saved = np.minimum(macs, tail.run) if same else 0.0
    run = np.where(goes, np.maximum(macs, tail.run), macs) if same else macs
    if total is not None:
        assert tail.total is not None
        total = np.where(goes, total + answers.factor * tail.total, total)
        correct = total.argmax(axis=0) == answers.labels
    else:
        correct = np.where(goes, tail.correct, correct)
    return Executed(
        correct, np.where(goes, macs + tail.macs - saved, macs), np.where(goes, tail.last + 1, 0), run, total
    )


@dataclass(slots=True)
class Found:
    """Cascades with their figures: `right` images of all, mean `macs`; `own`: the best of every first member."""

    chains: list[Chain] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    macs: list[float] = field(default_factory=list)
    own: list[Chain] = field(default_factory=list)
    compared: int = 0

    def add(self, other: Found) -> None:
        """Take others in; the front of both stays."""
        self.chains += other.chains
        self.right += other.right
        self.macs += other.macs
        self.own += other.own
        self.compared += other.compared
        keep = np.flatnonzero(non_dominated(-np.array(self.right, dtype=float), np.array(self.macs)))
        order = keep[np.argsort(np.array(self.macs)[keep])].tolist()
        self.chains = [self.chains[i] for i in order]
        self.right, self.macs = [self.right[i] for i in order], [self.macs[i] for i in order]


@dataclass(slots=True)
class _Front:
    """Non-dominated (macs, right) so far, with what stands behind each: first member, tail, threshold."""

    macs: np.ndarray
    right: np.ndarray
    first: np.ndarray
    tail: np.ndarray
    threshold: np.ndarray

    def beaten_by(self, macs: np.ndarray, right: np.ndarray, slack: float = 0.0) -> np.ndarray:
        """Mask of those that are more often right, by `slack` less, than what the front has within their MACs."""
        if not len(self.macs):
            return np.ones(len(macs), dtype=bool)
        place = np.searchsorted(self.macs, macs, side="right") - 1
        return right + slack > np.where(place >= 0, self.right[np.maximum(place, 0)], -1)

    def take(self, *columns: np.ndarray) -> None:
        joined = [np.concatenate(pair) for pair in zip(self.columns(), columns, strict=True)]
        keep = np.flatnonzero(non_dominated(-joined[1].astype(float), joined[0]))
        keep = keep[np.argsort(joined[0][keep])]
        self.macs, self.right, self.first, self.tail, self.threshold = (each[keep] for each in joined)

    def columns(self) -> tuple[np.ndarray, ...]:
        return self.macs, self.right, self.first, self.tail, self.threshold


def singles(answers: Answers) -> Found:
    """The front of single members."""
    right, macs = answers.correct.sum(axis=1), answers.macs.mean(axis=1)
    found = Found()
    chains = [Chain((i,)) for i in range(len(right))]
    found.add(Found(chains, right.tolist(), macs.tolist(), [], len(right)))
    return found


def pairs(answers: Answers) -> Found:
    """The exact front of all ordered pairs of members at all thresholds."""
    tails = _Tails.of(answers, [Chain((i,)) for i in range(len(answers.macs))])
    return swept(answers, tails)


def firsts_before(answers: Answers, firsts: Sequence[int], tails: Sequence[int]) -> Found:
    """The exact front of pairs of some members before some others at all thresholds."""
    return swept(answers, _Tails.of(answers, [Chain((i,)) for i in tails]), firsts)


def longer(answers: Answers, found: Found, beam: int = _BEAM) -> Found:
    """Cascades of one member more than those found: every member before each of a beam of tails."""
    whole = [*found.chains, *found.own]
    most = max((len(chain.members) for chain in whole), default=0)
    tails = list(dict.fromkeys(chain for chain in whole if len(chain.members) == most))
    if len(tails) > beam:  # the front first, then the others, evenly
        front = [chain for chain in found.chains if len(chain.members) == most]
        rest = [chain for chain in tails if chain not in set(front)]
        front = [front[i] for i in np.linspace(0, len(front) - 1, min(len(front), beam)).astype(int)] if front else []
        room = beam - len(front)
        tails = front + [rest[i] for i in np.linspace(0, len(rest) - 1, room).astype(int)] if room else front
    return swept(answers, _Tails.of(answers, list(dict.fromkeys(tails)))) if tails else Found()


def search(answers: Answers, members: int = 3, beam: int = _BEAM) -> Found:
    """The front of cascades of at most so many members, single ones among them."""
    found = singles(answers)
    if members > 1 and len(answers.macs) > 1:
        level = pairs(answers)
        found.add(level)
        for _ in range(2, members):
            level = longer(answers, level, beam)
            found.add(level)
    return found


# -- sweeps ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Tails:
    """Tails, images first: `correct` (n, T) int8, `macs` (n, T), `run` (n, T); `scores` (T, C, n) where asked."""

    chains: list[Chain]
    correct: NDArray[np.int8]
    macs: NDArray[np.float64]
    run: NDArray[np.float64]
    family: NDArray[np.int64]
    scores: NDArray[np.int32] | None
    true: NDArray[np.int32] | None

    @classmethod
    def of(cls, answers: Answers, chains: list[Chain]) -> _Tails:
        single = len(chains) == len(answers.macs) and all(c.members == (i,) for i, c in enumerate(chains))
        if single:
            correct, macs, run, scores = answers.correct, answers.macs, answers.macs, answers.scores
        else:
            done = [execute(answers, chain) for chain in chains]
            correct, macs, run = (np.stack([getattr(e, name) for e in done]) for name in ("correct", "macs", "run"))
            totals = [e.total for e in done if e.total is not None]
            scores = np.stack(totals) if totals else None
        family = answers.family[[chain.members[0] for chain in chains]]
        true = None
        if scores is not None:
            true = np.take_along_axis(scores, answers.labels.astype(np.intp)[None, None, :], axis=1)[:, 0]
        right, turned = np.ascontiguousarray(correct.T.astype(np.int8)), np.ascontiguousarray
        return cls(chains, right, turned(macs.T), turned(run.T), family, scores, true)


def _mean_correct(answers: Answers, first: int, tails: _Tails) -> NDArray[np.int8]:
    """Whether the mean of a first member and each tail is right (n, T)."""
    assert answers.scores is not None and tails.scores is not None and tails.true is not None
    own, factor = answers.scores[first], answers.factor
    truth = own[answers.labels, np.arange(answers.images)]
    found = np.empty((answers.images, len(tails.chains)), dtype=np.int8)
    step = max(1, _AT_ONCE // own.size)
    room = np.empty((step, *own.shape), dtype=np.int32)
    for begin in range(0, len(tails.chains), step):
        part = slice(begin, begin + step)
        summed = room[: len(tails.scores[part])]
        if factor == 1:
            np.add(tails.scores[part], own, out=summed)
        else:
            np.add(np.multiply(tails.scores[part], factor, out=summed), own, out=summed)
        true = factor * tails.true[part] + truth
        found[:, part] = (summed.max(axis=1) == true).T  # scores of two classes are never equal
    return found


def _cuts(doubts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images by falling doubt, how many go on at every threshold that parts two doubts, and these thresholds."""
    order = np.argsort(-doubts, kind="stable")
    ranked = doubts[order].astype(np.float64)
    last = np.flatnonzero(ranked[:-1] > ranked[1:])
    return order, last + 1, (ranked[last] + ranked[last + 1]) / 2


def swept(answers: Answers, tails: _Tails, firsts: Sequence[int] | None = None) -> Found:
    """The front of every member (or of `firsts`) before every tail at all thresholds; `own` is a beam to go on with."""
    nothing, nobody = np.zeros(0), np.zeros(0, dtype=np.intp)
    front = _Front(nothing, nothing, nobody, nobody, nothing)
    own: list[Chain] = []
    compared = 0
    for first in range(len(answers.macs)) if firsts is None else firsts:
        order, going, thresholds = _cuts(answers.doubts[first])
        if not len(going):
            continue
        compared += len(going) * len(tails.chains)
        base = int(answers.correct[first].sum()), float(answers.macs[first].sum())
        for place, tail, macs, right in _improvements(answers, first, tails, order, going, base):
            better = front.beaten_by(macs, right)
            limits = thresholds[place]
            near = better | front.beaten_by(macs, right, 0.01 * answers.images)
            own += _spread(first, tails, tail[near], limits[near], macs[near], right[near])
            chosen = np.flatnonzero(better)
            chosen = chosen[non_dominated(-right[chosen].astype(float), macs[chosen])]
            owner = np.full(len(chosen), first, dtype=np.intp)
            front.take(macs[chosen], right[chosen], owner, tail[chosen], limits[chosen])
    columns = (column.tolist() for column in front.columns())
    found = [
        (_before(f, tails.chains[t], limit), int(right), cost / answers.images)
        for cost, right, f, t, limit in zip(*columns, strict=True)
    ]
    return Found([f[0] for f in found], [f[1] for f in found], [f[2] for f in found], own, compared)


def _before(first: int, tail: Chain, threshold: float) -> Chain:
    return Chain((first, *tail.members), (threshold, *tail.thresholds))


def _improvements(
    answers: Answers, first: int, tails: _Tails, order: np.ndarray, going: np.ndarray, base: tuple[int, float]
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of a first member before tails: (place of the threshold, tail, summed MACs, right images) of every cascade that
    is more often right than the same one with fewer images that go on.
    """
    correct = tails.correct if tails.scores is None else _mean_correct(answers, first, tails)
    gain = np.take(correct, order, axis=0)
    gain -= answers.correct[first][order].astype(np.int8)[:, None]
    right = np.cumsum(gain, axis=0, dtype=np.int32)[going - 1]
    extra = np.take(tails.macs, order, axis=0)
    same = np.flatnonzero(tails.family == answers.family[first])
    if len(same):
        shared = np.minimum(tails.run[order][:, same], answers.macs[first][order][:, None])
        extra[:, same] -= shared
    best = np.maximum.accumulate(right, axis=0)
    new = np.empty(right.shape, dtype=bool)
    new[0], new[1:] = right[0] > 0, (right[1:] > best[:-1]) & (right[1:] > 0)
    # a member does not stand behind itself
    new[:, [i for i, chain in enumerate(tails.chains) if first in chain.members]] = False
    place, tail = np.nonzero(new)
    if len(place):
        cost = np.cumsum(extra, axis=0, out=extra)
        yield place, tail, cost[going[place] - 1, tail] + base[1], right[place, tail] + base[0]


def _spread(
    first: int, tails: _Tails, tail: np.ndarray, limits: np.ndarray, macs: np.ndarray, right: np.ndarray
) -> list[Chain]:
    """A few cascades of one first member, over the range of their MACs: its own front, thinned."""
    if not len(tail):
        return []
    rows = np.flatnonzero(non_dominated(-right.astype(float), macs))
    rows = rows[np.argsort(macs[rows])]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _OWN).astype(int))]
    return [_before(first, tails.chains[t], limit) for t, limit in zip(tail[rows], limits[rows].tolist(), strict=True)]


def settings_of(answers: Answers, chain: Chain, most: int) -> list[tuple[Chain, int, float]]:
    """The front of one cascade's thresholds: (cascade with other thresholds, right images, mean MACs), cheapest first.

    The first threshold is swept exactly, later ones over `most` quantiles of their doubts (fewer where there are
    several). The first setting lets no image go on.
    """
    tails = [Chain(chain.members[-1:])]
    steps = max(4, round(most ** (1 / max(1, len(chain.members) - 2))))
    for member in reversed(chain.members[1:-1]):
        _, _, cuts = _cuts(answers.doubts[member])
        cuts = cuts[np.unique(np.linspace(0, len(cuts) - 1, steps).astype(int))] if len(cuts) else np.zeros(1)
        tails = [_before(member, tail, float(cut)) for tail in tails for cut in cuts]
    found = swept(answers, _Tails.of(answers, tails), firsts=[chain.members[0]])
    never = (NEVER, *chain.thresholds[1:])
    alone = execute(answers, Chain(chain.members, never))
    own = execute(answers, chain)
    for thresholds, done in ((never, alone), (chain.thresholds, own)):
        found.add(Found([Chain(chain.members, thresholds)], [int(done.correct.sum())], [float(done.macs.mean())]))
    places = np.unique(np.linspace(0, len(found.chains) - 1, most).astype(int)).tolist()
    return [(found.chains[i], found.right[i], found.macs[i]) for i in places]


def best_within(found: Found, budgets: Sequence[float]) -> list[int | None]:
    """Of cascades on a front, cheapest first, the place of the most accurate within each budget of MACs."""
    macs = np.array(found.macs)
    places = [int(np.searchsorted(macs, budget, side="right")) - 1 for budget in budgets]
    return [place if place >= 0 else None for place in places]
