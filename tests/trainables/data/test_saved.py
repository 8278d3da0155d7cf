"""Sets that Hugging Face's datasets saved on disk: the layout of `save_to_disk`, written here by pyarrow."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.errors import DataError

NAMES = ["cat", "dog"]


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(number: int, height: int = 8, width: int = 12) -> Image.Image:
    return Image.fromarray(np.random.RandomState(number).randint(0, 256, (height, width, 3)).astype(np.uint8))


def rows(
    folder: Path,
    images: list[Any],
    labels: list[Any],
    *,
    names: list[str] | None = NAMES,
    columns: tuple[str, str] = ("image", "label"),
    options: pa.ipc.IpcWriteOptions | None = None,
    kind: pa.DataType | None = None,
    state: dict[str, Any] | None = None,
) -> None:
    """A folder of rows in two files, as save_to_disk lays it out."""
    folder.mkdir(parents=True, exist_ok=True)
    structs = [each if isinstance(each, dict) else {"bytes": each, "path": None} for each in images]
    half, files = len(images) // 2, []
    for number, part in enumerate((slice(None, half), slice(half, None))):
        name = f"data-{number:05d}-of-00002.arrow"
        image = pa.array(structs[part], pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        table = pa.table({columns[0]: image, columns[1]: pa.array(labels[part], kind)})
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema, options=options) as out:
            out.write_table(table, max_chunksize=5)
        files.append({"filename": name})
    written = {"_data_files": files, "_split": "train", "_fingerprint": "0", "_format_type": None}
    (folder / "state.json").write_text(json.dumps(written | (state or {})))
    label = {"_type": "Value", "dtype": "int64"} if names is None else {"_type": "ClassLabel", "names": names}
    features = {columns[0]: {"_type": "Image"}, columns[1]: label}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def pictures(count: int, first: int = 0) -> list[bytes]:
    return [encoded(picture(first + number)) for number in range(count)]


def test_a_dictionary_of_splits_with_the_hubs_names(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    for number, (split, count) in enumerate({"train": 16, "validation": 6, "test": 4}.items()):
        columns = ("img", "fine_label")
        rows(folder / split, pictures(count, 100 * number), [i % 2 for i in range(count)], columns=columns)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    data = datasets.load(str(folder), root=tmp_path)
    assert data.classes == ("cat", "dog") and data.task == Task(classes=2, size=(8, 12))
    assert [len(each) for each in (data.train, data.validation, data.test)] == [16, 6, 4]
    assert np.array_equal(data.train.decoded()[9], np.asarray(picture(9)).transpose(2, 0, 1))
    assert data.train.labels.tolist() == [0, 1] * 8


def test_images_of_every_kind_and_one_undivided_set(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    deep = Image.fromarray((np.random.RandomState(1).randint(0, 4096, (8, 12)) << 4).astype(np.uint16))
    clear = Image.fromarray(np.random.RandomState(2).randint(0, 256, (8, 12, 4)).astype(np.uint8), "RGBA")
    images = [
        encoded(picture(0, 12, 8), "JPEG", exif=turned, quality=95),
        encoded(picture(1).convert("L")),
        encoded(deep),
        encoded(clear),
        *pictures(12, 10),
    ]
    rows(tmp_path / "saved", images, [i % 2 for i in range(len(images))])
    data = datasets.load(str(tmp_path / "saved"), root=tmp_path)
    assert data.task == Task(classes=2, size=(8, 12)) and data.scale is not None
    assert [len(each) for each in (data.train, data.validation, data.test)] == [10, 3, 3]
    resized = datasets.load(str(tmp_path / "saved"), root=tmp_path, image_size=(6, 5), resize="stretch")
    assert resized.task.size == (6, 5) and resized.resize == "stretch" and resized.hash != data.hash


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"options": pa.ipc.IpcWriteOptions(compression="lz4")}, "00000-of-00002.arrow is compressed"),
        (
            {"state": {"_data_files": [{"filename": "../other.arrow"}]}},
            "names '../other.arrow', which does not",
        ),
        ({"state": {"_data_files": [{"filename": "absent.arrow"}]}}, "absent.arrow is missing: the set was not saved"),
        ({"state": {"_data_files": []}}, "names no files of rows"),
        (
            {"state": {"_indices_files": [{"filename": "i.arrow"}]}},
            "a selection of rows; save what flatten_indices",
        ),
        ({"labels": ["cat", "dog"] * 4}, "label is string; it takes whole numbers .class_encode_column"),
        ({"labels": [0, 1, 2, 0] * 2}, "has label 2, but there are 2 class names"),
        ({"labels": [0, -1] * 4}, r"row 1 has no label \(-1\)"),
        ({"names": ["cat", "cat"]}, "class names in its features are fewer than two or repeat"),
        ({"images": [{"bytes": None, "path": "/etc/passwd"}] * 8}, "names a file .*and holds no image"),
        ({"images": [b"no image"] * 8}, "row 0 is not a whole image file"),
        ({"columns": ("picture", "label")}, "has no column img or image or images; it has picture, label"),
        ({"kind": pa.dictionary(pa.int8(), pa.int64())}, "holds a dictionary"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    given = {"images": pictures(8), "labels": [0, 1] * 4} | change
    rows(tmp_path / "saved", **given)
    with pytest.raises(DataError, match=said) as caught:
        datasets.load(str(tmp_path / "saved"), root=tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_streams_and_foreign_splits_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    rows(folder / "train", pictures(8), [0, 1] * 4)
    for splits, said in (
        (["train", "unsupervised"], "'unsupervised', which is no split"),
        ([], "no splits"),
    ):
        (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
        with pytest.raises(DataError, match=said):
            datasets.load(str(folder), root=tmp_path)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    whole = folder / "train" / "data-00001-of-00002.arrow"
    content = whole.read_bytes()
    random = np.random.RandomState(0)
    for number in range(40):  # cut, or a few bytes overwritten: an error in a line, or images that are still whole
        damaged = bytearray(content[: random.randint(1, len(content))] if number % 2 else content)
        for at in random.randint(0, len(damaged), 3):
            damaged[at] = random.randint(256)
        whole.write_bytes(bytes(damaged))
        try:
            datasets.load(str(folder), root=tmp_path)
        except DataError as error:
            assert "\n" not in str(error)
