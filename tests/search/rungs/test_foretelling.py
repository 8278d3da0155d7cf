"""How well rungs foretell how trials end, and what follows."""

from __future__ import annotations

import random
from typing import Any

import pytest

from search.rungs.decisions import decide, room
from search.rungs.foretelling import agreement, reduction_at
from tests.support.story import Story


def told(noise: float, immune: int = 20, others: int = 30) -> Story:
    """Trials whose error at epoch 1 and at the end differ by noise; those that are not immune stop at epoch 1."""
    s, rng = Story(), random.Random(0)
    for number in range(immune + others):
        name = s.ask(number)
        if number < immune:
            s.events[-2].payload["immune"] = True
        quality = rng.random()
        s.report(name, 1, [(0.2 + 0.5 * min(1.0, max(0.0, quality + rng.gauss(0, noise))), 1e6)])
        if number < immune:
            s.report(name, 9, [(0.3 + 0.6 * quality, 1e6)])
        else:
            s.decide(name, 1, "stop")
    return s


def test_what_immune_trials_show_is_compared_with_how_they_ended() -> None:
    good, bad = told(0.02), told(2.0)
    assert agreement(good.state, 1, 9) > 0.9  # type: ignore[operator]
    assert agreement(bad.state, 1, 9) < 0.6  # type: ignore[operator]
    assert agreement(told(0.02, immune=7).state, 1, 9) is None


def test_more_go_on_behind_a_rung_that_foretells_badly() -> None:
    good, bad = told(0.01), told(2.0)
    assert reduction_at(good.spec, good.state, 1) == pytest.approx(4.0, abs=0.3)
    assert reduction_at(bad.spec, bad.state, 1) == 2.0
    assert room(good.spec, good.state, 1, 60) <= 17 and room(bad.spec, bad.state, 1, 60) == 30
    assert reduction_at(bad.spec, bad.state, 3) == 4.0  # nobody has been there


def test_it_may_be_switched_off_and_a_gentle_reduction_stays() -> None:
    s = told(2.0)

    def with_rungs(**changes: Any) -> Any:
        return s.spec.model_copy(update={"rungs": s.spec.rungs.model_copy(update=changes)})

    assert reduction_at(with_rungs(adapt=False), s.state, 1) == 4.0
    assert reduction_at(with_rungs(reduction=1.5), s.state, 1) == 1.5


def test_immune_trials_pass_every_rung_and_are_compared_with_like_others() -> None:
    s = told(0.02, immune=2, others=10)
    name = s.ask(12)
    s.events[-2].payload["immune"] = True
    s.report(name, 1, [(0.01, 1e6)])
    assert decide(s.spec, s.state, s.state.trials[name], 1).action == "continue"
    assert name in [trial.id for trial in s.state.rung(1)]


def test_equal_curves_are_foretold() -> None:
    s = Story()
    for number in range(10):
        name = s.ask(number)
        s.events[-2].payload["immune"] = True
        s.report(name, 1, [(0.5, 1e6)])
        s.report(name, 9, [(0.7, 1e6)])
    assert agreement(s.state, 1, 9) == 1.0
