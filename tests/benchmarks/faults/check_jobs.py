"""Studies that a real cluster drives by Ray Jobs: a real head with its dashboard, guarded by a token.

Two minutes, and not in the suite: ``python -m pytest tests/benchmarks/faults/check_jobs.py``.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.spec.toml import to_toml

PROGRAMS = Path(sys.executable).parent
STUDY = {
    "name": "night",
    "data": {"name": "digits", "image_size": 8, "limit": 96},
    "budget": {"trials": 2, "epochs": 1},
    "rungs": {"enabled": False},
    "resources": {"workers": 2},
    "diagnostics": False,
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 64}},
}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the dashboard of a cluster of one node with two CPUs."""
    port, folder = free_port(), tmp_path_factory.mktemp("head")
    options = {
        "--port": free_port(),
        "--dashboard-port": port,
        "--num-cpus": 2,
        "--ray-client-server-port": free_port(),
    }
    words = [str(PROGRAMS / "ray"), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"]
    words += [f"{key}={value}" for key, value in options.items()]
    environment = {**os.environ, "PATH": f"{PROGRAMS}:{os.environ['PATH']}"}
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(words, env=environment, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    address, limit = f"http://127.0.0.1:{port}", time.monotonic() + 120
    while not answers(address):
        assert process.poll() is None and time.monotonic() < limit, (folder / "log").read_text()
        time.sleep(0.2)
    yield address
    process.send_signal(signal.SIGTERM)  # it drains the node and ends what it started
    try:
        process.wait(30)
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def answers(address: str) -> bool:
    request = urllib.request.Request(f"{address}/api/version")
    request.add_header("Authorization", f"Bearer {os.environ['RAY_AUTH_TOKEN']}")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{error.code} {error.reason}") from None
    except OSError:
        return False


def routefront(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAMS / "routefront"), *words]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=250)


def study_file(folder: Path, **changes: object) -> Path:
    path = folder / "study.toml"
    path.write_text(to_toml({**STUDY, **changes}))
    return path


@pytest.mark.timeout(400)
def test_a_submitted_study_is_driven_by_the_cluster(head: str, tmp_path: Path) -> None:
    file, studies = study_file(tmp_path), str(tmp_path / "studies")
    done = routefront("cluster", "submit", str(file), "--address", head, "--studies", studies, "--wait")
    assert done.returncode == 0, done.stderr
    assert "night" in done.stdout
    status = json.loads(routefront("status", "night", "--studies", studies, "--json").stdout)
    assert status["trials"]["finished"] == 2
    listed = json.loads(routefront("cluster", "jobs", "--address", head, "--json").stdout)
    assert [(job["name"], job["status"]) for job in listed] == [("night", "SUCCEEDED")]
    again = routefront("cluster", "logs", listed[0]["id"], "--address", head)
    assert again.returncode == 0 and again.stdout == done.stdout


@pytest.mark.timeout(400)
def test_a_job_outlives_its_client_is_cancelled_and_a_new_one_goes_on(head: str, tmp_path: Path) -> None:
    studies = str(tmp_path / "studies")
    file = study_file(tmp_path, name="long", budget={"trials": 3, "epochs": 400})
    words = ("cluster", "submit", str(file), "--address", head, "--studies", studies, "--json")
    job = json.loads(routefront(*words).stdout)["job"]
    limit = time.monotonic() + 150
    while not (Path(studies) / "long" / "control.db").exists():
        assert time.monotonic() < limit, routefront("cluster", "jobs", "--address", head).stdout
        time.sleep(0.5)
    cancelled = routefront("cluster", "cancel", job, "--address", head)
    assert cancelled.returncode == 0 and "was ended: stopped" in cancelled.stdout
    assert "had ended already" in routefront("cluster", "cancel", job, "--address", head).stdout
    again = routefront("cluster", "logs", job, "--address", head)
    assert again.returncode == 1 and f"job {job} stopped" in again.stderr.strip().splitlines()[-1]
    assert json.loads(routefront("status", "long", "--studies", studies, "--json").stdout)["study"] == "long"


def test_bad_input_is_one_line_within_seconds(head: str, tmp_path: Path) -> None:
    file, dead = study_file(tmp_path), f"http://127.0.0.1:{free_port()}"
    for words, environment, says in (
        ((head.removeprefix("http://"),), {}, "is no address for jobs; give the dashboard's"),
        ((dead,), {}, f"no Ray dashboard answers at {dead!r} (Connection refused)"),
        ((head,), {"RAY_AUTH_TOKEN": "0" * 64}, "refuses"),
        ((head, "--studies", "here"), {}, "--studies 'here' must be a whole path on the cluster"),
    ):
        started = time.monotonic()
        options = ("--studies", "/mnt/studies") if "--studies" not in words else ()
        done = routefront("cluster", "submit", str(file), *options, "--address", *words, **environment)
        assert done.returncode == 2 and done.stdout == "", done.stderr
        assert len(done.stderr.strip().splitlines()) == 1 and says in done.stderr, done.stderr
        assert time.monotonic() - started < 60
    done = routefront("cluster", "logs", "nobody-1", "--address", head)
    assert done.returncode == 2 and "no job 'nobody-1'" in done.stderr
