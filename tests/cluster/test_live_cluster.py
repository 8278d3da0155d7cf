"""Studies on a real cluster of three nodes, a sample of what may happen to them (all: check_faults.py), bad input."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.resources import Node
from cluster.survey import Seen, wrong
from search.state.state import StudyState
from search.state.trial import Trial
from tests.support.faulty import ROOT, Driven, Nodes, create, setbacks, worker_of
from tests.support.killing import faults


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A head and two nodes of one CPU."""
    found = Nodes(2)
    yield found
    found.shutdown()


def test_workers_nodes_and_the_driver_are_killed_and_nothing_is_lost_or_doubled(nodes: Nodes, tmp_path: Path) -> None:
    """One trial more leaks memory, and another one leaves a process behind."""
    ills = {"*": ("wait", 1), "t0002": ("leak", 1), "t0003": ("fork", 0)}
    study = create(tmp_path, "killed", ills, budget={"trials": 4, "epochs": 2}, resources={"memory": "700MB"})
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
    assert [trial.state for trial in state.trials.values()] == ["finished", "finished", "failed", "finished"]
    # a node's end is not counted against its trial; nor is the death just before it
    assert setbacks(state)["node"] >= 1 and setbacks(state)["died"] + setbacks(state)["node"] >= 2, setbacks(state)
    leaking = state.trials["t0002"]
    assert leaking.infeasible and "MB of a trial" in leaking.reason and setbacks(state)["memory"] == 1
    assert not Path(f"/proc/{(study.folder.path / 't0003.ill').read_text()}").exists()


def _at_work(state: StudyState) -> list[Trial]:
    return [trial for trial in state.trials.values() if trial.state == "running" and trial.epoch > 0]


# -- bad input -------------------------------------------------------------------------------------


def _connects(address: str, **environment: str | None) -> tuple[str, float]:
    """What `connect` says in a process of its own, and how long it took."""
    code = (
        "import sys\nfrom cluster.connect import connect\n"
        "try:\n    print('connected to', len(connect(sys.argv[1]).nodes()))\n"
        "except ConnectionError as error:\n    print(error)"
    )
    given = {**os.environ, **environment}
    began = time.monotonic()
    ran = subprocess.run(
        [sys.executable, "-c", code, address], cwd=ROOT, capture_output=True, text=True, timeout=300,
        env={name: value for name, value in given.items() if value is not None},
    )  # fmt: skip
    assert ran.returncode == 0 and len(ran.stdout.splitlines()) == 1 and not ran.stderr, ran.stdout + ran.stderr
    return ran.stdout.strip(), time.monotonic() - began


def test_a_cluster_that_does_not_take_us_is_said_in_one_line(nodes: Nodes, tmp_path: Path) -> None:
    address, home = nodes.address, {"HOME": str(tmp_path)}
    assert _connects(address)[0].startswith("connected to")
    said, _ = _connects(address, RAY_AUTH_TOKEN="ab" * 32)
    assert said.startswith(f"the cluster at {address!r} wants a token, and RAY_AUTH_TOKEN holds another one")
    said, _ = _connects(address, RAY_AUTH_TOKEN=None, RAY_AUTH_MODE=None, **home)
    assert said.startswith(f"the cluster at {address!r} wants a token, and there is none here: set RAY_AUTH_TOKEN")
    said, _ = _connects(address, RAY_AUTH_TOKEN=None, **home)
    assert said.startswith("RAY_AUTH_MODE is token and there is no token: set RAY_AUTH_TOKEN")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        said, _ = _connects(f"127.0.0.1:{silent.getsockname()[1]}")
    assert "what listens there does not answer as one" in said


def test_a_cluster_of_another_version_is_said_with_both(nodes: Nodes) -> None:
    code = (
        "import json, sys\nfrom ray._common.usage import usage_constants as names\nfrom ray._private import"
        " ray_constants\nfrom ray._raylet import GcsClient\nclient = GcsClient(address=sys.argv[1])\n"
        "place = ray_constants.KV_NAMESPACE_CLUSTER\n"
        "told = json.loads(client.internal_kv_get(names.CLUSTER_METADATA_KEY, namespace=place))\n"
        "told['ray_version'] = sys.argv[2] or told['ray_version']\n"
        "client.internal_kv_put(names.CLUSTER_METADATA_KEY, json.dumps(told).encode(), True, namespace=place)"
    )
    import ray

    def pretend(version: str) -> None:
        subprocess.run([sys.executable, "-c", code, nodes.address, version], check=True, timeout=300)

    pretend("2.9.3")
    try:
        said, _ = _connects(nodes.address)
    finally:
        pretend(ray.__version__)
    assert f"the cluster at {nodes.address!r} runs Ray 2.9.3 on Python" in said and "install the same here" in said


def test_a_study_that_nodes_cannot_reach_is_refused_before_its_first_trial(nodes: Nodes, tmp_path: Path) -> None:
    """`Survey` as `search.tune.run` uses it, in a process of its own; a node that has gone meanwhile hinders nobody."""
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from cluster.survey import FolderMarker, Survey\nfrom cluster.connect import connect\n"
        "from cluster.resources import Node, nodes_of\nray = connect(sys.argv[1])\n"
        "nodes = [*nodes_of(ray), Node('ab' * 28, 'gone', 1, 0)]\n"
        "for path in sys.argv[3:]:\n    try:\n"
        "        Survey(ray, nodes, FolderMarker(Path(sys.argv[2])), [path], [(path + '/../image', 3)]).settle()\n"
        "        print('well')\n    except ValueError as error:\n        print(error)"
    )
    missing, same, other = tmp_path / "no-images", tmp_path / "a" / "b", tmp_path / "c" / "d"
    folder = tmp_path / "study"
    for path in (folder, same, other):
        path.mkdir(parents=True)
    (same.parent / "image").write_text("abc")
    (other.parent / "image").write_text("abcd")
    command = [sys.executable, "-c", code, nodes.address, str(folder), str(same), str(missing), str(other)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    well, said, differs = ran.stdout.splitlines()
    assert well == "well" and f"has no images at {missing}: copy them there" in said
    assert f"has other images than this machine ({other}/../image has 4 bytes, not 3)" in differs
    assert list(folder.iterdir()) == []


def test_what_a_node_sees_and_what_is_wrong_with_it() -> None:
    place = "/mnt/studies/night"
    node = Node("ab" * 8, "gpu-7", 8, 1)
    assert wrong(node, Seen(True, "", (), 105.0), place, 100, 110) == ""
    assert "does not see the study's folder" in wrong(node, Seen(False, "", (), 105.0), place, 100, 110)
    denied = wrong(node, Seen(True, "Permission denied", (), 105.0), place, 100, 110)
    assert denied == f"node gpu-7 (abababab) cannot write the study's folder {place}: Permission denied"
    assert "the clock of node gpu-7 (abababab) is 60 s off" in wrong(node, Seen(True, "", (), 40.0), place, 100, 110)
    old = Seen(True, "", (), 105.0, device="the NVIDIA driver is too old")
    assert wrong(node, old, place, 100, 110) == "the GPUs of node gpu-7 (abababab): the NVIDIA driver is too old"
    assert "is 45 s off" in wrong(node, Seen(True, "", (), 155.0), place, 100, 110)
