"""Studies to MLflow, in one process: what is shown, that nothing doubles, that nothing is lost."""

from __future__ import annotations

import contextlib
import http.server
import json
import shutil
import socket
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.tracking import runs as mlflow_runs
from search.tracking import server
from search.tracking.server import check_server, default_uri, quiet
from tests.support.tracked import Place, document, free_port, lost_and_doubled, runs_at, runs_by_key, shown, told

ROOT = Path(__file__).parents[3]


@pytest.fixture
def place(tmp_path: Path, story: type) -> Iterator[Place]:
    place = Place(tmp_path, told(story()))
    yield place
    place.journal.close()


def test_one_run_for_the_study_and_one_under_it_for_every_trial(place: Place, uri: str, capfd: Any) -> None:
    place.upload(uri)
    runs = runs_by_key(uri)
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
    assert all(run.data.tags["routefront.code_version"] == "test" for run in (study, *runs.values()))
    said = capfd.readouterr()
    assert said.out == "" and said.err == ""


def test_every_run_names_its_images(place: Place, uri: str) -> None:
    place.upload(uri)
    for run in runs_at(uri):
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, given.dataset.digest) == ("digits", "0" * 16)
        assert json.loads(given.dataset.profile) == {"train": 1077, "validation": 360, "test": 360, "classes": 10}
        tensors = json.loads(given.dataset.schema)["mlflow_tensorspec"]
        assert json.loads(tensors["features"])[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, 1, 16, 16]}
        from mlflow.data import get_source

        assert get_source(given.dataset).uri == "digits"  # MLflow itself can read what we wrote


def test_metrics_carry_the_epoch_and_the_time_of_their_event(place: Place, uri: str) -> None:
    place.upload(uri)
    _, _, history, figures, *_ = shown(uri)["t0000"]
    reports = [e for e in place.journal.events() if e.kind == "report" and e.trial == "t0000"]
    times = [round(event.time * 1000) for event in reports]
    assert history["loss/cross_entropy"] == [(1, times[0], 1.0), (2, times[1], 0.5), (9, times[2], 1 / 9)]
    assert history["accuracy"] == [(1, times[0], 0.7), (9, times[2], 0.9)]
    assert history["macs_min"] == [(1, times[0], 1e6), (9, times[2], 2e6)]
    assert history["system/cpu_seconds"] == [(2, times[1], 1.5)]
    assert history["system/memory_megabytes"] == [(2, times[1], 300.0)]
    ask, over = [e for e in place.journal.events() if e.trial == "t0000" and e.kind in ("ask", "decision")]
    assert figures == ("FINISHED", round(ask.time * 1000), round(over.time * 1000))
    study = shown(uri)[""][2]
    assert [step for step, _, _ in study["epochs"]] == [1, 2, 9, 10, 11]
    assert [value for _, _, value in study["seconds"]] == [1, 2, 3, 4, 5]
    assert study["hypervolume"][-1][2] == pytest.approx(place.story.state.hypervolume)


def test_curves_and_the_frontier_are_documents(place: Place, uri: str) -> None:
    place.journal.append("ended", {"why": "finished"})
    place.upload(uri)
    runs = runs_by_key(uri)
    curve = document(uri, runs["t0000"], "curve/epoch-0009.json")
    assert [point["accuracy"] for point in curve["points"]] == [0.8, 0.9] and curve["epoch"] == 9
    front = document(uri, runs[""], "frontier.json")
    keys = [(point["trial"], point["epoch"], point["index"]) for point in front["points"]]
    assert keys == place.story.state.front()
    assert runs[""].info.status == "FINISHED"


def test_a_composition_is_a_run_below_the_study(place: Place, uri: str) -> None:
    member = {"study": "story", "trial": "t0000", "checkpoint": "t0000/epoch-0009", "point_id": "t0000-9-0"}
    points = [
        {"members": [member, member], "expected": e, "accuracy": e + 0.02, "low": e - 0.1, "high": 1.0, "macs": macs}
        for e, macs in ((0.7, 1e6), (0.8, 2e6))
    ]
    told = {
        "number": 1, "studies": ["story"], "images": 360, "members": 9, "rules": ["probability-last"], "splits": 2,
        "seed": 0, "compared": 1234, "seconds": 2.5, "points": points, "gains": {"median_fewer": 1.5},
    }  # fmt: skip
    event = place.journal.append("cascades", told)
    for _ in range(2):
        place.upload(uri, final=True)
        place.note.unlink()
    runs = runs_by_key(uri)
    assert set(runs) == {"", "t0000", "t0001", "t0002", "c0001"}
    run, at = runs["c0001"], round(event.time * 1000)
    assert run.info.run_name == "c0001" and run.data.tags["mlflow.parentRunId"] == runs[""].info.run_id
    assert run.data.tags["routefront.kind"] == "cascades" and run.data.params["rules"] == "probability-last"
    assert (run.info.status, run.info.start_time, run.info.end_time) == ("FINISHED", at - 2500, at)
    figures = {"compared": 1234, "accuracy": 0.8, "accuracy_measured": 0.82, "macs": 2e6, "macs_min": 1e6}
    assert {name: run.data.metrics[name] for name in figures} == pytest.approx(figures)
    assert document(uri, run, "cascades.json")["points"] == points


