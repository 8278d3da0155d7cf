"""A front as CSV and Parquet.

Names come from study files, plug-ins and folders that somebody else made: a cell that a spreadsheet would
take for a formula begins with an apostrophe (OWASP, "CSV injection").
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.points.canonical import canonical

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
_JSON = ("setting", "knobs", "config")


# -- files -----------------------------------------------------------------------------------------


def cell(value: Any) -> Any:
    """A value for a CSV file: mappings as JSON, texts that would be read as a formula behind an apostrophe."""
    if isinstance(value, Mapping | list | tuple):
        return canonical(value)
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value


def write_csv(points: Sequence[FrontPoint], path: Path) -> None:
    """The points as CSV, knobs and configuration as JSON."""
    rows = [{key: cell(value) for key, value in point.record().items()} for point in points]
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["point_id"])
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise _unwritten(path, error) from None


def write_parquet(points: Sequence[FrontPoint], path: Path) -> None:
    """The points as Parquet, a column for every value of `FrontPoint.record`, mappings as JSON."""
    rows = [point.record() for point in points]
    plain = [{k: canonical(v) if k in _JSON else v for k, v in row.items()} for row in rows]
    try:
        pq.write_table(pa.Table.from_pylist(plain), path)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {error.strerror or error}")
