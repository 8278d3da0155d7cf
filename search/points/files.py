"""Operating points as an Arrow schema and a folder of Parquet files, through any pyarrow filesystem.

One row is one operating point: (trial, epoch, knobs) with its accuracy and MACs on a named split.
Every flush is one new file. A file appears under its name only when it is complete (written under a
temporary name, synced, renamed) and is never rewritten in place, so a reader sees whole files only.
`compact` replaces small files by one; until the small ones are gone a point may be there twice, and
`read` returns each point_id once (the first in the order of the file names, which is that of writing).

One process writes a folder at a time (the holder of the study's lease); any number may read.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from search.points.canonical import canonical
from search.points.schema import FEW_VALUES, SCHEMA, VERSION
from search.points.schema import VERSION_KEY as _VERSION_KEY

_JSON = ("setting", "knobs", "config")
_FILLED_IN = {"schema_version", "merit", "cost", "counted_macs", "machine"}
"""Columns that rows need not have: but for the first they are empty where the axes are accuracy and MACs."""
_MERGED = ".merged.parquet"
_ATTEMPTS = 10
_STALE = timedelta(hours=1)
_TEXTS = (*FEW_VALUES, "point_id")
"""Columns that are read as dictionaries: a text that stands in a file once is in memory once until it is counted."""
_UNPACKED, _LARGEST_FACTOR = 2**28, 200  # bytes of texts, and how many times their files: a million points have 40

Filters = pc.Expression | Sequence[Any] | None


def _locate(folder: str | Path, filesystem: fs.FileSystem | None) -> tuple[fs.FileSystem, str]:
    """The filesystem and the folder's path on it; an address such as ``s3://bucket/x`` names both."""
    if filesystem is not None:
        return filesystem, str(folder).rstrip("/")
    if "://" in str(folder):
        found, path = fs.FileSystem.from_uri(str(folder))
        return found, path.rstrip("/")
    return fs.LocalFileSystem(), str(Path(folder).absolute())


def _names(filesystem: fs.FileSystem, path: str) -> list[str]:
    """The data files' paths in the order of writing; none where there is no folder."""
    entries = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(
        entry.path
        for entry in entries
        if entry.type == fs.FileType.File
        and entry.base_name.endswith(".parquet")
        and not entry.base_name.startswith((".", "_"))
    )


