"""The hybrid sets and the merged CIFAR-10: colours, linear light, balance, splits that share no digit."""

from __future__ import annotations

import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets as vision

from tests.support.formats import CIFAR10, cifar, mnist
from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.errors import DataError, DataMissing
from trainables.data.hybrid import colours, gamma_decoded, recoloured
from trainables.data.image_files import resized
from trainables.data.splits import Augment, Data

PHOTOGRAPHS = ("airplane", "automobile", "deer", "frog", "horse")


def png(image: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "png")
    return buffer.getvalue()


def parquet(folder: Path, counts: dict[str, int], names: tuple[str, ...] = CIFAR10) -> dict[str, np.ndarray]:
    """CIFAR-10 as public data hubs lay it out, label i of image i modulo 10; the images by split."""
    folder.mkdir(parents=True, exist_ok=True)
    random, shown = np.random.default_rng(2), {}
    for split, count in counts.items():
        shown[split] = random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
        table = pa.table({"img": [{"bytes": png(i)} for i in shown[split]], "label": [i % 10 for i in range(count)]})
        table = table.replace_schema_metadata({"classes": ",".join(names)})
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return shown


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "cifar10"
    parquet(folder, {"train": 3000, "test": 1000})
    return folder


@pytest.fixture(scope="module")
def with_digits(photographs: Path) -> Data:
    return datasets.load(f"hybrid-digits:{photographs}", root=Path("nowhere"))


def test_two_colours_are_uniform_and_apart():
    pairs = colours(20_000, np.random.RandomState(0))
    assert pairs.shape == (20_000, 2, 3) and pairs.min() >= 0 and pairs.max() <= 1
    apart = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    assert 0.3 <= apart.min() < 0.31
    free = np.random.RandomState(5).uniform(size=(200_000, 2, 3))
    free = free[np.linalg.norm(free[:, 0] - free[:, 1], axis=1) >= 0.3]
    assert abs(apart.mean() - np.linalg.norm(free[:, 0] - free[:, 1], axis=1).mean()) < 0.01
    assert abs(pairs.mean(axis=0) - 0.5).max() < 0.01 and abs(pairs.std(axis=0) - free.std(axis=0)).max() < 0.01
    first = np.random.RandomState(0).uniform(size=(2, 3))  # 0.295 apart: must have been drawn again
    assert not np.isin(first, pairs).any()
    assert (pairs == colours(20_000, np.random.RandomState(0))).all()


def test_black_becomes_the_first_colour_white_the_second_and_grey_lies_between():
    grey = np.tile(np.array([[0, 255], [51, 204]], dtype=np.uint8), (3, 1, 1, 1))
    images = recoloured(grey, np.random.RandomState(3)).astype(float)
    pairs = 255 * colours(3, np.random.RandomState(3))
    assert abs(images[:, :, 0, 0] - pairs[:, 0]).max() <= 0.5 and abs(images[:, :, 0, 1] - pairs[:, 1]).max() <= 0.5
    assert abs(images[:, :, 1, 0] - (0.8 * pairs[:, 0] + 0.2 * pairs[:, 1])).max() <= 0.5
    assert abs(images[:, :, 1, 1] - (0.2 * pairs[:, 0] + 0.8 * pairs[:, 1])).max() <= 0.5


def test_linear_light():
    levels = np.arange(256, dtype=np.uint8)
    found = gamma_decoded(levels)
    assert found.dtype == np.uint8 and (np.diff(found.astype(int)) >= 0).all()
    assert abs(found / 255 - (levels / 255) ** 2.2).max() <= 1 / 510 + 1e-9
    assert found[[0, 128, 255]].tolist() == [0, 56, 255]


