"""Image files and folders of them: resizing, class folders, PNG export.

Shape legend: n images, C channels, S pixels along an edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainables.contracts.network import Task
from trainables.data import layout
from trainables.data.decoding import decode, in_bytes, opened
from trainables.data.depth import Depths, Scale, is_deep
from trainables.data.errors import DataError
from trainables.data.resizing import LEAST, Size, edges, resize, shown
from trainables.data.splits import Augment, Source, Split


def _array(image: Image.Image, channels: int, size: Size | None, rule: str = "fit") -> np.ndarray:
    """(C, h, w) uint8, resized by one of `trainables.data.resizing.RULES`."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        image = image.convert(mode)
    if size is not None:
        image = resize(image, size, rule)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def resized(images: np.ndarray, size: Size | None, rule: str = "fit") -> np.ndarray:
    """Images (n, C, s, s) uint8, C 1 or 3, of a `size` (as they are where None), by one of the rules."""
    if size is None or (rule != "preset" and images.shape[2:] == edges(size)):
        return images
    channels = images.shape[1]
    pixels = images[:, 0] if channels == 1 else images.transpose(0, 2, 3, 1)
    return np.stack([_array(Image.fromarray(image), channels, size, rule) for image in pixels])


@dataclass(frozen=True, slots=True)
class Deep:
    """An image of more than eight bits that waits for the scale of its set."""

    source: Path | bytes
    name: str


class Stack:
    """Decoded images of one data set on their way into arrays; remembers what the first was like.

    Images of one size are expected where `size` is None, else they become of it by `rule`. The set is grey where all
    images are. Those of more than eight bits are scaled alike, by what the training images hold
    (`trainables.data.depth`): `training` tells which are these.
    """

    def __init__(self, size: Size | None, rule: str = "fit") -> None:
        self.size, self.rule = size, rule
        self.colour = False
        self.training = True
        self._depths = Depths()
        self.least: tuple[int, int] = (0, 0)
        self.most: tuple[int, int] = (0, 0)
        self._first: tuple[str, tuple[int, int]] | None = None

    def add(self, source: Path | bytes, name: str) -> np.ndarray | Deep:
        """The image as (C, S, S) uint8, C being its own 1 or 3; `DataError` where it does not fit.

        One of more than eight bits is decoded again in `array`, once the scale of all is known.
        """
        image = opened(source, name)
        if self.training:
            self._depths.note(image, source, name)
        deep = is_deep(image)
        if not deep:
            image = in_bytes(image, name)
        if self.size is None:
            self._check(image, name)
        self.colour |= image.mode == "RGB"
        (width, height), (low, high) = image.size, self.least
        self.least = (min(width, low), min(height, high)) if self.least != (0, 0) else image.size
        self.most = max(width, self.most[0]), max(height, self.most[1])
        return Deep(source, name) if deep else _array(image, 3 if image.mode == "RGB" else 1, self.size, self.rule)

    @property
    def scale(self) -> Scale | None:
        """The scale of images of more than eight bits; None where no training image is one."""
        return self._depths.scale()

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
        if min(width, height) < LEAST:
            raise DataError(
                f"{name} has {width} x {height} pixels; networks take at least {LEAST} x {LEAST}: give the size that"
                " all images should have (image_size, --image-size)"
            )

    @property
    def seen(self) -> str:
        """The sizes that images had in their files, in words."""
        (width, height), (most_width, most_height) = self.least, self.most
        sizes = f"{width} x {height}" + (f" to {most_width} x {most_height}" if self.least != self.most else "")
        wanted = self.size and edges(self.size)[::-1]
        resized = self.size is not None and (self.least, self.most) != (wanted,) * 2
        scale = self.scale
        levels = f" of values {scale.low:g} to {scale.high:g}" if scale is not None else ""
        return f"{sizes} pixels{levels}" + (f", resized to {shown(self.size)}" if resized and self.size else "")

    def array(self, images: Sequence[np.ndarray | Deep]) -> np.ndarray:
        """(n, C, S, S) uint8 with the channels of the whole set."""
        channels, scale = 3 if self.colour else 1, self.scale
        height, width = edges(self.size or (self.least[1], self.least[0]))
        out = np.empty((len(images), channels, height, width), dtype=np.uint8)
        for row, image in zip(out, images, strict=True):
            if isinstance(image, Deep):
                image = _array(decode(image.source, image.name, scale), 1, self.size, self.rule)
            row[:] = image  # a grey image among colours fills all three channels
        return out


def augmentation(images: np.ndarray) -> Augment:
    """The augmentation of images of unknown content: photographs where coloured, writing where grey."""
    size = min(images.shape[2:])
    return Augment.natural(size) if images.shape[1] == 3 else Augment.written(size)


def read_images(paths: Iterable[Path], task: Task, scale: Scale | None = None, rule: str = "fit") -> np.ndarray:
    """Image files of any kind and size as a task takes them: (n, channels, height, width) uint8.

    `rule`: how they become of that size (`trainables.data.resizing`). `scale`: that of the training images, for files
    of more than eight bits. Raises `DataMissing` or `DataError` naming the file that is absent or not an image.
    """
    if task.channels not in (1, 3):
        raise DataError(f"image files have 1 or 3 channels; the task takes {task.channels}")
    images = [_array(decode(path, str(path), scale), task.channels, task.size, rule) for path in paths]
    return np.stack(images) if images else np.empty((0, *task.image), dtype=np.uint8)


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


def read_folder(folder: Path, size: Size | None, rule: str = "fit") -> Source:
    """Class folders: ``train/<class>/*`` with ``test/<class>/*`` beside it, or just ``<class>/*``.

    Splits go by their usual names (`trainables.data.layout`). A validation folder is the validation split; with one
    and no test folder there is no test split. Classes are the folders' names in alphabetical order;
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
    stack = Stack(size, rule)
    read = {}
    for kind, top in tops.items():
        stack.training = kind == "train"
        read[kind] = _read_classes(top, classes, stack, all_of_them=stack.training)
    splits = {
        kind: Split(stack.array(images), np.array(labels, dtype=np.int64)) for kind, (images, labels) in read.items()
    }
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    return Source(
        classes=classes,
        train=train,
        validation=validation,
        test=test,
        augment=augmentation(train.decoded()),
        seen=stack.seen,
        scale=stack.scale,
    )


def _read_classes(
    top: Path, classes: tuple[str, ...], stack: Stack, *, all_of_them: bool
) -> tuple[list[np.ndarray | Deep], list[int]]:
    """Images and labels of the class folders in `top`, in alphabetical order; only in training must none be empty."""
    images: list[np.ndarray | Deep] = []
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
