from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.story import Story


def _decide(s: Any, trial: str, epoch: int, **more: Any) -> Any:
    from search.rungs.decisions import decide

    state = s.state
    return decide(s.spec, state, state.trials[trial], epoch, **more)


def test_full_training_finishes_and_time_stops(story: Callable[..., Any]) -> None:
    s = story()
    t = s.ask(0)
    s.report(t, 2)
    assert _decide(s, t, 2).action == "continue" and _decide(s, t, 2).why == ""
    assert _decide(s, t, 2, spent="time").action == "stop"
    s.report(t, 9, [(0.9, 1e6)])
    assert _decide(s, t, 9).action == "finish"


def test_one_of_three_goes_on_at_a_rung(story: Callable[..., Any]) -> None:
    s = story()
    names = [s.ask(i) for i in range(6)]
    curves = [[(0.5 + i / 20, 1e7 - i * 1e6)] for i in range(6)]  # each dominates those before it
    for name, curve in zip(names, curves, strict=True):
        s.report(name, 1, curve)
    actions = [_decide(s, name, 1).action for name in names]
    assert actions == ["stop"] * 4 + ["continue"] * 2
    assert "place 6 of 6" in _decide(s, names[0], 1).why


def test_a_phase_that_is_not_comparable_passes_undecided(story: Callable[..., Any]) -> None:
    s = story()
    names = [s.ask(i) for i in range(4)]
    for i, name in enumerate(names):
        s.report(name, 1, [(0.9 - i / 10, 1e6 + i * 1e6)], comparable=i < 3)
    assert _decide(s, names[3], 1).action == "continue"
    assert len(s.state.rung(1)) == 3


def test_the_first_of_each_method_are_protected_while_grace_lasts(story: Callable[..., Any]) -> None:
    s = story()
    s.spec = s.spec.model_copy(update={"rungs": s.spec.rungs.model_copy(update={"grace": 2})})
    for i in range(6):
        s.report(s.ask(i), 1, [(0.9, 1e6)])
    late = s.ask(6, "skipnet")
    s.report(late, 1, [(0.2, 5e7)])
    assert _decide(s, late, 1).action == "continue"
    assert "first 2 of its method" in _decide(s, late, 1).why


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(0.1, 0.99), st.floats(1e5, 9e7)), min_size=1, max_size=4), min_size=2, max_size=10
    ),
    st.randoms(),
)
def test_extremes_survive_and_the_order_of_reports_does_not_matter(curves: Any, rng: Any) -> None:
    s = Story()
    names = [s.ask(i) for i in range(len(curves))]
    pairs = list(zip(names, curves, strict=True))
    shuffled = Story()
    for i in range(len(curves)):
        shuffled.ask(i)
    for name, curve in pairs:
        s.report(name, 1, curve)
    for name, curve in rng.sample(pairs, len(pairs)):
        shuffled.report(name, 1, curve)
    actions = {name: _decide(s, name, 1).action for name in names}
    assert actions == {name: _decide(shuffled, name, 1).action for name in names}
    best = max(max(a for a, _ in curve) for curve in curves)
    for name, curve in pairs:
        if max(a for a, _ in curve) == best:
            assert actions[name] == "continue"
    least = min(min(m for _, m in curve) for curve in curves)
    cheapest = [name for name, curve in pairs if min(m for _, m in curve) == least]
    if len(cheapest) == 1:
        assert actions[cheapest[0]] == "continue"
    assert sum(action == "continue" for action in actions.values()) >= 1


def test_rungs_can_be_switched_off(story: Callable[..., Any]) -> None:
    s = story()
    off = s.spec.model_copy(update={"rungs": s.spec.rungs.model_copy(update={"enabled": False})})
    assert off.rung_epochs == []
    for i in range(5):
        s.report(s.ask(i), 1, [(0.9 - i / 10, 1e6 + i * 1e5)])
    s.spec = off
    assert all(_decide(s, t, 1).action == "continue" for t in s.state.trials)
    with pytest.raises(KeyError):
        _decide(s, "t9999", 1)


def test_the_epochs_to_come_follow_what_the_rungs_have_shown(story: Callable[..., Any]) -> None:
    from search.rungs.brackets import epochs_to_come
    from search.status.table import time_left

    s = story()  # one of four is to go on at epochs 1 and 3 of 9
    assert epochs_to_come(s.spec) == pytest.approx(1 + 2 / 4 + 6 / 16)
    assert epochs_to_come(s.spec, 2) == pytest.approx(1 + 6 / 4) and epochs_to_come(s.spec, 9) == 0
    assert time_left(s.spec, s.state) is None  # nothing is known yet
    for i in range(4):
        trial = s.ask(i)
        s.report(trial, 1, [(0.5, 1e6)])
        s.decide(trial, 1, "continue" if i > 1 else "stop", "told")
    first = (2 + 8 / 4) / (4 + 8)  # as if eight more had come, a quarter of which went on
    assert epochs_to_come(s.spec, 0, s.state) == pytest.approx(1 + first * (2 + 6 / 4))
    per_epoch = s.state.elapsed_at() / 4
    expected = 46 * epochs_to_come(s.spec, 0, s.state) + 2 * epochs_to_come(s.spec, 1, s.state)
    assert time_left(s.spec, s.state) == pytest.approx(per_epoch * expected, rel=0.01)
