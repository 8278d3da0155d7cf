"""Image files: decoding of every mode, class folders, export and batch reading; one-line errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import v2

from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.decoding import decode
from trainables.data.errors import DataError, DataMissing
from trainables.data.resizing import RULES, resize
from trainables.data.splits import Augment, Split

RANDOM = np.random.default_rng(0)


def colours(count: int, size: int = 8) -> np.ndarray:
    return RANDOM.integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def folders(root: Path, counts: dict[str, int], size: int = 8) -> dict[bytes, int]:
    """Class folders of random images; the label of every image, by its bytes."""
    truth = {}
    for label, (name, count) in enumerate(sorted(counts.items())):
        images = colours(count, size)
        datasets.export(Split(images, np.zeros(count, dtype=np.int64)), root, [name])
        truth |= {image.tobytes(): label for image in images}
    return truth


def test_an_undivided_folder_is_split_by_its_classes(tmp_path: Path):
    truth = folders(tmp_path / "set", {"dog": 30, "cat": 20, "eel": 10})
    (tmp_path / "set" / ".DS_Store").write_text("litter")
    (tmp_path / "set" / "cat" / "Thumbs.db").write_text("litter")
    data = datasets.load(str(tmp_path / "set"), root=tmp_path)
    assert data.classes == ("cat", "dog", "eel") and data.task == Task(classes=3, size=8, channels=3)
    splits = (data.train, data.validation, data.test)
    assert [np.bincount(s.labels).tolist() for s in splits] == [[12, 18, 6], [4, 6, 2], [4, 6, 2]]
    found = {image.tobytes(): label for s in splits for image, label in zip(s.images, s.labels, strict=True)}
    assert found == truth
    assert data.augment == Augment(pad=1, flip=True)


def test_a_relative_path_is_looked_up_under_the_root_too(tmp_path: Path):
    folders(tmp_path / "pets", {"cat": 10, "dog": 10})
    by_root = datasets.load("pets", root=tmp_path)
    assert by_root.name == "pets"
    assert by_root.hash == datasets.load(str(tmp_path / "pets"), root=Path("nowhere")).hash


def test_a_divided_folder_keeps_its_test_images(tmp_path: Path):
    folders(tmp_path / "train", {"cat": 40, "dog": 60})
    test = folders(tmp_path / "test", {"cat": 3, "dog": 2})
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [90, 10, 5]
    assert {i.tobytes(): k for i, k in zip(data.test.images, data.test.labels, strict=True)} == test
    assert np.bincount(data.validation.labels).tolist() == [4, 6]


@pytest.mark.parametrize(("extra", "sizes"), [(("test", "val"), [10, 4, 3]), (("val",), [10, 4, 0])])
def test_a_val_folder_is_for_validation_with_and_without_test(tmp_path: Path, extra: tuple[str, ...], sizes: list[int]):
    folders(tmp_path / "train", {"cat": 5, "dog": 5})
    for name in extra:
        folders(tmp_path / name, {"cat": 2, "dog": 2} if name == "val" else {"cat": 1, "dog": 2})
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == sizes


def test_a_class_of_trains_is_no_training_folder(tmp_path: Path):
    folders(tmp_path, {"train": 10, "plane": 10})
    assert datasets.load(str(tmp_path), root=tmp_path).classes == ("plane", "train")


def test_grey_folders_have_one_channel_and_a_grey_image_among_colours_three(tmp_path: Path):
    grey = RANDOM.integers(0, 256, (20, 1, 16, 16), dtype=np.uint8)
    datasets.export(Split(grey, np.arange(20) % 2), tmp_path / "set", ["a", "b"])
    data = datasets.load(str(tmp_path / "set"), root=tmp_path)
    assert data.task.channels == 1 and data.augment == Augment(pad=1, flip=False)
    Image.fromarray(colours(1, 16)[0].transpose(1, 2, 0)).save(tmp_path / "set" / "a" / "colour.png")
    data = datasets.load(str(tmp_path / "set"), root=tmp_path)
    assert data.task.channels == 3
    assert sum((image[0] == image[1]).all() for image in data.train.images) >= len(data.train) - 1


def test_sizes_may_differ_where_a_size_is_given(tmp_path: Path):
    folders(tmp_path, {"a": 10, "b": 10})
    Image.new("RGB", (12, 9), (255, 0, 0)).save(tmp_path / "b" / "wide.png")
    with pytest.raises(
        DataError, match=r"differ in size: .*00000.png has 8 x 8 pixels, .*wide.png 12 x 9; .*image_siz"
    ):
        datasets.load(str(tmp_path), root=tmp_path)
    data = datasets.load(str(tmp_path), root=tmp_path, image_size=6)
    assert data.task.size == 6 and data.train.images.shape[1:] == (3, 6, 6)


def break_one(root: Path) -> None:
    (root / "b" / "00003.png").write_bytes(b"no image")


def truncate_one(root: Path) -> None:
    path = root / "b" / "00003.png"
    path.write_bytes(path.read_bytes()[:80])


def add_text(root: Path) -> None:
    (root / "b" / "notes.txt").write_text("remember the milk")


def empty_one(root: Path) -> None:
    (root / "c").mkdir()


def drop_one(root: Path) -> None:
    for path in (root / "b").iterdir():
        path.unlink()
    (root / "b").rmdir()


def stretch(root: Path) -> None:
    for path in root.rglob("*.png"):
        Image.new("RGB", (8, 3)).save(path)


def float_one(root: Path) -> None:
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(root / "a" / "deep.tiff")


def unknown_test(root: Path) -> None:
    for name in ("a", "b"):
        (root / "train").mkdir(exist_ok=True)
        (root / name).rename(root / "train" / name)
    folders(root / "test", {"z": 2})


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (break_one, r"b/00003.png is not a whole image file \(cannot be decoded\)"),
        (truncate_one, r"b/00003.png is not a whole image file"),
        (add_text, r"b/notes.txt is not a whole image file"),
        (empty_one, r"/c holds no image"),
        (drop_one, r"has one class only \(a\)"),
        (stretch, r"a/00000.png has 8 x 3 pixels; networks take at least 4 x 4: .*image_size"),
        (float_one, r"a/deep.tiff holds floating-point pixels"),
        (unknown_test, r"test/z is of a class that has no training images"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_in_one_line(tmp_path: Path, harm: Callable[[Path], None], said: str):
    folders(tmp_path, {"a": 6, "b": 6})
    harm(tmp_path)
    with pytest.raises(DataError, match=said) as caught:
        datasets.load(str(tmp_path), root=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_class_folders_a_stray_file_and_too_few_images(tmp_path: Path):
    with pytest.raises(DataError, match=r"has no class folders with images: expected .*/<class>/<image>"):
        datasets.load(str(tmp_path), root=tmp_path)
    stray = tmp_path / "data.zip"
    stray.write_bytes(b"PK")
    with pytest.raises(DataError, match=r"data.zip is neither a folder of class folders nor a .parquet file"):
        datasets.load(str(stray), root=tmp_path)
    folders(tmp_path / "few", {"a": 1, "b": 1})
    with pytest.raises(DataError, match="2 images are too few for a train, a validation and a test split"):
        datasets.load(str(tmp_path / "few"), root=tmp_path)


def test_export_and_reading_back_are_lossless(tmp_path: Path):
    for channels in (1, 3):
        images = RANDOM.integers(0, 256, (7, channels, 8, 8), dtype=np.uint8)
        split = Split(images, np.arange(7) % 2)
        paths = datasets.export(split, tmp_path / str(channels), ("a", "b"))
        assert [p.parent.name for p in paths] == ["a", "b", "a", "b", "a", "b", "a"]
        assert (datasets.read_images(paths, Task(size=8, channels=channels)) == images).all()
    with pytest.raises(DataError, match=r"class '\.\./b' cannot be the name of a folder"):
        datasets.export(split, tmp_path, ("a", "../b"))


def test_images_of_any_kind_are_read_as_the_task_takes_them(tmp_path: Path):
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    grey = Image.fromarray(ramp)
    deep = Image.fromarray(ramp.astype(np.uint16) * 257)
    clear = Image.merge("RGBA", (grey, grey, grey, Image.new("L", grey.size, 0)))
    kinds = {"l.png": grey, "rgb.bmp": grey.convert("RGB"), "p.gif": grey.convert("P"), "i16.png": deep}
    kinds |= {"rgba.png": clear, "la.png": grey.convert("LA"), "cmyk.tiff": grey.convert("CMYK"), "i.tiff": deep}
    for name, image in kinds.items():
        image.save(tmp_path / name)
        for channels in (1, 3):
            (read,) = datasets.read_images([tmp_path / name], Task(size=32, channels=channels))
            assert abs(read.astype(int) - ramp).max() <= 1, (name, channels)
    assert decode(tmp_path / "i16.png", "x").mode == "L" and decode(tmp_path / "rgba.png", "x").mode == "RGB"
    white = Image.new("1", (32, 32), 1)
    white.save(tmp_path / "one.png")
    assert (datasets.read_images([tmp_path / "one.png"], Task(size=32)) == 255).all()


def test_a_wide_image_is_cut_in_the_middle_and_a_turned_photo_set_upright(tmp_path: Path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (datasets.read_images([tmp_path / "wide.png"], Task(size=10)) == 200).all()
    photo = Image.fromarray(np.repeat(np.array([[0, 255]], dtype=np.uint8), 16, axis=0).repeat(8, axis=1))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it
    photo.save(tmp_path / "turned.png", exif=exif)
    (upright,) = datasets.read_images([tmp_path / "turned.png"], Task(size=16, channels=1))
    assert upright[0, :7].max() == 0 and upright[0, 9:].min() == 255


def test_what_cannot_be_read_is_named(tmp_path: Path):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"\xff\xd8\xff\xe0nonsense")
    with pytest.raises(DataError, match=r"bad.jpg is not a whole image file"):
        datasets.read_images([bad], Task())
    with pytest.raises(DataMissing, match=r"no image at .*gone.png"):
        datasets.read_images([tmp_path / "gone.png"], Task())
    with pytest.raises(DataError, match="1 or 3 channels; the task takes 2"):
        datasets.read_images([bad], Task(channels=2))
    assert datasets.read_images([], Task(size=8)).shape == (0, 3, 8, 8)


def test_sizes_that_are_not_square_are_kept_or_made_by_a_rule(tmp_path: Path):
    random = np.random.RandomState(0)
    for number in range(10):
        for name in ("a", "b"):
            (tmp_path / name).mkdir(exist_ok=True)
            pixels = random.randint(0, 256, (24, 36, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    plain = datasets.load(str(tmp_path), root=tmp_path)
    assert plain.task == Task(classes=2, size=(24, 36)) and plain.train.images.shape[2:] == (24, 36)
    found = {rule: datasets.load(str(tmp_path), root=tmp_path, image_size=[16, 12], resize=rule) for rule in RULES}
    assert {data.task.size for data in found.values()} == {(16, 12)} and len({d.hash for d in found.values()}) == 3
    image = Image.open(sorted((tmp_path / "a").iterdir())[0])
    assert resize(image, (24, 36)) is image
    # torchvision: the shorter edge to 256, 224 in the middle
    theirs = v2.functional.center_crop(v2.functional.resize(image, [32]), [28, 28])
    assert np.array_equal(np.asarray(resize(image, 28, "preset")), np.asarray(theirs))
    for size, said in (
        ([8, 9, 10], "takes one number, or two"),
        (2, "at least 4"),
        ([16, 2.5], "at least 4"),
        ([], "one"),
    ):
        with pytest.raises(DataError, match=said):
            datasets.load(str(tmp_path), root=tmp_path, image_size=size)
    with pytest.raises(DataError, match="resize = 'crop': must be one of fit, preset, stretch"):
        datasets.load(str(tmp_path), root=tmp_path, image_size=8, resize="crop")
    with pytest.raises(DataError, match="digits has square images of one size"):
        datasets.load("digits", root=tmp_path, image_size=8, resize="preset")
    assert datasets.load("digits", root=tmp_path, image_size=[16, 12]).task.size == (16, 12)
