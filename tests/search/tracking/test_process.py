"""The uploader as a process beside a driver: killed, it goes on; the server killed, it waits; `routefront track`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.journal.events import Event
from search.spec.toml import to_toml
from search.tracking import process as upload_process
from tests.support.command import Run
from tests.support.tracked import Place, free_port, lost_and_doubled, runs_at, shown, told, until


def test_a_dead_server_takes_every_event_and_stops_nothing(tmp_path: Path, story: type) -> None:
    place = Place(tmp_path, told(story()))
    tracker = place.tracker(f"http://127.0.0.1:{free_port()}")
    tracker.start()
    heard = len(place.story.events)
    for number in range(1, 20_001):
        tracker(Event(heard + number, 1.0, "start", "t0001", {}), None)  # type: ignore[arg-type]
    until(lambda: bool(tracker.problem))
    assert "does not answer (Connection refused)" in tracker.problem
    assert tracker.close(60) == heard + 20_000
    assert not list(place.folder.path.glob("tracking/*.json"))
    place.journal.close()


def test_a_killed_uploader_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, story())
    tracker = place.tracker(uri)
    tracker.start()
    events = told(story(), trials=6).events[2:]
    for event in events[:10]:
        tracker(place.append(event), None)  # type: ignore[arg-type]
    until(lambda: tracker._cursor > 0)
    killed = tracker.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    for event in events[10:]:
        tracker(place.append(event), None)  # type: ignore[arg-type]
    until(lambda: tracker.pid not in (None, killed))
    assert tracker.close(400) == 0 and tracker.pid is None
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    place.journal.close()


def test_an_uploader_without_a_driver_brings_what_is_there_and_ends(
    tmp_path: Path, story: type, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a SIGKILL of the driver: its end of the pipe is closed, and nobody says `close`.

    It runs where a stranger's files lie, and imports none of them.
    """
    place = Place(tmp_path, told(story()))
    here = tmp_path / "here"
    here.mkdir()
    for name in ("json", "sqlalchemy", "mlflow", "search"):
        (here / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write(__name__)\nraise SystemExit(9)\n")
    monkeypatch.chdir(here)
    tracker = place.tracker(uri)
    tracker.start()
    until(lambda: tracker.pid is not None)
    process = tracker._process
    assert process is not None and process.stdin is not None
    process.stdin.close()
    until(lambda: process.poll() is not None)
    assert process.poll() == 0 and not (tmp_path / "ran").exists()
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    tracker.close(400)
    place.journal.close()


def test_one_uploader_at_a_time(tmp_path: Path, story: type, uri: str) -> None:
    place = Place(tmp_path, told(story()))
    with upload_process.alone(place.folder.path, uri, "routefront"):
        rival = place.tracker(uri)
        rival.start()
        time.sleep(1.0)
        assert runs_at(uri) == []
        with pytest.raises(ValueError, match=rf"by process {os.getpid()} already"):
            upload_process.rebuild(uri, "routefront", place.journal, place.folder.path)
    assert rival.close(400) == 0  # its turn came
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    place.journal.close()


# -- routefront track ------------------------------------------------------------------------------


@pytest.fixture
def track(cli: Run, tmp_path: Path) -> Run:
    """Run `routefront track` in this process: (exit code, stdout, stderr)."""
    return lambda *words: cli("track", *words, "--studies", tmp_path)


@pytest.fixture
def place(tmp_path: Path, story: type) -> Iterator[Place]:
    place = Place(tmp_path, told(story()))
    place.folder.spec.write_text(to_toml(place.story.spec.model_dump(mode="json", exclude_none=True)))
    place.journal.append("ended", {"why": "finished"})
    place.journal.release()
    yield place
    place.journal.close()


def test_track_rebuilds_a_lost_server_and_twice_doubles_nothing(
    place: Place, uri: str, tmp_path: Path, template: Path, track: Any
) -> None:
    place.upload(uri, final=True)
    whole = shown(uri)
    shutil.copy(template, tmp_path / "mlflow.db")  # the server lost everything
    code, out, err = track("story", "--to", uri)
    assert (code, err) == (0, "")
    assert "4 runs, 4 of them new" in out
    assert shown(uri) == whole
    code, out, _ = track("story", "--to", uri, "--json")
    record = json.loads(out)
    assert code == 0 and (record["events"], record["runs"], record["created"]) == (place.journal.last(), 4, 0)
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
    code, out, _ = track("story", "--to", uri, "--experiment", "elsewhere")
    assert code == 0 and "experiment elsewhere" in out and len(runs_at(uri)) == 4


def test_bad_input_of_track_is_one_line(place: Place, uri: str, track: Any) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    for words, says in (
        (("story", "--to", dead), f"{dead} does not answer (Connection refused); start it"),
        (("story", "--to", "off"), "--to off records nothing"),
        (("story", "--to", "mlruns"), "sqlite:///FILE"),
        (("nobody", "--to", uri), "nobody"),
    ):
        code, out, err = track(*words)
        assert code == 2 and out == "" and len(err.strip().splitlines()) == 1 and says in err, err
    assert not list(place.folder.path.glob("tracking/*"))


def test_a_server_that_goes_away_in_the_middle_is_named_and_the_command_can_be_repeated(
    place: Place, uri: str, track: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    from search.tracking.server import quiet

    def gone(*_: Any, **__: Any) -> None:
        raise MlflowException("API request failed") from ConnectionResetError(104, "Connection reset by peer")

    with monkeypatch.context() as patch:
        patch.setattr(quiet().MlflowClient, "log_inputs", gone)
        code, _, err = track("story", "--to", uri)
    assert code == 1 and len(err.strip().splitlines()) == 1
    assert "does not answer (Connection reset by peer); 0 of" in err
    assert track("story", "--to", uri)[0] == 0
    assert lost_and_doubled(uri, [place.journal])[1:] == (0, 0)
