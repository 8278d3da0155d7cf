"""Sweeps find what trying every threshold finds, and what they say is what executing gives."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from search.cascades.sweep import (
    NEVER,
    Answers,
    Chain,
    best_within,
    execute,
    longer,
    pairs,
    search,
    settings_of,
    singles,
)
from trainables.inference import rules


def answers(
    members: int = 5, images: int = 60, classes: int = 4, *, mean: bool = False, family: list[int] | None = None,
    seed: int = 0, coarse: bool = False, factor: int = 1,
) -> Answers:  # fmt: skip
    """Members of rising skill and cost; `coarse` makes many doubts equal."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, images)
    doubts, correct, macs, totals = [], [], [], []
    for member in range(members):
        logits = draw.normal(size=(images, classes))
        logits[np.arange(images), labels] += 0.4 + 0.5 * member
        shares = np.exp(2 * logits)
        shares = (shares / shares.sum(1, keepdims=True)).astype(np.float16)
        shares = np.round(shares * 4) / 4 if coarse else shares
        shares = shares.astype(np.float32)
        doubts.append(rules.doubt(shares, "probability"))
        total = rules.scores(shares).T
        totals.append(total)
        correct.append((total.argmax(0) if mean else shares.argmax(1)) == labels)
        macs.append(1e6 * 1.7**member * draw.uniform(0.5, 1.5, images))
    own = np.array(family if family is not None else range(members))
    total = np.array(totals) if mean else None
    return Answers(np.array(doubts), np.array(correct), np.array(macs), own, labels, total, factor)


def brute(known: Answers) -> dict[tuple[int, float], Chain]:
    """The front of singles and pairs by trying everything: (right images, MACs) of its members."""
    every = []
    for first, second in itertools.permutations(range(len(known.macs)), 2):
        values = np.unique(known.doubts[first]).astype(float)
        for threshold in (values[1:] + values[:-1]) / 2:
            every.append(Chain((first, second), (float(threshold),)))
    figures = {}
    for chain in [*(Chain((i,)) for i in range(len(known.macs))), *every]:
        done = execute(known, chain)
        figures.setdefault((int(done.correct.sum()), float(done.macs.mean())), chain)
    return {
        (right, macs): chain
        for (right, macs), chain in figures.items()
        if not any((r >= right and m <= macs * (1 - 1e-12)) or (r > right and m <= macs) for r, m in figures)
    }


@pytest.mark.parametrize("mean", [0, 1, 2])  # 2: weighted
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("family", [None, [0, 0, 1, 1, 2]])
def test_the_front_of_pairs_is_exact(mean: int, coarse: bool, family: list[int] | None) -> None:
    known = answers(mean=mean > 0, coarse=coarse, family=family, factor=max(1, mean))
    expected = brute(known)
    found = search(known, members=2)
    assert sorted(found.right) == sorted(right for right, _ in expected)
    assert np.allclose(sorted(found.macs), sorted(macs for _, macs in expected))
    cuts = sum(len(np.unique(doubts)) - 1 for doubts in known.doubts)
    assert found.compared == len(known.macs) + cuts * len(known.macs)


@pytest.mark.parametrize("mean", [0, 1, 2])
def test_what_sweeps_say_is_what_executing_gives(mean: int) -> None:
    known = answers(members=6, mean=mean > 0, family=[0, 0, 0, 1, 2, 2], factor=max(1, mean))
    found = search(known, members=4)
    assert {len(chain.members) for chain in found.chains} >= {2, 3}
    for chain, right, macs in zip(found.chains, found.right, found.macs, strict=True):
        done = execute(known, chain)
        assert int(done.correct.sum()) == right and np.isclose(done.macs.mean(), macs)
        assert len(set(chain.members)) == len(chain.members)
    assert found.macs == sorted(found.macs) and found.right == sorted(found.right)


def test_triples_with_every_tail_are_exact() -> None:
    known = answers(members=4, images=24, classes=3)
    level = pairs(known)
    level.chains = [
        Chain((a, b), (float(cut),))
        for a, b in itertools.permutations(range(4), 2)
        for cut in (np.unique(known.doubts[a])[1:] + np.unique(known.doubts[a])[:-1]) / 2
    ]
    level.right, level.macs, level.own = [0] * len(level.chains), [0.0] * len(level.chains), []
    found = longer(known, level, beam=len(level.chains))
    best = {}
    for a, tail in itertools.product(range(4), level.chains):
        if a not in tail.members:
            for cut in (np.unique(known.doubts[a])[1:] + np.unique(known.doubts[a])[:-1]) / 2:
                done = execute(known, Chain((a, *tail.members), (float(cut), *tail.thresholds)))
                right = int(done.correct.sum())
                best[right] = min(best.get(right, np.inf), float(done.macs.mean()))
    for right, macs in zip(found.right, found.macs, strict=True):
        assert np.isclose(best[right], macs)
        assert not any(r > right and m < macs * (1 - 1e-9) for r, m in best.items())


