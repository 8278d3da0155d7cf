from __future__ import annotations

import os
import queue
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import connect as connecting
from cluster.connect import prepare_environment
from cluster.local import start
from cluster.resources import DRAINING, Node, misfit, slots


@pytest.mark.parametrize(
    ("nodes", "cpus", "gpus", "count"),
    [
        ([(2, 0)], 1.0, 0.0, 2),
        ([(2, 0)], 0.5, 0.0, 4),
        ([(3, 0), (3, 0)], 2.0, 0.0, 2),  # a trial does not span nodes
        ([(16, 1)], 1.0, 0.25, 4),
        ([(16, 2)], 1.0, 0.4, 4),  # nor GPUs
        ([(16, 4), (1, 4)], 2.0, 1.0, 4),
        ([(64, 8)], 1.0, 2.0, 4),
    ],
)
def test_as_many_trials_as_fit(nodes: list[tuple[float, float]], cpus: float, gpus: float, count: int) -> None:
    assert slots([Node(str(i), "host", *each) for i, each in enumerate(nodes)], cpus, gpus) == count


def test_what_is_being_drained_takes_no_trials() -> None:
    nodes = [Node("a", "host", 4, 0), Node("b", "host", 4, 0, state=DRAINING)]
    assert slots(nodes, 1, 0) == 4


def test_a_trial_that_fits_nowhere_is_named() -> None:
    said = misfit([Node("a", "host", 4, 0), Node("b", "host", 2, 1)], 4.0, 1.0)
    assert said == (
        "no trial fits: one needs 4 CPU and 1 GPU on one node; the nodes have 4 CPU and 0 GPU, 2 CPU and 1 GPU"
    )


def test_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "disabled", "TUNE_GLOBAL_CHECKPOINT_S": "7"})
    prepare_environment(local=True)
    assert os.environ["RAY_AUTH_MODE"] == "disabled" and "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["TUNE_GLOBAL_CHECKPOINT_S"] == "7"


def test_a_cluster_without_a_token_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"})
    assert connecting.unguarded("head:6379") == ""
    for unguarded in ({}, {"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "secret"}):
        monkeypatch.setattr(os, "environ", unguarded)
        said = connecting.unguarded("head:6379")
        assert "cluster at head:6379 asks for no token" in said and "secret" not in said and "\n" not in said


def test_a_local_ray_gets_a_token_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = set()
    for _ in range(2):
        monkeypatch.setattr(os, "environ", {})
        prepare_environment(local=True)
        assert "RAY_AUTH_MODE" not in os.environ  # Ray turns it on for a Ray that it starts
        tokens.add(os.environ["RAY_AUTH_TOKEN"])
    assert len(tokens) == 2


def test_a_cluster_that_does_not_answer_is_said_in_one_line() -> None:
    code = (
        "from cluster.connect import connect\n"
        "try:\n    connect('127.0.0.1:9')\nexcept ConnectionError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("no Ray cluster answers at '127.0.0.1:9'"), done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == 1


def test_a_head_that_stays_away_is_said_once_and_one_that_comes_back_is_forgiven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connecting, "HEAD_SECONDS", 1.0)
    head = socket.create_server(("127.0.0.1", 0))
    port = head.getsockname()[1]

    class Ray:
        gcs_address = f"127.0.0.1:{port}"

        def get_runtime_context(self) -> Ray:
            return self

    ray, said = Ray(), queue.SimpleQueue[str]()
    with connecting.watched_head(ray, said.put, every=0.05):
        for _ in range(2):
            time.sleep(0.3)
            head.close()
            time.sleep(0.3)
            head = socket.create_server(("127.0.0.1", port))
        assert said.empty()
        head.close()
        line = said.get(timeout=300)
    assert line.startswith(f"the head of the cluster at 127.0.0.1:{port} has been away for 1 s (") and said.empty()
    with connecting.watched_head(ray, said.put, every=0.05):
        pass  # the study is over: then the head may go
    time.sleep(1.5)
    assert said.empty()


def test_the_doctor_finds_everything_working_though_ray_was_imported_first(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "search", "doctor"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "ROUTEFRONT_STUDIES": str(tmp_path), "NO_COLOR": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert {"Ray", "MLflow", "SQLite", "registry"} <= {words[1] for words in lines if words[0] == "ok"}
    assert "local cluster ran a task" in done.stdout and "Token" not in done.stderr


class _Slow:
    """Ray's module as far as starting goes, on a machine that is too busy `failures` times."""

    def __init__(self, failures: int) -> None:
        self.failures, self.said = failures, []

    def init(self, **options: object) -> None:
        self.said.append("init")
        if self.failures:
            self.failures -= 1
            raise Exception("The current node timed out during startup. This\n could happen because")

    def shutdown(self) -> None:
        self.said.append("shutdown")


def test_a_ray_that_does_not_start_in_time_is_started_again_and_then_said_in_one_line() -> None:
    slow = _Slow(1)
    start(slow, num_cpus=1)
    assert slow.said == ["init", "shutdown", "init"]
    with pytest.raises(ConnectionError, match=r"did not start on this machine, tried twice \(The current") as error:
        start(_Slow(2), num_cpus=1)
    assert "\n" not in str(error.value)
