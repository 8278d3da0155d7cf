"""Looking through a folder of images before anything is trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.support.command import runner
from trainables.data.errors import DataError, DataMissing
from trainables.data.survey import survey


def picture(path: Path, seed: int, size: tuple[int, int] = (12, 12), **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for k in range(12):
        picture(folder / "train" / "cat" / f"{k}.png", k)
    for k in range(3):
        picture(folder / "train" / "dog" / f"{k}.png", 100 + k, (20, 14))
    picture(folder / "test" / "cat" / "a.png", 3)  # a training image
    picture(folder / "test" / "dog" / "b.bmp", 101, (20, 14))  # another one, in another format
    picture(folder / "train" / "dog" / "cat-4.png", 4)  # of the other class
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(folder / "test" / "dog" / "turned.jpg", 7, exif=turned)
    Image.new("RGBA", (12, 12), (1, 2, 3, 4)).save(folder / "test" / "cat" / "alpha.png")
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12) * 300).save(folder / "test" / "cat" / "deep.png")
    (folder / "train" / "cat" / "notes.txt").write_text("no image")
    whole = (folder / "train" / "cat" / "0.png").read_bytes()
    (folder / "train" / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


def test_everything_is_found(photos: Path) -> None:
    found = survey(photos)
    assert found.counts == {"train": {"cat": 12, "dog": 4}, "test": {"cat": 3, "dog": 2}}
    assert found.ratio == 3.0 and found.rotated == 1
    assert sorted(Path(file).name for file, _ in found.broken) == ["cut.png", "notes.txt"]
    assert [sorted(Path(f).name for f in files) for files in found.between] == [["3.png", "a.png"], ["1.png", "b.bmp"]]
    assert [sorted(Path(f).name for f in files) for files in found.contrary] == [["4.png", "cat-4.png"]]
    assert found.kinds["with transparency, which is dropped"] == 1 and found.kinds["grey of more than 8 bits"] == 1
    advice = " | ".join(found.advice())
    for words in ("2 files are no images", "2 pictures are in two splits", "1 pictures are in two classes",
                  "3.0 times", "give image_size, for example 16"):  # fmt: skip
        assert words in advice, words
    json.dumps(found.record(), allow_nan=False)


def test_a_good_folder_needs_nothing(tmp_path: Path) -> None:
    for k in range(6):
        picture(tmp_path / ("a" if k % 2 else "b") / f"{k}.png", k)
    found = survey(tmp_path)
    assert found.advice() == [] and found.counts == {"train": {"a": 3, "b": 3}} and not found.twins


def test_one_class_or_one_image_a_class(tmp_path: Path) -> None:
    picture(tmp_path / "one" / "only" / "1.png", 1)
    assert any("one class only (only)" in line for line in survey(tmp_path / "one").advice())
    picture(tmp_path / "two" / "a" / "1.png", 1)
    picture(tmp_path / "two" / "b" / "1.png", 2)
    (tmp_path / "two" / "c").mkdir()
    advice = survey(tmp_path / "two").advice()
    assert any("one training image only of a, b" in line for line in advice)
    assert any("no training image of c" in line for line in advice)
    with pytest.raises(DataMissing, match="is no folder"):
        survey(tmp_path / "three")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no class folders"):
        survey(tmp_path / "empty")


def test_the_command(photos: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    run = runner(monkeypatch, capfd)
    code, said, _ = run("data", photos)
    assert code == 0
    for words in (
        "21 images: 16 train, 5 test",
        "same picture in two splits",
        "broken",
        "12 to 14 pixels",
        "! 2 files",
    ):
        assert words in said, words
    record = json.loads(run("data", photos, "--json")[1])
    assert record["images"] == 21 and len(record["same_picture_in_two_splits"]) == 2
    (photos.parent / "nothing").mkdir()
    code, _, error = run("data", photos.parent / "nothing")
    assert code == 2 and len(error.splitlines()) == 1
