"""What a running study looks like from outside, and what becomes of trials that lose their workers."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from search.engine.engine import Engine
from search.engine.whole_nodes import Alone
from search.journal.events import Event
from search.report.study.section import cluster_section
from search.rungs.decisions import limit_of
from search.sampling.proposals import papers_of
from search.spec.study import StudySpec
from search.status.cluster import cluster_record, facts

NODES = [
    {"id": "aa" * 8, "host": "one", "cpus": 4.0, "gpus": 0.0, "memory": 0.0, "state": "alive"},
    {"id": "bb" * 8, "host": "<two>", "cpus": 2.0, "gpus": 0.0, "memory": 0.0, "state": "draining"},
]


class _Events:
    def __init__(self) -> None:
        self.events: list[Event] = []

    def append(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> Event:
        self.events.append(Event(len(self.events) + 1, 1000.0 + len(self.events), kind, trial, payload))
        return self.events[-1]


@pytest.fixture
def engine(story: type) -> Any:
    """An engine of a study of three trials on two workers, retries 1, with the story's beginning."""
    told = story(("static",))
    spec = StudySpec.parse(
        {
            "name": "story",
            "budget": {"trials": 3, "epochs": 9, "cost": 0.01},
            "rungs": {"enabled": False},
            "resources": {"workers": 2, "retries": 1, "price": 2.0},
            "stages": {"enabled": False},
            "methods": {"static": {"network": "resnet-8"}},
        }
    )
    spaces = spec.spaces()
    made = Engine("seen", spec, _Events(), 2, spaces=spaces, papers=papers_of(spaces), clock=lambda: 1000.0)
    for event in told.events:
        made.record(event.kind, event.payload, event.trial)
    yield made
    made.close()


def _report(epoch: int, seconds: float = 3.0) -> dict[str, Any]:
    known = {"phase": "train", "comparable": True, "losses": {}}
    return {**known, "epoch": epoch, "cost_epochs": float(epoch), "seconds": seconds}


def test_a_trial_that_ran_out_of_memory_goes_on_when_nothing_else_runs(engine: Engine) -> None:
    first, second = engine.ask(), engine.ask()
    assert first is not None and second is not None
    engine.started(first.id, "aa" * 8)
    assert engine.report(first.id, {"error": "OutOfMemoryError: CUDA", "memory": True}) == "stop"
    assert first.state == "asked" and first.alone and not engine.holds(first.id, 1)
    third = engine.ask()
    assert third is not None and third.id == "t0002"
    for trial in (second, third):
        engine.started(trial.id, "aa" * 8)
        assert engine.ask() is None  # it waits for the others
        engine.report(trial.id, _report(9))
    assert engine.ask() is first and engine.holds(first.id, 2) and not engine.exhausted
    assert engine.ask() is None  # and others wait for it
    assert not engine.setback(first.id, "memory", "9 GB")
    assert first.infeasible and first.reason == "out of memory although nothing else ran: 9 GB" and engine.exhausted


def test_trials_that_ran_out_of_memory_get_a_node_each(engine: Engine) -> None:
    engine.workers = 4
    engine.alone.fit([2, 2, 1], 5)
    trials = [engine.ask() for _ in range(3)]
    assert engine.ask() is None
    for trial in trials:
        assert trial is not None
        engine.started(trial.id, "aa" * 8)
        engine.report(trial.id, {"error": "OutOfMemoryError: CUDA", "memory": True})
    assert [engine.ask(), engine.ask(), engine.ask()] == [trials[0], trials[1], None]
    given = [engine.alone.give(trial.id) for trial in trials[:2] if trial]
    assert given == [2, 2] and not engine.alone.homeless(engine.state.trials)
    engine.alone.fit([1], 1)  # the nodes that they wait for are gone
    assert engine.alone.homeless(engine.state.trials) == ["t0000", "t0001"]
    engine.take_back("t0000")
    engine.report("t0001", _report(9))
    assert engine.alone.homeless(engine.state.trials) == [] and engine.ask() is trials[0]
    assert engine.alone.give("t0000") == 1 and engine.ask() is None


