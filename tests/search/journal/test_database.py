from __future__ import annotations

import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from search.errors import InputError
from search.journal.database import Journal, LeaseLostError, sqlite_address
from search.journal.mounts import file_system, is_network
from tests.support.postgres import INSTALLED, Postgres


def _journal(folder: Path, study: str = "s", *, create: bool = True) -> Journal:
    return Journal(sqlite_address(folder / "control.db"), study, create=create)


def test_events_come_back_in_order_and_survive_reopening(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.acquire()
    for i in range(5):
        journal.append("report", {"epoch": i, "text": "é"}, f"t{i}")
    journal.close()
    again = _journal(tmp_path, create=False)
    assert [(e.seq, e.payload["epoch"], e.trial) for e in again.events()] == [(i + 1, i, f"t{i}") for i in range(5)]
    assert [e.seq for e in again.events(after=3)] == [4, 5]
    again.acquire()
    assert again.append("x", {}).seq == 6


def test_two_studies_share_a_database(tmp_path: Path) -> None:
    a, b = _journal(tmp_path, "a"), _journal(tmp_path, "b")
    a.acquire()
    b.acquire()
    a.append("x", {})
    b.append("y", {})
    assert [e.kind for e in a.events()] == ["x"] and [e.kind for e in b.events()] == ["y"]
    a.delete()
    assert list(a.events()) == [] and len(list(b.events())) == 1


_OWNER = """
import sys, time
from pathlib import Path
from search.journal.database import Journal, sqlite_address
journal = Journal(sqlite_address(Path(sys.argv[1]) / "control.db"), "s", create=True)
journal.acquire()
journal.append("x", {})
print("owner", flush=True)
time.sleep(600)
"""


def test_a_second_process_is_refused_and_a_dead_owner_is_replaced(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(_OWNER), str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert owner.stdout is not None and owner.stdout.readline() == "owner\n"
        journal = _journal(tmp_path, create=False)
        with pytest.raises(
            InputError, match=rf"written by process {owner.pid} on {socket.gethostname()}.*renewed \d+ s"
        ):
            journal.acquire()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        journal.acquire()
        assert journal.append("y", {}).seq == 2
    finally:
        owner.kill()
        owner.wait()


def test_a_writer_that_lost_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    first, second = _journal(tmp_path), _journal(tmp_path)
    first.acquire()
    first.append("x", {})
    second.acquire()  # same process: taken over
    with pytest.raises(LeaseLostError):
        first.append("late", {})
    with pytest.raises(LeaseLostError):
        first.renew()
    assert [e.kind for e in second.events()] == ["x"]


def test_missing_truncated_and_foreign_databases_say_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no journal at"):
        _journal(tmp_path, create=False)
    journal = _journal(tmp_path)
    journal.acquire()
    for i in range(200):
        journal.append("x", {"fill": "y" * 100, "i": i})
    journal.close()
    path = tmp_path / "control.db"
    whole = path.read_bytes()
    shutil.copy(path, tmp_path / "good.db")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"journal .* (is damaged|cannot be opened)"):
        list(_journal(tmp_path, create=False).events())
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(InputError, match="cannot be opened"):
        _journal(tmp_path, create=False)
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("create table other (x)")
    with pytest.raises(InputError, match="is no journal"):
        _journal(tmp_path, create=False)


def test_a_gap_and_a_cut_payload_are_named(tmp_path: Path) -> None:
    journal = _journal(tmp_path)
    journal.acquire()
    for _ in range(4):
        journal.append("x", {"a": 1})
    journal.close()
    with sqlite3.connect(tmp_path / "control.db") as connection:
        connection.execute("update events set payload = '{\"a\": ' where seq = 3")
    with pytest.raises(InputError, match="event 3 was cut off"):
        list(_journal(tmp_path, create=False).events())
    with sqlite3.connect(tmp_path / "control.db") as connection:
        connection.execute("delete from events where seq = 2")
    with pytest.raises(InputError, match="event 2 of study 's' is missing"):
        list(_journal(tmp_path, create=False).events())


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A real PostgreSQL server, started here from the system's package."""
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb)")
    found = Postgres()
    yield found
    found.close()


def test_the_same_journal_on_postgresql(server: Postgres) -> None:
    postgres = server.address
    journal = Journal(postgres, "s", create=True)
    journal.acquire()
    for i in range(3):
        journal.append("x", {"i": i}, "t0")
    rival = Journal(postgres, "s")
    rival.acquire()
    with pytest.raises(LeaseLostError):
        journal.append("late", {})
    assert [e.payload["i"] for e in rival.events()] == [0, 1, 2]
    assert sa.make_url(postgres).host == "127.0.0.1"
    with pytest.raises(InputError, match="cannot be opened"):
        Journal(postgres.replace("@127.0.0.1:", "@127.0.0.1:1"), "s")


def test_a_journal_on_a_network_file_system_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mounts, share = tmp_path / "mounts", tmp_path / "my share"
    share.mkdir()
    place = str(share).replace(" ", "\\040")
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nserver:/export {place} nfs4 rw 0 0\n")
    assert file_system(share / "a" / "b", mounts) == "nfs4" and file_system(tmp_path / "my", mounts) == "ext4"
    assert file_system(tmp_path, tmp_path / "none") == ""
    monkeypatch.setattr("search.journal.database.is_network", lambda path: is_network(path, mounts))
    for folder, warned in ((tmp_path, False), (share, True)):
        caplog.clear()
        journal = Journal(sqlite_address(folder / "control.db"), "s", create=True)
        journal.acquire()
        journal.close()
        assert ("network file system" in caplog.text) is warned


def test_a_server_that_goes_away_and_comes_back_is_waited_for(
    server: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(server.address, "outage", create=True)
    journal.acquire()
    journal.append("x", {"i": 0})
    server.stop()
    later = threading.Timer(3.0, server.start)
    later.start()
    began = time.monotonic()
    journal.append("x", {"i": 1})
    later.join()
    journal.renew()
    assert time.monotonic() - began > 2.5
    assert [e.payload["i"] for e in journal.events()] == [0, 1]
    assert "does not answer" in caplog.text and "answers again" in caplog.text
    journal.close()


def test_an_event_whose_commit_nobody_heard_of_is_written_once(server: Postgres) -> None:
    """The server dies right behind the commit, before it could say so."""
    journal = Journal(server.address, "unheard", create=True)
    journal.acquire()
    died = []

    @sa.event.listens_for(journal._engine, "commit")
    def die(connection: sa.Connection) -> None:
        if not died:
            died.append(True)
            connection.connection.dbapi_connection.commit()  # type: ignore[union-attr]
            raise sa.exc.OperationalError("commit", {}, Exception("the connection was lost"))

    journal.append("x", {"i": 0})
    journal.append("x", {"i": 1})
    assert died and [(e.seq, e.payload["i"]) for e in journal.events()] == [(1, 0), (2, 1)]
    journal.close()
