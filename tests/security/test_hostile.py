"""A study's folder made by somebody who means harm: looked at by every command that reads, and nothing happens."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from search.spec.toml import to_toml
from tests.support.command import Run
from tests.support.kept_study import keep

COMMANDS = {
    "status": ("x",), "status --trial": ("x", "--trial", "t0000"), "frontier": ("x",),
    "frontier --wide": ("x", "--by-method", "--papers", "--layers", "2"), "frontier --history": ("x", "--history"),
    "frontier --json": ("x", "--json"), "report": ("x", "--out", "OUT"), "export": ("x", "--optuna", "OUT/optuna.db"),
    "gc": ("x", "--dry-run"), "gc all": ("--dry-run",), "list": (), "confirm": ("x", "--point", "t0009-1-1"),
    "delete": ("x",),
}  # fmt: skip
EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\r\x9b1A<script>alert(1)</script>[link=http://evil]"


def _sql(path: Path, *statements: str, values: Any = ()) -> None:
    with sqlite3.connect(path) as database:
        for statement in statements:
            database.execute(statement, values)
    database.close()


def _event(study: Any, seq: int, **changes: Any) -> None:
    """An event of the journal with other values in its payload."""
    with sqlite3.connect(study.folder.control) as database:
        (text,) = database.execute("SELECT payload FROM events WHERE seq = ?", (seq,)).fetchone()
        payload = json.dumps({**json.loads(text), **changes})
        database.execute("UPDATE events SET payload = ? WHERE seq = ?", (payload, seq))
    database.close()


def _spec(study: Any, **changes: Any) -> None:
    study.folder.spec.write_text(to_toml({**study.spec.model_dump(mode="json", exclude_none=True), **changes}))


def _links(study: Any, home: Path) -> None:
    for name in ("checkpoints", "ray", "points"):
        shutil.rmtree(study.folder.path / name, ignore_errors=True)
        (study.folder.path / name).symlink_to(home)
    (study.folder.path / "report.html").symlink_to(home / "mine.txt")


def _pipes(study: Any, home: Path) -> None:
    os.mkfifo(study.folder.path / "stop")
    os.mkfifo(study.folder.points / "0-a.parquet")
    os.mkfifo(study.folder.path / "storage")
    os.mkfifo(study.folder.path.parent / "storage")


def _view(study: Any, home: Path) -> None:
    _sql(
        study.folder.control, "ALTER TABLE events RENAME TO old",
        "CREATE VIEW events AS SELECT * FROM old WHERE seq < 3 UNION ALL SELECT study, seq, time, fence, 'later', NULL,"
        " '{}' FROM old",
    )  # fmt: skip


def _config(study: Any, home: Path) -> None:
    config = {"method": EVIL, "lr": 10**300, "network": ["../../x"], "batch_size": None, EVIL: {"a": [EVIL]}}
    _event(study, 3, config=config, why=EVIL, seed=-1)


HOSTILE = {
    "links": _links,
    "pipes": _pipes,
    "a view for a table": _view,
    "control characters": _config,
    "no table of leases": lambda s, home: _sql(s.folder.control, "DROP TABLE leases"),
    "deep JSON": lambda s, home: _sql(
        s.folder.control, "UPDATE events SET payload = ? WHERE seq = 4", values=("[" * 10**5,)
    ),
    "a blob": lambda s, home: _sql(s.folder.control, "UPDATE events SET payload = x'ff00' WHERE seq = 4"),
    "a list for a table": lambda s, home: _sql(s.folder.control, "UPDATE events SET payload = '[]' WHERE seq = 1"),
    "another kind": lambda s, home: _sql(s.folder.control, "UPDATE events SET kind = '_class__', trial = '../x'"),
    "names that lead elsewhere": lambda s, home: _event(s, 5, checkpoint="../../home"),
    "huge numbers": lambda s, home: _event(s, 5, epoch=10**400),
    "NaN": lambda s, home: _event(s, 5, curve={"points": [{"accuracy": float("nan"), "macs": 1}], "diagnostics": {}}),
    "no reference": lambda s, home: _event(s, 1, reference={}),
    "a foreign space": lambda s, home: _event(s, 1, methods={"static": {"space": {"x": 5}}}),
    "another task": lambda s, home: _event(s, 1, data={"name": EVIL, "hash": 5, "task": [], "classes": 7}),
    "a server": lambda s, home: _spec(s, tracking={"uri": "http://PLACE"}),
    "a database": lambda s, home: _spec(s, journal="postgresql+psycopg://PLACE/x"),
    "a file elsewhere": lambda s, home: _spec(s, journal=f"sqlite:///{home}/mine.db"),
    "a huge budget": lambda s, home: _spec(s, budget={"trials": 10**15, "epochs": 10**15}),
    "deep TOML": lambda s, home: s.folder.spec.write_text(f"x = {'[' * 10**5}"),
    "no text": lambda s, home: s.folder.spec.write_bytes(b"\xff\xfe\x00"),
    "no journal": lambda s, home: s.folder.control.write_bytes(b"SQLite format 3\x00" + bytes(5000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_looking_does_nothing(cli: Run, story: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    home, out, studies = tmp_path / "home", tmp_path / "out", tmp_path / "studies"
    for path in (home / "t0000" / "epoch-0001", home / "session-1", out):
        path.mkdir(parents=True)
    (home / "mine.txt").write_text("mine")
    sqlite3.connect(home / "mine.db").execute("CREATE TABLE mine (x)").connection.close()
    told = story()
    trial = told.ask(0)
    told.report(trial, 1, [(0.9, 1e6), (0.8, 1e5)])
    told.decide(trial, 1, "stop")
    told.add("ended", {"why": "finished"})
    study = keep(told, studies, "x", flushed=kind == "links")
    HOSTILE[kind](study, home)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        place = f"127.0.0.1:{server.getsockname()[1]}"
        if not kind == "no text":
            study.folder.spec.write_text(study.folder.spec.read_text().replace("PLACE", place))
        before = _state(home)
        monkeypatch.chdir(out)
        for command, words in COMMANDS.items():
            said = _run(cli, command, words, studies, out)
            assert all(c.isprintable() or c in "\n" for c in said), (command, said)
        with pytest.raises(BlockingIOError):  # nobody has called
            server.accept()
    assert _state(home) == before
    assert {p.name for p in tmp_path.iterdir()} == {"home", "out", "studies"}
    for page in out.rglob("*.html"):
        assert "<script>alert(1)" not in page.read_text()


def _run(cli: Run, command: str, words: tuple[str, ...], studies: Path, out: Path) -> str:
    given = [word.replace("OUT", str(out)) for word in words]
    code, said, err = cli(command.split()[0], *given, "--studies", studies)
    assert code in (0, 1, 2) and "Traceback" not in err, (command, err)
    assert code == 0 or len(err.strip().splitlines()) <= 6, (command, err)
    return said + err


def _state(folder: Path) -> dict[str, Any]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in folder.rglob("*")
    }
