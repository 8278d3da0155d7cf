"""Small files in the formats of the published data sets."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets as vision

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def dump(path: Path, content: Any) -> str:
    path.write_bytes(pickle.dumps(content, protocol=2))
    return md5(path)


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def cifar(
    root: Path,
    kind: type[vision.CIFAR10],
    patch: pytest.MonkeyPatch,
    *,
    key: str,
    names: Sequence[str],
) -> np.ndarray:
    """Files of CIFAR's python version, 40 images each, whose MD5 torchvision then expects; the test images."""
    random = np.random.default_rng(0)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    shown = np.zeros(0)
    for table in ("train_list", "test_list"):
        expected = []
        for file, _ in getattr(kind, table):
            shown = random.integers(0, 256, (40, 3072), dtype=np.uint8)
            entry = {"data": shown, key: [i % len(names) for i in range(40)], "filenames": ["x.png"] * 40}
            expected.append([file, dump(folder / file, entry)])
        patch.setattr(kind, table, expected)
    content = {kind.meta["key"]: list(names)}
    patch.setattr(kind, "meta", {**kind.meta, "md5": dump(folder / kind.meta["filename"], content)})
    return shown.reshape(-1, 3, 32, 32)


def mnist(root: Path, count: int = 50) -> np.ndarray:
    """The four raw files of MNIST; the images, which training and test share here."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    images = np.random.default_rng(1).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for which in ("train", "t10k"):
        header = struct.pack(">IIII", 2051, count, 28, 28)
        (folder / f"{which}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (folder / f"{which}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
    return images
