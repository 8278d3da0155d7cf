"""Trials to MLflow: what is shown, that nothing doubles, that nothing is lost, that nothing waits."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import mlflow_client, tracking
from search.errors import InputError
from search.folder import StudyFolder
from search.journal import Event, Journal, sqlite_address
from search.mlflow_client import quiet
from search.tracking import Tracker, check_server, default_uri

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database: making one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    quiet().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(tracking, "_GATHER_SECONDS", 0.01)
    monkeypatch.setattr(tracking, "_FIRST_DELAY", 0.05)
    shutil.copy(template, tmp_path / "mlflow.db")
    return default_uri(tmp_path)


def told(story: type, trials: int = 3) -> Any:
    """A study of which trial 0 was trained in full, 1 stopped, 2 failed; the others are running."""
    told = story()
    for number in range(trials):
        name = told.ask(number, "skipnet")
        told.report(name, 1, [(0.5 + number / 100, 1e6), (0.7, 4e6 + number)])
        if number == 0:
            told.report(name, 2)
            told.report(name, 9, [(0.8, 2e6), (0.9, 5e6)])
            told.decide(name, 9, "finish", "trained in full")
        if number == 1:
            told.decide(name, 1, "stop", "place 2 of 2")
        if number == 2:
            told.add("failed", {"reason": "FloatingPointError: loss became nan", "traceback": "", "epoch": 1}, name)
    return told


class Place:
    """A study folder with a real journal, and what MLflow shows of it."""

    def __init__(self, path: Path, story: Any) -> None:
        self.folder, self.story = StudyFolder(path / "story"), story
        self.folder.path.mkdir()
        self.journal = Journal(sqlite_address(self.folder.control), "story", create=True)
        self.journal.acquire()
        for event in story.events:
            self.journal.append(event.kind, event.payload, event.trial)

    def tracker(self, uri: str) -> Tracker:
        return Tracker(uri, "routefront", self.folder, self.story.spec)

    def replay(self, uri: str) -> int:
        tracker = self.tracker(uri)
        tracker.start(self.journal.events())
        return tracker.close(30)


@pytest.fixture
def place(tmp_path: Path, story: type) -> Iterator[Place]:
    place = Place(tmp_path, told(story))
    yield place
    place.journal.close()


def runs_at(uri: str) -> list[Any]:
    client = quiet().MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("routefront")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id], max_results=5000))


def shown(uri: str) -> dict[str, Any]:
    """Everything MLflow holds, by run, without the names that it made up itself."""
    client, found = quiet().MlflowClient(tracking_uri=uri), {}
    runs = runs_at(uri)
    for run in runs:
        key = run.data.tags.get("routefront.trial", "")
        assert key not in found, f"two runs of {key!r}"
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        history = {
            name: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        figures = (run.info.status, run.info.start_time, run.info.end_time)
        found[key] = (dict(run.data.params), tags, history, figures)
    return found


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def documents(uri: str, run: Any, path: str) -> Any:
    client = quiet().MlflowClient(tracking_uri=uri)
    return json.loads(Path(client.download_artifacts(run.info.run_id, path)).read_text())


def test_one_run_for_the_study_and_one_under_it_for_every_trial(place: Place, uri: str, capfd: Any) -> None:
    assert place.replay(uri) == 0
    runs = {run.data.tags.get("routefront.trial", ""): run for run in runs_at(uri)}
    assert set(runs) == {"", "t0000", "t0001", "t0002"}
    study = runs.pop("")
    assert all(run.data.tags["mlflow.parentRunId"] == study.info.run_id for run in runs.values())
    assert study.data.tags["routefront.study"] == "story" and study.info.run_name == "story"
    assert study.info.status == "RUNNING"
    assert [runs[name].info.status for name in sorted(runs)] == ["FINISHED", "KILLED", "FAILED"]
    assert runs["t0001"].data.tags["routefront.reason"] == "place 2 of 2"
    assert runs["t0002"].data.tags["routefront.reason"] == "FloatingPointError: loss became nan"
    assert runs["t0000"].data.params["method"] == "skipnet" and runs["t0000"].data.params["lr"] == "0.1"
    assert study.data.params["budget.epochs"] == "9"
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


def test_metrics_carry_the_epoch_and_the_time_of_their_event(place: Place, uri: str) -> None:
    place.replay(uri)
    _, _, history, figures = shown(uri)["t0000"]
    reports = [e for e in place.journal.events() if e.kind == "report" and e.trial == "t0000"]
    times = [round(event.time * 1000) for event in reports]
    assert history["loss/cross_entropy"] == [(1, times[0], 1.0), (2, times[1], 0.5), (9, times[2], 1 / 9)]
    assert history["accuracy"] == [(1, times[0], 0.7), (9, times[2], 0.9)]
    assert history["macs_min"] == [(1, times[0], 1e6), (9, times[2], 2e6)]
    ask, over = [e for e in place.journal.events() if e.trial == "t0000" and e.kind in ("ask", "decision")]
    assert figures == ("FINISHED", round(ask.time * 1000), round(over.time * 1000))
    study = shown(uri)[""][2]
    assert [step for step, _, _ in study["epochs"]] == [1, 2, 9, 10, 11]
    assert study["hypervolume"][-1][2] == pytest.approx(place.story.state.hypervolume)


def test_curves_and_the_frontier_are_documents(place: Place, uri: str) -> None:
    place.journal.append("ended", {"why": "finished"})
    place.replay(uri)
    runs = {run.data.tags.get("routefront.trial", ""): run for run in runs_at(uri)}
    curve = documents(uri, runs["t0000"], "curve/epoch-0009.json")
    assert [point["accuracy"] for point in curve["points"]] == [0.8, 0.9] and curve["epoch"] == 9
    front = documents(uri, runs[""], "frontier.json")
    keys = [(point["trial"], point["epoch"], point["index"]) for point in front["points"]]
    assert keys == place.story.state.front()
    assert runs[""].info.status == "FINISHED"


def test_trials_wait_as_scheduled_while_the_study_is_interrupted(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, told(story, trials=4))
    place.journal.append("ended", {"why": "stopped"})
    assert place.replay(uri) == 0
    held = shown(uri)
    assert held[""][3][0] == "KILLED" and held["t0003"][3][0] == "SCHEDULED"
    assert "resume" in held["t0003"][1]["routefront.reason"]
    place.journal.append("session", {"host": "here", "pid": 2, "workers": 1})
    place.journal.append("start", {}, "t0003")
    assert place.replay(uri) == 0
    held = shown(uri)
    assert held[""][3][0] == "RUNNING" and held["t0003"][3][0] == "RUNNING"


@pytest.mark.parametrize("cursor", ["kept", "lost", "damaged", "early"])
def test_replaying_again_changes_nothing(place: Place, uri: str, cursor: str) -> None:
    place.replay(uri)
    before, path = shown(uri), place.folder.path / "tracking.json"
    known = json.loads(path.read_text())
    assert list(known.values()) == [len(place.story.events)]
    if cursor == "lost":
        path.unlink()
    elif cursor == "damaged":
        path.write_text('{"sqlite')
    elif cursor == "early":
        path.write_text(json.dumps({key: 5 for key in known}))
    assert place.replay(uri) == 0
    assert shown(uri) == before
    assert json.loads(path.read_text()) == known


def test_live_events_arrive_one_by_one_as_in_one_go(tmp_path: Path, story: type, uri: str, template: Path) -> None:
    place, other = Place(tmp_path, story()), tmp_path / "other"
    other.mkdir()
    tracker = place.tracker(uri)
    tracker.start(place.journal.events())
    for event in told(story).events[2:]:
        tracker(place.journal.append(event.kind, event.payload, event.trial), None)  # type: ignore[arg-type]
        time.sleep(0.02)
    assert tracker.close(30) == 0
    shutil.copy(template, other / "mlflow.db")
    place.replay(default_uri(other))
    assert shown(uri) == shown(default_uri(other))


def test_another_database_gets_everything_whatever_the_cursor_says(place: Place, uri: str, template: Path) -> None:
    place.replay(uri)
    before = shown(uri)
    Path(uri.removeprefix("sqlite:///")).unlink()
    shutil.copy(template, uri.removeprefix("sqlite:///"))
    assert place.replay(uri) == 0
    assert shown(uri) == before


def test_a_run_whose_answer_was_lost_is_found_and_not_made_again(
    place: Place, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = quiet().MlflowClient
    create, lost = client.create_run, []

    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = create(self, *args, **kwargs)
        if len(lost) < 3:
            lost.append(run.info.run_id)
            raise ConnectionError("the answer was lost")
        return run

    monkeypatch.setattr(client, "create_run", forgetful)
    tracker = place.tracker(uri)
    tracker.start(place.journal.events())
    until(lambda: tracker.waiting == 0)
    assert tracker.close(30) == 0
    assert len(lost) == 3 and len(shown(uri)) == 4
    assert set(lost) <= {run.info.run_id for run in runs_at(uri)}


def test_runs_that_are_deleted_meanwhile_are_made_again(place: Place, uri: str) -> None:
    tracker = place.tracker(uri)
    tracker.start(place.journal.events())
    until(lambda: tracker.waiting == 0)
    before = shown(uri)
    client = quiet().MlflowClient(tracking_uri=uri)
    for run in runs_at(uri):
        client.delete_run(run.info.run_id)
    event = place.journal.append("promotion", {"model": "m", "version": "1", "point": {"trial": "t0000"}})
    tracker(event, None)  # type: ignore[arg-type]
    until(lambda: tracker.waiting == 0)
    tracker.close(30)
    after = shown(uri)
    assert after["t0001"] == before["t0001"]
    assert after["t0000"][1].pop("routefront.promoted") == "m version 1"
    assert after["t0000"] == before["t0000"]


def test_a_study_of_the_same_name_gets_runs_of_its_own(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, told(story))
    place.replay(uri)
    place.journal.close()
    shutil.rmtree(place.folder.path)
    Place(tmp_path, told(story)).replay(uri)
    assert len(runs_at(uri)) == 8


def test_a_dead_server_takes_every_event_and_stops_nothing(place: Place) -> None:
    tracker = place.tracker(f"http://127.0.0.1:{free_port()}")
    tracker.start(place.journal.events())
    heard = len(place.story.events)
    for number in range(20_000):
        tracker(Event(heard + 1 + number, 1.0, "start", "t0001", {}), None)  # type: ignore[arg-type]
    until(lambda: bool(tracker.problem))
    assert tracker.close(20) == heard + 20_000
    assert not (place.folder.path / "tracking.json").exists()


# -- a real server ---------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A real `mlflow server` on the loopback, with one worker, that can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = {
            "--backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        until(self.answers, 100)

    def answers(self) -> bool:
        assert self.process.poll() is None, "mlflow server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(tmp_path: Path, template: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    shutil.copy(template, tmp_path / "mlflow.db")
    server.start()
    yield server
    server.kill()


@pytest.mark.timeout(300)
def test_a_server_killed_while_trials_arrive_loses_and_doubles_nothing(
    tmp_path: Path, story: type, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "_LONGEST_DELAY", 1.0)
    place, rest = Place(tmp_path, story()), told(story, trials=12).events[2:]
    server.wait()
    check_server(server.uri)
    tracker = place.tracker(server.uri)
    tracker.start(place.journal.events())

    def hear(events: list[Event]) -> None:
        for event in events:
            tracker(place.journal.append(event.kind, event.payload, event.trial), None)  # type: ignore[arg-type]

    hear(rest[:10])
    until(lambda: len(runs_at(server.uri)) >= 1)  # in the middle of it
    server.kill()
    hear(rest[10:])  # nobody waits for the dead
    until(lambda: bool(tracker.problem))
    with pytest.raises(InputError, match="does not answer"):
        check_server(server.uri)
    assert tracker.waiting > 0
    server.start()
    server.wait()
    until(lambda: tracker.waiting == 0)
    assert tracker.close(60) == 0
    direct = tmp_path / "direct"
    direct.mkdir()
    place.replay(default_uri(direct))
    assert shown(server.uri) == shown(default_uri(direct))
    run = next(run for run in runs_at(server.uri) if run.data.tags.get("routefront.trial") == "t0000")
    assert documents(server.uri, run, "curve/epoch-0009.json")["epoch"] == 9


# -- addresses -------------------------------------------------------------------------------------


def test_check_server_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for uri, says in (
        (f"http://127.0.0.1:{free_port()}", "does not answer"),
        ("./mlruns", "sqlite:///FILE"),
        ("oracle://host/db", "'oracle'"),
        (f"sqlite:///{tmp_path}/file/mlflow.db", "cannot be created"),
        ("sqlite://", "names no file"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            check_server(uri)
        assert "\n" not in str(caught.value)
    check_server("off")
    check_server(default_uri(tmp_path / "new"))


def test_check_server_is_not_deceived_by_what_never_answers_or_is_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mlflow_client._ANSWER_SECONDS < 5
    monkeypatch.setattr(mlflow_client, "_ANSWER_SECONDS", 0.3)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        with pytest.raises(InputError, match="does not answer"):
            check_server(f"http://127.0.0.1:{mute.getsockname()[1]}")
    other = http.server.HTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    with pytest.raises(InputError, match="404"):
        check_server(f"http://127.0.0.1:{other.server_port}")
    other.shutdown()
    other.server_close()


def test_passwords_are_not_shown() -> None:
    with pytest.raises(InputError) as caught:
        check_server(f"http://user:secret@127.0.0.1:{free_port()}")
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_mlflow_run_installs_what_the_project_needs() -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = (ROOT / "mlflow" / "python_env.yaml").read_text().splitlines()
    assert [line.strip().removeprefix("- ").strip('"') for line in listed if line.startswith("  - ")] == needed
