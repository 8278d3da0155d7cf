"""Digits in clutter: the same images everywhere, no digit in two splits, balanced, harder as the difficulty grows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

from trainables.contracts.network import Task
from trainables.data import clutter, datasets
from trainables.data.errors import DataError, DataMissing
from trainables.data.splits import Augment, Data


@pytest.fixture(scope="module")
def cluttered() -> Data:
    return datasets.load("cluttered-digits", root=Path("nowhere"))


def flat_digits() -> tuple[np.ndarray, np.ndarray]:
    found: Any = load_digits()
    return found.images.astype(np.uint8), found.target


def grey(levels: float = 0.0) -> list[np.ndarray]:
    """One photograph: columns of two grey levels that lie `levels` apart, 4 pixels wide."""
    return [np.tile(100 + levels * (np.arange(64) // 4 % 2), (64, 1)).astype(np.uint8)]


def test_shape_and_sizes(cluttered: Data):
    assert cluttered.task == Task(classes=10, size=32, channels=1) and cluttered.classes == tuple("0123456789")
    assert [len(s) for s in (cluttered.train, cluttered.validation, cluttered.test)] == [6 * 1078, 3 * 360, 3 * 359]
    assert cluttered.augment == Augment(pad=2, flip=False) and not cluttered.replacement
    assert cluttered.train.images.dtype == np.uint8 and cluttered.train.images.shape[1:] == (1, 32, 32)
    assert 0 < cluttered.mean[0] < 1 and cluttered.name == "cluttered-digits"


def test_every_split_has_the_classes_in_balance(cluttered: Data):
    truth = np.bincount(flat_digits()[1])
    for split, copies, share in zip(
        (cluttered.train, cluttered.validation, cluttered.test), clutter.COPIES, (0.6, 0.2, 0.2), strict=True
    ):
        assert abs(np.bincount(split.labels) / copies - share * truth).max() <= 1.5


def test_the_same_in_every_process_and_another_seed_divides_otherwise(cluttered: Data):
    code = "import pathlib; from trainables.data.datasets import load;"
    code += " print(load('cluttered-digits', root=pathlib.Path()).hash)"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[3])}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.strip() == cluttered.hash
    other = datasets.load("cluttered-digits", root=Path("elsewhere"), seed=1)
    assert other.hash != cluttered.hash and len(other.train) == len(cluttered.train)
    images = [image for split in (cluttered.train, cluttered.validation, cluttered.test) for image in split.decoded()]
    assert len({image.tobytes() for image in images}) == len(images)


def test_no_digit_is_in_two_splits(cluttered: Data, monkeypatch: pytest.MonkeyPatch):
    """What is drawn, and what fragments are cut from, by split: every digit belongs to one."""
    handed: list[np.ndarray] = []
    behind: list[list[np.ndarray]] = []
    draw = clutter.drawn

    def watched(digits: np.ndarray, *rest: Any) -> np.ndarray:
        handed.append(digits)
        behind.append(rest[1])
        return draw(digits, *rest)

    monkeypatch.setattr(clutter, "drawn", watched)
    assert datasets.load("cluttered-digits", root=Path("nowhere")).hash == cluttered.hash
    seen = [{digit.tobytes() for digit in digits} for digits in handed]
    images, _ = flat_digits()
    assert len(seen[0]) + len(seen[1]) + len(seen[2]) == len(seen[0] | seen[1] | seen[2])
    assert seen[0] | seen[1] | seen[2] == {image.tobytes() for image in images}
    for digits, copies in zip(handed, clutter.COPIES, strict=True):
        counts = np.unique(digits.reshape(len(digits), -1), axis=0, return_counts=True)[1]
        assert (counts == copies).all()
    # photographs: pieces of pairwise different memory of the same two pictures, nothing left over
    assert [len(pieces) for pieces in behind] == [6, 2, 2]
    assert sorted(band for bands in clutter.BANDS for band in bands) == [0, 1, 2, 3, 4]
    columns = [{column.tobytes() for piece in pieces for column in piece.T} for pieces in behind]
    assert not (columns[0] & columns[1] or columns[0] & columns[2] or columns[1] & columns[2])


def test_other_sizes_are_the_same_images_resized(cluttered: Data):
    small = datasets.load("cluttered-digits", root=Path("nowhere"), image_size=16)
    assert small.task.size == 16 and small.augment.pad == 1
    assert (small.train.labels == cluttered.train.labels).all()
    halved = cluttered.validation.decoded().reshape(-1, 1, 16, 2, 16, 2).mean(axis=(3, 5))
    assert abs(halved - small.validation.images).mean() < 6


def test_every_digit_comes_in_every_part_of_the_difficulties():
    found = clutter.difficulties(500, 4, np.random.RandomState(0)).reshape(4, 500)
    for copy in range(4):
        assert copy / 4 <= found[copy].min() < copy / 4 + 0.01 and copy / 4 + 0.24 < found[copy].max() < (copy + 1) / 4
    assert (found == clutter.difficulties(500, 4, np.random.RandomState(0)).reshape(4, 500)).all()


def test_the_digit_is_in_the_image_and_shrinks_with_difficulty():
    images, _ = flat_digits()
    images = images[:300]
    extent = []
    for difficulty in (0.0, 0.5, 1.0):
        drawn = clutter.drawn(images, np.full(300, difficulty), grey(), np.random.RandomState(1)).astype(float)[:, 0]
        assert drawn.shape == (300, 32, 32)
        # plain background: the ink is far above what noise and fragments reach
        ink = (
            drawn
            > (np.median(drawn, axis=(1, 2)) + 0.75 * (drawn.max(axis=(1, 2)) - np.median(drawn, axis=(1, 2))))[
                :, None, None
            ]
        )
        extent.append(ink.any(axis=2).sum(axis=1).mean())
        assert ink.any(axis=(1, 2)).all()
    assert extent[0] > extent[1] > extent[2] > 8


@pytest.mark.parametrize("what", ["contrast", "background"])
def test_contrast_falls_and_the_photograph_comes_forward(what: str):
    blank = np.zeros((400, 8, 8), dtype=np.uint8)
    blank[:, 2:6, 2:6] = 16 if what == "contrast" else 0
    spread = []
    for difficulty in (0.0, 0.5, 1.0):
        drawn = clutter.drawn(blank, np.full(400, difficulty), grey(60), np.random.RandomState(2)).astype(float)[:, 0]
        if what == "contrast":
            spread.append(-np.mean(np.percentile(drawn, 97, axis=(1, 2)) - np.median(drawn, axis=(1, 2))))
        else:
            spread.append(drawn.std(axis=(1, 2)).mean())
    assert spread[0] < spread[1] < spread[2]


def test_the_harder_the_fewer_are_classified():
    """A linear classifier trained on all difficulties, tested on other digits in five parts of them."""
    images, labels = flat_digits()
    random = np.random.RandomState(3)
    photographs = [np.random.RandomState(4).randint(0, 256, (64, 64)).astype(np.uint8)]

    def pictures(which: np.ndarray, difficulty: np.ndarray) -> np.ndarray:
        found = clutter.drawn(images[which], difficulty, photographs, random).reshape(len(which), 16, 2, 16, 2)
        return found.mean(axis=(2, 4)).reshape(len(which), -1)

    train, test = np.tile(np.arange(1200), 3), np.arange(1200, 1797)
    model = RidgeClassifier(100.0).fit(pictures(train, clutter.difficulties(1200, 3, random)), labels[train])
    rates = [model.score(pictures(test, np.full(len(test), d)), labels[test]) for d in (0, 0.25, 0.5, 0.75, 1)]
    assert rates == sorted(rates, reverse=True) and rates[0] > rates[-1] + 0.2, rates


def test_it_is_listed_and_there_is_nothing_to_download(tmp_path: Path):
    status = {s.name: s for s in datasets.catalogue(tmp_path)}["cluttered-digits"]
    assert status.present and status.complete and not status.files and "scikit-learn" in status.how
    with pytest.raises(DataError, match="cluttered-digits is made of what comes with scikit-learn: there is nothing"):
        datasets.download("cluttered-digits", tmp_path)
    with pytest.raises(DataMissing, match=r"no data set 'cluttered-digit', .* did you mean 'cluttered-digits'"):
        datasets.load("cluttered-digit", root=tmp_path)