def test_hybrid_from_the_published_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photos = cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)
    grey = mnist(tmp_path)
    data = datasets.load("hybrid", root=tmp_path)
    assert data.classes == ("0", "1", "2", "3", "4", *PHOTOGRAPHS)
    assert data.task == Task(classes=10, size=32, channels=3)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [113, 12, 45]
    whole = np.bincount(np.concatenate([data.train.labels, data.validation.labels]))
    assert whole.tolist() == [5] * 5 + [20] * 5
    assert data.mean == (0, 0, 0) and data.std == (1, 1, 1) and data.replacement
    assert data.augment == Augment(pad=4, flip=True, fill="mean", unflipped=(0, 1, 2, 3, 4))

    mine = [i for i in range(40) if CIFAR10[i % 10] in PHOTOGRAPHS]
    expected = np.rint(255 * (photos[mine] / 255) ** 2.2)
    assert (data.test.images[25:] == expected).all()
    assert [data.classes[k] for k in data.test.labels[25:]] == [CIFAR10[i % 10] for i in mine]

    mine = [i for i in range(50) if i % 10 < 5]
    assert data.test.labels[:25].tolist() == [i % 10 for i in mine]
    x = resized(grey[mine][:, None], 32).reshape(25, -1) / 255
    for image, values in zip(data.test.images[:25].reshape(25, 3, -1) / 255, x, strict=True):
        line = np.polynomial.polynomial.polyfit(
            values, image.T, 1
        )  # (2, 3): the first colour, and the way to the second
        assert abs(image.T - line[0] - values[:, None] * line[1]).max() < 0.006
        assert np.linalg.norm(line[1]) > 0.295

    again = datasets.load("hybrid", root=tmp_path)
    assert again.hash == data.hash and datasets.load("hybrid", root=tmp_path, seed=1).hash != data.hash
    small = datasets.load("hybrid", root=tmp_path, image_size=16)
    assert small.task.size == 16 and small.augment.pad == 2
    status = {s.name: s for s in datasets.catalogue(tmp_path)}["hybrid"]
    assert status.complete and {"batches.meta", "t10k-images-idx3-ubyte"} < set(status.files)


def test_digits_and_photographs_are_in_balance_in_every_split(with_digits: Data):
    # 901 digits as 541, 180 and 180, twice, once and three times; 1,500 photographs, 150 held out, 500 for testing
    counts = [
        np.bincount(s.labels, minlength=10) for s in (with_digits.train, with_digits.validation, with_digits.test)
    ]
    assert [c[5:].tolist() for c in counts] == [[270] * 5, [30] * 5, [100] * 5]
    assert [c[:5].sum() for c in counts] == [2 * 541, 180, 3 * 180]
    for count in counts:
        assert 0.4 < count[:5].sum() / count.sum() < 0.6


def test_no_digit_is_in_two_splits_and_every_copy_has_other_colours(with_digits: Data):
    truth = load_digits()
    small = np.rint(truth.images * (255 / 16)).astype(np.uint8)[truth.target < 5][:, None]
    shapes = resized(small, 32).reshape(len(small), -1).astype(np.float32)
    shapes = np.clip(4 * (shapes - 127.5), -127.5, 127.5)  # ramps of four pixels are sharpened to one
    labels = truth.target[truth.target < 5]
    shapes = shapes - shapes.mean(axis=1, keepdims=True)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    seen = []
    for split in (with_digits.train, with_digits.validation, with_digits.test):
        images = split.images[split.labels < 5].astype(np.float32)
        strongest = images.std(axis=(2, 3)).argmax(axis=1)  # colours may leave one channel as it is
        rows = images[np.arange(len(images)), strongest].reshape(len(images), -1)
        rows = rows - rows.mean(axis=1, keepdims=True)
        match = abs(rows @ shapes.T) / np.linalg.norm(rows, axis=1, keepdims=True)
        assert match.max(axis=1).min() > 0.99
        which = match.argmax(axis=1)
        assert (labels[which] == split.labels[split.labels < 5]).all()
        seen.append(set(which))
        copies = len(images) // len(seen[-1])
        assert (np.bincount(which, minlength=901)[sorted(seen[-1])] == copies).all()
        assert len({image.tobytes() for image in images}) == len(images)
    assert len(seen[0]) + len(seen[1]) + len(seen[2]) == len(seen[0] | seen[1] | seen[2]) == 901