def _table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """The rows in the schema; ValueError that names what is wrong."""
    known = set(SCHEMA.names)
    plain = []
    for row in rows:
        wrong = sorted(set(row) - known) or sorted(known - _FILLED_IN - set(row))
        if wrong:
            problem = "unknown" if wrong[0] not in known else "missing"
            raise ValueError(f"point {row.get('point_id')!r}: {problem} column {', '.join(wrong)}")
        texts = {name: canonical(row[name]) for name in _JSON if not isinstance(row[name], str)}
        plain.append({**dict.fromkeys(_FILLED_IN), **row, **texts, "schema_version": VERSION})
    if not plain:
        raise ValueError("no operating points to write")
    try:
        # Inferred first, then cast: a direct conversion would silently cut 3.5 to the integer 3.
        table = pa.Table.from_pylist(plain).select(SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise ValueError(f"operating points do not fit their schema: {error}") from None
    accuracy, macs = table["accuracy"].to_numpy(), table["macs"].to_numpy()
    if not ((accuracy >= 0) & (accuracy <= 1)).all():  # NaN fails too
        raise ValueError("operating points: accuracy must be in [0, 1]")
    if not (np.isfinite(macs) & (macs > 0)).all():
        raise ValueError("operating points: macs must be finite and above 0")
    return table


def _first_of_each(table: pa.Table) -> pa.Table:
    """One row per point_id, the first."""
    codes = table["point_id"].combine_chunks().dictionary_encode()
    if len(codes.dictionary) == len(table):
        return table
    _, first = np.unique(codes.indices.to_numpy(), return_index=True)
    return table.take(pa.array(np.sort(first)))


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _put(table: pa.Table, filesystem: fs.FileSystem, path: str, name: str) -> str:
    """Write a complete file or none: temporary name, synced where that is possible, renamed."""
    filesystem.create_dir(path, recursive=True)
    temporary, final = f"{path}/.{name}.tmp", f"{path}/{name}"
    try:
        pq.write_table(table, temporary, filesystem=filesystem, compression="snappy", write_page_checksum=True)
        local = isinstance(filesystem, fs.LocalFileSystem)
        if local:
            _sync(temporary)
        filesystem.move(temporary, final)
        if local:
            _sync(path)
    except BaseException:
        if filesystem.get_file_info(temporary).type == fs.FileType.File:
            filesystem.delete_file(temporary)
        raise
    return final


def write(rows: Iterable[Mapping[str, Any]], folder: str | Path, *, filesystem: fs.FileSystem | None = None) -> str:
    """Write the rows as one new file of `folder` (made where missing) and return its path.

    A row has every column of `SCHEMA` but schema_version, and merit and cost where there are such; setting, knobs
    and config are mappings or JSON text. ValueError for no rows, a missing or unknown column, a value
    of the wrong type, an accuracy outside [0, 1] or MACs that are not positive; nothing is written then.
    """
    where, path = _locate(folder, filesystem)
    table = _table(rows)
    return _put(_first_of_each(table), where, path, f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.parquet")


def _checked(fragment: Any) -> Any:
    """A fragment whose footer was read and whose schema version is ours or older."""
    try:
        _regular(fragment)
        fragment.ensure_complete_metadata()
        found = (fragment.physical_schema.metadata or {}).get(_VERSION_KEY)
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{fragment.path} is not a readable Parquet file: {_first_line(error)}") from None
    if found is None:
        raise ValueError(f"{fragment.path} is not a file of operating points: it states no schema version")
    if not found.isdigit() or int(found) > VERSION:
        raise ValueError(
            f"{fragment.path} has schema version {found.decode(errors='replace')};"
            f" this release reads up to {VERSION}: upgrade routefront"
        )
    _in_proportion(fragment)
    return fragment


def _regular(fragment: Any) -> None:
    """Raise ValueError for a pipe or a device on this machine: reading it would not end."""
    if isinstance(fragment.filesystem, fs.LocalFileSystem) and not Path(fragment.path).is_file():
        if not os.path.lexists(fragment.path):
            raise FileNotFoundError(fragment.path)
        raise ValueError(f"{fragment.path} is no regular file")


def _in_proportion(fragment: Any) -> None:
    """Raise ValueError where a file's pages unpack to far more than a study's do, before any is read."""
    groups = [fragment.metadata.row_group(i) for i in range(fragment.metadata.num_row_groups)]
    size = sum(group.total_byte_size for group in groups)
    if size > _UNPACKED:
        stored = fragment.filesystem.get_file_info(fragment.path).size or 0
        if size > _LARGEST_FACTOR * stored:
            raise ValueError(
                f"{fragment.path} has {stored:,} bytes and would unpack to {size:,}; no study writes such files"
            )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _scan(filesystem: fs.FileSystem, names: list[str], columns: list[str], wanted: pc.Expression | None) -> pa.Table:
    """The files as one table; ValueError that names the broken one, or one that would unpack to far more than it is."""
    try:
        table = _scan_as(names, columns, wanted, filesystem, _TEXTS)
    except pa.ArrowNotImplementedError:  # a filter that knows no dictionaries
        return _scan_as(names, columns, wanted, filesystem, ())
    _fits_in_memory(table, filesystem, names)
    return table.cast(_part(columns))


def _fits_in_memory(table: pa.Table, filesystem: fs.FileSystem, names: list[str]) -> None:
    """Raise ValueError where texts that rows share would take far more memory than the files that hold them once."""
    size = 0
    for column in table.columns:
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            lengths = pc.call_function("binary_length", [chunk.dictionary]).fill_null(0).to_numpy(zero_copy_only=False)
            if len(lengths) and int(lengths.max()) * len(chunk) > _UNPACKED:  # else it is not worth counting
                used = np.bincount(chunk.indices.drop_null().to_numpy(), minlength=len(lengths))
                size += int(used @ lengths.astype(np.int64))
    if size <= _UNPACKED:
        return
    stored = sum(info.size or 0 for info in filesystem.get_file_info(names))
    if size > _LARGEST_FACTOR * stored:
        raise ValueError(
            f"the operating points in {names[0].rpartition('/')[0]} have {stored:,} bytes and would unpack to {size:,};"
            " no study writes such files"
        )


def _part(columns: list[str]) -> pa.Schema:
    return pa.schema([SCHEMA.field(name) for name in columns], metadata=SCHEMA.metadata)


def _scan_as(
    names: list[str], columns: list[str], wanted: pc.Expression | None, filesystem: fs.FileSystem, coded: Sequence[str]
) -> pa.Table:
    """The files with some columns as dictionaries: a filter for few rows then copies few texts."""
    options = ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    reading = ds.ParquetReadOptions(dictionary_columns=list(coded))
    form = ds.ParquetFileFormat(read_options=reading, default_fragment_scan_options=options)
    fragments = [_checked(form.make_fragment(name, filesystem)) for name in names]
    fields = [f.with_type(pa.dictionary(pa.int32(), f.type)) if f.name in coded else f for f in SCHEMA]
    whole = ds.FileSystemDataset(fragments, pa.schema(fields, metadata=SCHEMA.metadata), form, filesystem)
    try:
        return whole.to_table(columns=columns, filter=wanted)
    except (FileNotFoundError, pa.ArrowNotImplementedError):
        raise
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{_broken(fragments)} is damaged: {_first_line(error)}") from None


def _broken(fragments: list[Any]) -> str:
    for fragment in fragments:
        try:
            fragment.to_table()
        except (pa.ArrowException, OSError):
            return fragment.path
    return "one of the files of operating points"


def read(
    folder: str | Path,
    *,
    columns: Sequence[str] | None = None,
    filters: Filters = None,
    unique: bool = True,
    filesystem: fs.FileSystem | None = None,
) -> pa.Table:
    """The operating points of a folder, each point_id once; an empty table of the schema where there are none.

    `columns`: names in the order wanted, all by default. `filters`: a pyarrow expression or a list of
    tuples such as ``[("method", "=", "skipnet"), ("epoch", ">=", 9)]``. Columns that an older schema
    lacks are null, those that it alone has are left out. Without `unique`, which costs more than the reading, rows that
    a crash while files were merged left twice are there twice. ValueError for an unknown column, a damaged file (its
    name) and a newer schema.
    """
    where, path = _locate(folder, filesystem)
    asked = list(SCHEMA.names if columns is None else columns)
    unknown = [name for name in asked if name not in SCHEMA.names]
    if unknown:
        raise ValueError(f"unknown column {', '.join(unknown)}; there are {', '.join(SCHEMA.names)}")
    wanted = filters if filters is None or isinstance(filters, pc.Expression) else pq.filters_to_expression(filters)
    for _ in range(_ATTEMPTS):
        names = _names(where, path)
        # One file holds no point twice, and comparing a million identities costs more than reading them.
        single = len(names) < 2 or not unique
        loaded = asked if single or "point_id" in asked else [*asked, "point_id"]
        try:
            table = _scan(where, names, loaded, wanted)
        except FileNotFoundError:
            continue  # compacted away under our hands
        # A listing is no snapshot: it can miss both a merged file and a source that it replaced.
        if all(name in names for name in _names(where, path) if name.endswith(_MERGED)):
            return table if single else _first_of_each(table).select(asked)
    raise OSError(f"{path} changed {_ATTEMPTS} times while it was being read")


def compact(folder: str | Path, *, small_rows: int = 100_000, filesystem: fs.FileSystem | None = None) -> str | None:
    """Merge the files of fewer than `small_rows` rows into one; its path, or None where there is nothing to merge.

    Called by the one writer. The merged file is complete before the first source goes, so a crash
    leaves points twice, never less; `read` returns them once. A damaged file is a ValueError and
    nothing changes. Temporary files that a crash left more than an hour ago are removed.
    """
    where, path = _locate(folder, filesystem)
    _remove_stale(where, path)
    form = ds.ParquetFileFormat()
    names = _names(where, path)
    sizes = [_checked(form.make_fragment(name, where)).metadata.num_rows for name in names]
    small = [name for name, rows in zip(names, sizes, strict=True) if rows < small_rows]
    if len(small) < 2:
        return None
    table = _first_of_each(_scan(where, small, SCHEMA.names, None)).replace_schema_metadata(SCHEMA.metadata)
    stamp = small[0].rsplit("/", 1)[-1].split("-", 1)[0]  # keeps the place of the oldest in the order
    final = _put(table, where, path, f"{stamp}-{uuid.uuid4().hex[:8]}{_MERGED}")
    _delete(where, small)
    return final


def _delete(filesystem: fs.FileSystem, names: Iterable[str]) -> None:
    for name in names:
        filesystem.delete_file(name)


def _remove_stale(filesystem: fs.FileSystem, path: str) -> None:
    for entry in filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        old = entry.mtime is not None and datetime.now(UTC) - entry.mtime > _STALE
        if old and entry.base_name.startswith(".") and entry.base_name.endswith(".parquet.tmp"):
            filesystem.delete_file(entry.path)
