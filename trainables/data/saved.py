"""Sets that Hugging Face's ``datasets`` saved on disk (``save_to_disk``), read by pyarrow alone.

``dataset_dict.json`` names the splits, each a folder; a folder of rows has ``state.json``, which names its files,
``dataset_info.json`` with the classes' names, and Arrow streams with the columns of the hub's Parquet files
(`trainables.data.parquet`). Nothing but these files is opened: a row that only names an image file is refused.

The streams are memory-mapped. Compressed ones, which ``datasets`` does not write, are refused: what they unpack to is
known only afterwards.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from trainables.data import layout
from trainables.data.errors import DataError
from trainables.data.parquet import (
    FREE_ROWS,
    LEAST_IMAGE,
    Reader,
    class_names,
    clean_names,
    columns_of,
    regular_size,
    source_of,
)
from trainables.data.resizing import Size
from trainables.data.splits import Source

DICT, STATE, INFO = "dataset_dict.json", "state.json", "dataset_info.json"
_MOST_JSON = 2**26
_ROWS = 64


def is_saved(path: Path) -> bool:
    """Whether a folder is what ``save_to_disk`` writes."""
    return (path / DICT).is_file() or ((path / STATE).is_file() and (path / INFO).is_file())


def read_saved(path: Path, size: Size | None, rule: str = "fit") -> Source:
    """Images and labels of a saved set; one that is no dictionary of splits is divided here.

    Raises `DataError` in one line that names the file and the row.
    """
    by_split: dict[str, list[Path]] = {}
    if (path / DICT).is_file():
        names = _json(path / DICT).get("splits")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise DataError(f"{path / DICT} names no splits")
        for name in names:
            role = layout.role(name)
            if not role or role in by_split:
                usual = "; ".join(f"{kind}: {', '.join(known)}" for kind, known in layout.ROLES.items())
                why = "has the same role as another one" if role else "is no split by its name"
                raise DataError(f"{path / DICT} names the split {name!r}, which {why} ({usual}); save the others alone")
            by_split[role] = _streams(_below(path, name, DICT))
        if "train" not in by_split:
            raise DataError(f"{path} has no training images: no split train in {DICT}")
    else:
        by_split[""] = _streams(path)
    return source_of(path, _Streams(size, rule), by_split)


def _below(folder: Path, name: Any, where: str) -> Path:
    """A file or folder that JSON names, which must lie in the folder itself."""
    if not isinstance(name, str) or not name or Path(name).name != name:
        raise DataError(f"{folder / where} names {name!r}, which does not lie in {folder}")
    return folder / name


def _json(file: Path) -> dict[str, Any]:
    try:
        if regular_size(file) > _MOST_JSON:
            raise DataError(f"{file} has more than {_MOST_JSON // 2**20} MiB")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{file} is missing: the set was not saved whole") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read ({str(error).splitlines()[0][:80]})") from None
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no table")
    return found


def _streams(folder: Path) -> list[Path]:
    """The Arrow files of a folder of rows, in their order."""
    state = _json(folder / STATE)
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(f"{folder} is a selection of rows; save what flatten_indices() makes of it")
    files = state.get("_data_files")
    if not isinstance(files, list) or not files:
        raise DataError(f"{folder / STATE} names no files of rows")
    found = [_below(folder, each.get("filename") if isinstance(each, dict) else None, STATE) for each in files]
    for file in found:
        if not file.exists():
            raise DataError(f"{file} is missing: the set was not saved whole")
    return found


class _Streams(Reader):
    """Reads Arrow streams one after the other."""

    def values(self, file: Path) -> Iterator[tuple[Any, Any]]:
        """See `Reader`."""
        size = regular_size(file)
        try:
            with pa.memory_map(str(file)) as source:
                schema = _plain(file, source)
                source.seek(0)
                image, label, _ = columns_of(file, schema)
                self.note_names(file, _names(file, schema, label))
                rows = 0
                for part in pa.ipc.open_stream(source):
                    part.validate(full=True)
                    rows += part.num_rows
                    if rows > FREE_ROWS + size / LEAST_IMAGE:
                        raise DataError(f"{file} has {size:,} bytes and more than {rows:,} images; it is not read")
                    for begin in range(0, part.num_rows, _ROWS):
                        few = part.slice(begin, _ROWS)
                        yield from zip(few.column(image).to_pylist(), few.column(label).to_pylist(), strict=True)
        except DataError:
            raise
        except (pa.ArrowException, OSError, struct.error, ValueError, OverflowError) as error:
            reason = (str(error).splitlines() or ["damaged"])[0]
            raise DataError(f"{file} is not a whole Arrow stream ({reason[:120]})") from None


def _names(file: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names from ``dataset_info.json``, else from the schema's metadata."""
    info = file.parent / INFO
    features = _json(info).get("features") if info.is_file() else None
    feature = features.get(label) if isinstance(features, dict) else None
    names = feature.get("names") if isinstance(feature, dict) else None
    return clean_names(info, "its features", names) if isinstance(names, list) else class_names(file, schema, label)


def _plain(file: Path, source: pa.NativeFile) -> pa.Schema:
    """The schema of a stream that is neither compressed nor refers to dictionaries; `DataError` otherwise."""
    messages, schema = pa.ipc.MessageReader.open_stream(source), None
    for message in messages:
        if message.type == "schema":
            schema = pa.ipc.read_schema(message)
        elif message.type != "record batch":
            raise DataError(f"{file} holds a {message.type}; images and labels are in plain columns")
        elif _compressed(message.metadata.to_pybytes()):
            raise DataError(f"{file} is compressed, which datasets does not write; such files are not read")
    if schema is None:
        raise DataError(f"{file} is not a whole Arrow stream (no schema)")
    return schema


def _compressed(metadata: bytes) -> bool:
    """Whether a record batch is: field 3 of its header in the FlatBuffers message (Arrow's Message.fbs)."""

    def field(table: int, number: int) -> int:
        (back,) = struct.unpack_from("<i", metadata, table)
        (length,) = struct.unpack_from("<H", metadata, table - back)
        place = 4 + 2 * number
        return struct.unpack_from("<H", metadata, table - back + place)[0] if place < length else 0

    (root,) = struct.unpack_from("<I", metadata, 0)
    at = root + field(root, 2)
    return field(at + struct.unpack_from("<I", metadata, at)[0], 3) != 0
