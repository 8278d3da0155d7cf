"""The known data sets: what is expected where, how to get it, how it is read. Nothing is downloaded unasked.

Files lie as torchvision lays them out. CIFAR's batches are pickles: torchvision unpickles them only
after it found the MD5 of every file right, and nothing else is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spaces.space import nearest
from trainables.data.errors import DataError, DataMissing
from trainables.data.image_files import resized
from trainables.data.resizing import Size, edges
from trainables.data.splits import Augment, Source, Split
from trainables.normalisation import RESNET

NAMES = ("digits", "cifar10", "cifar100", "svhn", "svhn-extra", "mnist")

_SVHN = {"svhn": ("train", "test"), "svhn-extra": ("train", "extra", "test")}
_DIGITS = tuple(str(digit) for digit in range(10))


def _vision() -> Any:
    """Torchvision's data sets, imported when one is asked for: every worker would wait seconds for them."""
    from torchvision import datasets

    return datasets


def _intact(path: Path, md5: str | None) -> bool:
    from torchvision.datasets.utils import check_integrity

    return check_integrity(path, md5)


def _cifar_class(name: str) -> Any:
    return {"cifar10": _vision().CIFAR10, "cifar100": _vision().CIFAR100}[name]


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """Whether a known data set is here. `folder` should hold `files`; `how` says in one line how to get them.

    `present`: some of the files are there. `complete`: all of them, with the published checksums
    where there are any (a few hundred megabytes are read for that).
    """

    name: str
    present: bool
    complete: bool
    folder: str
    files: tuple[str, ...]
    how: str


def _expected(name: str, root: Path) -> tuple[Path, dict[str, str | None]]:
    """The folder and the files in it, with their MD5 where it is published."""
    if name == "digits":
        return root, {}
    if name in _SVHN:
        return root, {file: md5 for _, file, md5 in (_vision().SVHN.split_list[s] for s in _SVHN[name])}
    if name == "mnist":
        # published are the checksums of the archives; here lie the unpacked files
        return root / "MNIST" / "raw", {file.removesuffix(".gz"): None for file, _ in _vision().MNIST.resources}
    kind = _cifar_class(name)
    files: dict[str, str | None] = {file: md5 for file, md5 in kind.train_list + kind.test_list}
    return root / kind.base_folder, {**files, kind.meta["filename"]: kind.meta["md5"]}


def _how(name: str, folder: Path, files: dict[str, str | None]) -> str:
    if not files:
        return "comes with scikit-learn"
    return f"get it with: routefront data {name} --download, or put {', '.join(files)} into {folder}"


def catalogue(root: Path) -> list[DatasetStatus]:
    """Every known data set under `root`, in the order of `NAMES`."""
    found = []
    for name in NAMES:
        folder, files = _expected(name, root)
        there = [(folder / file).is_file() for file in files]
        complete = all(there) and all(_intact(folder / file, md5) for file, md5 in files.items())
        shown = str(folder) if files else "scikit-learn"
        found.append(
            DatasetStatus(name, any(there) or not files, complete, shown, tuple(files), _how(name, folder, files))
        )
    return found


def download(name: str, root: Path) -> None:
    """Get a known data set through torchvision; what is complete is left alone.

    Raises `DataError` where the name is unknown, has nothing to download, or the download fails.
    """
    if name not in NAMES:
        raise DataError(f"no known data set {name!r}{nearest(name, NAMES)}")
    folder, files = _expected(name, root)
    if not files:
        raise DataError(f"{name} {_how(name, folder, files)}: there is nothing to download")
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout belongs to --json
            root.mkdir(parents=True, exist_ok=True)
            if name in _SVHN:
                for split in _SVHN[name]:
                    _vision().SVHN(root, split=split, download=True)
            else:
                (_vision().MNIST if name == "mnist" else _cifar_class(name))(root, download=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} was not downloaded ({reason}); put {', '.join(files)} into {folder}") from None


