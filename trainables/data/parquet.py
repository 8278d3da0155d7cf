"""Parquet of encoded images, in the layout of public data hubs: an image column and an integer label."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from trainables.data import layout
from trainables.data.errors import DataError
from trainables.data.image_files import Deep, Stack, augmentation
from trainables.data.resizing import Size
from trainables.data.splits import Source, Split

_IMAGES = ("img", "image", "images")
_LABELS = ("label", "fine_label", "labels")
_ROWS, _FEW_ROWS, _BYTES_AT_ONCE = 256, 32, 2**28  # what is unpacked together
FREE_ROWS, LEAST_IMAGE = 10_000, 8  # more rows need so many bytes of the file each
_FREE_BYTES, _LARGEST_FACTOR = 2**25, 20  # images may unpack to so many bytes, and to so many times the file


def is_parquet(path: Path) -> bool:
    """Whether a path is a Parquet file or a folder that has some, in itself or in its folders."""
    return path.suffix == ".parquet" if path.is_file() else bool(_files(path))


def _files(folder: Path) -> list[Path]:
    """The Parquet files of a folder, else those of its folders: of the one that has some, or one for every split.

    Hubs write ``data/train-*.parquet``, and ``default/train/0000.parquet`` where they converted a set themselves.
    """
    found = sorted(folder.glob("*.parquet"))
    if found:
        return found
    tops = [folder / name for name in layout.class_folders(folder)]
    for parents in (tops, [top / name for top in tops for name in layout.class_folders(top) if layout.role(name)]):
        parts = {parent: files for parent in parents if (files := sorted(parent.glob("*.parquet")))}
        if not parts:
            continue
        if len(parts) > 1 and not (all(layout.role(p.name) for p in parts) and len({p.parent for p in parts}) == 1):
            several = ", ".join(map(str, parts))
            raise DataError(f"{folder} has Parquet files in several folders; name one of them: {several}")
        return [file for files in parts.values() for file in files]
    return []


def _split_of(file: Path) -> str:
    """The split of a file by its own name (``train-00000-of-00002.parquet``), else by its folder's; may be empty."""
    return layout.role(re.split(r"[-_.]", file.name)[0]) or layout.role(file.parent.name)


def read_parquet(path: Path, size: Size | None, rule: str = "fit") -> Source:
    """Images and labels of ``train-*``, ``test-*`` and ``validation-*`` files, or of undivided ones.

    The image column (`img` or `image`) holds encoded files, as binary or as a struct with `bytes`;
    the label column (`label` or `fine_label`) whole numbers. Class names come from the schema
    metadata (`classes`, or `huggingface` features), else they are the numbers.
    Raises `DataError` in one line that names the file and the row.
    """
    by_split: dict[str, list[Path]] = {}
    for file in [path] if path.is_file() else _files(path):
        # a file that was given by its own name is everything there is, whatever its name
        by_split.setdefault("" if path.is_file() else _split_of(file), []).append(file)
    if "" in by_split and len(by_split) > 1:
        usual = ", ".join(name for names in layout.ROLES.values() for name in names)
        raise DataError(f"{by_split[''][0]} belongs to no split: its name begins with none of {usual}")
    if "" not in by_split and "train" not in by_split:
        raise DataError(f"{path} has no training images: no file train-*.parquet")
    return source_of(path, Reader(size, rule), by_split)


def source_of(path: Path, reader: Reader, by_split: Mapping[str, Sequence[Path]]) -> Source:
    """What a reader finds in the files of each split; the empty split is divided here."""
    read = {}
    for split, files in by_split.items():
        reader.stack.training = split in ("train", "")
        read[split] = [reader.rows(file) for file in files]
    classes = reader.classes()
    splits = {
        split: Split(
            reader.stack.array([image for images, _ in parts for image in images]),
            np.array([label for _, labels in parts for label in labels], dtype=np.int64),
        )
        for split, parts in read.items()
    }
    train = splits["train" if "train" in splits else ""]
    if len(np.unique(train.labels)) < 2:
        raise DataError(f"{path} has one class only ({classes[train.labels[0]]}): two are needed to tell apart")
    validation, test = splits.get("validation"), splits.get("test")
    return Source(
        classes=classes,
        train=train,
        validation=validation,
        test=test,
        augment=augmentation(train.decoded()),
        seen=reader.stack.seen,
        scale=reader.stack.scale,
    )


