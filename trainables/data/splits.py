"""The records of a data set, and the splits that never change: train, validation, test.

Shape legend: n images, C channels, S pixels along an edge.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from trainables.contracts.network import Task
from trainables.data.depth import Scale
from trainables.data.errors import DataError
from trainables.normalisation import Normalisation, chosen

if TYPE_CHECKING:
    from trainables.data.encoded import ImageFiles


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Images (n, C, S, S) uint8 in [0, 255] and their labels (n,) int64 in [0, classes).

    Images of sets that are too large for memory are `ImageFiles`: indexing decodes them.
    """

    images: np.ndarray | ImageFiles
    labels: np.ndarray

    def __post_init__(self) -> None:
        if isinstance(self.images, np.ndarray):
            assert self.images.dtype == np.uint8 and self.images.ndim == 4, (self.images.dtype, self.images.shape)
        assert self.labels.dtype == np.int64 and self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Split:
        """The images at `indices`, copied."""
        images = self.images[indices] if isinstance(self.images, np.ndarray) else self.images.take(indices)
        return Split(images, self.labels[indices])

    def decoded(self) -> np.ndarray:
        """All images in memory, (n, C, S, S) uint8."""
        return self.images if isinstance(self.images, np.ndarray) else self.images[:]

    @property
    def folders(self) -> tuple[str, ...]:
        """Where images lie that are read when they are asked for."""
        return () if isinstance(self.images, np.ndarray) else (self.images.folder,)

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """All that is kept in memory."""
        images = (self.images,) if isinstance(self.images, np.ndarray) else self.images.arrays
        return *images, self.labels


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """Training augmentation: a random crop after `pad` pixels more on every side; `flip` half of them.

    `fill`: what the added pixels are, zero (black) or the image's own mean colour. `unflipped`:
    labels whose images are never flipped. `area`: crops of a random share of the image within these
    bounds and of a random aspect ratio, in place of the padding.
    """

    pad: int = 0
    flip: bool = False
    fill: Literal["black", "mean"] = "black"
    unflipped: tuple[int, ...] = ()
    area: tuple[float, float] | None = None

    @classmethod
    def natural(cls, size: int) -> Augment:
        """Photographs: an eighth of the edge (4 pixels of 32) and left-right flips."""
        return cls(pad=max(1, size // 8), flip=True)

    @classmethod
    def written(cls, size: int) -> Augment:
        """Digits and letters: a sixteenth of the edge (1 pixel of 16), never flipped."""
        return cls(pad=max(1, size // 16), flip=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A data set in memory, ready to be shared between processes (arrays and plain values only).

    `mean` and `std` per channel are of pixels in [0, 1]. `hash` is the SHA-256 of the classes and of
    all images and labels; of images in files, of their names and lengths. The arrays may be read-only.
    ``dataclasses.replace(data, augment=...)`` chooses another augmentation. `replacement`: an epoch
    draws as many training images as there are, each from all of them, so that some come twice and others not.
    `seen`: what the files held, in words. `scale`: how files of more than eight bits a pixel became bytes.
    `resize`: the rule by which files became of one size, where another one than the usual was chosen.
    `merit`: what accuracy is on these images in a study (`trainables.contracts.objective.BALANCED`).

    What a configuration may choose is None, -1, 0 and ``none`` until `for_config` is asked: `normalisation`, `crop`,
    the pixels of padding in place of the data set's own, `balance`, `area`, `policy` (a configuration's ``augment``),
    `mixup` and `cutmix`. Images of which nobody asked cannot be normalised.
    """

    name: str
    task: Task
    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    hash: str
    replacement: bool = False
    normalisation: Normalisation | None = None
    crop: int = -1
    balance: str = "none"
    area: float = 0.0
    policy: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0
    seen: str = ""
    scale: Scale | None = None
    resize: str = ""
    merit: str = "accuracy"

    def for_config(self, config: Any) -> Data:
        """The same images, normalised and cropped as a method's configuration has it (`normalise`, `crop`).

        Whoever holds a network asks with ``network.config`` before images are normalised. What was
        chosen before does not matter. Raises `ValueError` with one line where these images cannot be
        normalised so, or `crop` is as large as they are or given for images that are cropped by area.
        """
        crop, size, own = config.crop, self.task.edge, Normalisation(self.mean, self.std)
        if crop >= size:
            raise ValueError(f"crop = {crop!r}: images of {size} pixels can be shifted by {size - 1} at most")
        area = getattr(config, "area", 0.0)
        if crop > 0 and (self.augment.area is not None or area):
            raise ValueError(f"crop = {crop!r}: training images of {self.name} are cropped by area; leave it at -1")
        found = chosen(config.normalise, own=own, channels=self.task.channels, dataset=self.name)
        return dataclasses.replace(
            self,
            normalisation=found,
            crop=crop,
            balance=getattr(config, "balance", "none"),
            area=area,
            policy=getattr(config, "augment", "none"),
            mixup=getattr(config, "mixup", 0.0),
            cutmix=getattr(config, "cutmix", 0.0),
        )

    def class_weights(self) -> tuple[float, ...]:
        """What an image of class c counts, n / (C n_c), for its n_c of n training images; 0 where it has none."""
        counts = np.bincount(self.train.labels, minlength=len(self.classes))
        return tuple(float(len(self.train) / (len(counts) * count)) if count else 0.0 for count in counts)

    def summary(self) -> str:
        """What was taken, in one line: classes, images by split, their size."""
        counts = [len(split) for split in (self.train, self.validation, self.test)]
        size = self.seen or f"{self.task.pixels} pixels"
        return (
            f"{len(self.classes)} classes, {sum(counts):,} images: {counts[0]:,} train, {counts[1]:,} validation,"
            f" {f'{counts[2]:,}' if counts[2] else 'none for'} test; {size}"
        )

    @property
    def training_augment(self) -> Augment:
        """The augmentation of training batches: the data set's own, with the padding or area that was chosen."""
        if self.area:
            return dataclasses.replace(self.augment, pad=0, area=(self.area, 1.0))
        return self.augment if self.crop < 0 else dataclasses.replace(self.augment, pad=self.crop)

    @property
    def folders(self) -> tuple[str, ...]:
        """Where images lie that trials read when they need them: on every node."""
        return tuple(sorted({path for split in (self.train, self.validation, self.test) for path in split.folders}))

    def sample(self, count: int = 64) -> tuple[tuple[str, int], ...]:
        """At most `count` image files of every split and their lengths in bytes: whether a copy is the same set."""
        found = []
        for split in (self.train, self.validation, self.test):
            if not isinstance(split.images, np.ndarray):
                for index in np.linspace(0, len(split.images) - 1, min(count, len(split.images))).astype(int):
                    path = os.path.join(split.images.folder, os.fsdecode(bytes(split.images.names[index])))
                    found.append((path, int(split.images.lengths[index])))
        return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a reader found, before anything is held out.

    Without `test` and `validation`, both are taken from `train`; with a validation split of its own and no `test` there
    is no test split. Without `mean` and `std`, the constants
    are computed from the training split. `seen`: what the files held, in words, where that is worth saying.
    `scale`: as in `Data`.
    """

    classes: tuple[str, ...]
    train: Split
    augment: Augment
    validation: Split | None = None
    test: Split | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    replacement: bool = False
    seen: str = ""
    scale: Scale | None = None


def hold_out(labels: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(kept, held): sorted indices into `labels` (n,), `count` of them held out with the shares of the classes.

    Largest remainders make the number exact. Every class keeps at least one image, so that fewer
    are held where classes are tiny.
    """
    # RandomState's stream is frozen by NumPy; default_rng's may change from version to version
    random = np.random.RandomState(seed)
    sizes = np.bincount(labels)
    quotas = sizes * (count / len(labels))
    take = np.minimum(np.floor(quotas).astype(np.int64), np.maximum(sizes - 1, 0))
    for which in np.argsort(take - quotas, kind="stable"):
        if take.sum() < count and take[which] < sizes[which] - 1:
            take[which] += 1
    held = np.zeros(len(labels), dtype=bool)
    for which, number in enumerate(take):
        members = np.flatnonzero(labels == which)
        held[random.permutation(members)[:number]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def divide(source: Source, seed: int) -> tuple[Split, Split, Split]:
    """(train, validation, test) of a source; the source's own test images never mix in.

    A source with a validation split and no test split keeps what it has: its test split is empty.
    An undivided source becomes 60 % train, 20 % validation, 20 % test. Where there is a test split,
    the validation split is 5,000 images of train, 10 % where train has fewer than 50,000 and 50,000
    of a million or more.
    Raises `DataError` where there are too few images.
    """
    train, validation, test = source.train, source.validation, source.test
    share = 0.1
    if test is None and validation is not None:
        test = train.take(np.arange(0))
        if not (len(train) and len(validation)):
            raise DataError(f"{len(train)} training and {len(validation)} validation images are too few")
        return train, validation, test
    if test is None:
        kept, held = hold_out(train.labels, round(len(train) / 5), seed)
        train, test, share = train.take(kept), train.take(held), 0.25
    if validation is None:
        fixed = 50_000 if len(train) >= 1_000_000 else 5_000
        count = fixed if len(train) >= 50_000 else round(share * len(train))
        kept, held = hold_out(train.labels, count, seed)
        train, validation = train.take(kept), train.take(held)
    if not (len(train) and len(validation) and len(test)):
        total = len(train) + len(validation) + len(test)
        raise DataError(f"{total} images are too few for a train, a validation and a test split")
    return train, validation, test


def at_most(train: Split, limit: int, classes: int, seed: int) -> Split:
    """At most `limit` training images with the shares of the classes, each class at least once.

    Raises `DataError` where that cannot be.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < classes:
        raise DataError(f"limit = {limit!r}: {classes} classes need a whole number of at least {classes}")
    if limit >= len(train):
        return train
    kept, _ = hold_out(train.labels, len(train) - limit, seed)
    return train.take(kept)


def statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of images (n, C, S, S) uint8, in [0, 1] units; exact, from histograms."""
    levels = np.arange(256) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = np.zeros(256, dtype=np.int64)
        for begin in range(0, len(images), 2048):  # bincount widens bytes eightfold: a part at a time
            counts += np.bincount(images[begin : begin + 2048, channel].ravel(), minlength=256)
        shares = counts / counts.sum()
        mean = float(shares @ levels)
        means.append(mean)
        # a constant channel has no deviation; one grey level keeps the division finite
        deviations.append(max(float(np.sqrt(shares @ (levels - mean) ** 2)), 1 / 255))
    return tuple(means), tuple(deviations)


def digest(classes: tuple[str, ...], splits: tuple[Split, ...]) -> str:
    """SHA-256 over the class names and the bytes of all splits, as hexadecimal digits.

    Images that stay in files count by the names and lengths of these: reading them all would take hours.
    """
    whole = hashlib.sha256(repr(classes).encode())
    for split in splits:
        for array in split.arrays:
            if array.dtype == np.int64:
                array = array.astype("<i8", copy=False)
            whole.update(repr(array.shape).encode())
            whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()
