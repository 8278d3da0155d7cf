"""Folders as people have them: splits by any of their usual names, litter, links, Parquet as hubs convert it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search.errors import InputError
from search.promotion.models import image_files
from trainables.data import datasets
from trainables.data.errors import DataError
from trainables.data.layout import files


def _images(folder: Path, count: int = 10, *, edge: int = 8, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (edge, edge + number % 2), dtype=np.uint8)).save(folder / f"{number}.png")


def _classes(folder: Path, count: int = 10, names: str = "ab") -> None:
    for number, name in enumerate(names):
        _images(folder / name, count, seed=number)


def _load(folder: Path) -> Any:
    return datasets.load(str(folder), root=folder.parent, image_size=8)


@pytest.mark.parametrize(
    ("train", "second", "third"),
    [("Train", "", "Test"), ("TRAINING", "", "Testing"), ("train", "dev", "test"), ("trn", "Valid", "tst")],
)
def test_splits_by_their_usual_names(tmp_path: Path, train: str, second: str, third: str) -> None:
    _classes(tmp_path / train, 20)
    _classes(tmp_path / third, 5)
    if second:
        _classes(tmp_path / second, 4)
    data = _load(tmp_path)
    assert data.classes == ("a", "b") and len(data.test) == 10
    assert (len(data.train), len(data.validation)) == ((40, 8) if second else (36, 4))


def test_validation_alone_leaves_nothing_for_testing(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 20)
    _classes(tmp_path / "dev", 5)
    data = _load(tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 0)
    assert "10 validation, none for test" in data.summary()


def test_a_class_of_trains_is_no_split(tmp_path: Path) -> None:
    _images(tmp_path / "train", 20)
    _images(tmp_path / "car", 20, seed=1)
    assert _load(tmp_path).classes == ("car", "train")


def test_what_would_be_left_out_is_said(tmp_path: Path) -> None:
    _classes(tmp_path / "train", 20)
    _classes(tmp_path / "extra", 5)
    with pytest.raises(DataError, match=r"extra lies beside train and is no split by its name \(train: train, tr"):
        _load(tmp_path)
    (tmp_path / "extra").rename(tmp_path / "val")
    _classes(tmp_path / "Validation", 5)
    with pytest.raises(DataError, match="has several folders of validation images: Validation, val; keep one"):
        _load(tmp_path)


def test_hidden_and_thumbnail_folders_are_never_read(tmp_path: Path) -> None:
    _classes(tmp_path)
    for name in ("a/.ipynb_checkpoints", "a/@eaDir", ".git/objects", "__MACOSX/a", "b/more/.thumbnails"):
        _images(tmp_path / name, 3, seed=9)
    (tmp_path / "a" / "Thumbs.db").write_text("")
    data = _load(tmp_path)
    assert data.classes == ("a", "b") and len(data.train) + len(data.validation) + len(data.test) == 20
    assert len(image_files([tmp_path])) == 20


def test_links_are_followed_and_loops_refused(tmp_path: Path) -> None:
    _classes(tmp_path / "set")
    _images(tmp_path / "elsewhere", 5, seed=4)
    (tmp_path / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    data = _load(tmp_path / "set")
    assert len(data.train) + len(data.validation) + len(data.test) == 25 == len(image_files([tmp_path / "set"]))
    assert files(tmp_path / "set") == sorted(files(tmp_path / "set"))
    (tmp_path / "set" / "b" / "loop").symlink_to(tmp_path / "set")
    with pytest.raises(DataError, match="is a link to a folder that it lies in"):
        _load(tmp_path / "set")
    with pytest.raises(InputError, match="is a link to a folder that it lies in"):
        image_files([tmp_path / "set"])
    (tmp_path / "set" / "b" / "loop").unlink()
    (tmp_path / "set" / "b" / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"b/gone is a link that leads nowhere"):
        _load(tmp_path / "set")


def _parquet(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.parent.parent / "scratch"
    for number in range(2):
        _images(scratch / str(number), 1, seed=number)
    images = [(scratch / str(number) / "0.png").read_bytes() for number in range(2)]
    rows = {
        "image": [{"bytes": images[number % 2], "path": None} for number in range(count)],
        "label": [number % 3 for number in range(count)],
    }
    pq.write_table(pa.table(rows), path)


@pytest.mark.parametrize("below", ["", "default"])
def test_parquet_as_a_hub_converts_it(tmp_path: Path, below: str) -> None:
    for split, count in (("train", 30), ("test", 12), ("validation", 6)):
        _parquet(tmp_path / "set" / below / split / "0000.parquet", count)
    data = datasets.load(str(tmp_path / "set"), root=tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [30, 6, 12] and len(data.classes) == 3


def test_what_was_taken_is_said_in_one_line(tmp_path: Path) -> None:
    _classes(tmp_path, 10)
    _images(tmp_path / "b", 10, edge=20)
    assert _load(tmp_path).summary() == (
        "2 classes, 20 images: 12 train, 4 validation, 4 test; 8 x 8 to 21 x 20 pixels, resized to 8 x 8"
    )
    digits = datasets.load("digits", root=tmp_path, image_size=8)
    assert digits.summary().endswith("; 8 x 8 pixels")