def test_trials_wait_as_scheduled_while_the_study_is_interrupted(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, told(story(), trials=4))
    place.journal.append("ended", {"why": "stopped"})
    place.upload(uri)
    held = shown(uri)
    assert held[""][3][0] == "KILLED" and held["t0003"][3][0] == "SCHEDULED"
    assert "resume" in held["t0003"][1]["routefront.reason"]
    place.journal.append("session", {"host": "here", "pid": 2, "workers": 1})
    place.journal.append("start", {}, "t0003")
    place.upload(uri)
    held = shown(uri)
    assert held[""][3][0] == "RUNNING" and held["t0003"][3][0] == "RUNNING"


def test_a_second_end_is_told_although_the_status_is_the_same(place: Place, uri: str) -> None:
    place.journal.append("ended", {"why": "stopped"})
    place.upload(uri)
    place.journal.append("session", {"host": "here", "pid": 2, "workers": 1})
    last = place.journal.append("ended", {"why": "stopped"})
    place.upload(uri)
    status, _, end = shown(uri)[""][3]
    assert (status, end) == ("KILLED", round(last.time * 1000))


@pytest.mark.parametrize("note", ["kept", "lost", "damaged", "early"])
def test_uploading_again_changes_nothing(place: Place, uri: str, note: str) -> None:
    place.upload(uri, final=True)
    before, known = shown(uri), json.loads(place.note.read_text())
    assert known["events"] == len(place.story.events)
    if note == "lost":
        place.note.unlink()
    elif note == "damaged":
        place.note.write_text('{"sqlite')
    elif note == "early":
        place.note.write_text(json.dumps({**known, "events": 5}))
    place.upload(uri, final=True)
    assert shown(uri) == before
    assert json.loads(place.note.read_text()) == known
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)


def test_events_arrive_one_by_one_as_in_one_go(tmp_path: Path, story: type, uri: str, template: Path) -> None:
    place, other = Place(tmp_path, story()), tmp_path / "other"
    uploader = place.uploader(uri)
    for event in told(story(), trials=4).events[2:]:
        place.append(event)
        uploader.deliver()
    uploader.deliver(final=True)
    other.mkdir()
    shutil.copy(template, other / "mlflow.db")
    place.upload(default_uri(other), final=True)
    assert shown(uri) == shown(default_uri(other))


class Crash(BaseException):
    """The process dies here: nothing of the uploader's may catch it."""