def test_the_hash_is_that_of_every_process(with_digits: Data, photographs: Path):
    code = (
        "import sys, pathlib; from trainables.data.datasets import load;"
        " print(load(sys.argv[1], root=pathlib.Path('x')).hash)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", code, f"hybrid-digits:{photographs}"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert found.stdout.strip() == with_digits.hash
    assert with_digits.name == f"hybrid-digits:{photographs.resolve()}"


@pytest.mark.parametrize(
    ("name", "classes"), [("cifar-2", ("horse", "other")), ("cifar-5", ("cat", "deer", "dog", "horse", "other"))]
)
def test_merged_classes(name: str, classes: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    photos = cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)
    data = datasets.load(name, root=tmp_path)
    assert data.classes == classes and data.task.classes == len(classes)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [180, 20, 40]
    expected = [CIFAR10[i % 10] if CIFAR10[i % 10] in classes else "other" for i in range(40)]
    assert [classes[label] for label in data.test.labels] == expected
    assert (data.test.images == np.rint(255 * (photos / 255) ** 2.2)).all()
    assert data.augment == Augment(pad=4, flip=True, fill="mean") and data.replacement and data.std == (1, 1, 1)


def test_cifar10_in_any_form_gives_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cifar(tmp_path, vision.CIFAR10, monkeypatch, key="labels", names=CIFAR10)
    published = datasets.load("cifar-5", root=tmp_path)
    (tmp_path / "hub").mkdir()
    for split, training in (("train", True), ("test", False)):
        found = vision.CIFAR10(tmp_path, train=training)
        images = [{"bytes": png(image.transpose(2, 0, 1))} for image in found.data]
        table = pa.table({"img": images, "label": found.targets})
        table = table.replace_schema_metadata({"classes": ",".join(CIFAR10)})
        pq.write_table(table, tmp_path / "hub" / f"{split}-0.parquet")
    assert datasets.load("cifar-5:hub", root=tmp_path).hash == published.hash
    assert datasets.load("cifar-5:hub", root=tmp_path).name == "cifar-5:hub"
    assert datasets.load(f"cifar-5:{tmp_path}", root=Path("nowhere")).hash == published.hash
    plain = datasets.load("hub", root=tmp_path)
    for split in ("train", "test"):
        datasets.export(getattr(plain, split), tmp_path / "folders" / split, CIFAR10)
    folders = datasets.load(f"cifar-5:{tmp_path / 'folders'}", root=Path("nowhere"))
    assert {i.tobytes() for i in folders.test.images} == {i.tobytes() for i in published.test.images}


def test_cifar10_without_test_images_is_divided(tmp_path: Path):
    parquet(tmp_path / "hub", {"train": 200})
    data = datasets.load("hybrid-digits:hub", root=tmp_path)
    photos = [int((s.labels >= 5).sum()) for s in (data.train, data.validation, data.test)]
    assert photos == [72, 8, 20]


@pytest.mark.parametrize("name", ["hybrid", "hybrid-digits", "cifar-2", "cifar-5"])
def test_what_is_missing_is_said_in_one_line(name: str, tmp_path: Path):
    with pytest.raises(DataMissing) as caught:
        datasets.load(name, root=tmp_path)
    text = str(caught.value)
    assert "\n" not in text and "routefront data cifar10 --download" in text and f"{name}:PATH" in text
    assert text.startswith(f"{name} lacks {'mnist and ' if name == 'hybrid' else ''}cifar10")
    assert ("one half of it" in text) == (name == "hybrid-digits")
    status = {s.name: s for s in datasets.catalogue(tmp_path)}[name]
    assert not status.complete and "--download" in status.how and str(tmp_path) in status.folder


def test_the_missing_half_is_named(tmp_path: Path, photographs: Path):
    with pytest.raises(DataMissing, match=r"hybrid lacks mnist, one half of it: .*train-images.*data mnist --download"):
        datasets.load(f"hybrid:{photographs}", root=tmp_path)
    mnist(tmp_path)
    with pytest.raises(DataMissing, match=r"hybrid lacks cifar10, one half of it: .*data_batch_1"):
        datasets.load("hybrid", root=tmp_path)
    assert datasets.load(f"hybrid:{photographs}", root=tmp_path).task.classes == 10
    with pytest.raises(DataMissing, match="no hybrid from 'absent': no such file or folder"):
        datasets.load("hybrid:absent", root=tmp_path)


def test_another_data_set_in_the_place_of_cifar10_is_refused(tmp_path: Path):
    parquet(tmp_path / "hub", {"train": 40, "test": 20}, names=tuple("abcdefghij"))
    with pytest.raises(DataError, match=r"hub is not CIFAR-10: its classes are a, b, .*; expected are airplane"):
        datasets.load("cifar-2:hub", root=tmp_path)


def test_downloading_a_made_set_gets_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    for kind in (vision.MNIST, vision.CIFAR10):
        monkeypatch.setattr(kind, "download", lambda self: asked.append(type(self).__name__))
        monkeypatch.setattr(kind, "__init__", lambda self, root, download: self.download())
    datasets.download("hybrid", tmp_path)
    datasets.download("hybrid-digits", tmp_path)
    assert asked == ["MNIST", "CIFAR10", "CIFAR10"]
