"""The journal: what happened to a study, append-only, in a database that one process may write.

Every event is appended before it is acted upon; all state is a fold over the events
(`search/state/state.py`). The *lease* names the one writer: it carries a fencing number that grows with
every owner, and an append succeeds only while its writer's number is the current one, checked in
the same transaction. A lease that was not renewed for `LEASE_SECONDS`, or whose process on this
host is gone, is taken over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError, DBAPIError, OperationalError, SQLAlchemyError

from search.errors import InputError
from search.journal.events import TOLD, Event
from search.journal.lease import alive
from search.journal.mounts import is_network
from search.journal.reading import check_files, check_tables, file_of, open_reader, writable
from search.journal.tables import EVENTS, LEASES, METADATA, open_engine
from search.redaction import redacted_values

LEASE_SECONDS = 30.0
OUTAGE_SECONDS = 900.0
_AGAIN_SECONDS = 1.0
# Built once: building a statement takes SQLAlchemy longer than SQLite takes to carry it out.
_OURS = LEASES.c.study == sa.bindparam("of"), LEASES.c.fence == sa.bindparam("owner")
_RENEW = sa.update(LEASES).where(*_OURS).values(renewed=sa.bindparam("now"), released=False)
_APPEND = sa.insert(EVENTS)
_log = logging.getLogger("routefront.search")


class LeaseLostError(RuntimeError):
    """Another process took the study over; this one can write no more."""


def sqlite_address(path: Path) -> str:
    """The SQLAlchemy address of an SQLite file."""
    return sa.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


class Journal:
    """The events of one study in a database.

    It is opened for reading, without any permission to write, until `acquire` makes this process its writer.
    `create=False` refuses a database that does not exist. Raises `InputError` where the database
    cannot be opened, is cut off or is no journal.
    """

    def __init__(self, address: str, study: str, *, create: bool = False) -> None:
        self.address, self.study = address, study
        self.fence: int | None = None
        self._write = threading.Lock()
        self._next = 1
        self._began = time.time(), time.monotonic()
        self._file = file_of(address)
        if self._file is not None:
            check_files(self._file)
            if not create and not self._file.exists():
                raise InputError(f"no journal at {self._file}; is the study folder complete?")
        self._writes = create
        try:
            if create:
                self._engine = open_engine(address)
                METADATA.create_all(self._engine)
            else:
                self._engine = open_reader(address)
                check_tables(self._engine, self._place())
        except SQLAlchemyError as error:
            raise InputError(f"journal {self._place()} cannot be opened: {_reason(error)}") from None

    def _place(self) -> str:
        return sa.make_url(self.address).render_as_string(hide_password=True)

    # -- reading -------------------------------------------------------------------------------

    def events(self, after: int = 0, limit: int | None = None) -> Iterator[Event]:
        """The events with a larger `seq` than `after`, in order; at most `limit` of them.

        Raises `InputError` where the journal is damaged: a gap, a payload that is cut off, a
        database that SQLite itself calls malformed. Nothing is guessed.
        """
        query = sa.select(EVENTS).where(EVENTS.c.study == self.study, EVENTS.c.seq > after)
        query = query.order_by(EVENTS.c.seq).limit(limit)
        expected = after + 1
        try:
            with self._engine.connect() as connection:
                rows = connection.execute(query).all()
        except SQLAlchemyError as error:
            raise InputError(f"journal {self._place()} is damaged: {_reason(error)}") from None
        for row in rows:
            if row.seq != expected:
                raise InputError(
                    f"journal {self._place()} is damaged: event {expected} of study {self.study!r} is missing"
                    f" (the next one is {row.seq})"
                )
            try:
                payload = json.loads(row.payload)
            except (ValueError, TypeError):  # also numbers of more digits than Python reads
                raise InputError(f"journal {self._place()} is damaged: event {row.seq} was cut off") from None
            except RecursionError:
                raise InputError(f"journal {self._place()} is damaged: event {row.seq} is nested too deep") from None
            if type(payload) is not dict:
                raise InputError(f"journal {self._place()} is damaged: the payload of event {row.seq} is no table")
            yield Event(row.seq, row.time, row.kind, row.trial, payload)
            expected += 1

    def last(self) -> int:
        """The number of the last event; 0 before the first."""
        return self._one(sa.select(sa.func.max(EVENTS.c.seq)).where(EVENTS.c.study == self.study)) or 0

    def first(self) -> Event | None:
        """The first event, without reading the others; None in an empty journal."""
        return next(self.events(limit=1), None)

    def newest(self, kinds: Iterable[str]) -> Event | None:
        """The newest event of these kinds, without reading the others; None where there is none."""
        of_kinds = sa.select(sa.func.max(EVENTS.c.seq))
        seq = self._one(of_kinds.where(EVENTS.c.study == self.study, EVENTS.c.kind.in_(list(kinds))))
        return None if seq is None else next(self.events(after=seq - 1, limit=1), None)

    def _one(self, query: sa.Select[Any]) -> Any:
        try:
            with self._engine.connect() as connection:
                return connection.execute(query).scalar()
        except SQLAlchemyError as error:
            raise InputError(f"journal {self._place()} is damaged: {_reason(error)}") from None

    def lease(self) -> dict[str, Any] | None:
        """The lease as it stands: fence, host, pid, renewed, released; None before the first."""
        try:
            with self._engine.connect() as connection:
                row = connection.execute(sa.select(LEASES).where(LEASES.c.study == self.study)).mappings().first()
        except SQLAlchemyError as error:
            raise InputError(f"journal {self._place()} is damaged: {_reason(error)}") from None
        return dict(row) if row else None

    def held(self) -> dict[str, Any] | None:
        """The lease if a living process holds it, else None."""
        lease = self.lease()
        if lease is None or lease["released"] or time.time() - lease["renewed"] > LEASE_SECONDS:
            return None
        return lease if alive(lease) else None

    # -- writing -------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Become the writer, or raise `InputError` naming the host, process and age of the lease."""
        held = self.held()
        if held is not None and (held["host"], held["pid"]) != (socket.gethostname(), os.getpid()):
            age = time.time() - held["renewed"]
            raise InputError(
                f"study {self.study!r} is being written by process {held['pid']} on {held['host']}"
                f" (lease renewed {age:.0f} s ago); stop it first, or wait until its lease has run out"
            )
        self._become_writer()
        if self._file is not None and is_network(self._file.parent):
            why = "lies on a network file system, where SQLite's locks may fail; name a PostgreSQL (journal) instead"
            _log.warning("journal %s %s", self._file, why)
        now = {"host": socket.gethostname(), "pid": os.getpid(), "renewed": time.time(), "released": False}
        with self._engine.begin() as connection:
            seen = connection.execute(sa.select(LEASES.c.fence).where(LEASES.c.study == self.study)).scalar()
            if seen is None:
                self.fence = 1
                connection.execute(sa.insert(LEASES).values(study=self.study, fence=1, **now))
            else:
                self.fence = seen + 1
                taken = connection.execute(
                    sa.update(LEASES)
                    .where(LEASES.c.study == self.study, LEASES.c.fence == seen)
                    .values(fence=self.fence, **now)
                )
                if taken.rowcount != 1:
                    raise InputError(f"study {self.study!r} was taken over by another process at this moment")
            last = connection.execute(sa.select(sa.func.max(EVENTS.c.seq)).where(EVENTS.c.study == self.study))
            self._next = (last.scalar() or 0) + 1

    def _become_writer(self) -> None:
        if self._writes:
            return
        if self._file is not None and not writable(self._file):
            raise InputError(
                f"study {self.study!r} can only be read here: {self._file} or its folder cannot be written by this user"
            )
        self._engine.dispose()
        self._engine, self._writes = open_engine(self.address), True

    def append(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> Event:
        """Append one event; raises `LeaseLostError` where another process has taken the study over.

        A server that went away is waited for, a quarter of an hour.
        """
        if kind in TOLD or payload.get("uncaptured"):  # a report's: an error as CUDA words it
            payload = redacted_values(payload)
        with self._write:
            event = Event(self._next, self.now(), kind, trial, payload)
            row = {
                "study": self.study,
                "seq": event.seq,
                "time": event.time,
                "fence": self.fence,
                "kind": kind,
                "trial": trial,
                "payload": json.dumps(payload, separators=(",", ":")),
            }

            def insert(connection: sa.Connection, again: bool) -> None:
                self._renew(connection, time.time())
                # the server may have gone behind the commit that nobody heard of
                if not again or not self._has(connection, event.seq):
                    connection.execute(_APPEND, row)

            self._patiently(insert)
            self._next += 1
            return event

    def _has(self, connection: sa.Connection, seq: int) -> bool:
        key = EVENTS.c.study == self.study, EVENTS.c.seq == seq, EVENTS.c.fence == self.fence
        return connection.execute(sa.select(EVENTS.c.seq).where(*key)).scalar() is not None

    def renew(self) -> None:
        """Prolong the lease; raises `LeaseLostError` where it is lost."""
        with self._write:
            self._patiently(lambda connection, again: self._renew(connection, time.time()))

    def _patiently(self, work: Callable[[sa.Connection, bool], None]) -> None:
        """A transaction, again and again while the server is away; `work` is told whether it is tried again."""
        began, again = time.monotonic(), False
        while True:
            try:
                with self._engine.begin() as connection:
                    work(connection, again)
                break
            except DBAPIError as error:
                away = isinstance(error, OperationalError) or error.connection_invalidated
                if not away or self._engine.dialect.name == "sqlite" or time.monotonic() - began > OUTAGE_SECONDS:
                    raise
                if not again:
                    _log.warning("journal %s does not answer (%s); waiting for it", self._place(), _reason(error))
                again = True
                time.sleep(_AGAIN_SECONDS)
        if again:
            _log.warning("journal %s answers again, after %.0f s", self._place(), time.monotonic() - began)

    def now(self) -> float:
        """Seconds since 1970 by a clock that does not jump while this process lives: events are timed by it.

        (Leases are compared by processes that share only the clock of the wall.)
        """
        return self._began[0] + time.monotonic() - self._began[1]

    def _renew(self, connection: sa.Connection, now: float) -> None:
        renewed = connection.execute(_RENEW, {"of": self.study, "owner": self.fence, "now": now})
        if renewed.rowcount != 1:
            raise LeaseLostError(f"study {self.study!r} was taken over by another process; this one stops writing")

    def release(self) -> None:
        """Give the lease back (a lost one is left alone)."""
        if self.fence is None:
            return
        with self._write, self._engine.begin() as connection:
            connection.execute(
                sa.update(LEASES)
                .where(LEASES.c.study == self.study, LEASES.c.fence == self.fence)
                .values(released=True)
            )
        self.fence = None

    def delete(self) -> None:
        """Remove every event and the lease of this study from the database."""
        with self._engine.begin() as connection:
            connection.execute(sa.delete(EVENTS).where(EVENTS.c.study == self.study))
            connection.execute(sa.delete(LEASES).where(LEASES.c.study == self.study))

    def close(self) -> None:
        """Release the lease and every connection."""
        try:
            self.release()
        except (OperationalError, DatabaseError):
            pass  # a database that went away needs no farewell
        self._engine.dispose()


def _reason(error: SQLAlchemyError) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
