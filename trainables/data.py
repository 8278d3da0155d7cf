"""Data sets for training: `load` reads, resizes, splits and fingerprints; the rest is re-exported.

The readers are in `sources.py` (known data sets), `image_files.py` (folders) and `parquet_files.py`, the
records and splits in `splits.py`, what happens on the device in `augment.py`.
"""

from __future__ import annotations

import os
from pathlib import Path

from spaces.space import nearest
from trainables.augment import augment, batches, in_order, normalise, to_device
from trainables.image_files import export, read_folder, read_images
from trainables.network import Task
from trainables.parquet_files import is_parquet, read_parquet
from trainables.sources import NAMES, DatasetStatus, catalogue, download, read_named
from trainables.splits import (
    Augment,
    Data,
    DataError,
    DataMissing,
    Source,
    Split,
    at_most,
    digest,
    divide,
    statistics,
)

__all__ = [
    "NAMES",
    "Augment",
    "Data",
    "DataError",
    "DataMissing",
    "DatasetStatus",
    "Split",
    "augment",
    "batches",
    "catalogue",
    "default_root",
    "download",
    "export",
    "in_order",
    "load",
    "normalise",
    "read_images",
    "to_device",
]


def default_root() -> Path:
    """Where data sets lie: ``$ROUTEFRONT_DATA``, else ``./data``."""
    return Path(os.environ.get("ROUTEFRONT_DATA") or "data")


def load(name: str, *, root: Path, image_size: int | None = None, seed: int = 0, limit: int | None = None) -> Data:
    """A data set by name or path, the same in every process.

    `name` is one of `NAMES` or a path (absolute, or relative to the working folder or to `root`): a
    folder ``train/<class>/*.png`` and ``test/<class>/*.png``, a folder ``<class>/*.png`` that is
    split here, or Parquet of encoded images (``train-*.parquet``, ``test-*.parquet``, or one file
    that is split here). `image_size` resizes to that many pixels along an edge. `seed` chooses what
    is held out. `limit` keeps at most that many training images and leaves validation and test whole.

    Raises `DataMissing` (a `FileNotFoundError`) where it is absent and `DataError` (a `ValueError`)
    where it cannot be used; both say in one line which file and what would be right.
    """
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if image_size is not None and (not whole or image_size < 4):
        raise DataError(f"image_size = {image_size!r}: it takes a whole number of at least 4 pixels")
    name, source = _read(name, root, image_size)
    train, validation, test = divide(source, seed)
    if limit is not None:
        train = at_most(train, limit, len(source.classes), seed)
    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = statistics(train.images)
    for split in (train, validation, test):  # as they come out of Ray's object store
        split.images.flags.writeable = split.labels.flags.writeable = False
    return Data(
        name=name,
        task=Task(classes=len(source.classes), size=train.images.shape[2], channels=train.images.shape[1]),
        classes=source.classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        augment=source.augment,
        hash=digest(source.classes, (train, validation, test)),
    )


def _read(name: str, root: Path, image_size: int | None) -> tuple[str, Source]:
    """The name under which the data will be found again, and what was read."""
    try:
        if name in NAMES:
            return name, read_named(name, root, image_size)
        given = Path(name).expanduser()
        if name and given.exists():
            path, name = given, str(given.resolve())
        elif name and (root / given).exists():
            path = root / given
        else:
            known = nearest(name, NAMES)
            raise DataMissing(f"no data set {name!r}, and no such file or folder here or in {root}{known}")
        return name, (read_parquet if is_parquet(path) else read_folder)(path, image_size)
    except PermissionError as error:
        raise DataError(f"{error.filename} may not be read by this user") from None
