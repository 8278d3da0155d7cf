"""Opens the database of a journal for reading: nothing is written, and no permission to write is needed.

SQLite's readers keep a file of shared memory beside the database. Where the folder cannot be written, such as another
user's or a mount that is read-only, they get by without it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.pool import NullPool

from search.errors import InputError
from search.journal.tables import METADATA

BUSY_MILLISECONDS = 20_000
_BESIDE = ("", "-wal", "-shm", "-journal")
_ATTEMPTS = 10


def file_of(address: str) -> Path | None:
    """The file of an SQLite address, None for another database.

    Raises `InputError` where a ``?`` that belongs to the path was written as it is: another file would be meant.
    """
    url = sa.make_url(address)
    if url.get_backend_name() == "sqlite" and "?" in address and not url.query:
        raise InputError(f"address {address!r}: a '?' in the path is written %3F, and '%' is written %25")
    return Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None


def check_files(path: Path) -> None:
    """Raise `InputError` unless a database and what SQLite keeps beside it are regular files.

    A pipe or a device in place of one would keep a reader waiting for ever.
    """
    for ending in _BESIDE:
        file = path.with_name(path.name + ending)
        try:
            kind = file.stat().st_mode
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InputError(f"journal {file} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(kind):
            raise InputError(f"{file} is no journal: it is no regular file")


def check_tables(engine: sa.Engine, place: str) -> None:
    """Raise `InputError` unless a database has a journal's tables, and these hold what was written into them.

    A view or a computed column of that name runs whatever its author wrote, which may never end.
    """
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            found = dict.fromkeys(sa.inspect(connection).get_table_names(), "table")
        else:
            query = "SELECT lower(name), type, sql FROM sqlite_master WHERE lower(name) IN ('events', 'leases')"
            found = {}
            for name, kind, made in connection.exec_driver_sql(query):
                hidden = [row[6] for row in connection.exec_driver_sql(f"PRAGMA table_xinfo({name})")]
                virtual = str(made).split()[1:2] == ["VIRTUAL"]
                found[name] = "virtual table" if virtual else "table with computed columns" if any(hidden) else kind
    for name in METADATA.tables:
        if name not in found:
            raise InputError(f"{place} is no journal: it has no table of {name}")
        if found[name] != "table":
            raise InputError(f"{place} is no journal: {name!r} is a {found[name]}, not a table")


def open_reader(address: str) -> sa.Engine:
    """The database at an address, for reading.

    An SQLite file that this user may write is locked like any reader's, and SQLite removes its files again. One that
    he may not write is opened anew for every query: as it stands where no write-ahead log is, else with the log that
    its writer keeps, else from a private copy of both.
    """
    path = file_of(address)
    if path is None:
        return sa.create_engine(address, future=True)
    if writable(path):
        return sa.create_engine("sqlite://", creator=lambda: _connect(path, "mode=rw"), poolclass=sa.QueuePool)
    return sa.create_engine("sqlite://", creator=lambda: _without_writing(path), poolclass=NullPool)


def writable(path: Path) -> bool:
    """Whether this user may write an SQLite file: itself, and the files beside it."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def _connect(path: Path, options: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?{options}"
    connection = sqlite3.connect(address, uri=True, check_same_thread=False, timeout=BUSY_MILLISECONDS / 1000)
    connection.execute("PRAGMA query_only=ON")
    return connection


def _without_writing(path: Path) -> sqlite3.Connection:
    log = path.with_name(path.name + "-wal")
    if not _size(log):
        return _connect(path, "mode=ro&immutable=1")
    connection = _connect(path, "mode=ro")
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.OperationalError:  # the shared memory is missing, and cannot be made
        connection.close()
        return _copied(path, log)
    return connection


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _copied(path: Path, log: Path) -> sqlite3.Connection:
    """A copy of the database with its log, of one moment: no checkpoint of the writer's fell in between."""
    with tempfile.TemporaryDirectory(prefix="routefront-") as folder:
        copy = Path(folder) / "control.db"
        try:
            for _ in range(_ATTEMPTS):
                before = _moment(path, log)
                shutil.copyfile(path, copy)
                if _size(log):
                    shutil.copyfile(log, copy.with_name("control.db-wal"))
                if _moment(path, log) == before:
                    break
            else:
                raise sqlite3.OperationalError("its writer changes it faster than it can be copied; try again")
        except OSError as error:
            raise sqlite3.OperationalError(f"{error.filename or path}: {error.strerror or error}") from None
        whole = sqlite3.connect(copy)
        whole.execute("PRAGMA journal_mode=DELETE")  # takes the log in
        whole.close()
        connection = _connect(copy, "mode=ro&immutable=1")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # it is open, and may lose its name
        return connection


def _moment(path: Path, log: Path) -> tuple[int, int, bytes]:
    """What differs when a log's contents have moved into the database: the file's time and size, the log's salts."""
    status = path.stat()
    with log.open("rb") as file:
        return status.st_mtime_ns, status.st_size, file.read(32)
