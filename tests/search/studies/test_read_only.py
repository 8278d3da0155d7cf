"""Studies of other users and on mounts that are read-only are listed, asked and reported like one's own."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.study import Study
from tests.support.command import Run
from tests.support.kept_study import keep
from tests.support.unprivileged import (
    allow_writing,
    forbid_writing,
    on_read_only_mount,
    run,
    without_write_permission,
)

ENDED, KILLED, COPIED = "ended", "killed", "copied"


def _told(story: type) -> Any:
    told = story()
    for number in range(3):
        trial = told.ask(number)
        told.report(trial, 9, [(0.8 + number / 100, 1e6 + number), (0.9 + number / 100, 2e6 + number)])
        told.decide(trial, 9, "finish")
    return told


@pytest.fixture
def root(tmp_path: Path, story: type) -> Path:
    """Studies whose driver ended well, was killed, and was killed before the folder was copied without shared memory.

    What the journals of the latter two say last is in their write-ahead logs only.
    """
    root = tmp_path / "studies"
    keep(_told(story), root, ENDED)
    for name in (KILLED, COPIED):
        study = keep(_told(story), root, name)
        journal = study.journal()
        journal.acquire()
        journal.append("ended", {"why": "stopped"})
        journal.release()
        left = {path.name: path.read_bytes() for path in study.folder.path.glob("control.db*")}
        journal.close()
        assert set(left) == {"control.db", "control.db-wal", "control.db-shm"} and left["control.db-wal"]
        for file, content in left.items():
            if (name, file) != (COPIED, "control.db-shm"):
                (study.folder.path / file).write_bytes(content)
    return root


@pytest.fixture(params=["permissions", "mount"])
def before(request: pytest.FixtureRequest, root: Path) -> Iterator[Callable[[], list[str]]]:
    """Makes the studies read-only, by their permissions or their mount: words before a command for which they are."""

    def words() -> list[str]:
        if request.param == "mount":
            return on_read_only_mount(root)
        forbid_writing(root)
        return without_write_permission()

    yield words
    allow_writing(root)


def test_whoever_cannot_write_can_read(root: Path, tmp_path: Path, before: Callable[[], list[str]]) -> None:
    at, names, new = ("--studies", root), (ENDED, KILLED, COPIED), tmp_path / "new"
    commands: list[list[object]] = [["list", "--json", *at], *(["status", name, "--json", *at] for name in names)]
    commands += [["status", COPIED, "--trial", "t0001", *at], *(["frontier", name, "--json", *at] for name in names)]
    commands += [["report", COPIED, "--out", new / COPIED, *at]]
    commands += [["export", name, "--optuna", f"{new / name}.db", *at] for name in names]
    commands += [["report", ENDED, *at], ["gc", ENDED, *at], ["gc", "--json", *at], ["stop", ENDED, *at]]
    prefix, files = before(), sorted(os.listdir(root / COPIED))
    new.mkdir()
    answers = run(prefix, *commands)
    for words, (code, _, said) in zip(commands[:-4], answers, strict=False):
        assert code == 0 and not said.count("Traceback"), (words, said)
    listed = {record["study"]: (record["state"], record["trials"]["finished"]) for record in json.loads(answers[0][1])}
    assert listed == {ENDED: ("interrupted", 3), KILLED: ("stopped", 3), COPIED: ("stopped", 3)}
    assert [json.loads(out)["front_points"] for _, out, _ in answers[1:4]] == [6, 6, 6]
    assert (new / COPIED / "report.html").exists() and all((new / f"{name}.db").exists() for name in names)
    refused = [(code, said) for code, _, said in answers[-4:]]
    assert refused[0][0] == 2 and "cannot be written" in refused[0][1] and "--out FOLDER" in refused[0][1]
    assert refused[1][0] == 2 and "can only be read here" in refused[1][1]
    assert refused[2][0] == 0 and all(f"{name} is left out: " in refused[2][1] for name in names)
    assert refused[3][0] == 2 and "is not running" in refused[3][1]
    assert sorted(os.listdir(root / COPIED)) == files  # nothing was written beside the journal


def test_one_bad_study_does_not_break_the_list(root: Path, tmp_path: Path, story: type) -> None:
    for name in ("closed", "locked", "torn", "halved", "strange"):
        keep(story(), root, name)
    (root / "torn" / "study.toml").write_text("name = ")
    (root / "halved" / "control.db").unlink()
    with sqlite3.connect(root / "strange" / "control.db") as connection:
        connection.execute("UPDATE events SET payload = '{}' WHERE kind = 'created'")
    (root / "locked" / "control.db").chmod(0)
    (root / "closed").chmod(0)
    try:
        listed, table, _ = run(
            without_write_permission(), ["list", "--json", "--studies", root], ["list", "--studies", root],
            ["search", "--preset", "digits", "--dry-run", "--studies", root],
        )  # fmt: skip
    finally:
        (root / "closed").chmod(0o755)
    assert listed[0] == 0 and {record["study"] for record in json.loads(listed[1])} == {ENDED, KILLED, COPIED}
    for name in ("closed", "locked", "torn", "halved", "strange"):
        assert sum(f"{name} is left out: " in line for line in listed[2].splitlines()) == 1, listed[2]
    assert "Permission denied" in listed[2] and ENDED in table[1]


_ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT 's', i, 0.0, 0, 'x', 't', 'x' FROM n"
_STRANGE = {
    "view": "ALTER TABLE {0} RENAME TO true_{0}; CREATE VIEW {0} AS " + _ENDLESS,
    "table with computed columns": "ALTER TABLE {0} ADD COLUMN more TEXT AS (hex(zeroblob(500000000)))",
    "virtual table": "ALTER TABLE {0} RENAME TO true_{0}; CREATE VIRTUAL TABLE {0} USING fts5(study, seq)",
}


@pytest.mark.parametrize("table", ["events", "leases"])
@pytest.mark.parametrize("kind", _STRANGE)
def test_what_is_no_table_is_never_asked(cli: Run, tmp_path: Path, story: type, kind: str, table: str) -> None:
    study = keep(_told(story), tmp_path, "sent")
    connection = sqlite3.connect(study.folder.control)
    connection.executescript(_STRANGE[kind].format(table))
    connection.close()
    code, out, said = cli("status", "sent", "--studies", tmp_path)
    assert code == 2 and not out and said.count("\n") == 1 and f"{table!r} is a {kind}, not a table" in said


@pytest.mark.parametrize("file", ["control.db", "control.db-wal", "control.db-shm", "study.toml"])
def test_only_regular_files_are_opened(cli: Run, tmp_path: Path, story: type, file: str) -> None:
    study = keep(_told(story), tmp_path, "sent")
    (study.folder.path / file).unlink(missing_ok=True)
    os.mkfifo(study.folder.path / file)  # whoever opens it waits for ever
    code, out, said = cli("status", "sent", "--studies", tmp_path)
    assert code == 2 and not out and said.count("\n") == 1 and "is no regular file" in said


def test_a_reader_becomes_the_writer(tmp_path: Path, story: type) -> None:
    study = keep(_told(story), tmp_path, "mine")
    last = study.journal().last()
    journal = study.journal()
    assert journal.last() == last
    journal.acquire()
    assert journal.append("x", {}).seq == last + 1
    other = Journal(sqlite_address(study.folder.control), "mine")
    assert other.last() == last + 1 and other.held()
    journal.close()
    assert not other.held()
    other.close()
    assert sorted(path.name for path in study.folder.path.glob("control.db*")) == ["control.db"]


def test_reading_changes_no_file(tmp_path: Path, story: type) -> None:
    study = keep(_told(story), tmp_path, "mine")
    with sqlite3.connect(study.folder.control) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    before = study.folder.control.read_bytes()
    Study.load(study.folder.path).state()
    assert study.folder.control.read_bytes() == before


def test_a_copy_that_has_lost_its_journal_is_told(tmp_path: Path, story: type) -> None:
    study = keep(_told(story), tmp_path, "mine")
    shutil.rmtree(study.folder.path / "points")
    study.folder.control.unlink()
    with pytest.raises(InputError, match="no journal at"):
        study.state()