def test_a_crash_before_or_behind_any_call_loses_and_doubles_nothing(
    tmp_path: Path, story: type, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the server is a crash point twice: it was not made, or its answer was not heard."""
    client, points, dies = quiet().MlflowClient, [0], [0]

    def point(name: str) -> None:
        points[0] += 1
        if points[0] == dies[0]:
            raise Crash(name)

    def dying(name: str) -> None:
        call = getattr(client, name)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            point(name)
            answer = call(self, *args, **kwargs)
            point(name)
            return answer

        monkeypatch.setattr(client, name, wrapped)

    calls = "create_experiment create_run log_batch log_inputs set_terminated update_run log_dict"
    for name in calls.split():
        dying(name)
    place = Place(tmp_path, told(story(), trials=1))
    while points[0] >= dies[0]:  # each uploader gets one call further than the one before it, the last to the end
        points[0], dies[0] = 0, dies[0] + 1
        with contextlib.suppress(Crash):
            place.upload(uri, final=True)
    assert dies[0] > 10
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    assert set(shown(uri)) == {"", "t0000"}


def test_a_server_of_yesterday_gets_what_it_lacks_whatever_the_note_says(
    tmp_path: Path, story: type, uri: str, template: Path
) -> None:
    database, place = Path(uri.removeprefix("sqlite:///")), Place(tmp_path, story())
    events = told(story()).events[2:]
    for event in events[:7]:
        place.append(event)
    place.upload(uri)
    shutil.copy(database, tmp_path / "yesterday.db")
    for event in events[7:]:
        place.append(event)
    place.upload(uri)
    whole = shown(uri)
    for copy in (tmp_path / "yesterday.db", template):  # an older copy of the database, and an empty one
        shutil.copy(copy, database)
        place.upload(uri)
        assert shown(uri) == whole
        assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)


def test_what_a_dead_uploader_asked_for_and_came_late_is_undone(place: Place, uri: str) -> None:
    """A request may be carried out after its sender died and its successor looked: two runs of one trial."""
    uploader = place.uploader(uri)
    uploader.deliver()
    client, study = quiet().MlflowClient(tracking_uri=uri), runs_by_key(uri)[""]
    for key in ("", "t0001"):
        tags = {k: v for k, v in runs_by_key(uri)[key].data.tags.items() if k.startswith("routefront")}
        client.create_run(study.info.experiment_id, tags=tags)
    client.update_run(runs_by_key(uri)["t0002"].info.run_id, status="RUNNING")
    uploader.deliver(final=True)
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    assert shown(uri)["t0002"][3][0] == "FAILED" and len(runs_at(uri)) == 4


def test_a_part_that_mlflow_refuses_takes_nothing_else_with_it(place: Place, uri: str, caplog: Any) -> None:
    uploader = place.uploader(uri)
    uploader.deliver()
    run = runs_by_key(uri)["t0001"]
    event = place.journal.append(
        "ask", {"number": 1, "config": {"method": "aig"}, "seed": 5, "why": "changed"}, "t0001"
    )
    place.story.report("t0001", 3, [(0.9, 1e6)])
    place.append(place.story.events[-1])
    uploader.deliver()
    after = runs_by_key(uri)["t0001"]
    assert event.seq < uploader.cursor
    assert after.data.params == run.data.params and after.data.metrics["accuracy"] == 0.9
    assert "refuses a part of run t0001" in caplog.text and "method" in caplog.text


def test_more_values_than_one_call_takes(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, story())
    name = place.story.ask(0, **{f"extra{i}": i for i in range(120)})
    for epoch in range(1, 4):
        losses = {f"term{i}": float(i) for i in range(600)} | {"nan": float("nan"), "inf": float("inf")}
        place.story.report(name, epoch, losses=losses)
    for event in place.story.events[2:]:
        place.append(event)
    uploader = place.uploader(uri)
    uploader.deliver(final=True)
    run = runs_by_key(uri)[name]
    assert len(run.data.params) > 120 and len(run.data.metrics) > 600
    assert not uploader._runs.lacking(uploader._expected(uploader.cursor)[0])  # type: ignore[union-attr]


def test_runs_that_are_deleted_meanwhile_are_made_again(place: Place, uri: str) -> None:
    uploader = place.uploader(uri)
    uploader.deliver()
    before = shown(uri)
    client = quiet().MlflowClient(tracking_uri=uri)
    for run in runs_at(uri):
        client.delete_run(run.info.run_id)
    place.journal.append("promotion", {"model": "m", "version": "1", "point": {"trial": "t0000"}})
    with pytest.raises(mlflow_runs.GoneError):
        uploader.deliver()
    uploader.restart()
    uploader.deliver()
    after = shown(uri)
    assert after["t0001"] == before["t0001"]
    assert after["t0000"][1].pop("routefront.promoted") == "m version 1"
    assert after["t0000"] == before["t0000"]


def test_a_study_of_the_same_name_gets_runs_of_its_own(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, told(story()))
    place.upload(uri)
    place.journal.close()
    shutil.rmtree(place.folder.path)
    Place(tmp_path, told(story())).upload(uri)
    assert len(runs_at(uri)) == 8


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


class Guarded(http.server.BaseHTTPRequestHandler):
    """Answers like MLflow with authentication: 401 to all but user:right."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic dXNlcjpyaWdodA=="
        self.send_response(200 if known else 401)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_users_and_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    guarded = http.server.HTTPServer(("127.0.0.1", 0), Guarded)
    threading.Thread(target=guarded.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{guarded.server_port}"
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    with pytest.raises(InputError, match="asks for a user and password; set MLFLOW_TRACKING_USERNAME and"):
        check_server(uri)
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "user")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refuses user 'user' with this password; check MLFLOW_") as caught:
        check_server(uri)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "right")
    check_server(uri)
    guarded.shutdown()
    guarded.server_close()


def test_check_server_is_not_deceived_by_what_never_answers_or_is_no_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    assert server._ANSWER_SECONDS < 5
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.3)
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
