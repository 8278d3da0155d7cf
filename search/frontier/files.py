"""A front as a terminal table, CSV and Parquet.

Names come from study files, plug-ins and folders that somebody else made: control characters never reach
a terminal, brackets are no markup, and a cell that a spreadsheet would take for a formula begins with an
apostrophe (OWASP, "CSV injection").
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from rich.text import Text

from search.errors import InputError
from search.front import FrontPoint
from search.fronts import Front
from search.published import Published
from search.units import knobs_text, show_count, show_share

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%")
_JSON = ("setting", "knobs", "config")


def printable(text: str) -> str:
    """The text without what moves a terminal's cursor or hides: control and format characters as `?`."""
    return "".join(c if c.isprintable() else "?" for c in text)


def dataset_name(name: str) -> str:
    """The name of a data set for people: of a path its last part, ``hybrid:/a/b`` becoming ``hybrid:b``."""
    kind, colon, where = name.rpartition(":")
    return f"{kind}{colon}{Path(where).name}"


def front_table(front: Front, points: Sequence[FrontPoint], wide: bool = True) -> Table:
    """Points for a terminal, cheapest first; without `wide` for 80 columns: without knobs and share of the full."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    several = len(front.studies) > 1
    shown = [
        ("accuracy", "right", True, lambda p: show_share(p.accuracy)),
        ("95 %", "left", any(p.interval for p in points), _interval),
        ("P(front)", "right", any(p.membership is not None for p in points), _membership),
        ("MACs", "right", True, lambda p: show_count(p.macs)),
        ("of full", "right", wide, lambda p: f"{100 * p.macs / p.macs_full:.0f} %" if p.macs_full else "-"),
        ("ms", "right", any(p.latency_ms for p in points), lambda p: _ms(p.latency_ms)),
        ("ms at 64", "right", any(p.latency_ms_64 for p in points), lambda p: _ms(p.latency_ms_64)),
        ("layer", "right", any(p.layer for p in points), lambda p: str(p.layer)),
        ("method", "left", True, lambda p: " ".join(filter(None, (p.method, p.variant)))),
        ("network", "left", True, lambda p: p.network),
        ("knobs", "left", wide, lambda p: knobs_text(p.knobs)),
        ("study", "left", several, lambda p: p.study),
        ("point", "left", True, lambda p: p.point_id),
    ]  # fmt: skip
    columns = [(name, justify, told) for name, justify, there, told in shown if there]
    for name, justify, _ in columns:
        table.add_column(name, justify=justify, no_wrap=name not in ("knobs", "study", "method"))  # type: ignore[arg-type]
    for point in points:
        table.add_row(*(Text(printable(told(point))) for _, _, told in columns))
    return table


def _interval(point: FrontPoint) -> str:
    return "-" if point.interval is None else f"{100 * point.interval[0]:.1f}-{100 * point.interval[1]:.1f}"


def _membership(point: FrontPoint) -> str:
    if point.membership is None:
        return "-"
    return f"{point.membership:.2f}" + ("" if point.evidence == "images" else "*")


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def published_table(points: Sequence[Published]) -> Table:
    """What papers printed for a data set."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    heads = (("accuracy", "right"), ("MACs", "right"), ("name", "left"), ("source", "left"), ("cost", "left"))
    for name, justify in heads:
        table.add_column(name, justify=justify, no_wrap=name in ("accuracy", "MACs"))  # type: ignore[arg-type]
    for point in points:
        macs = "-" if point.macs is None else show_count(point.macs)
        table.add_row(show_share(point.accuracy), macs, point.name, point.cited, point.cost)
    return table


# -- files -----------------------------------------------------------------------------------------


def cell(value: Any) -> Any:
    """A value for a CSV file: mappings as JSON, texts that would be read as a formula behind an apostrophe."""
    if isinstance(value, Mapping | list | tuple):
        return json.dumps(value, sort_keys=True)
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
    plain = [{k: json.dumps(v, sort_keys=True) if k in _JSON else v for k, v in row.items()} for row in rows]
    try:
        pq.write_table(pa.Table.from_pylist(plain), path)
    except OSError as error:
        raise _unwritten(path, error) from None


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(f"{path} cannot be written: {error.strerror or error}")
