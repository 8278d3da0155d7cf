"""The Slurm script, really run: stand-ins for Slurm's commands start a real Ray head and real workers on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster import nodes
from cluster.manifests import slurm
from tests.support.described import STUDY, VERSIONS, described

STAND_IN = Path(__file__).parent / "slurm_stand_in"
ROOT = Path(__file__).resolve().parents[3]

Start = Callable[..., "Job"]


class Job:
    """A batch script that runs as Slurm would start it on the first node."""

    def __init__(self, folder: Path, count: int, environment: dict[str, str]) -> None:
        self.notes, self.number = folder / "notes", os.getpid() * 10 + count
        self.temp = Path(f"/tmp/ray-{self.number}")
        self.storage = folder / "shared"
        (folder / "venv" / "bin").mkdir(parents=True)
        self.notes.mkdir()
        (folder / "venv" / "bin" / "activate").write_text(
            f'export PATH="${{FIRST:+$FIRST:}}{STAND_IN}:{Path(sys.executable).parent}:$PATH"\n'
        )
        (folder / "secrets.env").write_text("PGPASSWORD='of the driver'\n")
        description = described(
            storage__path=str(self.storage),
            tracking={"address": "off"},
            slurm={
                "nodes": count, "cpus": 1, "memory": "2Gi", "gpus": 1, "port": 20000 + os.getpid() % 10000,
                "venv": str(folder / "venv"), "environment": str(folder / "secrets.env"),
            },
        )  # fmt: skip
        script = folder / "slurm.sh"
        script.write_text(slurm.render(description, STUDY, VERSIONS))
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.process = subprocess.Popen(
            ["bash", str(script)],
            stdout=(folder / "log").open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **kept,
                "PYTHONPATH": str(ROOT),
                "NOTES": str(self.notes),
                "SLURM_JOB_ID": str(self.number),
                "SLURM_JOB_NODELIST": ",".join(["localhost"] * count),
                **environment,
            },
        )
        self._log = folder / "log"

    @property
    def log(self) -> str:
        return self._log.read_text()

    def steps(self) -> str:
        path = self.notes / "steps"
        return path.read_text() if path.exists() else ""

    def found(self) -> dict[str, Any]:
        return json.loads((self.notes / "found.json").read_text())

    def left(self) -> dict[int, str]:
        """Processes that this job started and that still run: of its session, or with its folder among their words."""
        found = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                ours = os.getsid(int(entry.name)) == self.process.pid or str(self.temp) in words
            except (OSError, ProcessLookupError):
                continue
            if ours and words:  # a zombie has no words
                found[int(entry.name)] = words
        return found


@pytest.fixture
def start(tmp_path: Path) -> Any:
    jobs: list[Job] = []

    def begin(count: int, **environment: str) -> Job:
        jobs.append(Job(tmp_path, count, environment))
        return jobs[-1]

    yield begin
    for job in jobs:
        for number in job.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        shutil.rmtree(job.temp, ignore_errors=True)


def _gone(job: Job) -> bool:
    end = time.monotonic() + 120
    while job.left() and time.monotonic() < end:
        time.sleep(0.2)
    return not job.left()


def test_a_head_and_a_worker_run_the_study_and_before_the_time_is_over_it_stops_and_queues_again(start: Start) -> None:
    job = start(2, LONG="yes")
    end = time.monotonic() + 300
    while not (job.notes / "found.json").exists() and time.monotonic() < end:
        assert job.process.poll() is None, job.log
        time.sleep(0.2)
    found = job.found()
    assert found["nodes"] == 2 and found["cpus"] == 2.0 and found["gpus"] == 2, job.log
    assert found["study"] == STUDY.text and found["task"] == f"{job.storage}/data"
    assert found["mode"] == "token" and found["token"] == "0o600" and found["password"] == "of the driver"
    command, study, *rest = found["words"]
    assert command == "search" and study == f"{job.storage}/slurm/{job.number}/study.toml"
    assert rest[0] == "--address" and rest[2:] == ["--studies", f"{job.storage}/studies", "--tracking", "off"]
    assert "2 of 2 nodes have joined" in job.log

    os.kill(job.process.pid, signal.SIGUSR1)  # as Slurm does: to the batch shell alone
    assert job.process.wait(300) == 0, job.log
    assert (job.notes / "stop").read_text() == "SIGTERM"  # once: a second one would end the search at once
    assert job.steps().splitlines()[-1] == f"requeue {job.number}" and "queues again" in job.log
    assert _gone(job), job.left()
    assert not job.temp.exists() and not list((job.storage / "slurm").iterdir()) and "of the driver" not in job.log


def test_a_failed_study_is_the_jobs_failure_and_still_leaves_no_process(start: Start, tmp_path: Path) -> None:
    """Without Ray: its head only says that it has started, and one of two nodes does not come."""
    fake = tmp_path / "fake"
    fake.mkdir()
    scripts = {
        "ray": 'echo "Ray runtime started."; exec sleep 600',
        "python": f'[[ "$*" == "-m cluster.nodes wait "* ]] && exit 3; exec {sys.executable} "$@"',
        "routefront": "exit 7",
    }
    for name, line in scripts.items():
        (fake / name).write_text(f"#!/usr/bin/env bash\n{line}\n")
        (fake / name).chmod(0o755)
    job = start(2, FIRST=str(fake))
    assert job.process.wait(60) == 7, job.log
    assert "the search ended with code 7" in job.log and "requeue" not in job.steps()
    assert f"failed with code 7; Ray's logs are in {job.temp}" in job.log
    assert _gone(job) and not list((job.storage / "slurm").iterdir())


def test_a_head_that_does_not_start_is_said(start: Start) -> None:
    job = start(2, BROKEN="ray start")
    assert job.process.wait(60) == 1
    assert "no such node" in job.log and "the head did not start" in job.log
    assert not (job.notes / "found.json").exists() and _gone(job)


def test_outside_of_a_job_it_says_how_to_start_it(start: Start) -> None:
    job = start(1, SLURM_JOB_ID="")
    assert job.process.wait(30) != 0 and "submit this file with sbatch" in job.log
    assert not job.storage.exists() and not job.steps()


def test_an_address_that_other_nodes_reach(capfd: pytest.CaptureFixture[str]) -> None:
    assert nodes.main(["here", "localhost"]) == 0
    found = capfd.readouterr().out.strip()
    assert socket.inet_aton(found) and not found.startswith("127.")
    assert nodes.main(["here", "no-such-node.invalid"]) == 1
    command = [sys.executable, "-m", "cluster.nodes", "wait", "127.0.0.1:9", "2", "--within", "0"]
    assert subprocess.run(command, cwd=ROOT, timeout=300, check=False).returncode == 1  # this process may have a Ray
    out, err = capfd.readouterr()
    assert not out and [line[:6] for line in err.splitlines()] == ["error:", "error:"]
