"""Data sets for training: `load` reads, resizes, splits and fingerprints; the rest is re-exported.

The readers are in `data/published.py` (published data sets), `data/clutter.py` (digits in clutter), `data/hybrid.py`
(sets made of others), `data/imagenet.py`, `data/image_files.py` (folders) and `data/parquet.py`, the records and splits
in `data/splits.py`, what happens on the device in `data/augment.py`, ways to normalise in `normalisation.py`, decoding
on demand in `data/encoded.py`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from spaces.space import nearest
from trainables.contracts.network import Task
from trainables.data import clutter, hybrid, imagenet
from trainables.data import published as sources
from trainables.data.augment import augment, batches, in_order, normalise, to_device
from trainables.data.errors import DataError, DataMissing
from trainables.data.image_files import export, read_folder, read_images
from trainables.data.parquet import is_parquet, read_parquet
from trainables.data.published import DatasetStatus, read_named
from trainables.data.resizing import RULES, Size, checked
from trainables.data.saved import is_saved, read_saved
from trainables.data.splits import Augment, Data, Source, Split, at_most, digest, divide, statistics

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


NAMES = (*sources.NAMES, clutter.NAME, *hybrid.PARTS, *imagenet.CLASSES)
"""The data sets that have a name."""


def catalogue(root: Path) -> list[DatasetStatus]:
    """Every known data set under `root`, in the order of `NAMES`."""
    published = sources.catalogue(root)
    made = hybrid.catalogue({status.name: status for status in published})
    return [*published, clutter.catalogue(), *made, *imagenet.catalogue(root)]


def download(name: str, root: Path) -> None:
    """Get a known data set, or those it is made of, through torchvision; what is complete is left alone.

    Raises `DataError` where the name is unknown, has nothing to download, or the download fails.
    """
    if name not in NAMES:
        raise DataError(f"no known data set {name!r}{nearest(name, NAMES)}")
    if name == clutter.NAME:
        raise DataError(f"{name} is {clutter.catalogue().how}: there is nothing to download")
    if name in imagenet.CLASSES:
        how = next(status.how for status in imagenet.catalogue(root) if status.name == name)
        raise DataError(f"{name} was not downloaded: {how}")
    for part in hybrid.PARTS.get(name, (name,)):
        if part == name or part != "digits":  # scikit-learn brings its digits along
            sources.download(part, root)


def default_root() -> Path:
    """Where data sets lie: ``$ROUTEFRONT_DATA``, else ``./data``."""
    return Path(os.environ.get("ROUTEFRONT_DATA") or "data")


def load(
    name: str,
    *,
    root: Path,
    image_size: Size | Sequence[int] | None = None,
    resize: str | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Data:
    """A data set by name or path, the same in every process.

    `name` is one of `NAMES` or a path (absolute, or relative to the working folder or to `root`): a
    folder ``train/<class>/*.png`` and ``test/<class>/*.png``, a folder ``<class>/*.png`` that is
    split here, Parquet of encoded images (``train-*.parquet``, ``test-*.parquet``, or one file
    that is split here), or what ``save_to_disk`` of Hugging Face's ``datasets`` wrote. Sets made of CIFAR-10
    take it from a path after a colon (``hybrid-digits:/data/cifar10``), and ImageNet its folder
    (``imagenet-100:/data/ILSVRC2012``).
    `image_size` resizes to that many pixels along an edge, or to [height, width], by the rule `resize`
    (`trainables.data.resizing`; ``fit`` where None, ``preset`` for ImageNet). `seed` chooses what is held out. `limit`
    keeps at most that many training images and leaves validation and test whole.

    Raises `DataMissing` (a `FileNotFoundError`) where it is absent and `DataError` (a `ValueError`)
    where it cannot be used; both say in one line which file and what would be right.
    """
    if resize is not None and resize not in RULES:
        raise DataError(f"resize = {resize!r}: must be one of {', '.join(RULES)}")
    name, source = _read(name, root, checked(image_size), resize, seed)
    train, validation, test = divide(source, seed)
    if limit is not None:
        train = at_most(train, limit, len(source.classes), seed)
    _differ(name, train)
    mean, std = source.mean, source.std
    if mean is None or std is None:
        mean, std = statistics(train.decoded())
    for split in (train, validation, test):  # as they come out of Ray's object store
        for array in split.arrays:
            array.flags.writeable = False
    return Data(
        name=name,
        task=Task(
            classes=len(source.classes),
            size=(train.images.shape[2], train.images.shape[3]),
            channels=train.images.shape[1],
        ),
        classes=source.classes,
        train=train,
        validation=validation,
        test=test,
        mean=mean,
        std=std,
        augment=source.augment,
        hash=digest(source.classes, (train, validation, test)),
        replacement=source.replacement,
        seen=source.seen,
        scale=source.scale,
        resize=resize or "",
    )


def _read(name: str, root: Path, image_size: Size | None, resize: str | None, seed: int) -> tuple[str, Source]:
    """The name under which the data will be found again, and what was read."""
    kind, colon, where = name.partition(":")
    try:
        if resize is not None and kind in NAMES and kind not in imagenet.CLASSES:
            raise DataError(f"resize = {resize!r}: {kind} has square images of one size; leave it out")
        if isinstance(image_size, tuple) and kind in (clutter.NAME, *hybrid.PARTS):
            raise DataError(f"image_size = {list(image_size)}: {kind} is drawn in squares; give one number")
        edge = None if isinstance(image_size, tuple) else image_size
        if name in sources.NAMES:
            return name, read_named(name, root, image_size)
        if name == clutter.NAME:
            return name, clutter.read_cluttered(edge, seed)
        if kind not in NAMES or kind in (*sources.NAMES, clutter.NAME):
            path, name = _found(name, root, f"no data set {name!r}, and", nearest(name, NAMES))
            reader = read_saved if is_saved(path) else read_parquet if is_parquet(path) else read_folder
            return name, reader(path, image_size, resize or "fit")
        path = None
        if colon:
            path, where = _found(where, root, f"no {kind} from {where!r}:")
            name = f"{kind}:{where}"
        if kind in hybrid.PARTS:
            return name, hybrid.read_made(kind, root, edge, seed, path)
        return name, imagenet.read_imagenet(kind, root, image_size, path, resize or "preset")
    except PermissionError as error:
        raise DataError(f"{error.filename} may not be read by this user") from None


def _differ(name: str, train: Split) -> None:
    """Raise `DataError` where all training images are the same: nothing can be learnt, and something was misread."""
    images = train.images
    if isinstance(images, np.ndarray) and len(images) > 1 and all(np.array_equal(images[0], one) for one in images):
        low, high = images[0].min(), images[0].max()
        held = f"every pixel is {low}" if low == high else f"pixels from {low} to {high}"
        raise DataError(
            f"all {len(images):,} training images of {name} are the same picture once they are read ({held} of 0 to"
            " 255); there is nothing to tell apart"
        )


def _found(where: str, root: Path, begin: str, end: str = "") -> tuple[Path, str]:
    """A path that is here or under `root`, and how to write it so that it will be found again."""
    given = Path(where).expanduser()
    if where and given.exists():
        return given, str(given.resolve())
    if where and (root / given).exists():
        return root / given, where
    raise DataMissing(f"{begin} no such file or folder here or in {root}{end}")
