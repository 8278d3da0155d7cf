"""The known data sets, from small files of the real formats; nothing unchecked is ever unpickled."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from torchvision import datasets as vision

from tests.support.formats import CIFAR10, Bomb, cifar, dump, md5, mnist
from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.errors import DataError, DataMissing
from trainables.data.splits import Augment

RANDOM = np.random.default_rng(0)


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shown = cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)
    data = datasets.load("cifar10", root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [180, 20, 40]
    assert data.task == Task(classes=10, size=32, channels=3) and data.classes[3] == "cat"
    assert (data.test.images == shown).all() and data.test.labels.tolist() == [i % 10 for i in range(40)]
    assert data.mean == (0.4914, 0.4822, 0.4465) and data.std == (0.2023, 0.1994, 0.2010)
    assert data.augment == Augment(pad=4, flip=True)
    small = datasets.load("cifar10", root=tmp_path, image_size=16)
    assert small.task.size == 16 and small.augment.pad == 2
    assert abs(small.test.images.mean() - data.test.images.mean()) < 2


def test_cifar100_has_the_fine_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cifar(tmp_path, vision.CIFAR100, monkeypatch, key="fine_labels", names=[f"class {i}" for i in range(20)])
    data = datasets.load("cifar100", root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [36, 4, 40]
    assert data.task.classes == 20 and data.std == (0.2023, 0.1994, 0.2010)


@pytest.mark.parametrize("file", ["data_batch_2", "test_batch", "batches.meta"])
def test_a_pickle_with_another_checksum_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str):
    cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)
    path = tmp_path / "cifar-10-batches-py" / file
    dump(path, Bomb(tmp_path / "exploded"))
    with pytest.raises(DataError, match=rf"{file} is damaged or not the published file .*--download"):
        datasets.load("cifar10", root=tmp_path)
    assert not (tmp_path / "exploded").exists()
    assert not next(s for s in datasets.catalogue(tmp_path) if s.name == "cifar10").complete
    pickle.loads(path.read_bytes())
    assert (tmp_path / "exploded").exists()  # it would have


def svhn(root: Path, patch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """Files of SVHN, 60 images each, that differ by split in nothing but the first pixel; images and labels of one."""
    labels = np.arange(60) % 10 + 1  # the files call the digit 0 ten
    images = RANDOM.integers(0, 256, (32, 32, 3, 60), dtype=np.uint8)
    table = dict(vision.SVHN.split_list)
    for number, split in enumerate(("train", "test", "extra")):
        url, file, _ = table[split]
        images[0, 0] = number
        scipy.io.savemat(root / file, {"X": images, "y": labels[:, None].astype(np.uint8)})
        table[split] = [url, file, md5(root / file)]
    patch.setattr(vision.SVHN, "split_list", table)
    return images.transpose(3, 2, 0, 1), labels % 10


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    images, labels = svhn(tmp_path, monkeypatch)
    data = datasets.load("svhn", root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [54, 6, 60]
    assert data.test.labels.tolist() == labels.tolist()
    assert (data.test.images[:, :, 1:] == images[:, :, 1:]).all() and (data.test.images[:, :, 0, 0] == 1).all()
    assert data.augment == Augment(pad=4, flip=False) and data.classes == tuple("0123456789")
    assert data.mean == pytest.approx(tuple(data.train.images.mean(axis=(0, 2, 3)) / 255))


def test_svhn_with_its_extra_images_is_not_augmented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    svhn(tmp_path, monkeypatch)
    data = datasets.load("svhn-extra", root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [108, 12, 60] and data.augment == Augment()
    seen = np.concatenate([data.train.images, data.validation.images])[:, 0, 0, 0]
    assert np.bincount(seen).tolist() == [60, 0, 60] and (data.test.images[:, 0, 0, 0] == 1).all()
    (tmp_path / "extra_32x32.mat").unlink()
    with pytest.raises(DataMissing, match=r"no extra_32x32.mat; get it with: routefront data svhn-extra --download"):
        datasets.load("svhn-extra", root=tmp_path)


def test_mnist(tmp_path: Path):
    images = mnist(tmp_path)
    processed = tmp_path / "MNIST" / "processed"
    processed.mkdir()
    for file in ("training.pt", "test.pt"):  # torchvision would take these first
        dump(processed / file, Bomb(tmp_path / "exploded"))
    data = datasets.load("mnist", root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [45, 5, 50]
    assert data.task == Task(classes=10, size=28, channels=1) and data.augment == Augment(pad=1, flip=False)
    assert (data.test.images[:, 0] == images).all() and data.test.labels.tolist() == [i % 10 for i in range(50)]
    assert not (tmp_path / "exploded").exists()
    assert datasets.load("mnist", root=tmp_path, image_size=32).augment.pad == 2


def test_damaged_mnist_files_are_named(tmp_path: Path):
    mnist(tmp_path)
    folder = tmp_path / "MNIST" / "raw"
    path = folder / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    for content in (whole[:1000], whole[:2], b"", b"\0\0\x0a\3" + whole[4:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="t10k-images-idx3-ubyte is not a whole MNIST file") as caught:
            datasets.load("mnist", root=tmp_path)
        assert "\n" not in str(caught.value)
    path.write_bytes(struct.pack(">IIII", 2051, 49, 28, 28) + whole[16:-784])
    with pytest.raises(DataError, match="the t10k labels do not fit the 49 t10k images"):
        datasets.load("mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "svhn-extra", "mnist"])
def test_an_absent_data_set_says_where_what_and_how(name: str, tmp_path: Path):
    with pytest.raises(DataMissing) as caught:
        datasets.load(name, root=tmp_path)
    text = str(caught.value)
    assert str(tmp_path) in text and f"routefront data {name} --download" in text and "\n" not in text
    status = next(s for s in datasets.catalogue(tmp_path) if s.name == name)
    assert all(file in text for file in status.files) and status.folder in text
    assert not status.present and not status.complete


def test_the_catalogue_tells_absent_from_incomplete_from_complete(tmp_path: Path):
    mnist(tmp_path)
    found = {status.name: status for status in datasets.catalogue(tmp_path)}
    assert tuple(found) == datasets.NAMES
    assert found["digits"].complete and found["mnist"].complete and not found["svhn"].present
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").unlink()
    status = next(s for s in datasets.catalogue(tmp_path) if s.name == "mnist")
    assert status.present and not status.complete


def test_downloading_goes_through_torchvision_and_keeps_stdout_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    asked = []

    def fetch(self: vision.CIFAR10) -> None:
        asked.append(str(self.root))
        print("Extracting ...")
        cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)

    monkeypatch.setattr(vision.CIFAR10, "download", fetch)
    datasets.download("cifar10", tmp_path)
    assert asked == [str(tmp_path)] and datasets.load("cifar10", root=tmp_path).name == "cifar10"
    captured = capsys.readouterr()
    assert captured.out == "" and "Extracting" in captured.err


def test_a_download_that_fails_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(self: vision.SVHN) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr(vision.SVHN, "download", fail)
    with pytest.raises(DataError, match=r"svhn was not downloaded \(no route to host\); put train_32x32.mat, .* into"):
        datasets.download("svhn", tmp_path)
    with pytest.raises(DataError, match="digits comes with scikit-learn: there is nothing to download"):
        datasets.download("digits", tmp_path)
    with pytest.raises(DataError, match="no known data set 'cifar'; did you mean 'cifar10'"):
        datasets.download("cifar", tmp_path)
