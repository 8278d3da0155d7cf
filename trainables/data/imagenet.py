"""ImageNet as folders of class folders, whole or 100 of its classes; images stay in their files.

``train/<class>/*`` and ``val/<class>/*``, as the published archives unpack once the validation images are
sorted into class folders. The validation images are the test split; 50,000 training images (5,000
of a subset) are held out.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from trainables.data.encoded import ImageFiles
from trainables.data.errors import DataError, DataMissing
from trainables.data.layout import class_folders, walk
from trainables.data.published import DatasetStatus
from trainables.data.resizing import Size
from trainables.data.splits import Augment, Source, Split

CLASSES = {"imagenet": 0, "imagenet-100": 100}
"""How many classes each name takes; 0: all that are there."""
AREA = (0.08, 1.0)
# of ILSVRC 2012's training images, which torchvision's weights were trained with
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def read_imagenet(
    name: str, root: Path, image_size: Size | None, path: Path | None = None, rule: str = "preset"
) -> Source:
    """The images in `path` (``<root>/imagenet`` where None), listed and not opened; 224 pixels unless told otherwise.

    The classes of a subset are those that ``imagenet-100.txt`` in that folder names, one class folder
    a line; without it 100 of the sorted names by a draw that never changes.
    Raises `DataMissing` or `DataError` in one line.
    """
    folder = path or root / "imagenet"
    absent = [str(folder / split) for split in ("train", "val") if not (folder / split).is_dir()]
    if absent:
        raise DataMissing(f"{name} is not in {folder}: no {' and no '.join(absent)}; {_how(name, folder)}")
    classes = _classes(name, folder)
    size = image_size or 224
    train = _listed(folder, "train", classes, size, rule)
    for which in np.flatnonzero(np.bincount(train.labels, minlength=len(classes)) == 0)[:1]:
        raise DataError(f"{folder / 'train' / classes[which]} holds no image")
    return Source(
        classes=classes,
        train=train,
        test=_listed(folder, "val", classes, size, rule),
        augment=Augment(flip=True, area=AREA),
        mean=_MEAN,
        std=_STD,
    )


def _how(name: str, folder: Path) -> str:
    return (
        "it cannot be downloaded without an account at image-net.org; unpack ILSVRC 2012 into"
        f" {folder}/train/<class>/*.JPEG and {folder}/val/<class>/*.JPEG, or name its folder: {name}:PATH"
    )


def _classes(name: str, folder: Path) -> tuple[str, ...]:
    there = class_folders(folder / "train")
    count = CLASSES[name]
    listed = folder / f"{name}.txt"
    if count and listed.is_file():
        names = listed.read_text(encoding="utf-8").split()
        unknown = sorted(set(names) - set(there))
        if unknown:
            raise DataError(f"{listed} names {unknown[0]}, which is no folder in {folder / 'train'}")
        if len(set(names)) != count or len(names) != count:
            raise DataError(
                f"{listed} names {len(set(names))} different classes on {len(names)} lines: {name} takes {count}"
            )
        return tuple(sorted(names))
    if len(there) < max(count, 2):
        raise DataError(f"{folder / 'train'} has {len(there)} class folders: {name} takes {max(count, 2)} or more")
    if not count:
        return tuple(there)
    # RandomState's stream is frozen by NumPy: the same classes everywhere
    return tuple(sorted(np.random.RandomState(0).permutation(there)[:count].tolist()))


def _listed(folder: Path, split: str, classes: tuple[str, ...], size: Size, rule: str) -> Split:
    """The files of a split with their labels; classes that were not chosen are left out."""
    names: list[bytes] = []
    lengths: list[int] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if not (folder / split / name).is_dir():
            raise DataError(f"{folder / split} has no folder {name}: expected {folder / split}/<class>/<image>")
        for file, length in walk(str(folder), f"{split}/{name}"):
            names.append(os.fsencode(file))
            lengths.append(length)
            labels.append(label)
    if not names:
        raise DataError(f"{folder / split} holds no image: expected {folder / split}/<class>/<image>")
    files = ImageFiles(os.path.abspath(folder), np.array(names), np.array(lengths, dtype=np.int64), size, rule)
    return Split(files, np.array(labels, dtype=np.int64))


def catalogue(root: Path) -> list[DatasetStatus]:
    """Whether the folders are there; their images are not counted."""
    folder = root / "imagenet"
    found = []
    for name, count in CLASSES.items():
        there = [(folder / split).is_dir() for split in ("train", "val")]
        complete = all(there) and len(class_folders(folder / "train")) >= max(count, 2)
        files = ("train/<class>/*.JPEG", "val/<class>/*.JPEG")
        found.append(DatasetStatus(name, any(there), complete, str(folder), files, _how(name, folder)))
    return found
