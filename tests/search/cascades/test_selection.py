"""Halves are halves, and what is expected of a chosen front is not what was measured of it."""

from __future__ import annotations

import numpy as np

from search.cascades.members import Member, Members
from search.cascades.selection import Rule, halves, select, thinned
from search.cascades.sweep import Chain, execute
from trainables.inference.predictions import Predictions

RULES = [Rule("probability", "last"), Rule("margin", "mean")]


def told(members: int, images: int, skills: list[float], seed: int) -> tuple[Members, Members]:
    """Members of known skills on images to choose on, and on others."""
    draw = np.random.default_rng(seed)
    sides = []
    for count in (images, 2000):
        labels = draw.integers(0, 5, count).astype(np.uint16)
        hard, parts, macs = draw.normal(size=count), [], []
        for member in range(members):
            logits = draw.normal(size=(count, 5))
            logits[np.arange(count), labels] += skills[member] - 0.7 * hard
            shares = np.exp(logits)
            every = (shares / shares.sum(1, keepdims=True)).astype(np.float16)[None]
            cost = np.full((1, count), 1e6 * 1.5**member)
            parts.append((Predictions(5, labels, cost, np.zeros((1, count, 1), np.float16), every=every), 0))
            macs.append(cost[0])
        names = [Member("s", f"t{i:04d}", 1, 0, "static", "", "", {}, "", "", 0, 0, 0, 0, 0) for i in range(members)]
        correct = np.stack([part.of(0).argmax(1) == labels for part, _ in parts])
        sides.append(Members(names, labels, np.stack(macs), correct, np.arange(members), parts))
    return sides[0], sides[1]


def test_halves_have_as_many_of_every_class() -> None:
    labels = np.repeat([0, 1, 2, 3], [10, 11, 7, 1])
    one, other = halves(labels, 5)
    assert sorted([*one, *other]) == list(range(29)) and abs(len(one) - len(other)) <= 1
    for label in range(4):
        assert abs((labels[one] == label).sum() - (labels[other] == label).sum()) <= 1
    assert (halves(labels, 5)[0] == one).all() and len(halves(labels, 6)[0]) in (14, 15)


def test_luck_is_taken_off() -> None:
    """Members of equal skill: the front by what was measured is luck, which the expected accuracy must not promise."""
    raw, corrected = [], []
    for seed in range(3):
        members, others = told(10, 120, [1.0] * 10, seed)
        found = select(members, RULES, most_members=2, splits=2, seed=seed)
        for chosen in found.front:
            every = [1.0] * 10
            for member, temperature in zip(chosen.chain.members, chosen.temperatures, strict=True):
                every[member] = temperature
            known = others.answers(chosen.rule.kind, chosen.rule.answer, every)
            true = float(execute(known, Chain(chosen.chain.members, chosen.chain.thresholds)).correct.mean())
            raw.append(chosen.accuracy - true)
            corrected.append(chosen.expected - true)
            assert chosen.expected <= chosen.accuracy and chosen.low <= chosen.expected <= chosen.high
    assert np.mean(raw) > 0.03 and abs(np.mean(corrected)) < 0.5 * np.mean(raw)


def test_the_same_seed_chooses_the_same_and_counts_what_it_compared() -> None:
    members, _ = told(5, 80, [0.5, 0.8, 1.1, 1.4, 1.8], 0)
    one, other = (select(members, RULES, most_members=2, splits=1, seed=3) for _ in range(2))
    assert one.front == other.front and one.compared == other.compared > 2 * 5 * 5 * 40
    assert any(len(chosen.chain.members) == 2 for chosen in one.front)
    few = thinned(one.front, 3)
    assert 1 <= len(few) <= 3 and few[0] == one.front[0]
