from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search.status.table import summary
from tests.support.kept_study import keep


def _told(story: Callable[..., Any]) -> Any:
    s = story()
    a, b = s.ask(0), s.ask(1, "skipnet")
    s.report(a, 1, [(0.5, 1e7)])
    s.report(b, 1, [(0.6, 8e6), (0.4, 2e6)])
    s.decide(a, 1, "stop", "place 2 of 2")
    s.report(b, 2)
    s.report(b, 3, [(0.8, 8e6), (0.7, 3e6)])
    return s


def test_the_fold_knows_trials_curves_and_the_front(story: Callable[..., Any]) -> None:
    state = _told(story).state
    assert state.count() == {
        "running": 1,
        "stopped": 1,
        "finished": 0,
        "failed": 0,
        "waiting": 0,
        "paused": 0,
        "total": 2,
    }
    assert state.front() == [("t0001", 1, 1), ("t0001", 3, 1), ("t0001", 3, 0)]
    assert state.cost_epochs == 1 + 3
    assert state.trials["t0000"].reason == "place 2 of 2"
    assert [t.id for t in state.rung(1)] == ["t0000", "t0001"] and [t.id for t in state.rung(3)] == ["t0001"]
    assert state.hypervolume > 0


def test_the_hypervolume_never_falls_and_every_prefix_folds(story: Callable[..., Any]) -> None:
    from search.state.state import StudyState

    events = _told(story).events
    values = [StudyState.of(events[:n]).hypervolume for n in range(1, len(events) + 1)]
    assert values == sorted(values)


def test_folding_in_two_goes_gives_the_same_state(story: Callable[..., Any]) -> None:
    from search.state.state import StudyState

    events = _told(story).events
    for cut in range(1, len(events)):
        state = StudyState.of(events[:cut])
        for event in events[cut:]:
            state.apply(event)
        assert state.digest() == StudyState.of(events).digest()


def test_a_new_session_puts_running_trials_back_in_line(story: Callable[..., Any]) -> None:
    s = _told(story)
    before = s.state.elapsed
    s.add("session", {"host": "here", "pid": 2, "workers": 1})
    state = s.state
    assert [t.id for t in state.live] == ["t0001"] and state.trials["t0001"].state == "asked"
    assert state.elapsed == pytest.approx(before + 1, abs=1.01)


def test_what_a_dead_driver_left_running_waits(story: Callable[..., Any], tmp_path: Path) -> None:
    study = keep(_told(story), tmp_path)
    with study.driving():  # the lease is held, the events are those of a study at work
        assert study.status() == "running" and study.state().count()["running"] == 1
    assert study.status() == "interrupted"
    state = study.state()
    assert state.count() == {**_told(story).state.count(), "running": 0, "waiting": 1}
    assert state.elapsed_at(state.elapsed + 1e9) == state.elapsed
    assert "0 running, 1 waiting, 1 stopped" in summary(study.spec, state)


def test_events_out_of_order_are_refused(story: Callable[..., Any]) -> None:
    from search.state.state import StudyState

    events = _told(story).events
    with pytest.raises(AssertionError):
        StudyState.of([events[0], events[2]])


def test_checkpoints_of_two_fronts_and_of_each_methods_own_are_kept(story: Callable[..., Any]) -> None:
    from search.state.retention import kept_checkpoints

    s = story(("skipnet", "static"))
    for number, (accuracy, macs) in enumerate(((0.9, 5e6), (0.8, 6e6), (0.7, 7e6))):
        s.report(s.ask(number, "skipnet"), 9, [(accuracy, macs)])
    for number, (accuracy, macs) in enumerate(((0.6, 8e6), (0.5, 9e6), (0.55, 7e6)), 3):
        s.report(s.ask(number, "static"), 9, [(accuracy, macs)])
    kept = {f"t000{i}/epoch-0009" for i in (0, 1, 3, 5)}  # t0002 and t0004 are behind
    assert kept_checkpoints(s.state) == kept
    s.add("promotion", {"checkpoint": "t0002/epoch-0009"})
    assert kept_checkpoints(s.state) == {*kept, "t0002/epoch-0009"}


def test_time_without_a_driver_is_nobodys(story: Any) -> None:
    s = story(("static",))  # "session" is the second event, at 1001 s
    trial = s.ask(0)
    s.report(trial, 1, [(0.5, 1e6)])
    worked = s.state.elapsed
    s._time = itertools.count(2000.0)  # the driver was killed and nobody came for a while
    s.add("promoting", {"id": "p", "model": "m"})
    s.add("abandoned", {"id": "p", "why": "killed"})
    s.add("plan", {"trials": []})
    s.add("session", {"host": "here", "pid": 2, "workers": 1})
    assert s.state.elapsed == worked == 3.0
    s.report(trial, 2)
    assert s.state.elapsed == worked + 1.0 and s.state.elapsed_at(2010.0) == worked + 7.0
    assert [step.seconds for step in s.state.history] == [3.0, 4.0]
