"""The known data sets: what is expected where, how to get it, how it is read. Nothing is downloaded unasked.

Files lie as torchvision lays them out. CIFAR's batches are pickles: torchvision unpickles them only
after the MD5 of every file was found right, and nothing else is ever unpickled here.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision import datasets
from torchvision.datasets.utils import check_integrity

from spaces.space import nearest
from trainables.image_files import resized
from trainables.splits import Augment, DataError, DataMissing, Source, Split

NAMES = ("digits", "cifar10", "cifar100", "svhn", "mnist")

# methods.md 0.2: the constants of CoDiNet, SkipNet and ConvNet-AIG, which use them for CIFAR-100 too
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR_STD = (0.2023, 0.1994, 0.2010)
_DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True)
class DatasetStatus:
    """Whether a known data set is here. `folder` should hold `files`; `how` says in one line how to get them.

    `present`: some of the files are there. `complete`: all of them, with the right checksums where
    there are published ones.
    """

    name: str
    present: bool
    complete: bool
    folder: str
    files: tuple[str, ...]
    how: str


class _Mnist(datasets.MNIST):
    """MNIST from its raw files alone: torchvision prefers an unchecked `processed/training.pt` where one lies."""

    def _check_legacy_exist(self) -> bool:
        return False


def _expected(name: str, root: Path) -> tuple[Path, dict[str, str | None]]:
    """The folder and the files in it, with their MD5 where it is known."""
    if name == "digits":
        return root, {}
    if name == "svhn":
        return root, {file: md5 for _, file, md5 in (datasets.SVHN.split_list[s] for s in ("train", "test"))}
    if name == "mnist":
        # the published checksums are of the archives; what lies here is unpacked
        return root / "_Mnist" / "raw", {file.removesuffix(".gz"): None for file, _ in datasets.MNIST.resources}
    kind = datasets.CIFAR10 if name == "cifar10" else datasets.CIFAR100
    files = {file: md5 for file, md5 in kind.train_list + kind.test_list}
    return root / kind.base_folder, {**files, kind.meta["filename"]: kind.meta["md5"]}
