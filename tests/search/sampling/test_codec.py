"""Configurations as rows."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from search.sampling.codec import Codec
from spaces.space import Choice, Fixed, LogRange, Range, Space, When

SPACE = Space(
    {
        "router": Choice(("linear", "rnn", "none")),
        "lr": LogRange(1e-3, 1.0),
        "weight": LogRange(1e-4, 1.0, or_zero=True, when=When("router", ("linear", "rnn"))),
        "depth": LogRange(1, 64, integer=True),
        "body": Fixed("resnet-8"),
        "decay": Range(0.0, 0.5, when=When("depth", (1, 2))),
        "bias": Choice((True, False), when=When("body", ("resnet-8",))),
        "never": Choice((1, 2), when=When("weight", (0,))),
    }
)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10_000))
def test_what_is_encoded_is_decoded(seed: int) -> None:
    config = SPACE.sample(random.Random(seed))
    codec = Codec(SPACE)
    (row,) = codec.encode([config])
    found = codec.decode(row)
    assert found == {
        **config,
        **{name: pytest.approx(config[name]) for name in ("lr", "weight", "decay") if name in config},
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.booleans())
def test_draws_and_mutations_lie_in_the_space_and_keep_what_is_given(seed: int, fix: bool) -> None:
    codec, rng = Codec(SPACE), np.random.default_rng(seed)
    fixed = {"router": "rnn", "lr": 0.5} if fix else {}
    rows = codec.uniform(20, rng, fixed)
    rows = np.concatenate([rows, codec.mutate(rows, rng, np.full(20, 0.2), fixed)])
    for row in rows:
        config = codec.decode(row, fixed)
        SPACE.check(config)
        assert {**config, **fixed} == config


def test_uniform_draws_are_those_of_the_space() -> None:
    codec = Codec(SPACE)
    rows = [codec.decode(row) for row in codec.uniform(4000, np.random.default_rng(0))]
    plain = [SPACE.sample(random.Random(seed)) for seed in range(4000)]
    for name in ("lr", "weight", "depth"):
        ours, theirs = ([config[name] for config in configs if name in config] for configs in (rows, plain))
        assert ks_2samp(ours, theirs).statistic < 0.06


def test_neighbours_are_near_and_options_are_as_far_as_ends() -> None:
    codec = Codec(Space({"kind": Choice(("a", "b")), "lr": LogRange(1e-4, 1.0), "weight": Range(0.1, 1, or_zero=True)}))
    base = {"kind": "a", "lr": 1e-2, "weight": 0.5}
    others = [base, {**base, "kind": "b"}, {**base, "lr": 1.0}, {**base, "weight": 0.0}]
    kind, lr, weight, zero = (
        ((features - features[0]) ** 2).sum(1) for features in codec.features(codec.encode(others))
    )
    np.testing.assert_allclose(kind, [0, 1, 0, 0])
    np.testing.assert_allclose(lr, [0, 0, 0.25, 0], atol=1e-12)
    np.testing.assert_allclose(zero, [0, 0, 0, 1])
    assert weight[3] < 0.01  # that it is zero is told by a length scale of its own


def test_what_the_space_does_not_know_is_absent() -> None:
    codec = Codec(Space({"kind": Choice(("a", "b")), "lr": LogRange(1e-4, 1.0)}))
    assert np.isnan(codec.encode([{"kind": "c", "lr": 7.0}])).all()
    assert codec.decode(codec.uniform(1, np.random.default_rng(0))[0], {"lr": 7.0})["lr"] == 7.0
