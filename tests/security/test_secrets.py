"""Passwords never get into what a study keeps."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from search.commands.terminal import Terminal
from search.journal.database import Journal, sqlite_address
from search.redaction import guard, redacted
from search.spec.toml import to_toml
from tests.support.command import Run
from tests.support.kept_study import keep

MARK = "mark-3f9c/07e1+secret"
# AWS_SECRET_ACCESS_KEY is none of them: Ray Tune hands it to workers, and Ray's agent logs it (SECURITY.md).
SECRETS = ("MLFLOW_TRACKING_PASSWORD", "PGPASSWORD", "HF_TOKEN")

PLAIN: dict[str, Any] = {
    "name": "secret",
    "data": {"name": "digits", "image_size": 8, "limit": 64},
    "budget": {"trials": 1, "epochs": 1},
    "methods": {"static": {"network": "resnet-8"}},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"journal": "postgresql+psycopg://me:hush@db/x"}, "journal carries a password"),
        ({"journal": "postgresql+psycopg://db/x?user=me&password=hush"}, "PGPASSWORD, or write it into ~/.pgpass"),
        ({"tracking": {"uri": "http://me:hush@mlflow:5000"}}, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ({"tracking": {"uri": "postgresql://me:hush@db/mlflow"}}, "tracking.uri carries a password"),
        ({"journal": "postgresql+psycopg://db/x?sslpassword=hush"}, "journal carries a password"),
    ],
)
def test_a_password_is_refused_before_anything_is_written(
    cli: Run, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    file = tmp_path / "study.toml"
    file.write_text(to_toml({**PLAIN, **changes}))
    code, out, err = cli("search", file, "--studies", tmp_path / "studies")
    assert code == 2 and says in err and err.count("\n") == 1 and "hush" not in out + err
    assert not (tmp_path / "studies").exists()


def test_a_password_on_the_command_line_is_refused_too(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(to_toml(PLAIN))
    words = ("search", file, "--studies", tmp_path / "studies", "--tracking", "http://me:hush@127.0.0.1:9")
    code, out, err = cli(*words)
    assert code == 2 and "tracking.uri carries a password" in err and "hush" not in out + err


def test_a_password_for_a_study_that_exists_is_refused_too(cli: Run, story: type, tmp_path: Path) -> None:
    study = keep(story(), tmp_path, "mine")
    before = study.folder.spec.read_bytes()
    words = ("resume", "mine", "--studies", tmp_path, "--trials", "99", "--tracking", "http://me:hush@127.0.0.1:9")
    code, out, err = cli(*words)
    assert code == 2 and "tracking.uri carries a password" in err and "hush" not in out + err
    assert study.folder.spec.read_bytes() == before


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("postgresql://me:hush@db/x?a=b", "postgresql://me:***@db/x?a=b"),
        ("at http://u:p%40ss@h:1/ and s3://key:hush@bucket", "at http://u:***@h:1/ and s3://key:***@bucket"),
        ("host=db password=hushhush dbname=x", "host=db password=*** dbname=x"),
        ("{'Authorization': 'Bearer hushhush'}", "{'Authorization': '***'}"),
        ("AWS_SECRET_ACCESS_KEY: hushhush", "AWS_SECRET_ACCESS_KEY: ***"),
        (f"refused {MARK}, {quote(MARK, safe='')}", "refused ***, ***"),
        ("user postgres of postgresql://postgres-1/postgresql", "user *** of postgresql://***-1/postgresql"),
        ("http://127.0.0.1:8000/?token=abcdef t0003 12:30@x", "http://127.0.0.1:8000/?token=abcdef t0003 12:30@x"),
    ],
)
def test_what_is_secret_in_a_text(text: str, clean: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", MARK)
    monkeypatch.setenv("PGPASSWORD", "postgres")
    assert redacted(text) == clean and redacted(clean) == clean


def test_messages_logs_and_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", MARK)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = logging.getLogRecordFactory()
    try:
        guard()
        try:
            raise ValueError(f"in a traceback {MARK}")
        except ValueError:
            logging.getLogger("routefront.search").exception("%s and %s", MARK, "more")
    finally:
        logging.setLogRecordFactory(before)
    sys.excepthook(ValueError, ValueError(f"at the end {MARK}"), None)
    Terminal(width=50).print(f"[{MARK}]\n" + "x" * 40 + MARK, soft_wrap=True)
    said = caplog.text + "".join(capfd.readouterr())
    assert MARK not in said and said.count("***") >= 5 and "in a traceback" in said and "at the end" in said
    journal = Journal(sqlite_address(tmp_path / "control.db"), "x", create=True)
    journal.acquire()
    told = {"reason": f"no {MARK}", "traceback": f"File x\n{MARK}", "epoch": 1, "more": [{"says": MARK}]}
    event = journal.append("failed", told, "t0000")
    assert event.payload["reason"] == "no ***" and next(journal.events()).payload == event.payload
    journal.close()
    assert not [path for path in tmp_path.rglob("*") if MARK.encode() in path.read_bytes()]


class Chatty(BaseHTTPRequestHandler):
    """A server of MLflow that fails, and tells everybody with which password it was called."""

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        good = "max_results=1" in self.path
        text = "{}" if good else json.dumps({"error_code": "INTERNAL_ERROR", "message": f"failed for {MARK}"})
        self.send_response(200 if good else 400)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = _answer

    def log_message(self, format: str, *_: Any) -> None:
        return


def test_nothing_that_a_run_writes_or_prints_holds_a_secret(tmp_path: Path) -> None:
    """A search from its beginning to its end, its own Ray and a failing server of MLflow with it."""
    file, scratch = tmp_path / "study.toml", Path(tempfile.mkdtemp(prefix="rf-"))  # sockets of Ray need a short path
    file.write_text(to_toml({**PLAIN, "resources": {"workers": 1}}))
    environment = {**os.environ, **dict.fromkeys(SECRETS, MARK), "MLFLOW_TRACKING_USERNAME": "me"}
    environment |= {"TMPDIR": str(scratch), "HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    (tmp_path / "home").mkdir()
    try:
        with ThreadingHTTPServer(("127.0.0.1", 0), Chatty) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://me:{quote(MARK, safe='')}@127.0.0.1:{server.server_address[1]}"
            ran = subprocess.run(
                [sys.executable, "-m", "search", "search", str(file), "--studies", str(tmp_path / "studies")],
                env={**environment, "MLFLOW_TRACKING_URI": address}, capture_output=True, text=True, cwd=tmp_path,
            )  # fmt: skip
            server.shutdown()
        assert ran.returncode == 0, ran.stderr
        assert "failed for ***" in ran.stderr, "the server's words did not come through"
        forms = {form.encode() for form in (MARK, quote(MARK, safe=""), quote(MARK), json.dumps(MARK)[1:-1])}
        written = [path for root in (tmp_path, scratch) for path in root.rglob("*") if path.is_file()]
        assert any(path.name == "control.db" for path in written) and any("session_" in str(path) for path in written)
        holding = [path for path in written if any(form in path.read_bytes() for form in forms)]
        assert not holding and not any(form.decode() in ran.stdout + ran.stderr for form in forms)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
