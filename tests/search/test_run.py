"""Whole studies on a real Ray: to the end, twice the same, through dead workers and dead drivers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import points
from search.errors import InputError
from search.spec import StudySpec
from search.study import Study, load_data
from search.toml import to_toml

pytestmark = pytest.mark.usefixtures("ray_address")


def _spec(name: str, **changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": name,
        "data": {"name": "digits", "image_size": 16, "limit": 200},
        "budget": {"trials": 5, "epochs": 3},
        "rungs": {"epochs": [1], "grace": 0},
        "sampler": {"startup": 2},
        "resources": {"workers": 2},
        "methods": {
            "static": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
            "skipnet": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
        },
    }
    return StudySpec.parse({**values, **changes})


def _listening(listener: Callable[[Any, Any, Any], None]) -> Any:
    """A watcher that hears every event: listener(driver, event, state)."""

    @contextlib.contextmanager
    def watch(driver: Any) -> Iterator[None]:
        driver.listeners.append(lambda event, state: listener(driver, event, state))
        yield

    return watch


def _launch(study: Study, address: str, listener: Callable[..., None] | None = None) -> str:
    return study.launch(address=address, watch=_listening(listener) if listener else None, tracking="off")


def _events(study: Study) -> list[Any]:
    journal = study.journal()
    try:
        return list(journal.events())
    finally:
        journal.close()


def _over(study: Study) -> Counter[str | None]:
    """How often each trial came to an end."""
    return Counter(
        e.trial
        for e in _events(study)
        if e.kind == "failed" or (e.kind == "decision" and e.payload["action"] in ("stop", "finish"))
    )


def test_a_study_runs_to_its_end(ray_address: str, tmp_path: Path) -> None:
    study = Study.create(_spec("whole"), root=tmp_path)
    assert _launch(study, ray_address) == "finished"
    state = study.state()
    counts = state.count()
    assert counts["total"] == 5 and counts["failed"] == 0
    assert counts["finished"] + counts["stopped"] == 5 and counts["finished"] >= 1
    assert study.status() == "finished"
    for trial in state.trials.values():
        expected = 9 if trial.method == "skipnet" else 1
        assert all(len(curve) >= expected for curve in trial.curves.values())
    told = sum(len(c) for t in state.trials.values() for c in t.curves.values())
    table = points.read(study.folder.points)
    assert table.num_rows == told and set(table.column("split").to_pylist()) == {"validation"}
    front = study.frontier()
    assert front and all((study.folder.checkpoints / point.checkpoint / "state.json").exists() for point in front)
    kept = {f"{p.parent.name}/{p.name}" for p in study.folder.checkpoints.glob("*/epoch-*")}
    from search.driver import kept_checkpoints

    assert kept == kept_checkpoints(state)
    assert _launch(Study.load("whole", root=tmp_path), ray_address) == "finished"  # nothing is run again
    assert study.state().count() == counts


def test_the_same_seed_with_one_worker_gives_the_same_trials(ray_address: str, tmp_path: Path) -> None:
    told = []
    for folder in ("a", "b"):
        study = Study.create(_spec("twice", resources={"workers": 1}), root=tmp_path / folder)
        _launch(study, ray_address)
        told.append([(t.id, t.config, t.curves, t.state, t.reason) for t in study.state().trials.values()])
    assert told[0] == told[1]
    other = Study.create(_spec("twice", seed=1, resources={"workers": 1}), root=tmp_path / "c")
    _launch(other, ray_address)
    assert [t.config for t in other.state().trials.values()] != [t[1] for t in told[0]]


def test_a_worker_killed_loses_nothing(ray_address: str, tmp_path: Path) -> None:
    study = Study.create(_spec("worker", rungs={"enabled": False}), root=tmp_path)
    killed: list[int] = []

    def kill(driver: Any, event: Any, state: Any) -> None:
        if event.kind == "report" and event.payload["epoch"] == 1 and len(killed) < 2:
            killed.append(event.payload["worker"])
            os.kill(event.payload["worker"], signal.SIGKILL)

    assert _launch(study, ray_address, kill) == "finished"
    state = study.state()
    assert len(killed) == 2
    assert state.count()["finished"] == 5 and set(_over(study).values()) == {1}
    reports = Counter((e.trial, e.payload["epoch"]) for e in _events(study) if e.kind == "report")
    assert set(reports.values()) == {1} and len(reports) == 5 * 3
    assert max(t.starts for t in state.trials.values()) >= 2


def test_a_driver_killed_loses_nothing(ray_address: str, tmp_path: Path) -> None:
    spec = _spec("driver", budget={"trials": 6, "epochs": 4}, rungs={"epochs": [1], "grace": 1})
    file = tmp_path / "study.toml"
    file.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)))
    command = [sys.executable, "-m", "search", "search", str(file), "--studies", str(tmp_path), "--tracking", "off"]
    process = subprocess.Popen([*command, "--address", ray_address], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(InputError):
                study = Study.load("driver", root=tmp_path)
                if sum(e.kind == "report" for e in _events(study)) >= 5:
                    break
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    study = Study.load("driver", root=tmp_path)
    before = study.state()
    assert study.status() == "interrupted" and before.live
    over = {t.id: t.reason for t in before.trials.values() if t.over}
    assert _launch(study, ray_address) == "finished"
    after = study.state()
    assert after.count()["total"] == 6 and not after.live and set(_over(study).values()) == {1}
    assert {name: after.trials[name].reason for name in over} == over
    reports = Counter((e.trial, e.payload["epoch"]) for e in _events(study) if e.kind == "report")
    assert set(reports.values()) == {1}
    told = sum(len(c) for t in after.trials.values() for c in t.curves.values())
    assert points.read(study.folder.points).num_rows == told


def test_a_gentle_stop_leaves_trials_that_go_on(ray_address: str, tmp_path: Path) -> None:
    study = Study.create(_spec("gentle"), root=tmp_path)

    def stop(driver: Any, event: Any, state: Any) -> None:
        if event.kind == "report":
            driver.folder.stop.touch()
            driver.stopping = "stopped"

    assert _launch(study, ray_address, stop) == "stopped"
    assert study.status() == "stopped" and study.state().live
    assert _launch(study, ray_address) == "finished"
    assert not study.state().live and set(_over(study).values()) == {1}


def test_trials_that_fail_are_recorded_and_the_study_goes_on(ray_address: str, tmp_path: Path) -> None:
    methods = {"static": {"network": "resnet-8", "width": 0.25, "lr": [0.1, 99.0], "weight_decay": 99.0}}
    spec = _spec("failing", methods=methods, sampler={"name": "random", "published": False})
    study = Study.create(spec, root=tmp_path)
    assert _launch(study, ray_address) == "finished"
    failed = [t for t in study.state().trials.values() if t.state == "failed"]
    assert failed and all("cross_entropy became" in t.reason and "epoch" in t.reason for t in failed)
    assert study.state().count()["total"] == 5


def test_another_spec_under_the_same_name_is_refused(tmp_path: Path) -> None:
    Study.create(_spec("same"), root=tmp_path)
    Study.create(_spec("same", budget={"trials": 9, "epochs": 3}), root=tmp_path)  # only longer
    with pytest.raises(InputError, match=r"exists with another spec \(seed differ"):
        Study.create(_spec("same", seed=5), root=tmp_path)
    with pytest.raises(InputError, match=r"no study 'sam'.*did you mean 'same'"):
        Study.load("sam", root=tmp_path)


def test_other_images_and_folders_that_cannot_be_written_are_refused(tmp_path: Path) -> None:
    study = Study.create(_spec("images"), root=tmp_path)
    other = load_data(_spec("images", data={"name": "digits", "image_size": 16, "limit": 150}))
    with pytest.raises(InputError, match="began with other images"):
        study.check_data(study.state(), other)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Study.create(_spec("nowhere"), root=tmp_path / "file")
