"""The density over a space, and what the sampler of compute budgets makes of curves."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.sampling import budgets
from search.sampling.budgets import ask_budgets, foretold
from search.sampling.density import Density, favoured
from search.sampling.proposals import Proposer
from search.sampling.view import View
from search.state.trial import Trial
from spaces.space import Choice, Fixed, LogRange, Range, Space, When

SPACE = Space(
    {
        "router": Choice(("linear", "rnn", "none")),
        "lr": LogRange(1e-3, 1.0),
        "weight": LogRange(1e-4, 1.0, or_zero=True, when=When("router", ("linear", "rnn"))),
        "depth": Range(1, 9, integer=True),
        "body": Fixed("resnet-8"),
    }
)


def drawn(rng: random.Random) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in SPACE.parameters.items():
        if parameter.when is None or parameter.when.holds(values):
            values[name] = parameter.sample(rng)
    return values


def uniformly(rng: random.Random) -> dict[str, Any]:
    """A draw from the measure that the density is against: 0 of a range "or zero" is one of two options."""
    values = drawn(rng)
    if "weight" in values:
        values["weight"] = 0.0 if rng.random() < 0.5 else LogRange(1e-4, 1.0).sample(rng)
    values["depth"] = Range(1, 9).sample(rng)  # whole numbers are weighed as places
    return values


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_density_integrates_to_one(count: int) -> None:
    rng = random.Random(count)
    density = Density(Space({**SPACE.parameters, "depth": Range(1, 9)}), [uniformly(rng) for _ in range(count)])
    weights = {"linear": 1.0, "rnn": 1.0, "none": 1.0}
    values = [uniformly(rng) for _ in range(30_000)]
    options = np.array([3 * (2 if "weight" in value else 1) for value in values])  # from uniform options to counting
    mean = float(np.mean(np.exp(density.log(values)) * options))
    assert mean == pytest.approx(1.0, abs=0.05), weights


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(0, 10_000), st.booleans())
def test_what_is_favoured_lies_in_the_space_and_keeps_what_is_given(good: int, bad: int, seed: int, fix: bool) -> None:
    rng = random.Random(seed)
    fixed = {"router": "rnn", "lr": 0.5} if fix else {}
    config = favoured(SPACE, [drawn(rng) for _ in range(good)], [drawn(rng) for _ in range(bad)], rng, fixed)
    SPACE.check(config)
    assert {**config, **fixed} == config


def test_what_is_favoured_is_near_the_good_and_far_from_the_bad() -> None:
    rng = random.Random(0)
    good = [{**drawn(rng), "router": "rnn", "lr": 0.3 * 1.1**i} for i in range(-4, 4)]
    bad = [{**drawn(rng), "router": "linear", "lr": 3e-3 * 1.1**i} for i in range(-4, 4)]
    found = [favoured(SPACE, good, bad, random.Random(seed)) for seed in range(40)]
    assert Counter(config["router"] for config in found)["rnn"] >= 30
    assert sum(config["lr"] > 0.05 for config in found) >= 36


def test_a_value_that_the_space_does_not_know_is_passed_over() -> None:
    rng = random.Random(0)
    strange = {**drawn(rng), "router": "policy", "lr": 7.0}
    SPACE.check(favoured(SPACE, [strange] * 4, [strange], rng))
    assert np.isfinite(Density(SPACE, [strange]).log([drawn(rng) for _ in range(20)])).all()


# -- curves ----------------------------------------------------------------------------------------


def trial(name: str, method: str, **curves: list[tuple[float, float]]) -> Trial:
    """`e3=[(error, MACs), ...]` is its curve at epoch 3."""
    made = Trial(name, int(name[1:]), {"method": method}, 0, "", 0.0)
    for epoch, points in curves.items():
        made.take_arrays(int(epoch[1:]), *(np.array(column, float) for column in zip(*points, strict=True)))
    return made


def test_a_stopped_trial_is_taken_to_gain_what_its_method_gained() -> None:
    a, b, c = (trial(f"t{i}", "skipnet", e3=[(0.8, 1e6)], e9=[(0.4, 1e6)]) for i in range(3))
    d = trial("t3", "static", e3=[(0.8, 1e6)], e9=[(0.72, 1e6)])
    e, f = trial("t4", "skipnet", e3=[(0.7, 1e6)]), trial("t5", "static", e3=[(0.7, 1e6)])
    values = foretold({3: [a, b, c, d, e, f], 9: [a, b, c, d]}, 2e6)
    assert values["t0"] == pytest.approx(math.log(0.4)) and values["t3"] == pytest.approx(math.log(0.72))
    mean = (3 * math.log(0.5) + math.log(0.9)) / 4
    assert values["t4"] == pytest.approx(math.log(0.7) + (3 * math.log(0.5) + 3 * mean) / 6)
    assert values["t5"] == pytest.approx(math.log(0.7) + (math.log(0.9) + 3 * mean) / 4)


def test_a_budget_hides_what_costs_more() -> None:
    cheap = trial("t0", "static", e3=[(0.5, 1e6), (0.2, 9e6)])
    dear = trial("t1", "static", e3=[(0.1, 4e6)])
    nothing = trial("t2", "static", e3=[(np.nan, 1e5)])  # misses a constraint everywhere
    small, large = (foretold({3: [cheap, dear, nothing]}, budget) for budget in (2e6, 5e6))
    assert small["t0"] == large["t0"] == pytest.approx(math.log(0.5))
    assert small["t1"] == pytest.approx(0.5 * math.log(2)) and large["t1"] == pytest.approx(math.log(0.1))
    assert small["t2"] == large["t2"] > 100


def test_no_method_is_given_up_and_the_better_one_is_preferred(story: Callable[..., Any]) -> None:
    s = story()
    s.spec = s.spec.model_copy(update={"sampler": s.spec.sampler.model_copy(update={"startup": 4})})
    for number in range(40):
        method = ("static", "skipnet")[number % 2]
        error = 0.5 if method == "static" else 0.3 + 0.01 * (number % 5)
        s.report(s.ask(number, method, lr=0.1), 1, [(1 - error, 5e6), (1 - error + 0.05, 9e6)])
    view: View = Proposer(s.spec, s.spec.spaces()).view(s.state)
    methods = Counter(ask_budgets(view, seed)[0]["method"] for seed in range(300))
    assert methods["skipnet"] > 1.8 * methods["static"] and methods["static"] > 300 * budgets._ALIKE / 4
