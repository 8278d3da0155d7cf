"""A sample of what may happen to a study on a real cluster of three nodes; all of it: check_faults.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.state import StudyState
from search.trial import Trial
from tests.cluster.faulty import Driven, Nodes, create, setbacks, worker_of
from tests.search.killing import faults


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two nodes of one CPU."""
    found = Nodes(2)
    yield found
    found.shutdown()


@pytest.mark.timeout(300)
def test_workers_nodes_and_the_driver_are_killed_and_nothing_is_lost_or_doubled(nodes: Nodes, tmp_path: Path) -> None:
    study = create(tmp_path, "killed", {"*": ("wait", 1)}, budget={"trials": 3, "epochs": 3})
    driven = Driven(tmp_path, "killed", nodes.address)
    driven.until(lambda state: len(_at_work(state)) == 2)
    pid = worker_of(study)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    state = driven.until(lambda state: setbacks(state)["died"] and len(_at_work(state)) == 2)
    (victim,) = (node for node in nodes.nodes if node.node_id == _at_work(state)[0].node)
    nodes.kill(victim)
    driven.until(lambda state: setbacks(state)["node"] and len(state.nodes) == 2 and state.workers == 1)
    joined = nodes.add()
    driven.until(lambda state: any(trial.node == joined.node_id for trial in _at_work(state)))
    driven.kill()
    (study.folder.path / "go").touch()
    code, digest = Driven(tmp_path, "killed", nodes.address).wait()
    state = study.state()
    assert code == 0 and faults(study, digest) == []
    assert state.count()["finished"] == 3
    # a node's end is not counted against its trial
    assert setbacks(state)["died"] == 1 and setbacks(state)["node"] >= 1, setbacks(state)


def _at_work(state: StudyState) -> list[Trial]:
    return [trial for trial in state.trials.values() if trial.state == "running" and trial.epoch > 0]


@pytest.mark.timeout(300)
def test_trials_that_raise_hang_leak_diverge_or_leave_children_harm_no_other(nodes: Nodes, tmp_path: Path) -> None:
    ills = {
        "t0000": ("raise", 1),
        "t0001": ("hang", 1),
        "t0002": ("leak", 1),
        "t0003": ("nan", 1),
        "t0004": ("fork", 0),
    }
    study = create(
        tmp_path, "ill", ills, budget={"trials": 6, "epochs": 2}, resources={"memory": "700MB", "patience": "10s"}
    )
    code, digest = Driven(tmp_path, "ill", nodes.address).wait()
    state = study.state()
    assert code == 0 and faults(study, digest) == []
    trials = state.trials
    assert trials["t0000"].reason == "ArithmeticError: this trial never works" and not trials["t0000"].setbacks
    assert [each["kind"] for each in trials["t0001"].setbacks] == ["silent"] and trials["t0001"].state == "finished"
    assert trials["t0002"].infeasible and "MB of a trial" in trials["t0002"].reason
    assert [each["kind"] for each in trials["t0002"].setbacks] == ["memory"]
    assert "became nan" in trials["t0003"].reason
    assert trials["t0004"].state == trials["t0005"].state == "finished"
    child = int((study.folder.path / "t0004.ill").read_text())
    assert not Path(f"/proc/{child}").exists()