@pytest.mark.parametrize(
    ("rooms", "workers", "single", "whole"),
    [
        ([4, 4, 4], 12, 3, 4),
        ([8, 4, 4], 16, 1, 8),
        ([4, 4], 3, 1, 3),  # the study takes a part of them only
        ([64], 2, 1, 2),
        ([1, 1], 8, 2, 1),  # an autoscaler will bring more
        ([], 0, 1, 1),
    ],
)
def test_how_much_of_how_many_nodes(rooms: list[int], workers: int, single: int, whole: int) -> None:
    alone = Alone()
    alone.fit(rooms, workers)
    assert (alone.single, alone.whole) == (single, whole)


def test_what_is_not_a_trials_fault_is_not_counted(engine: Engine) -> None:
    trial = engine.ask()
    assert trial is not None
    engine.started(trial.id, "aa" * 8)
    assert all(engine.setback(trial.id, kind, "gone") for kind in ("node", "drained", "leak", "died"))
    assert not engine.setback(trial.id, "silent", "no report for 1h")
    assert trial.state == "failed" and trial.reason == "its worker died too often: no report for 1h"


def test_a_death_that_a_nodes_end_explains_is_not_counted(engine: Engine) -> None:
    trial = engine.ask()
    assert trial is not None
    engine.record("nodes", {"nodes": NODES, "workers": 4})
    engine.started(trial.id, "bb" * 8)
    engine.setback(trial.id, "died", "connection lost")
    engine.record("nodes", {"nodes": NODES[:1], "workers": 4})
    assert [each["kind"] for each in trial.setbacks] == ["node"]
    assert engine.setback(trial.id, "died", "again")  # one retry is left


def test_a_full_disk_stops_the_study_and_loses_no_trial(engine: Engine) -> None:
    trial = engine.ask()
    assert trial is not None
    engine.started(trial.id)
    assert engine.report(trial.id, {"error": "OSError: No space left on device", "full": True}) == "stop"
    assert engine.stopping == "full" and trial.state == "running" and engine.ask() is None


def test_the_cost_of_a_study_is_kept(engine: Engine) -> None:
    trial = engine.ask()
    assert trial is not None
    engine.started(trial.id)
    assert engine.report(trial.id, _report(1, 17.0)) == "continue"  # 17 s of a CPU at 2 an hour
    assert limit_of(engine.spec, engine.state, 0.0) == "" and engine.limit == ""
    assert engine.report(trial.id, _report(2, 2.0)) == "stop"
    assert trial.reason == "the study's cost was over at epoch 2" and engine.exhausted


def test_nodes_stragglers_setbacks_and_cost_are_seen(engine: Engine) -> None:
    engine.record("nodes", {"nodes": NODES, "workers": 4})
    first, second = engine.ask(), engine.ask()
    assert first is not None and second is not None
    engine.started(first.id, "aa" * 8)
    engine.report(first.id, _report(1))
    engine.started(second.id, "bb" * 8)
    engine.setback(second.id, "drained", "its node leaves")
    now = engine.state.trials[first.id].heard + 100
    found = cluster_record(engine.spec, engine.state, now)
    assert [(node["host"], node["holds"], node["trials"]) for node in found["nodes"]] == [
        ("one", 4, [first.id]),
        ("<two>", 2, []),
    ]
    assert (found["running"], found["waiting"], found["workers"]) == (1, 1, 4)
    (slow,) = found["stragglers"]
    assert slow["trial"] == first.id and slow["silent"] == pytest.approx(100) and slow["usual"] == pytest.approx(3)
    assert found["setbacks"]["counts"] == {"drained": 1}
    assert found["cost"]["spent"] == pytest.approx(3 / 3600 * 2) and found["cost"]["budget"] == 0.01
    said = facts(found)
    assert said["cost"] == "0.00167 of 0.01 CPU-hours x 2" and said["workers"] == "1 of 4 busy, 1 trial waits"
    page = cluster_section(found)
    assert "&lt;two&gt;" in page and "<two>" not in page and "its node leaves" in page


def test_a_full_disk_is_said_with_how_to_go_on() -> None:
    from search.__main__ import said

    full = OSError(28, "No space left on device")
    assert said(full).startswith("[Errno 28] No space left on device: free some space; `routefront resume STUDY`")
    database = OperationalError("insert", {}, Exception("database or disk is full"))
    assert said(database).startswith("database or disk is full: free some space")
