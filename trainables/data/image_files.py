"""Image files and folders of them: resizing, class folders, PNG export.

Shape legend: n images, C channels, S pixels along an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainables.contracts.network import Task
from trainables.data import layout
from trainables.data.decoding import decode
from trainables.data.errors import DataError
from trainables.data.splits import Augment, Source, Split


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
        self.least: tuple[int, int] = (0, 0)
        self.most: tuple[int, int] = (0, 0)
        self._first: tuple[str, tuple[int, int]] | None = None

    def add(self, source: Path | bytes, name: str) -> np.ndarray:
        """The image as (C, S, S) uint8, C being its own 1 or 3; `DataError` where it does not fit."""
        image = decode(source, name)
        if self.size is None:
            self._check(image, name)
        self.colour |= image.mode == "RGB"
        (width, height), (low, high) = image.size, self.least
        self.least = (min(width, low), min(height, high)) if self.least != (0, 0) else image.size
        self.most = max(width, self.most[0]), max(height, self.most[1])
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

    @property
    def seen(self) -> str:
        """The sizes that images had in their files, in words."""
        (width, height), (most_width, most_height) = self.least, self.most
        sizes = f"{width} x {height}" + (f" to {most_width} x {most_height}" if self.least != self.most else "")
        resized = self.size is not None and (self.least, self.most) != ((self.size, self.size),) * 2
        return f"{sizes} pixels" + (f", resized to {self.size} x {self.size}" if resized else "")

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

    Splits go by their usual names (`trainables.data.layout`). A validation folder beside both is the validation split;
    without a test folder it is the test split (ImageNet's habit). Classes are the folders' names in alphabetical order;
    images may lie in folders within. Raises `DataError` in one line that names the file.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder of class folders nor a .parquet file")
    tops = layout.splits(folder) or {"train": folder}
    first = tops["train"]
    classes = tuple(layout.class_folders(first))
    if not classes:
        raise DataError(f"{first} has no class folders with images: expected {first}/<class>/<image>")
    if len(classes) < 2:
        raise DataError(f"{first} has one class only ({''.join(classes)}): two are needed to tell apart")
    stack = Stack(size)
    read = {kind: _read_classes(top, classes, stack, all_of_them=kind == "train") for kind, top in tops.items()}
    splits = {
        kind: Split(stack.array(images), np.array(labels, dtype=np.int64)) for kind, (images, labels) in read.items()
    }
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    return Source(
        classes=classes,
        train=train,
        validation=validation if test is not None else None,
        test=test if test is not None else validation,
        augment=augmentation(train.decoded()),
        seen=stack.seen,
    )


def _read_classes(
    top: Path, classes: tuple[str, ...], stack: Stack, *, all_of_them: bool
) -> tuple[list[np.ndarray], list[int]]:
    """Images and labels of the class folders in `top`, in alphabetical order; only in training must none be empty."""
    images: list[np.ndarray] = []
    labels: list[int] = []
    for name in layout.class_folders(top):
        if name not in classes:
            raise DataError(f"{top / name} is of a class that has no training images")
        files = layout.files(top / name)
        if all_of_them and not files:
            raise DataError(f"{top / name} holds no image")
        images += [stack.add(path, str(path)) for path in files]
        labels += [classes.index(name)] * len(files)
    if not images:
        raise DataError(f"{top} holds no image: expected {top}/<class>/<image>")
    return images, labels