class Reader:
    """Reads files one after the other and checks that they belong together."""

    def __init__(self, size: Size | None, rule: str = "fit") -> None:
        self.stack = Stack(size, rule)
        self._names: tuple[tuple[str, ...] | None, Path] | None = None
        self._largest = (-1, "")
        self._rows = 0

    def rows(self, file: Path) -> tuple[list[np.ndarray | Deep], list[int]]:
        """Decoded images and labels of a file."""
        images: list[np.ndarray | Deep] = []
        labels: list[int] = []
        for row, (encoded, label) in enumerate(self.values(file)):
            where = f"{file} row {row}"
            content = encoded.get("bytes") if isinstance(encoded, dict) else encoded
            if not content:
                named = encoded.get("path") if isinstance(encoded, dict) else None
                if named:  # which file that would be is for the writer to say: none is opened
                    raise DataError(
                        f"{where} names a file ({named!r}) and holds no image; save the set with its images"
                    )
                raise DataError(f"{where} has no image bytes")
            if label is None or label < 0:
                raise DataError(f"{where} has no label ({label})")
            self._largest = max(self._largest, (label, where))
            images.append(self.stack.add(content, where))
            labels.append(label)
        if not images:
            raise DataError(f"{file} holds no image")
        self._rows += len(images)
        return images, labels

    def values(self, file: Path) -> Iterator[tuple[Any, Any]]:
        """(image, label) of every row of a file, as the file holds them."""
        size = regular_size(file)
        try:
            with pq.ParquetFile(file) as opened:
                schema = opened.schema_arrow
                image, label, content = columns_of(file, schema)
                self.note_names(file, class_names(file, schema, label))
                rows = _rows_at_once(file, opened.metadata, content, size)
                for part in opened.iter_batches(batch_size=rows, columns=[content, label]):
                    yield from zip(part[image].to_pylist(), part[label].to_pylist(), strict=True)
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{file} is not a whole Parquet file ({reason})") from None

    def note_names(self, file: Path, names: tuple[str, ...] | None) -> None:
        """Remember the class names of a file; `DataError` where others had other ones."""
        if self._names is None:
            self._names = (names, file)
        elif self._names[0] != names:
            raise DataError(f"{file} names other classes than {self._names[1]}")

    def classes(self) -> tuple[str, ...]:
        """The class names, once everything is read; `DataError` where a label is beyond them."""
        names = self._names[0] if self._names else None
        largest, where = self._largest
        if names is None:
            # labels without names: the classes are 0 ... the largest label, which must be a sane number
            if largest >= max(self._rows, 2):
                raise DataError(f"{where} has label {largest}, more than there are images; labels count from 0")
            return tuple(str(label) for label in range(largest + 1))
        if largest >= len(names):
            raise DataError(
                f"{where} has label {largest}, but there are {len(names)} class names (labels count from 0)"
            )
        return names


def regular_size(file: Path) -> int:
    """Bytes of a file; `DataError` where it is a pipe or a device, which would be waited for."""
    seen = file.stat()
    if not stat.S_ISREG(seen.st_mode):
        raise DataError(f"{file} is no regular file")
    return seen.st_size


def _rows_at_once(file: Path, metadata: pq.FileMetaData, content: str, size: int) -> int:
    """How many rows are unpacked together: the fewer, the larger the largest image is that a row group can hold.

    Raises `DataError` where the file would unpack to far more than images of its size can: encoded images are hardly
    compressed again, and each takes bytes of its own.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = [group.column(i) for group in groups for i in range(group.num_columns)]
    unpacked = [column.total_uncompressed_size for column in columns if column.path_in_schema == content]
    if metadata.num_rows > FREE_ROWS + size / LEAST_IMAGE or sum(unpacked) > _FREE_BYTES + _LARGEST_FACTOR * size:
        raise DataError(
            f"{file} has {size:,} bytes and would unpack to {metadata.num_rows:,} images of {sum(unpacked):,} bytes"
            " and more; such files are not read"
        )
    return max(_FEW_ROWS, min(_ROWS, _BYTES_AT_ONCE // max(1, *unpacked)))


def columns_of(file: Path, schema: pa.Schema) -> tuple[str, str, str]:
    """The columns of images and labels, and that of the encoded bytes; `DataError` where they are missing or wrong."""
    image, label = column(file, schema, _IMAGES), column(file, schema, _LABELS)
    return image, label, checked_columns(file, schema, image, label)


def column(file: Path, schema: pa.Schema, known: tuple[str, ...]) -> str:
    """The first of the known names that a file has."""
    for name in known:
        if name in schema.names:
            return name
    raise DataError(f"{file} has no column {' or '.join(known)}; it has {', '.join(schema.names)}")


def checked_columns(file: Path, schema: pa.Schema, image: str, label: str) -> str:
    """The column of encoded images, `image` itself or its field `bytes`, once the types are found right."""
    kind, column = schema.field(image).type, image
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind, column = kind.field("bytes").type, f"{image}.bytes"
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(f"{file}: column {image} is {kind}; it takes encoded images, as binary or a struct with bytes")
    if not pa.types.is_integer(schema.field(label).type):
        kind = schema.field(label).type
        words = " (class_encode_column of datasets or factorize of pandas make them of words)" * _of_words(kind)
        raise DataError(f"{file}: column {label} is {kind}; it takes whole numbers{words}")
    return column


def _of_words(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_dictionary(kind)


def class_names(file: Path, schema: pa.Schema, label: str) -> tuple[str, ...] | None:
    """Class names from the schema metadata, where there are any."""
    metadata = schema.metadata or {}
    names: Any = None
    try:
        if b"classes" in metadata:
            text = metadata[b"classes"].decode()
            names = json.loads(text) if text.lstrip().startswith("[") else text.split(",")
        elif b"huggingface" in metadata:
            features = json.loads(metadata[b"huggingface"])["info"]["features"]
            names = features.get(label, {}).get("names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{file}: the class names in the schema metadata cannot be read") from None
    if names is None:
        return None
    return clean_names(file, "the schema metadata", names)


def clean_names(file: Path, where: str, names: Any) -> tuple[str, ...]:
    """Class names as they were found; `DataError` where they are fewer than two or repeat."""
    clean = tuple(str(name).strip() for name in names)
    if len(set(clean)) < max(2, len(clean)):
        raise DataError(f"{file}: the class names in {where} are fewer than two or repeat: {list(clean)}")
    return clean
