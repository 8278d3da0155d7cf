"""Whether the MLflow here understands a database: its schema's revision, compared without importing MLflow."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from search.errors import InputError

_MIGRATING_SECONDS = 3.0
_LINE = re.compile(r"^(revision|down_revision)\b[^=\n]*= *(.*)$", re.MULTILINE)
_HASH = re.compile(r"['\"]([0-9a-f]+)['\"]")


@functools.cache
def _revisions() -> tuple[frozenset[str], frozenset[str]]:
    """The revisions that the MLflow installed here knows, and of these the newest."""
    found = importlib.util.find_spec("mlflow")
    known, passed = set[str](), set[str]()
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        for file in (Path(place) / "store" / "db_migrations" / "versions").glob("*.py"):
            for name, value in _LINE.findall(file.read_text(errors="replace")):
                (known if name == "revision" else passed).update(_HASH.findall(value))
    return frozenset(known), frozenset(known - passed)


def check_schema(connection: sa.Connection, place: str) -> None:
    """Raise `InputError` where a database has another schema than the MLflow installed here, newer or older.

    A database in which MLflow has made no tables yet is good, and one in which it is making them.
    """
    known, newest = _revisions()
    before = revision = _revision(connection, place)
    limit = time.monotonic() + _MIGRATING_SECONDS
    while revision == before and revision in known - newest and time.monotonic() < limit:
        time.sleep(0.2)
        revision = _revision(connection, place)
    if revision is None or not known or revision in newest or revision != before:
        return
    release = importlib.metadata.version("mlflow")
    if revision in known:
        what = "of an older MLflow; make a copy of it, then run: mlflow db upgrade ADDRESS"
    else:
        what = "of a newer MLflow; install that one here, or use another database"
    raise InputError(f"tracking database {place} has the schema {revision} {what} (here is MLflow {release})")


def _revision(connection: sa.Connection, place: str) -> str | None:
    """The revision of a database; None where MLflow has made no tables yet, or somebody is writing just now."""
    try:
        with connection.begin():
            if not sa.inspect(connection).has_table("alembic_version"):
                return None
            return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except DatabaseError as error:
        if "locked" in str(error):
            return None
        raise InputError(f"tracking database {place} cannot be read: {error.orig}") from None
