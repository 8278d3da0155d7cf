"""The tracking server on PostgreSQL that `mlflow/server.py` starts: with users where Flask-WTF is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError, RunError
from search.promotion.ledger import Lock, answering, confirmed, current_version, holding, settle
from search.promotion.models import client_at
from search.tracking.server import check_server
from tests.support.postgres import INSTALLED
from tests.support.tracked import Place, free_port, lost_and_doubled, shown, told

FOLDER = Path(__file__).resolve().parents[2] / "mlflow"
USERS = importlib.util.find_spec("flask_wtf") is not None

needs_postgresql = pytest.mark.skipif(not INSTALLED, reason="PostgreSQL is not installed (Debian: postgresql)")
needs_users = pytest.mark.skipif(not USERS, reason="Flask-WTF is not installed (pip install 'mlflow[auth]')")


def server(*words: object) -> subprocess.Popen[str]:
    command = [sys.executable, str(FOLDER / "server.py"), *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that the user postgres can reach; pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp(prefix="routefront-server-"))
    folder.chmod(0o711)
    yield folder / "server"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[str]:
    """The address of the server, its administrator's name and password in the environment."""
    port = free_port()
    process = server(folder, "--port", port, "--workers", 1, *([] if USERS else ["--no-authentication"]))
    assert process.stdout is not None and process.stderr is not None
    said = process.stdout.readline()
    assert said, process.stderr.read()
    assert f"http://127.0.0.1:{port}" in said and str(folder) in said
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        patch.setenv("MLFLOW_TRACKING_PASSWORD", json.loads((folder / "secrets.json").read_text())["admin"])
        yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    postmaster = folder / "postgresql" / "postmaster.pid"
    assert not postmaster.exists(), "PostgreSQL runs on"


@needs_postgresql
def test_a_study_is_recorded_on_postgresql(running: str, folder: Path, tmp_path: Path, story: type) -> None:
    check_server(running)
    place = Place(tmp_path, told(story()))
    place.upload(running, final=True)
    place.upload(running, final=True)
    held = shown(running)
    assert [held[key][3][0] for key in sorted(held)] == ["RUNNING", "FINISHED", "KILLED", "FAILED"]
    assert held["t0000"][5] == ["curve/epoch-0001.json", "curve/epoch-0009.json"]
    assert list((folder / "artifacts").rglob("frontier.json"))
    assert lost_and_doubled(_database(folder), [place.journal])[1:] == (0, 0)
    place.journal.close()
    assert folder.stat().st_mode & 0o066 == 0, "others read or write the server's folder"
    for secret in (folder / "secrets.json", *folder.glob("basic_auth.ini")):
        assert secret.stat().st_mode & 0o077 == 0
    assert not (folder / "postgresql.password").exists()


def _database(folder: Path) -> str:
    port = (folder / "postgresql" / "postmaster.pid").read_text().splitlines()[3]
    password = json.loads((folder / "secrets.json").read_text())["database"]
    return f"postgresql+psycopg://mlflow:{password}@127.0.0.1:{port}/postgres"


@needs_postgresql
@needs_users
def test_users_and_their_passwords(running: str, tmp_path: Path, story: type, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, str(FOLDER / "add_user.py"), running, "ada"]
    added = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert added.returncode == 0 and added.stdout.startswith("user ada, password ")
    again = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert again.returncode == 2 and len(again.stderr.strip().splitlines()) == 1
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ada")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(InputError, match="refuses user 'ada' with this password; check MLFLOW_TRACKING_USERNAME and"):
        check_server(running)
    refused = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 2 and "set MLFLOW_TRACKING_USERNAME" in refused.stderr
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", added.stdout.split()[-1])
    check_server(running)
    place = Place(tmp_path / "ada", told(story()))
    from search.tracking.uploader import Uploader

    Uploader(running, "of ada", place.journal, place.folder.path).deliver(final=True)
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    with pytest.raises(InputError, match="asks for a user and password; set MLFLOW_TRACKING_USERNAME and"):
        check_server(running)
    place.journal.close()


@needs_postgresql
@needs_users
def test_a_user_without_rights_beyond_his_own_moves_aliases_of_a_name_that_nobody_had_and_of_no_other(
    running: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `promote` asks and writes beside the files of the model, each of which is a request of its own."""
    passwords = {name: _added(running, name) for name in ("eve", "bob")}

    def as_user(name: str) -> Any:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", passwords[name])
        return client_at(running)

    client = as_user("eve")
    assert current_version(client, "of-eve", "champion") is None
    assert confirmed(client, "of-eve", "champion", "a") is None
    with holding(client, "of-eve") as lock:
        client.create_registered_model("of-eve")
        assert settle(client, "of-eve", "champion") == []
        other = as_user("bob")
        assert Lock(other, "of-eve").holder() == lock.holder()
        with pytest.raises(RunError, match=r"did not take it: .*Permission denied"), answering(running):
            other.set_registered_model_alias("of-eve", "champion", "1")
        as_user("eve")
    assert confirmed(client, "of-eve", "champion", "b") is None


def _added(address: str, name: str) -> str:
    words = [sys.executable, str(FOLDER / "add_user.py"), address, name]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout.split()[-1]


def refusal(*words: object, **environment: str) -> str:
    command = [sys.executable, str(FOLDER / "server.py"), *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, env={**os.environ, **environment})
    assert ran.returncode == 2 and ran.stdout == "" and len(ran.stderr.strip().splitlines()) == 1, ran.stderr
    return ran.stderr


def test_what_keeps_the_server_from_starting_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1: Address already in use; choose another" in refusal(tmp_path, "--port", port)
    secret = tmp_path / "address"
    secret.write_text("postgresql+psycopg://me:hush@127.0.0.1:9/x")
    for words, says in (
        (("--database", secret.read_text()), "--database carries a password, which every user of this machine sees"),
        (("--database", "postgresql+psycopg://db/x?password=hush"), "set PGPASSWORD, or write the address into a file"),
        (("--database-file", secret), f"must be a file that nobody else can read: chmod 600 {secret}"),
        (("--database-file", tmp_path / "none"), "none cannot be read: No such file"),
        (("--database-file", secret, "--database", "postgresql://x"), "name two databases; give one"),
    ):
        said = refusal(tmp_path / "new", "--port", free_port(), *words)
        assert says in said and "hush" not in said and not (tmp_path / "new").exists()
    if not USERS:
        assert "users and passwords need Flask-WTF" in refusal(tmp_path, "--port", free_port())
    module: Any = importlib.util.module_from_spec(
        spec := importlib.util.spec_from_file_location("mlflow_server", FOLDER / "server.py")  # type: ignore[arg-type]
    )
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.Path, "glob", lambda self, pattern: iter(()))
    with pytest.raises(module.Refusal, match=r"PostgreSQL is not installed .* --database postgresql"):
        module.programs()


def test_add_user_says_what_is_wrong() -> None:
    for words, says in (
        (["nowhere"], "write add_user.py http://HOST:PORT NAME"),
        ([f"http://127.0.0.1:{free_port()}", "ada"], "does not answer"),
    ):
        ran = subprocess.run(
            [sys.executable, str(FOLDER / "add_user.py"), *words], capture_output=True, text=True, timeout=300
        )
        assert ran.returncode in (1, 2) and says in ran.stderr and len(ran.stderr.strip().splitlines()) == 1
