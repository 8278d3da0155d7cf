"""Whether a database was made by a newer MLflow than the one here: its schema's revision, without importing MLflow."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import DatabaseError

from search.errors import InputError

_REVISION = re.compile(r"^revision\b[^=\n]*= *['\"]([0-9a-f]+)['\"]", re.MULTILINE)


@functools.cache
def _known() -> frozenset[str]:
    """The revisions that the MLflow installed here knows."""
    found = importlib.util.find_spec("mlflow")
    known = set[str]()
    for place in (found.submodule_search_locations or ()) if found is not None else ():
        for file in (Path(place) / "store" / "db_migrations" / "versions").glob("*.py"):
            known.update(_REVISION.findall(file.read_text(errors="replace")))
    return frozenset(known)


def check_schema(connection: sa.Connection, place: str) -> None:
    """Raise `InputError` where a database has a schema that the MLflow installed here does not know.

    An older one is MLflow's: it makes the tables that are missing, or says how to upgrade.
    """
    try:
        if not sa.inspect(connection).has_table("alembic_version"):
            return
        revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except DatabaseError as error:
        if "locked" in str(error):  # somebody is writing; MLflow waits for him
            return
        raise InputError(f"tracking database {place} cannot be read: {error.orig}") from None
    if revision is not None and _known() and revision not in _known():
        raise InputError(
            f"tracking database {place} has the schema {revision} of a newer MLflow (here is"
            f" {importlib.metadata.version('mlflow')}); install that one here, or use another database"
        )
