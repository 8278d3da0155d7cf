"""The data sets of McGill and Perona, "Deciding how to decide" (arXiv 1703.06217, sections 4.8 and 5).

- ``hybrid``: MNIST's digits 0 to 4 and CIFAR-10's airplanes, automobiles, deer, frogs and horses. Digits
  are easy and photographs are hard, so that a network has something to route by.
- ``hybrid-digits``: the same with scikit-learn's digits in the place of MNIST's, each in so many pairs of
  colours that there are about as many digits as photographs.
- ``cifar-2`` (horse, other) and ``cifar-5`` (cat, deer, dog, horse, other): CIFAR-10 with classes merged.

As in the paper, photographs are gamma-decoded, digits are recoloured once, and pixels are not normalised.
Where we differ: decoded pixels are rounded to bytes (by at most 1/510), as all images are here.

Shape legend: n images, S pixels along an edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from trainables.data.errors import DataError, DataMissing
from trainables.data.image_files import read_folder
from trainables.data.parquet import is_parquet, read_parquet
from trainables.data.published import DatasetStatus, read_named
from trainables.data.splits import Augment, Source, Split, divide, hold_out

PARTS = {
    "hybrid": ("mnist", "cifar10"),
    "hybrid-digits": ("digits", "cifar10"),
    "cifar-2": ("cifar10",),
    "cifar-5": ("cifar10",),
}
"""The known data sets that each is made of."""
DIGITS = ("0", "1", "2", "3", "4")
PHOTOGRAPHS = ("airplane", "automobile", "deer", "frog", "horse")
MERGED = {"cifar-2": ("horse", "other"), "cifar-5": ("cat", "deer", "dog", "horse", "other")}
_CIFAR10 = (  # as torchvision and the public Parquet files call them
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)

GAMMA = 2.2
APART = 0.3
"""The least distance of the two colours of a digit in RGB, where a channel is in [0, 1]."""
COLOUR_SEED = 0


def gamma_decoded(images: np.ndarray) -> np.ndarray:
    """Images uint8 in linear light, ``255 (x / 255)^2.2`` rounded to uint8."""
    table = np.rint(255 * (np.arange(256) / 255) ** GAMMA).astype(np.uint8)
    return table[images]


def colours(count: int, random: np.random.RandomState) -> np.ndarray:
    """Pairs of colours (count, 2, 3), each channel uniform in [0, 1], at least `APART` from each other."""
    pairs = random.uniform(size=(count, 2, 3))
    while len(near := np.flatnonzero(np.linalg.norm(pairs[:, 1] - pairs[:, 0], axis=1) < APART)):
        pairs[near] = random.uniform(size=(len(near), 2, 3))
    return pairs


def recoloured(images: np.ndarray, random: np.random.RandomState) -> np.ndarray:
    """Grey images (n, 1, S, S) uint8 in two colours each: ``c0 + (c1 - c0) x``, (n, 3, S, S) uint8."""
    first, second = colours(len(images), random).astype(np.float32).transpose(1, 0, 2)[..., None, None]
    out = np.empty((len(images), 3, *images.shape[2:]), dtype=np.uint8)
    for begin in range(0, len(images), 2048):  # in floating point a part at a time
        part = slice(begin, begin + 2048)
        out[part] = np.rint(255 * first[part] + (second[part] - first[part]) * images[part])
    return out


def sharpened(images: np.ndarray) -> np.ndarray:
    """Scikit-learn's digits (n, 1, S, S) uint8, resized from 8 x 8, with edges as wide as one pixel again.

    Their values count the black pixels of a bitmap in 4 x 4 blocks; resized, every edge is a ramp of
    S / 8 pixels, at the colours' low contrast too soft for small networks to see.
    """
    gain = max(1.0, images.shape[-1] / 8)
    table = np.clip((np.arange(256) - 127.5) * gain + 127.5, 0, 255)
    return np.rint(table).astype(np.uint8)[images]


def read_made(name: str, root: Path, image_size: int | None, seed: int, cifar: Path | None = None) -> Source:
    """One of the data sets of `PARTS`, 32 pixels along an edge unless `image_size` says otherwise.

    `cifar` is CIFAR-10 as a path, where it does not lie under `root` as torchvision lays it out: a
    folder with ``cifar-10-batches-py``, Parquet, or class folders. `seed` divides what must be divided
    before digits are multiplied (``hybrid-digits``).

    Raises `DataMissing` naming every part that is absent, `DataError` where a part cannot be used.
    """
    size = image_size or 32
    found: dict[str, Source] = {}
    absent: dict[str, str] = {}
    for part in PARTS[name]:
        try:
            found[part] = _cifar10(root, size, cifar) if part == "cifar10" else read_named(part, root, size)
        except DataMissing as error:
            absent[part] = str(error)
    if absent:
        half = ", one half of it" if found else ""
        raise DataMissing(
            f"{name} lacks {' and '.join(absent)}{half}: {'; '.join(absent.values())}{_else(name, absent)}"
        )
    if name in MERGED:
        return _merged(found["cifar10"], MERGED[name])
    photographs = _chosen(_tested(found["cifar10"], seed), PHOTOGRAPHS, len(DIGITS), gamma_decoded)
    random = np.random.RandomState(COLOUR_SEED)  # its stream is frozen by NumPy
    if name == "hybrid":
        digits = _chosen(found["mnist"], DIGITS, 0, lambda images: recoloured(images, random))
        train, test = (_joined(getattr(digits, s), getattr(photographs, s)) for s in ("train", "test"))
        return _source((*DIGITS, *PHOTOGRAPHS), size, train, None, test)
    digits = _chosen(found["digits"], DIGITS, 0, sharpened)
    halves = zip(divide(digits, seed), divide(photographs, seed), strict=True)
    train, validation, test = [_joined(_copied(few, len(many), random), many) for few, many in halves]
    return _source((*DIGITS, *PHOTOGRAPHS), size, train, validation, test)


def _else(name: str, absent: Mapping[str, str]) -> str:
    return f"; CIFAR-10 as Parquet or class folders is named {name}:PATH" if "cifar10" in absent else ""


def _cifar10(root: Path, size: int, path: Path | None) -> Source:
    """CIFAR-10 in any form that is read here; `DataError` where a path holds something else."""
    if path is None or (path / "cifar-10-batches-py").is_dir():
        return read_named("cifar10", path or root, size)
    source = (read_parquet if is_parquet(path) else read_folder)(path, size)
    if set(source.classes) != set(_CIFAR10) or source.train.images.shape[1] != 3:
        shown = ", ".join(source.classes[:12]) + (" ..." if len(source.classes) > 12 else "")
        raise DataError(
            f"{path} is not CIFAR-10: its classes are {shown}; expected are {', '.join(_CIFAR10)}, in colour"
        )
    return source


def _tested(source: Source, seed: int) -> Source:
    """The source with training and test images alone: a fifth for testing where it has none of its own."""
    train = source.train if source.validation is None else _joined(source.train, source.validation)
    test = source.test
    if test is None:
        kept, held = hold_out(train.labels, round(len(train) / 5), seed)
        train, test = train.take(kept), train.take(held)
    return dataclasses.replace(source, train=train, validation=None, test=test)


def _chosen(source: Source, names: tuple[str, ...], first: int, change: Callable[[np.ndarray], np.ndarray]) -> Source:
    """The images of some classes, changed; their labels count from `first` in the order of `names`."""
    table = np.full(len(source.classes), -1, dtype=np.int64)
    for label, name in enumerate(names, first):
        table[source.classes.index(name)] = label

    def choose(split: Split | None) -> Split | None:
        if split is None:
            return None
        labels = table[split.labels]
        mine = labels >= 0
        return Split(change(split.decoded()[mine]), labels[mine])

    train, test = choose(source.train), choose(source.test)
    assert train is not None
    return dataclasses.replace(source, classes=names, train=train, test=test)


def _copied(digits: Split, count: int, random: np.random.RandomState) -> Split:
    """About `count` images: every digit equally often, each time in other colours."""
    copies = max(1, round(count / len(digits)))
    images = np.tile(digits.decoded(), (copies, 1, 1, 1))
    return Split(recoloured(images, random), np.tile(digits.labels, copies))


def _joined(one: Split, other: Split) -> Split:
    return Split(np.concatenate([one.decoded(), other.decoded()]), np.concatenate([one.labels, other.labels]))


def _merged(source: Source, classes: tuple[str, ...]) -> Source:
    """CIFAR-10 in linear light with all classes but the named ones as `other`, the last."""
    table = np.array([classes.index(name) if name in classes else len(classes) - 1 for name in source.classes])

    def merge(split: Split) -> Split:
        return Split(gamma_decoded(split.decoded()), table[split.labels])

    validation, test = (split if split is None else merge(split) for split in (source.validation, source.test))
    return _source(classes, source.train.images.shape[2], merge(source.train), validation, test)


def _source(classes: tuple[str, ...], size: int, train: Split, validation: Split | None, test: Split | None) -> Source:
    """Section 4.8: shifts by an eighth of the edge filled with the mean colour, flips of photographs, replacement."""
    return Source(
        classes=classes,
        train=train,
        validation=validation,
        test=test,
        augment=Augment(
            pad=Augment.natural(size).pad,
            flip=True,
            fill="mean",
            unflipped=tuple(label for label, name in enumerate(classes) if name in DIGITS),
        ),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        replacement=True,
    )


def catalogue(known: Mapping[str, DatasetStatus]) -> list[DatasetStatus]:
    """The data sets made of others, from the status of those."""
    found = []
    for name, parts in PARTS.items():
        of = [known[part] for part in parts]
        how = "; ".join(status.how for status in of if not status.complete) or f"made of {' and '.join(parts)}"
        found.append(
            DatasetStatus(
                name=name,
                present=any(status.present for status in of),
                complete=all(status.complete for status in of),
                folder=" and ".join(status.folder for status in of),
                files=tuple(file for status in of for file in status.files),
                how=f"{how}; CIFAR-10 as Parquet or class folders: {name}:PATH",
            )
        )
    return found
