from __future__ import annotations

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from search.errors import InputError
from search.journal import Journal, LeaseLostError, sqlite_address
from search.mounts import file_system, is_network


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
    assert a.studies() == ["a", "b"]
    a.delete()
    assert list(a.events()) == [] and len(list(b.events())) == 1


_OWNER = """
import sys, time
from pathlib import Path
from search.journal import Journal, sqlite_address
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
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL server, started here from the system's package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb)")
    folder = Path(tempfile.mkdtemp(prefix="routefront-postgres-"))
    bin_folder, data = found[-1].parent, folder / "data"
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "cwd": folder}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(*words: str) -> None:
        subprocess.run(words, check=True, capture_output=True, **user)  # type: ignore[call-overload]

    call(str(bin_folder / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    call(str(bin_folder / "pg_ctl"), "-D", str(data), "-w", "-o", options, "-l", str(folder / "log"), "start")
    yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    call(str(bin_folder / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    shutil.rmtree(folder, ignore_errors=True)


def test_the_same_journal_on_postgresql(postgres: str) -> None:
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
    monkeypatch.setattr("search.journal.is_network", lambda path: is_network(path, mounts))
    for folder, warned in ((tmp_path, False), (share, True)):
        caplog.clear()
        journal = Journal(sqlite_address(folder / "control.db"), "s", create=True)
        journal.acquire()
        journal.close()
        assert ("network file system" in caplog.text) is warned
