"""Addresses that come out of a study's folder: nothing is sent there before the person agrees."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.spec.study import StudySpec
from search.spec.toml import to_toml
from search.study import Study
from spaces import own_networks
from tests.support.command import Run
from tests.support.kept_study import keep

TRACKING, JOURNAL = "tracking.uri", "journal"


class Listener:
    """A server of somebody else's that notes what it is sent and says nothing."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    self.heard.append(connection.recv(65536))

    def close(self) -> None:
        self._socket.close()

    def address(self, what: str) -> str:
        return f"http://127.0.0.1:{self.port}" if what == TRACKING else f"postgresql+psycopg://127.0.0.1:{self.port}/x"


@pytest.fixture
def listener() -> Iterator[Listener]:
    server = Listener()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person with a user and password of MLflow and of databases, and a state folder of its own."""
    for name in ("MLFLOW_TRACKING_URI", "ROUTEFRONT_TRUST"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "PGUSER", "PGPASSWORD"):
        monkeypatch.setenv(name, "hushhush")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "routefront" / "trust"


def received(story: type, root: Path, what: str, address: str) -> Study:
    """The folder of a stranger's study, whose study file names an address."""
    study = keep(story(), root, "received")
    values = study.spec.model_dump(mode="json", exclude_none=True)
    changed = {**values, JOURNAL: address} if what == JOURNAL else {**values, "tracking": {"uri": address}}
    study.folder.spec.write_text(to_toml(changed))
    return study


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (TRACKING, ("resume", "received")),
        (TRACKING, ("confirm", "received", "--point", "t0000")),
        *[
            (JOURNAL, (command, "received", *more))
            for command, more in {
                "resume": (), "confirm": (), "status": (), "frontier": (), "report": (), "stop": (),
                "delete": ("--yes",), "gc": ("--dry-run",), "extend": ("--trials", "9"), "export": ("--optuna", "x.db"),
                "watch": (),
                "track": ("--to", "sqlite:///x.db"), "promote": ("--model", "m"),
            }.items()
        ],
    ],
)  # fmt: skip
def test_nothing_is_sent_to_an_address_out_of_a_folder(
    cli: Run, story: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener, what: str, words: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    study = received(story, tmp_path / "studies", what, listener.address(what))
    if words[0] == "confirm" and what == TRACKING:
        monkeypatch.setattr("search.planning.repeats.plan_repeats", lambda *_, **__: [])
    before = study.folder.spec.read_bytes()
    code, out, said = cli(*words, "--studies", tmp_path / "studies")
    assert (code, listener.heard) == (2, []), (said, listener.heard)
    last = said.splitlines()[-1]
    assert f"{what} = {listener.address(what)}" in last and "--trust" in last and "hush" not in out + said
    assert study.folder.spec.read_bytes() == before


@pytest.mark.parametrize("kind", ["outside", "a link", "a query"])
def test_files_outside_the_study_are_foreign_too(cli: Run, story: type, tmp_path: Path, kind: str) -> None:
    """SQLite would make a file beside it, or change how it is written."""
    other = tmp_path / "mine.db"
    keep(story(), tmp_path / "elsewhere", "other").folder.control.rename(other)
    before = other.read_bytes()
    study = keep(story(), tmp_path / "studies", "received")
    if kind == "a link":
        study.folder.control.unlink()
        study.folder.control.symlink_to(other)
    else:
        address = f"sqlite:///{other}" if kind == "outside" else "sqlite:///file:control.db?uri=true"
        received(story, tmp_path / "x", JOURNAL, address).folder.spec.replace(study.folder.spec)
    code, _, said = cli("status", "received", "--studies", tmp_path / "studies")
    assert code == 2 and "journal = sqlite:///" in said and "--trust" in said
    assert other.read_bytes() == before and {p.name for p in tmp_path.glob("mine.db*")} == {"mine.db"}


def test_consent_is_given_once_and_remembered_for_these_addresses(
    cli: Run, story: type, tmp_path: Path, listener: Listener, person: Path
) -> None:
    at = ("--studies", tmp_path / "studies")
    study = received(story, tmp_path / "studies", JOURNAL, listener.address(JOURNAL))
    assert cli("status", "received", *at)[0] == 2 and not listener.heard
    code, _, said = cli("status", "received", "--trust", *at)
    assert code == 2 and "cannot be opened" in said and listener.heard  # it was called
    assert [(p.stat().st_mode & 0o777) for p in (person, *person.iterdir())] == [0o700, 0o600]
    assert "cannot be opened" in cli("status", "received", *at)[2]
    text = study.folder.spec.read_text()
    study.folder.spec.write_text(text.replace("/x", "/y"))  # another address: another question
    assert "--trust" in cli("status", "received", *at)[2]
    study.folder.spec.write_text(text)
    (note,) = person.iterdir()
    note.chmod(0o666)  # others may have written it
    assert "--trust" in cli("status", "received", *at)[2]


def test_a_terminal_is_asked_once(
    cli: Run, story: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    from search.commands import consent

    asked: list[str] = []
    monkeypatch.setattr(consent, "terminal", lambda: True)
    at = ("--studies", tmp_path / "studies")
    received(story, tmp_path / "studies", JOURNAL, listener.address(JOURNAL))
    for answer, heard in ((False, 0), (True, 1), (None, 2)):
        monkeypatch.setattr(consent.typer, "confirm", lambda text, answer=answer, **_: asked.append(text) or answer)
        code, _, said = cli("status", "received", *at)
        assert code == 2 and len(listener.heard) >= heard and bool(listener.heard) == bool(heard)
        assert ("nothing was sent" in said) == (answer is False)
    assert len(asked) == 2


def test_one_s_own_studies_ask_nothing(tmp_path: Path, listener: Listener, person: Path) -> None:
    """Remembered when they are created; a copy of the folder elsewhere is the same study."""
    values = {
        "name": "mine",
        "data": {"name": "digits", "image_size": 8, "limit": 64},
        "tracking": {"uri": listener.address(TRACKING)},
        "methods": {"static": {"network": "resnet-8"}},
    }
    made = Study.create(StudySpec.parse(values), root=tmp_path)
    found = Study.load("mine", root=tmp_path)
    found.permit(TRACKING, JOURNAL)
    made.folder.path.rename(tmp_path / "moved")
    Study.load("moved", root=tmp_path).permit(TRACKING)
    for note in person.iterdir():
        note.unlink()
    with pytest.raises(InputError, match=r"tracking\.uri = http"):
        Study.load("moved", root=tmp_path).permit(TRACKING)
    Study.load("moved", root=tmp_path, trust=True).permit(TRACKING)
    Study.load("moved", root=tmp_path).permit(TRACKING)


@pytest.mark.parametrize(
    ("what", "address", "environment"),
    [
        (TRACKING, "off", {}),
        (TRACKING, "sqlite:///{root}/mlflow.db", {}),
        (TRACKING, "sqlite:///{root}/received/mlflow.db", {}),
        (TRACKING, "http://mlflow:5000", {"MLFLOW_TRACKING_URI": "http://mlflow:5000/"}),
        (TRACKING, "http://mlflow:5000", {"ROUTEFRONT_TRUST": "http://other http://mlflow:5000"}),
        (JOURNAL, "postgresql+psycopg://db/x", {"ROUTEFRONT_TRUST": "postgresql+psycopg://db/x"}),
        (JOURNAL, "postgresql+psycopg://", {}),  # libpq's variables name the server
        (JOURNAL, "postgresql+psycopg:///studies", {}),
    ],
)
def test_what_the_person_has_named_itself_asks_nothing(
    story: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, address: str, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    received(story, tmp_path, what, address.format(root=tmp_path))
    Study.load("received", root=tmp_path).permit(what)


@pytest.mark.parametrize(
    "address",
    ["postgresql+psycopg:///x?host=evil", "postgresql+psycopg://db.evil/x", "sqlite:///control.db?uri=true"],
)
def test_addresses_that_only_look_alike_are_foreign(
    story: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("ROUTEFRONT_TRUST", "postgresql+psycopg://db postgresql+psycopg:///x")
    received(story, tmp_path, JOURNAL, address)
    with pytest.raises(InputError, match="--trust"):
        Study.load("received", root=tmp_path).state()


def test_a_file_named_storage_beside_a_study_names_no_storage(story: type, tmp_path: Path, listener: Listener) -> None:
    """Only in the cache of this person, under the digest of the address, is such a file believed."""
    keep(story(), tmp_path, "received")
    (tmp_path / "storage").write_text(f"s3://bucket/x?endpoint_override=127.0.0.1:{listener.port}&scheme=http")
    assert Study.load("received", root=tmp_path).folder.storage is None and not listener.heard


def test_a_study_file_out_of_a_folder_is_no_file_of_one_s_own(
    cli: Run, story: type, tmp_path: Path, listener: Listener
) -> None:
    study = received(story, tmp_path / "received", TRACKING, listener.address(TRACKING))
    code, _, said = cli("search", study.folder.spec, "--name", "mine", "--studies", tmp_path / "studies")
    assert code == 2 and "--trust" in said and not listener.heard and not (tmp_path / "studies").exists()
    own = tmp_path / "mine.toml"  # a person's own file: as before
    own.write_text(study.folder.spec.read_text())
    assert "does not answer" in cli("search", own, "--studies", tmp_path / "studies")[2] and listener.heard


def test_a_study_that_may_not_be_read_hides_no_other(cli: Run, story: type, tmp_path: Path) -> None:
    received(story, tmp_path, JOURNAL, "postgresql+psycopg://db.evil/x")
    keep(story(), tmp_path, "mine")
    code, out, said = cli("list", "--studies", tmp_path)
    assert code == 0 and "mine" in out and "received is left out: the folder of study" in said
    code, out, said = cli("gc", "--dry-run", "--studies", tmp_path)
    assert code == 0 and "mine: 0 folders" in out and "received is left out: its journal is elsewhere" in said


def test_an_address_that_was_given_is_called_and_remembered(
    cli: Run, story: type, tmp_path: Path, listener: Listener
) -> None:
    received(story, tmp_path / "studies", TRACKING, "http://127.0.0.1:9")
    words = ("resume", "received", "--studies", tmp_path / "studies", "--tracking", listener.address(TRACKING))
    code, _, said = cli(*words)
    assert code == 2 and "does not answer" in said and listener.heard


def test_the_user_goes_to_no_other_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: Listener) -> None:
    """A server that sends on to another one does not send our password along."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    from search.tracking.server import check_server

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.headers["Authorization"]
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{listener.port}/")
            self.end_headers()

        def log_message(self, format: str, *_: Any) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match="does not answer"):
            check_server(f"http://127.0.0.1:{server.server_address[1]}")
        server.shutdown()
    assert listener.heard and not any(b"uthorization" in heard for heard in listener.heard)


def test_the_state_folder_of_others_is_not_believed(story: type, tmp_path: Path, person: Path) -> None:
    received(story, tmp_path / "studies", TRACKING, "http://mlflow")
    Study.load("received", root=tmp_path / "studies", trust=True).permit(TRACKING)
    person.chmod(0o777)
    with pytest.raises(InputError, match="--trust"):
        Study.load("received", root=tmp_path / "studies").permit(TRACKING)
    if os.getuid() == 0:
        person.chmod(0o700)
        os.chown(person, 12345, 12345)
        with pytest.raises(InputError, match="--trust"):
            Study.load("received", root=tmp_path / "studies").permit(TRACKING)


# -- files of Python that networks come from ---------------------------------------------------------

EVIL = """
open(__file__ + ".ran", "w").close()


def build(classes):
    from torch import nn

    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))
"""


@pytest.fixture
def with_a_file(story: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """The folder of a stranger's study, whose networks come from a file that lies in it."""
    monkeypatch.setattr(own_networks, "_trusted", set())
    study = keep(story(), tmp_path, "received")
    evil = study.folder.path / "evil.py"
    evil.write_text(EVIL)
    values = study.spec.model_dump(mode="json", exclude_none=True)
    changed = {**values, "methods": {"static": {"network": f"{evil}:build"}}}
    study.folder.spec.write_text(to_toml(changed))
    return study


def test_a_strangers_network_is_run_by_nobody_who_has_not_agreed(with_a_file: Study, cli: Run) -> None:
    folder = with_a_file.folder.path
    for words in (("status", folder), ("frontier", folder)):
        code, _, error = cli(*words)  # looking builds no network
        assert code == 0, error
    for words in (("resume", folder), ("promote", folder, "--model", "m")):
        code, _, error = cli(*words)
        assert code == 2 and len(error.splitlines()) == 1
        assert "to which nobody has agreed here as they are now" in error and "SHA-256" in error
    assert not own_networks.trusts(EVIL) and not (folder / "evil.py.ran").exists()


def test_consent_is_to_what_the_file_says(with_a_file: Study, person: Path) -> None:
    folder = with_a_file.folder.path
    Study.load(folder, trust=True)
    assert own_networks.trusts(EVIL)
    own_networks._trusted.clear()
    Study.load(folder)  # remembered
    assert own_networks.trusts(EVIL)
    own_networks._trusted.clear()
    (folder / "evil.py").write_text(changed := EVIL + "# and more\n")
    found = Study.load(folder)
    assert not own_networks.trusts(changed) and found.untrusted("methods.static.network")
    assert not (folder / "evil.py.ran").exists()


def test_a_worker_runs_what_the_driver_trusts_and_not_what_a_journal_names(with_a_file: Study) -> None:
    """A stranger's journal may name a network that the study file does not: the order brings digests, not trust."""
    from trainables.contracts.network import Task
    from trainables.methods import static

    name = f"{with_a_file.folder.path / 'evil.py'}:build"
    assert own_networks.trusted() == []
    with pytest.raises(ValueError, match="to which nobody has agreed here"):
        static.build(static.METHOD.configure({"network": name}), Task(classes=3, size=8))
    assert not (with_a_file.folder.path / "evil.py.ran").exists()