def read_named(name: str, root: Path, image_size: Size | None) -> Source:
    """A known data set, `image_size` pixels along an edge (its own size, 16 for digits, where None).

    Raises `DataMissing` where files are absent, `DataError` where they are not the published ones.
    """
    if name == "digits":
        return _digits(image_size or 16)
    folder, files = _expected(name, root)
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:
        raise DataMissing(f"{name} is not in {folder}: no {', '.join(absent)}; {_how(name, folder, files)}")
    try:
        return {**dict.fromkeys(_SVHN, _svhn), "mnist": _mnist}.get(name, _cifar)(name, root, image_size)
    except RuntimeError:
        for file, md5 in files.items():
            if not _intact(folder / file, md5):
                raise DataError(
                    f"{folder / file} is damaged or not the published file (MD5 is not {md5}): delete it, then"
                    f" routefront data {name} --download"
                ) from None
        raise


def from_scikit_learn(name: str) -> Path:
    """A file below `sklearn.datasets`, found without importing it, which takes two seconds."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "datasets" / name


def digits_of_scikit_learn() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) in float64 from 0 to 16 and labels, as ``sklearn.datasets.load_digits`` has them."""
    with gzip.open(from_scikit_learn("data/digits.csv.gz"), "rt") as rows:
        found = np.loadtxt(rows, delimiter=",")
    return found[:, :-1].reshape(-1, 8, 8), found[:, -1].astype(np.int64)


def _digits(size: Size) -> Source:
    images, labels = digits_of_scikit_learn()
    train = Split(resized(np.rint(images * (255 / 16)).astype(np.uint8)[:, None], size), labels)
    return Source(classes=_DIGITS, train=train, augment=Augment.written(min(edges(size))))


def _cifar(name: str, root: Path, size: Size | None) -> Source:
    splits = []
    for training in (True, False):
        found = _cifar_class(name)(root, train=training)
        images = np.ascontiguousarray(found.data.transpose(0, 3, 1, 2))
        splits.append(Split(resized(images, size), np.array(found.targets, dtype=np.int64)))
    train, test = splits
    return Source(
        classes=tuple(found.classes),
        train=train,
        test=test,
        augment=Augment.natural(min(edges(size or 32))),
        mean=RESNET.mean,
        std=RESNET.std,
    )


def _svhn(name: str, root: Path, size: Size | None) -> Source:
    """The 73,257 training images, cropped and not flipped (as CoDiNet's paper has it).

    With the 531,131 extra ones nothing is augmented (as SkipNet's has it).
    """
    splits = []
    for which in _SVHN[name]:
        found = _vision().SVHN(root, split=which)
        images = np.ascontiguousarray(found.data)
        splits.append(Split(resized(images, size), np.asarray(found.labels, dtype=np.int64)))
    *parts, test = splits
    train = parts[0]
    if len(parts) > 1:
        train = Split(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))
    augment = Augment(pad=Augment.natural(min(edges(size or 32))).pad, flip=False) if name == "svhn" else Augment()
    return Source(classes=_DIGITS, train=train, test=test, augment=augment)


def _mnist(name: str, root: Path, size: Size | None) -> Source:
    """The raw files alone: torchvision's class would prefer an unchecked `processed/training.pt`."""
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder, files = _expected(name, root)
    read = {}
    for file in files:
        try:
            read[file] = (read_image_file if "idx3" in file else read_label_file)(str(folder / file)).numpy()
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError):
            raise DataError(
                f"{folder / file} is not a whole MNIST file: delete it, then routefront data mnist --download"
            ) from None
    splits = []
    for which in ("train", "t10k"):
        images, labels = read[f"{which}-images-idx3-ubyte"], read[f"{which}-labels-idx1-ubyte"]
        if len(images) != len(labels) or not 0 <= labels.min(initial=0) <= labels.max(initial=0) <= 9:
            raise DataError(f"{folder}: the {which} labels do not fit the {len(images)} {which} images")
        splits.append(Split(resized(images[:, None], size), labels.astype(np.int64)))
    train, test = splits
    return Source(classes=_DIGITS, train=train, test=test, augment=Augment.written(min(edges(size or 28))))
