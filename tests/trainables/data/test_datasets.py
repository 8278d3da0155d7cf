"""Loading: splits that are fixed, disjoint and stratified; fingerprints; statistics; one-line errors."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest

from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.errors import DataError, DataMissing
from trainables.data.splits import Augment, Data, Source, Split, digest, divide, hold_out, statistics


@pytest.fixture(scope="module")
def digits() -> Data:
    return datasets.load("digits", root=Path("nowhere"))


def test_digits_have_the_documented_shape(digits: Data):
    assert digits.task == Task(classes=10, size=16, channels=1)
    assert digits.classes == tuple("0123456789")
    assert [len(s) for s in (digits.train, digits.validation, digits.test)] == [1078, 360, 359]
    assert digits.augment == Augment(pad=1, flip=False)
    assert digits.train.images.shape == (1078, 1, 16, 16)
    assert digits.train.images.dtype == np.uint8 and digits.train.labels.dtype == np.int64
    assert digits.train.images.min() == 0 and digits.train.images.max() > 240  # the full range, not 0 ... 16


def test_digits_at_32_pixels_are_the_same_digits(digits: Data):
    large = datasets.load("digits", root=Path("nowhere"), image_size=32)
    assert large.task.size == 32 and large.augment.pad == 2
    assert (large.train.labels == digits.train.labels).all()
    small = large.train.images.reshape(-1, 1, 16, 2, 16, 2).mean(axis=(3, 5))
    assert abs(small - digits.train.images).mean() < 4
    assert large.hash != digits.hash


def test_splits_are_disjoint_complete_and_stratified(digits: Data):
    from sklearn.datasets import load_digits

    splits = (digits.train, digits.validation, digits.test)
    labels = np.concatenate([s.labels for s in splits])
    truth = np.bincount(load_digits(return_X_y=True)[1])
    assert (np.bincount(labels) == truth).all()
    for split, share in zip(splits, (0.6, 0.2, 0.2), strict=True):
        assert abs(np.bincount(split.labels) - share * truth).max() <= 1.5
    seen = [{image.tobytes() for image in s.images} for s in splits]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


def test_loading_again_gives_the_same_data_and_another_seed_other_splits(digits: Data):
    again = datasets.load("digits", root=Path("elsewhere"))
    assert again.hash == digits.hash and (again.validation.labels == digits.validation.labels).all()
    other = datasets.load("digits", root=Path("elsewhere"), seed=1)
    assert other.hash != digits.hash and len(other.train) == len(digits.train)


def test_the_split_is_the_one_of_every_earlier_version():
    kept, held = hold_out(np.arange(40) % 4, 8, seed=0)
    assert held.tolist() == [7, 8, 10, 13, 14, 21, 27, 32]
    assert sorted([*kept, *held]) == list(range(40))


def test_hold_out_counts_exactly_and_leaves_every_class_an_image():
    labels = np.repeat([0, 1, 2, 3], [50, 30, 19, 1])
    kept, held = hold_out(labels, 21, seed=3)
    assert len(held) == 21 and np.bincount(labels[held], minlength=4).tolist() in ([11, 6, 4, 0], [10, 7, 4, 0])
    assert set(labels[kept]) == {0, 1, 2, 3}
    assert len(hold_out(np.array([0, 0, 1]), 3, seed=0)[1]) == 1  # as many as can be


def test_validation_is_5000_of_large_sets_and_a_tenth_of_others():
    def split(count: int) -> Split:
        return Split(np.zeros((count, 1, 4, 4), dtype=np.uint8), np.arange(count) % 10)

    for count, expected in ((50_000, 5_000), (73_257, 5_000), (10_000, 1_000)):
        source = Source(classes=tuple("0123456789"), train=split(count), test=split(30), augment=Augment())
        train, validation, test = divide(source, 0)
        assert (len(train), len(validation), len(test)) == (count - expected, expected, 30)
        assert abs(np.bincount(validation.labels) - expected / 10).max() <= 1


def test_limit_keeps_shares_of_the_training_images_and_whole_other_splits(digits: Data):
    fewer = datasets.load("digits", root=Path("nowhere"), limit=200)
    assert len(fewer.train) == 200 and np.bincount(fewer.train.labels).min() >= 18
    assert (fewer.validation.images == digits.validation.images).all() and len(fewer.test) == len(digits.test)
    assert fewer.hash != digits.hash
    assert datasets.load("digits", root=Path("nowhere"), limit=5000).hash == digits.hash
    with pytest.raises(DataError, match="limit = 9: 10 classes need a whole number of at least 10"):
        datasets.load("digits", root=Path("nowhere"), limit=9)


def test_statistics_are_those_of_the_training_pixels(digits: Data):
    pixels = digits.train.images / 255
    assert digits.mean == pytest.approx((pixels.mean(),)) and digits.std == pytest.approx((pixels.std(),))
    images = np.random.default_rng(0).integers(0, 256, (2100, 3, 4, 4), dtype=np.uint8)
    images[:, 1] = 7
    mean, std = statistics(images)
    assert mean == pytest.approx(tuple((images / 255).mean(axis=(0, 2, 3))))
    assert std[0] == pytest.approx((images[:, 0] / 255).std())
    assert std[1] == 1 / 255  # a constant channel divides by one grey level


def test_the_hash_sees_pixels_labels_classes_and_what_is_in_which_split():
    split = Split(np.arange(96, dtype=np.uint8).reshape(2, 3, 4, 4), np.array([0, 1]))
    other = Split(split.images + np.uint8(1), split.labels)
    swapped = Split(split.images, split.labels[::-1].copy())
    hashes = {
        digest(("a", "b"), (split, other)),
        digest(("a", "b"), (other, split)),
        digest(("a", "c"), (split, other)),
        digest(("a", "b"), (split, swapped)),
        digest(("a", "b"), (split, split)),
    }
    assert len(hashes) == 5 and all(len(h) == 64 for h in hashes)


def test_data_is_read_only_and_survives_a_pickle_out_of_band(digits: Data):
    with pytest.raises(ValueError, match="read-only"):
        digits.train.images[0] = 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        digits.name = "x"  # pyright: ignore[reportAttributeAccessIssue]
    buffers: list[pickle.PickleBuffer] = []
    small = pickle.dumps(digits, protocol=5, buffer_callback=buffers.append)  # Ray's way to share memory
    assert len(small) < 5_000 and len(buffers) == 6
    assert pickle.loads(small, buffers=buffers).hash == digits.hash


def test_default_root_is_the_variable_or_data_here(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ROUTEFRONT_DATA", "/somewhere")
    assert datasets.default_root() == Path("/somewhere")
    monkeypatch.delenv("ROUTEFRONT_DATA")
    assert datasets.default_root() == Path("data")


@pytest.mark.parametrize("name", ["cifar11", "", "/no/such/folder"])
def test_an_unknown_name_or_absent_path_is_said_in_one_line(name: str, tmp_path: Path):
    with pytest.raises(DataMissing) as caught:
        datasets.load(name, root=tmp_path)
    text = str(caught.value)
    assert repr(name) in text and str(tmp_path) in text and "\n" not in text
    if name == "cifar11":
        assert "did you mean 'cifar10'?" in text


@pytest.mark.parametrize("size", [3, 0, True, 16.0])
def test_an_impossible_size_is_said_with_its_value(size: object, tmp_path: Path):
    with pytest.raises(DataError, match=r"image_size = .*at least 4 pixels"):
        datasets.load("digits", root=tmp_path, image_size=size)  # pyright: ignore[reportArgumentType]
