"""Parquet of encoded images, in the layouts of public data hubs; one-line errors naming file and row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.errors import DataError

RANDOM = np.random.default_rng(0)
ENCODED = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(size: int = 8) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RANDOM.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def write(
    path: Path,
    labels: Any,
    *,
    metadata: dict[str, str] | None = None,
    images: list[Any] | None = None,
    image: str = "img",
    label: str = "label",
    kind: pa.DataType = ENCODED,
) -> list[bytes]:
    """A file as data hubs have them; the encoded images."""
    files = [png() for _ in labels]
    given = [{"bytes": f, "path": f"{i}.png"} for i, f in enumerate(files)] if images is None else images
    table = pa.table({image: pa.array(given, kind), label: pa.array(labels)})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=7)
    return files


NAMES = {"classes": "cat,dog,eel"}
LABELS = [0, 1, 2] * 20


@pytest.mark.parametrize("below", ["", "data", "plain_text"])
def test_the_layout_of_data_hubs(tmp_path: Path, below: str):
    files = write(tmp_path / below / "train-00000-of-00002.parquet", LABELS[:31], metadata=NAMES)
    files += write(tmp_path / below / "train-00001-of-00002.parquet", LABELS[31:], metadata=NAMES)
    write(tmp_path / below / "test-00000-of-00001.parquet", [2, 1, 0, 0], metadata=NAMES)
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.classes == ("cat", "dog", "eel") and data.task == Task(classes=3, size=8, channels=3)
    assert data.test.labels.tolist() == [2, 1, 0, 0]
    assert (
        np.bincount(data.train.labels).tolist() == [18] * 3 and np.bincount(data.validation.labels).tolist() == [2] * 3
    )
    pixels = {np.asarray(Image.open(io.BytesIO(f))).transpose(2, 0, 1).tobytes() for f in files}
    found = {image.tobytes() for split in (data.train, data.validation) for image in split.images}
    assert found == pixels


def test_a_validation_file_is_the_validation_split_and_several_spellings_are_known(tmp_path: Path):
    write(tmp_path / "train.parquet", LABELS)
    write(tmp_path / "validation-0.parquet", [0, 1])
    write(tmp_path / "test_0.parquet", [0, 1, 2])
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [60, 2, 3]
    assert data.classes == ("0", "1", "2")


@pytest.mark.parametrize("whole", [True, False])
def test_one_file_is_split_here(tmp_path: Path, whole: bool):
    path = tmp_path / "set" / ("train-0.parquet" if whole else "images.parquet")
    write(path, LABELS, metadata=NAMES)
    data = datasets.load(str(path if whole else path.parent), root=tmp_path)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [36, 12, 12]


def test_names_from_hub_features_plain_binary_and_resizing(tmp_path: Path):
    features = {"info": {"features": {"fine_label": {"names": ["x", "y"], "_type": "ClassLabel"}}}}
    images = [png(size) for size in (8, 12) * 10]
    metadata = {"huggingface": json.dumps(features)}
    path = tmp_path / "a.parquet"
    write(path, [0, 1] * 10, metadata=metadata, images=images, image="image", label="fine_label", kind=pa.binary())
    data = datasets.load(str(path), root=tmp_path, image_size=10)
    assert data.classes == ("x", "y") and data.task.size == 10
    with pytest.raises(DataError, match=r"a.parquet row 0 has 8 x 8 pixels, .*a.parquet row 1 12 x 12"):
        datasets.load(str(path), root=tmp_path)


def test_names_as_a_json_list(tmp_path: Path):
    write(tmp_path / "a.parquet", LABELS, metadata={"classes": '["a, b", "c", "d"]'})
    assert datasets.load(str(tmp_path), root=tmp_path).classes == ("a, b", "c", "d")


def image(content: Any) -> list[Any]:
    good = {"bytes": png(), "path": None}
    return [good, good, {"bytes": content, "path": "2.png"}, good]


@pytest.mark.parametrize(
    ("labels", "options", "said"),
    [
        ([0, 1, 0, 1], {"images": image(b"no image")}, r"row 2 is not a whole image file \(cannot be decoded\)"),
        ([0, 1, 0, 1], {"images": image(None)}, r"row 2 has no image bytes"),
        ([0, 1, 3, 1], {"metadata": NAMES}, r"row 2 has label 3, but there are 3 class names"),
        ([0, 1, 9, 1], {}, r"row 2 has label 9, more than there are images"),
        ([0, 1, -1, 1], {}, r"row 2 has no label \(-1\)"),
        ([0, 1, None, 1], {}, r"row 2 has no label \(None\)"),
        ([1, 1, 1, 1], {"metadata": NAMES}, r"has one class only \(dog\)"),
        ([0.5, 1.0, 0.0, 1.0], {}, r"column label is double; it takes whole numbers"),
        ([0, 1, 0, 1], {"images": ["a"] * 4, "kind": pa.string()}, r"column img is string; it takes encoded images"),
        ([0, 1, 0, 1], {"image": "photo"}, r"has no column img or image or images; it has photo, label"),
        ([0, 1, 0, 1], {"label": "kind"}, r"has no column label or fine_label or labels; it has img, kind"),
        ([0, 1, 0, 1], {"metadata": {"classes": "a,a"}}, r"fewer than two or repeat: \['a', 'a'\]"),
        ([0, 1, 0, 1], {"metadata": {"huggingface": "{"}}, r"class names in the schema metadata cannot be read"),
        (pa.array([], pa.int64()), {"images": []}, r"train-0.parquet holds no image"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, labels: Any, options: dict[str, Any], said: str):
    path = tmp_path / "train-0.parquet"
    write(path, labels, **options)
    with pytest.raises(DataError, match=said) as caught:
        datasets.load(str(path), root=tmp_path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path):
    path = tmp_path / "train-0.parquet"
    write(path, LABELS)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], whole[:3], b"", whole[:200] + bytes(800) + whole[1000:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"train-0.parquet (is not a whole Parquet file|row \d+ )") as caught:
            datasets.load(str(tmp_path), root=tmp_path)
        assert "\n" not in str(caught.value)


def test_files_that_do_not_belong_together(tmp_path: Path):
    write(tmp_path / "train-0.parquet", LABELS, metadata=NAMES)
    write(tmp_path / "test-0.parquet", [0, 1], metadata={"classes": "dog,cat,eel"})
    with pytest.raises(
        DataError, match=r"names other classes than .*test-0.parquet|names other classes than .*train-0"
    ):
        datasets.load(str(tmp_path), root=tmp_path)
    (tmp_path / "test-0.parquet").rename(tmp_path / "extra.parquet")
    with pytest.raises(DataError, match=r"extra.parquet belongs to no split: its name begins with none of train"):
        datasets.load(str(tmp_path), root=tmp_path)
    (tmp_path / "extra.parquet").unlink()
    (tmp_path / "train-0.parquet").rename(tmp_path / "test-0.parquet")
    with pytest.raises(DataError, match=r"has no training images: no file train-\*.parquet"):
        datasets.load(str(tmp_path), root=tmp_path)


def test_several_folders_of_files_are_not_mixed(tmp_path: Path):
    for name in ("big", "small"):
        write(tmp_path / name / "train-0.parquet", LABELS)
    with pytest.raises(DataError, match=r"in several folders; name one of them: .*big, .*small"):
        datasets.load(str(tmp_path), root=tmp_path)
