"""Image files and folders of them: resizing, class folders, PNG export.

Shape legend: n images, C channels, S pixels along an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainables.contracts.network import Task
from trainables.data.decoding import decode
from trainables.data.errors import DataError
from trainables.data.splits import Augment, Source, Split

LITTER = ("Thumbs.db", "desktop.ini")  # left in picture folders by file managers
_TEST = ("test", "val", "valid", "validation")


def _array(image: Image.Image, channels: int, size: int | None) -> np.ndarray:
    """(C, S, S) uint8. Resized so that the shorter edge fits, then cut in the middle."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None and image.size != (size, size):
        image = ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)  # Pillow's bilinear is antialiased
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def resized(images: np.ndarray, size: int | None) -> np.ndarray:
    """Images (n, C, s, s) uint8, C 1 or 3, with `size` pixels along an edge (as they are where None)."""
    if size is None or images.shape[2:] == (size, size):
        return images
    channels = images.shape[1]
    pixels = images[:, 0] if channels == 1 else images.transpose(0, 2, 3, 1)
    return np.stack([_array(Image.fromarray(image), channels, size) for image in pixels])


class Stack:
    """Decoded images of one data set on their way into arrays; remembers what the first was like.

    Images of one size are expected where `size` is None. The set is grey where all images are.
    """

    def __init__(self, size: int | None) -> None:
        self.size = size
        self.colour = False
        self._first: tuple[str, tuple[int, int]] | None = None

    def add(self, source: Path | bytes, name: str) -> np.ndarray:
        """The image as (C, S, S) uint8, C being its own 1 or 3; `DataError` where it does not fit."""
        image = decode(source, name)
        if self.size is None:
            self._check(image, name)
        self.colour |= image.mode == "RGB"
        return _array(image, 3 if image.mode == "RGB" else 1, self.size)

    def _check(self, image: Image.Image, name: str) -> None:
        width, height = image.size
        if self._first is None:
            self._first = (name, image.size)
        first, expected = self._first
        if image.size != expected:
            raise DataError(
                f"images differ in size: {first} has {expected[0]} x {expected[1]} pixels, {name} {width} x {height};"
                " give the size that they should all have (image_size, --image-size)"
            )
        if width != height or width < 4:
            raise DataError(
                f"{name} has {width} x {height} pixels; networks take squares of at least 4 x 4: give the size that"
                " all images should have (image_size, --image-size)"
            )

    def array(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """(n, C, S, S) uint8 with the channels of the whole set."""
        channels = 3 if self.colour else 1
        size = images[0].shape[1:]
        out = np.empty((len(images), channels, *size), dtype=np.uint8)
        for row, image in zip(out, images, strict=True):
            row[:] = image  # a grey image among colours fills all three channels
        return out


def augmentation(images: np.ndarray) -> Augment:
    """The augmentation of images of unknown content: photographs where coloured, writing where grey."""
    size = images.shape[2]
    return Augment.natural(size) if images.shape[1] == 3 else Augment.written(size)


def read_images(paths: Iterable[Path], task: Task) -> np.ndarray:
    """Image files of any kind and size as a task takes them: (n, channels, size, size) uint8.

    Raises `DataMissing` or `DataError` naming the file that is absent or not an image.
    """
    if task.channels not in (1, 3):
        raise DataError(f"image files have 1 or 3 channels; the task takes {task.channels}")
    images = [_array(decode(path, str(path)), task.channels, task.size) for path in paths]
    return np.stack(images) if images else np.empty((0, task.channels, task.size, task.size), dtype=np.uint8)


def export(split: Split, folder: Path, classes: Sequence[str]) -> list[Path]:
    """Write a split as ``folder/<class>/<number>.png`` (lossless); the files in the order of the split."""
    paths = []
    for number, (image, label) in enumerate(zip(split.decoded(), split.labels, strict=True)):
        name = classes[int(label)]
        if Path(name).name != name:
            raise DataError(f"class {name!r} cannot be the name of a folder")
        path = folder / name / f"{number:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
        Image.fromarray(np.ascontiguousarray(pixels)).save(path)
        paths.append(path)
    return paths


def read_folder(folder: Path, size: int | None) -> Source:
    """Class folders: ``train/<class>/*`` with ``test/<class>/*`` beside it, or just ``<class>/*``.

    A `val`, `valid` or `validation` folder beside both is the validation split; without `test` it
    is the test split (ImageNet's habit). Classes are the folders' names in alphabetical order;
    images may lie in folders within. Raises `DataError` in one line that names the file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder of class folders nor a .parquet file")
    divided = "train" in class_folders(folder) and bool(class_folders(folder / "train"))  # else a class of trains
    tops = (
        [folder / "train", *(folder / name for name in _TEST if name in class_folders(folder))] if divided else [folder]
    )
    if len(tops) > 3:
        raise DataError(f"{folder} has more than a train, a validation and a test folder: {', '.join(map(str, tops))}")
    classes = tuple(class_folders(tops[0]))
    if not classes:
        raise DataError(f"{tops[0]} has no class folders with images: expected {tops[0]}/<class>/<image>")
    if len(classes) < 2:
        raise DataError(f"{tops[0]} has one class only ({''.join(classes)}): two are needed to tell apart")
    stack = Stack(size)
    read = [_read_classes(top, classes, stack, all_of_them=top is tops[0]) for top in tops]
    splits = [Split(stack.array(images), np.array(labels, dtype=np.int64)) for images, labels in read]
    train, others = splits[0], dict(zip([top.name for top in tops[1:]], splits[1:], strict=True))
    test = others.pop("test", None)
    rest = next(iter(others.values()), None)
    return Source(
        classes=classes,
        train=train,
        validation=rest if test is not None else None,
        test=test if test is not None else rest,
        augment=augmentation(train.decoded()),
    )


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _read_classes(
    top: Path, classes: tuple[str, ...], stack: Stack, *, all_of_them: bool
) -> tuple[list[np.ndarray], list[int]]:
    """Images and labels of the class folders in `top`, in alphabetical order; only in training must none be empty."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for name in class_folders(top):
        if name not in classes:
            raise DataError(f"{top / name} is of a class that has no training images")
        files = sorted(
            path
            for path in (top / name).rglob("*")
            if path.is_file() and not path.name.startswith(".") and path.name not in LITTER
        )
        if all_of_them and not files:
            raise DataError(f"{top / name} holds no image")
        images += [stack.add(path, str(path)) for path in files]
        labels += [classes.index(name)] * len(files)
    if not images:
        raise DataError(f"{top} holds no image: expected {top}/<class>/<image>")
    return images, labels
