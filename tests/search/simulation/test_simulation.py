"""The real engine, searcher and scheduler in virtual time: determinism, faults, a driver killed at every event."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from search.sampling.observations import Observations
from search.simulation.cluster import Faults
from search.simulation.simulation import Killed, Simulation, study_spec
from search.state.state import StudyState
from search.state.trial import Trial
from tests.benchmarks.search.problems import PROFILES, Analytic
from tests.support.simulated import ALL, Ill, wrong

TROUBLE = Faults(crash=0.05, straggle=0.05, delay=15.0, service=0.01)


def _spec(problem: Analytic, trials: int = 14, **parts: Any) -> Any:
    sampler = {"startup": 4, **parts.pop("sampler", {})}
    return study_spec(problem, budget={"trials": trials, **parts.pop("budget", {})}, sampler=sampler, **parts)


PATIENT = {"rungs": {"epochs": [1, 3, 9], "pause": True, "brackets": 2, "window": 12}}


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
    state = _run(problem, _spec(problem, 40, resources={"retries": 50}), workers=8, faults=TROUBLE).engine.state
    assert state.count()["total"] == 40 and not state.live and not state.failed
    assert any(trial.starts > 1 for trial in state.trials.values())  # crashes did happen
    for trial in state.trials.values():
        assert sorted(trial.losses) == list(range(1, trial.epoch + 1))
        assert trial.state == "finished" or trial.epoch in (3, 9)
    assert state.cost_epochs == sum(trial.epoch for trial in state.trials.values())


@pytest.mark.parametrize("rungs", [{}, PATIENT], ids=["stopping", "pausing in brackets"])
@pytest.mark.parametrize("after", [False, True], ids=["before it is written", "after it was written"])
def test_a_driver_killed_at_any_event_resumes_to_a_state_that_the_journal_tells(
    after: bool, rungs: dict[str, Any]
) -> None:
    problem = Analytic("misleading", 3)
    spec = _spec(problem, 6, **rungs)
    events = len(_run(problem, spec, workers=2).journal.events)
    for dies_at in range(2, events, 7):
        killed = Simulation(problem, spec, workers=2, dies_at=dies_at, after=after)
        with pytest.raises(Killed):
            killed.run()
        before = StudyState.of(killed.journal.events)
        over = {t.id: t.record() for t in before.trials.values() if t.over}
        state = killed.run()
        assert state.digest() == StudyState.of(killed.journal.events).digest()
        assert killed.engine.digest() == killed.again().digest()
        assert state.count()["total"] == 6 and not state.live
        assert {name: state.trials[name].record() for name in over} == over
        decided = [e for e in killed.journal.events if e.kind == "decision"]
        ends = [e.trial for e in decided if e.payload["action"] in ("stop", "finish")]
        assert len(ends) == len(set(ends)) == 6
        reports = [(e.trial, e.payload["epoch"]) for e in killed.journal.events if e.kind == "report"]
        assert len(reports) == len(set(reports))


def test_scores_brought_up_to_date_are_those_computed_afresh() -> None:
    problem = Analytic("rugged", 4)
    simulation = Simulation(problem, _spec(problem, 30, sampler={"name": "random"}), workers=4)
    running, seen = Observations(window=5), []

    def listen(event: Any, state: StudyState) -> None:
        if event.kind == "report" and "curve" in event.payload:
            seen.append(running.scores(state) == Observations(window=5).scores(state))

    simulation.engine.listeners.append(listen)
    simulation.run()
    assert len(seen) > 30 and all(seen)


def test_every_kind_of_fault_at_once_loses_and_doubles_nothing() -> None:
    problem = Analytic("smooth", 2)
    spec = _spec(problem, 120, sampler={"name": "random"}, resources={"retries": 3}, **PATIENT)
    often = replace(ALL, crash=0.02, hang=0.01, patience=100.0, lives=400.0, repair=60.0, delay=10.0)
    study = Ill(problem, spec, workers=20, faults=often, share=0.1)
    state = study.endure(4)
    assert wrong(study) == []
    seen = {each["kind"] for trial in state.trials.values() for each in trial.setbacks}
    assert seen == {"died", "silent", "node", "memory"} and set(study.met) == {"raises", "diverges", "memory", "driver"}


def test_workers_that_fail_wait_or_repeat_are_counted_as_wasted() -> None:
    problem = Analytic("smooth", 2)
    spec = _spec(problem, 60, sampler={"name": "random"})
    idle = _run(problem, spec, workers=4).cluster
    slow = _run(problem, spec, workers=4, faults=Faults(service=2.0)).cluster
    failing = _run(problem, spec, workers=4, faults=Faults(node=2, lives=100.0, repair=50.0)).cluster
    assert idle and slow and failing
    for cluster in (idle, slow, failing):
        now, wasted, held, driver = cluster.at_last_start
        assert -1e-6 < wasted < held <= cluster.held <= 4 * cluster.now + 1e-6 and driver <= now
    assert abs(idle.at_last_start[1]) < 1e-6 and idle.held == pytest.approx(4 * idle.now)
    assert failing.wasted > idle.wasted and failing.held < 4 * failing.now
    assert slow.at_last_start[1] > slow.driver * 0.9  # a worker waits whenever the driver is at work for it


def test_epochs_and_trials_are_budgets_that_thousands_of_workers_keep() -> None:
    problem = Analytic("smooth", 5)
    spec = _spec(problem, 300, sampler={"name": "random"})
    state = _run(problem, spec, workers=2000).engine.state
    assert state.count()["total"] == 300 and max(t.epoch for t in state.trials.values()) == problem.epochs


def test_paused_trials_go_on_when_they_are_among_the_best_and_end_with_the_study() -> None:
    problem = Analytic("misleading", 6)
    spec = _spec(problem, 60, resources={"retries": 50}, **PATIENT)
    simulation = _run(problem, spec, workers=4, faults=TROUBLE)
    state = simulation.engine.state
    assert state.count()["total"] == 60 and not state.live and not state.paused
    actions = [(e.payload["action"], e.trial) for e in simulation.journal.events if e.kind == "decision"]
    promoted = {trial for action, trial in actions if action == "promote"}
    assert promoted and promoted <= {trial for action, trial in actions if action == "pause"}
    assert {trial.bracket for trial in state.trials.values()} == {0, 1}
    for trial in state.trials.values():
        assert 1 not in trial.decided or trial.bracket == 0  # the second bracket passes the first rung unseen
        assert sorted(trial.losses) == list(range(1, trial.epoch + 1))
        assert trial.state == "finished" or trial.reason == "never among the best of its rung"


@pytest.mark.parametrize("ahead", [0, 1])
def test_trials_whose_like_did_well_go_on_also_behind_a_killed_driver(ahead: int) -> None:
    problem = Analytic("smooth", 4)
    spec = _spec(problem, 60, sampler={"ahead": ahead}, rungs={"epochs": [1, 3, 9], "pause": True})
    whole = _run(problem, spec, workers=1)

    def gone_on(simulation: Simulation) -> list[tuple[str | None, str]]:
        decided = [event for event in simulation.journal.events if event.kind == "decision"]
        return [(event.trial, event.payload["why"]) for event in decided if event.payload["action"] == "promote"]

    by_model = [trial for trial, why in gone_on(whole) if why.startswith("trials like it did well: ")]
    assert by_model and all(whole.engine.state.trials[str(trial)].epoch > 1 for trial in by_model)
    killed = Simulation(problem, spec, workers=1, dies_at=len(whole.journal.events) - 60)
    with pytest.raises(Killed):
        killed.run()
    killed.run()
    assert gone_on(killed) == gone_on(whole)
    assert [t.config for t in killed.engine.state.trials.values()] == [
        t.config for t in whole.engine.state.trials.values()
    ]


def _last(trial: Trial) -> list[dict[str, Any]]:
    return trial.curves[max(trial.curves)]


def test_what_misses_a_constraint_is_on_no_front_and_the_search_is_led_to_what_meets_it() -> None:
    problem = Analytic("smooth", 7)
    asked = {"min_accuracy": 0.8, "max_macs": "8M"}

    def meets(point: dict[str, Any]) -> bool:
        return point["accuracy"] >= 0.8 and point["macs"] <= 8e6

    free = _run(problem, _spec(problem, 60), workers=4).engine.state
    bound = _run(problem, _spec(problem, 60, constraints=asked), workers=4).engine.state
    found = [sum(any(map(meets, _last(t))) for t in list(state.trials.values())[20:]) for state in (free, bound)]
    assert found[1] > found[0]
    front = [bound.trials[name].curves[epoch][index] for name, epoch, index in bound.front()]
    assert front and all(map(meets, front))
    assert any(point["macs"] > 8e6 for trial in bound.trials.values() for point in _last(trial))
    scores = Observations().scores(bound)
    whole = [bound.trials[name] for name in scores if bound.trials[name].epoch == problem.epochs]
    missed = {trial.id: trial.missed[problem.epochs] for trial in whole}
    assert min(missed.values()) == 0 < max(missed.values())
    assert all(scores[a] > scores[b] for a in missed for b in missed if missed[a] < missed[b])


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_a_killed_study_goes_on_with_the_proposals_that_it_would_have_made(ahead: int) -> None:
    problem = Analytic("rugged", 8)
    spec = _spec(problem, 12, sampler={"ahead": ahead})
    whole = _run(problem, spec, workers=1)
    asks = [event for event in whole.journal.events if event.kind == "ask"]
    for ask in asks[ahead:]:
        n = ask.payload["number"]
        behind = ask.payload["seen"]
        assert behind == (ask.seq - 1 if not ahead else asks[n - ahead].seq)
    for dies_at in range(20, len(whole.journal.events), 37):
        killed = Simulation(problem, spec, workers=1, dies_at=dies_at)
        with pytest.raises(Killed):
            killed.run()
        state = killed.run()
        assert [t.config for t in state.trials.values()] == [a.payload["config"] for a in asks]


def test_planned_trials_run_first_in_full_and_beside_the_budget() -> None:
    problem = Analytic("smooth", 9)
    simulation = Simulation(problem, _spec(problem, 8, sampler={"name": "random"}), workers=2)
    config = {"method": "ash", "lr": 0.1, "size": 8, "variant": "plain", "temperature": 1.0}
    plan = [{"config": config, "seed": seed, "why": "again", "repeats": "t0000"} for seed in (5, 6)]
    simulation.engine.record("plan", {"trials": plan})
    state = simulation.run()
    assert state.count()["total"] == 10 and state.proposed == 8 and not state.planned
    again = [trial for trial in state.trials.values() if trial.repeats]
    assert [t.id for t in again] == ["t0000", "t0001"] and all(t.state == "finished" for t in again)
    assert all(not trial.repeats for epoch in state.rung_epochs() for trial in state.rung(epoch))