def test_a_weighted_mean_gives_later_members_more() -> None:
    """Of four members the weights are 1, 2, 4, 8, of those that an image came to."""
    known = answers(members=4, mean=True, factor=2)
    assert known.scores is not None
    chain = Chain((0, 1, 2, 3), (0.2, 0.2, 0.2))
    done = execute(known, chain)
    assert done.total is not None and set(done.last) == {0, 1, 2, 3}
    for image, last in enumerate(done.last.tolist()):
        expected = sum(2**k * known.scores[k, :, image].astype(int) for k in range(last + 1))
        assert (done.total[:, image] == expected).all() and len(set(done.total[:, image].tolist())) == 4
        assert done.correct[image] == (expected.argmax() == known.labels[image])


def test_settings_of_one_network_cost_their_deepest_once() -> None:
    known = answers(members=3, family=[7, 7, 8])
    goes = known.doubts[0] > 0.3
    done = execute(known, Chain((0, 1), (0.3,)))
    assert np.allclose(done.macs, np.where(goes, np.maximum(known.macs[0], known.macs[1]), known.macs[0]))
    apart = execute(known, Chain((0, 2), (0.3,)))
    assert np.allclose(apart.macs, known.macs[0] + np.where(goes, known.macs[2], 0))
    three = execute(known, Chain((2, 0, 1), (-1.0, -1.0)))
    assert np.allclose(three.macs, known.macs[2] + np.maximum(known.macs[0], known.macs[1]))
    assert (three.last == 2).all()


def test_other_thresholds_of_one_cascade_span_its_costs() -> None:
    known = answers(members=4, images=200)
    chain = Chain((0, 1, 3), (0.3, 0.4))
    found = settings_of(known, chain, 12)
    assert 4 <= len(found) <= 12 and all(each.members == chain.members for each, _, _ in found)
    assert found[0][0].thresholds[0] == NEVER and np.isclose(found[0][2], known.macs[0].mean())
    for each, right, macs in found:
        done = execute(known, each)
        assert int(done.correct.sum()) == right and np.isclose(done.macs.mean(), macs)


def test_the_best_within_a_budget() -> None:
    known = answers()
    front = singles(known)
    below, all_of_them = best_within(front, [1.0, 1e12])
    assert below is None and all_of_them == len(front.chains) - 1


@pytest.mark.parametrize("kind", rules.DOUBTS)
def test_doubts_rise_where_an_answer_is_less_sure(kind: str) -> None:
    shares = np.array([[1, 0, 0], [0.9995, 0.0005, 0], [0.9, 0.05, 0.05], [0.5, 0.5, 0], [0.34, 0.33, 0.33]])
    found = rules.doubt(shares.astype(np.float16).astype(np.float32), kind)
    assert found[0] == 0 and (np.diff(found[:3]) > 0).all() and found[4] > found[2]


def test_a_rule_that_does_not_exist_is_one_line() -> None:
    with pytest.raises(ValueError, match="rule 'best': must be one of probability, margin, entropy"):
        rules.doubt(np.ones((1, 2), np.float32), "best")


def test_means_are_those_of_the_probabilities() -> None:
    draw = np.random.default_rng(2)
    one, other = (draw.dirichlet(np.ones(5), 400).astype(np.float32) for _ in range(2))
    total = rules.scores(one) + rules.scores(other, 3)
    exact = (one + 3 * other) / 4
    assert np.allclose(rules.mean_of(total, 4), exact, atol=1e-3)
    assert (total.argmax(1) == exact.argmax(1)).mean() > 0.995
    tied = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], np.float32)
    assert (rules.scores(tied) + rules.scores(tied[::-1])).argmax(1).tolist() == [1, 1]  # the first of equals


def test_a_temperature_undoes_what_scaled_the_logits() -> None:
    draw = np.random.default_rng(3)
    labels = draw.integers(0, 5, 4000)
    logits = draw.normal(size=(4000, 5))
    logits[np.arange(4000), labels] += 1.0  # Bayes: these are log-posteriors up to a constant
    sure = np.exp(2.0 * logits)
    shares = (sure / sure.sum(1, keepdims=True)).astype(np.float32)
    assert 1.7 < rules.temperature_of(shares, labels) < 2.4
    assert (rules.scaled(shares, 2.0).argmax(1) == shares.argmax(1)).all()
