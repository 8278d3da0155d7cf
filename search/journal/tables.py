"""The tables of a journal, and how its database is opened."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import event

METADATA = sa.MetaData()
EVENTS = sa.Table(
    "events",
    METADATA,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("time", sa.Float, nullable=False),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("trial", sa.String(40), nullable=True),
    sa.Column("payload", sa.Text, nullable=False),
)
LEASES = sa.Table(
    "leases",
    METADATA,
    sa.Column("study", sa.String(200), primary_key=True),
    sa.Column("fence", sa.Integer, nullable=False),
    sa.Column("host", sa.String(200), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("renewed", sa.Float, nullable=False),
    sa.Column("released", sa.Boolean, nullable=False),
)


def open_engine(address: str) -> sa.Engine:
    """The database at an address; SQLite so that readers never wait and a killed process loses nothing."""
    engine = sa.create_engine(address, future=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def pragmas(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")  # survives a killed process, readers never wait
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=20000")

    return engine
