"""The real engine, searcher and scheduler in virtual time: determinism, faults, a driver killed at every event."""

from __future__ import annotations

from typing import Any

import pytest

from search.simulate import Killed, Simulation, study_spec
from search.state import StudyState
from search.virtual import Faults
from tests.benchmarks.problems import PROFILES, Analytic

TROUBLE = Faults(crash=0.05, straggle=0.05, delay=15.0, service=0.01)


def _spec(problem: Analytic, trials: int = 14, **parts: Any) -> Any:
    sampler = {"startup": 4, **parts.pop("sampler", {})}
    return study_spec(problem, budget={"trials": trials, **parts.pop("budget", {})}, sampler=sampler, **parts)


def _run(problem: Analytic, spec: Any, **how: Any) -> Simulation:
    simulation = Simulation(problem, spec, **how)
    simulation.run()
    return simulation


@pytest.mark.parametrize("profile", PROFILES)
def test_the_same_seed_gives_the_same_study(profile: str) -> None:
    problem = Analytic(profile, 1)
    one, other = (_run(problem, _spec(problem), workers=3, faults=TROUBLE) for _ in range(2))
    assert one.engine.state.digest() == other.engine.state.digest()
    assert [e.payload for e in one.journal.events] == [e.payload for e in other.journal.events]
    assert one.engine.state.digest() != _run(problem, _spec(problem, seed=1), workers=3).engine.state.digest()


def test_crashes_stragglers_and_late_reports_lose_nothing() -> None:
    problem = Analytic("smooth", 2)
    state = _run(problem, _spec(problem, 40), workers=8, faults=TROUBLE).engine.state
    assert state.count()["total"] == 40 and not state.live and not state.failed
    assert any(trial.starts > 1 for trial in state.trials.values())  # crashes did happen
    for trial in state.trials.values():
        assert sorted(trial.losses) == list(range(1, trial.epoch + 1))
        assert trial.state == "finished" or trial.epoch in (3, 9)
    assert state.cost_epochs == sum(trial.epoch for trial in state.trials.values())


@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it was written"])
def test_a_driver_killed_at_any_event_resumes_to_a_state_that_the_journal_tells(after: bool) -> None:
    problem = Analytic("misleading", 3)
    spec = _spec(problem, 6)
    events = len(_run(problem, spec, workers=2).journal.events)
    for dies_at in range(2, events, 7):
        killed = Simulation(problem, spec, workers=2, dies_at=dies_at, after=after)
        with pytest.raises(Killed):
            killed.run()
        before = StudyState.of(killed.journal.events)
        over = {t.id: t.record() for t in before.trials.values() if t.over}
        state = killed.run()
        assert state.digest() == StudyState.of(killed.journal.events).digest()
        assert state.count()["total"] == 6 and not state.live
        assert {name: state.trials[name].record() for name in over} == over
        ends = [e.trial for e in killed.journal.events if e.kind == "decision" and e.payload["action"] != "continue"]
        assert len(ends) == len(set(ends)) == 6
        reports = [(e.trial, e.payload["epoch"]) for e in killed.journal.events if e.kind == "report"]
        assert len(reports) == len(set(reports))


def test_scores_brought_up_to_date_are_those_computed_afresh() -> None:
    from search.observations import Observations

    problem = Analytic("rugged", 4)
    simulation = Simulation(problem, _spec(problem, 30, sampler={"name": "random"}), workers=4)
    running, seen = Observations(window=5), []

    def listen(event: Any, state: StudyState) -> None:
        if event.kind == "report" and "curve" in event.payload:
            seen.append(running.scores(state) == Observations(window=5).scores(state))

    simulation.engine.listeners.append(listen)
    simulation.run()
    assert len(seen) > 30 and all(seen)


def test_epochs_and_trials_are_budgets_that_thousands_of_workers_keep() -> None:
    problem = Analytic("smooth", 5)
    spec = _spec(problem, 300, sampler={"name": "random"})
    state = _run(problem, spec, workers=2000).engine.state
    assert state.count()["total"] == 300 and max(t.epoch for t in state.trials.values()) == problem.epochs
