"""Images of more than eight bits a pixel: one scale a data set, the same in training and prediction."""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from trainables.contracts.network import Task
from trainables.data import datasets
from trainables.data.depth import Scale
from trainables.data.errors import DataError

RANDOM = np.random.default_rng(3)


def _ramps(most: float, kind: Any, count: int = 20, least: float = 0.0) -> list[np.ndarray]:
    """Pictures of 8 x 8 whose values reach from `least` to `most`, each another one."""
    shares = [RANDOM.permutation(np.linspace(0, 1, 64)).reshape(8, 8) for _ in range(count)]
    return [(least + share * (most - least)).astype(kind) for share in shares]


def _save(folder: Path, images: list[np.ndarray], ending: str) -> list[Path]:
    """As class folders ``a`` and ``b``; the files in order."""
    paths = []
    for number, image in enumerate(images):
        path = folder / "ab"[number % 2] / f"{number:03d}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        paths.append(path)
    return paths


def _with_bits(path: Path, bits: int) -> None:
    """Write the chunk sBIT into a grey PNG, behind its header."""
    content = path.read_bytes()
    body = b"sBIT" + bytes([bits])
    chunk = (1).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    path.write_bytes(content[:33] + chunk + content[33:])


def _levels(data: datasets.Data) -> np.ndarray:
    return np.concatenate([split.decoded() for split in (data.train, data.validation, data.test)])


@pytest.mark.parametrize(
    ("most", "kind", "ending", "high"),
    [
        (255, np.uint16, "png", 255),  # a mask, or eight bits in sixteen
        (4095, np.uint16, "png", 4095),  # a camera of twelve bits
        (4095, np.uint16, "tiff", 4095),
        (1000, np.uint16, "png", 1023),
        (40000, np.uint16, "png", 65535),
        (65535, np.uint16, "png", 65535),
        (4095, np.int32, "tiff", 4095),
        (2**20 - 1, np.int32, "tiff", 2**20 - 1),
        (1.0, np.float32, "tiff", 1.0),
        (255.0, np.float32, "tiff", 255.0),
        (3000.0, np.float32, "tiff", 3000.0),
    ],
)
def test_a_set_is_scaled_by_what_it_holds(tmp_path: Path, most: float, kind: Any, ending: str, high: float) -> None:
    images = _ramps(most, kind)
    paths = _save(tmp_path, images, ending)
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.scale == Scale(0.0, float(high)) and f"of values 0 to {high:g}" in data.summary()
    levels = _levels(data)
    assert levels.min() == 0 and levels.max() == (255 if most == high else np.floor(most / (high + 1) * 256))
    assert len(np.unique(levels)) >= 60  # sixteen grey levels, or one, are what this is about
    read = datasets.read_images(paths, Task(size=8, channels=1), data.scale)
    expected = np.stack(images).astype(np.float64) * (255 / high)
    assert np.abs(read[:, 0] - expected).max() <= 1
    assert {image.tobytes() for image in read} == {image.tobytes() for image in levels}  # as in training


def test_values_below_zero(tmp_path: Path) -> None:
    _save(tmp_path, _ramps(2000, np.int32, least=-1000), "tiff")
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.scale == Scale(-1000.0, 2000.0) and _levels(data).min() == 0 and _levels(data).max() == 255


def test_one_scale_for_all_images_whatever_each_holds(tmp_path: Path) -> None:
    images = [np.full((8, 8), 40 * number, dtype=np.uint16) for number in range(1, 101)]
    paths = _save(tmp_path, images, "png")
    data = datasets.load(str(tmp_path), root=tmp_path)
    read = datasets.read_images(paths, Task(size=8, channels=1), data.scale)
    assert data.scale == Scale(0.0, 4095.0)
    assert [int(image.max()) for image in read] == [40 * number // 16 for number in range(1, 101)]


def test_training_images_alone_decide(tmp_path: Path) -> None:
    _save(tmp_path / "train", _ramps(4095, np.uint16), "png")
    _save(tmp_path / "test", _ramps(65535, np.uint16, 4), "png")
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.scale == Scale(0.0, 4095.0) and data.test.decoded().max() == 255


@pytest.mark.parametrize(("most", "bits", "high"), [(900, 12, 4095), (900, 10, 1023), (65520, 12, 65535)])
def test_a_png_says_how_many_bits_it_has(tmp_path: Path, most: int, bits: int, high: int) -> None:
    for path in _save(tmp_path, _ramps(most, np.uint16), "png"):
        _with_bits(path, bits)
    assert datasets.load(str(tmp_path), root=tmp_path).scale == Scale(0.0, float(high))


def test_a_tiff_says_its_largest_value(tmp_path: Path) -> None:
    for path in _save(tmp_path, _ramps(900, np.uint16), "tiff"):
        with Image.open(path) as image:
            image.load()
            image.save(path, tiffinfo={281: 4095})
    assert datasets.load(str(tmp_path), root=tmp_path).scale == Scale(0.0, 4095.0)


def test_parquet_is_scaled_alike(tmp_path: Path) -> None:
    contents = []
    for image in _ramps(4095, np.uint16):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        contents.append(file.getvalue())
    table = pa.table({"image": contents, "label": [number % 2 for number in range(len(contents))]})
    pq.write_table(table, tmp_path / "all.parquet")
    data = datasets.load(str(tmp_path / "all.parquet"), root=tmp_path)
    assert data.scale == Scale(0.0, 4095.0) and data.train.decoded().max() == 255


def test_eight_bits_need_no_scale_and_may_stand_beside_more(tmp_path: Path) -> None:
    _save(tmp_path, _ramps(255, np.uint8), "png")
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.scale is None and "of values" not in data.summary() and data.train.decoded().max() == 255
    Image.fromarray(_ramps(4095, np.uint16, 1)[0]).save(tmp_path / "a" / "deep.png")
    data = datasets.load(str(tmp_path), root=tmp_path)
    assert data.scale is not None and _levels(data).max() == 255


def test_all_sixteen_bits_keep_the_eight_highest() -> None:
    values = RANDOM.integers(0, 65536, 1000).astype(np.uint16)
    assert (Scale().apply(values) == values >> 8).all()  # as earlier versions read them: their digests hold
    assert Scale.of(Scale(-1.0, 2.0).record()) == Scale(-1.0, 2.0) and Scale.of(None) is None


@pytest.mark.parametrize(
    ("images", "said"),
    [
        ([np.zeros((8, 8), np.uint16)] * 20, "the same picture once they are read .every pixel is 0 of 0 to 255"),
        ([np.eye(8, dtype=np.uint8) * 200] * 20, "the same picture once they are read .pixels from 0 to 200 of"),
        ([np.full((8, 8), np.nan, np.float32)] * 20, "000.tiff holds pixels that are no numbers"),
    ],
)
def test_images_of_which_nothing_can_be_learnt(tmp_path: Path, images: list[np.ndarray], said: str) -> None:
    _save(tmp_path, images, "tiff")
    with pytest.raises(DataError, match=said) as caught:
        datasets.load(str(tmp_path), root=tmp_path)
    assert "\n" not in str(caught.value)


def _deep_colours(path: Path, values: np.ndarray) -> None:
    """An RGB image of 16 bits a channel as PNG, which Pillow cannot write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    rows = b"".join(b"\x00" + row.astype(">u2").tobytes() for row in values)
    head = (8).to_bytes(4, "big") * 2 + b"\x10\x02\x00\x00\x00"
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize(("most", "good"), [(4095, False), (65535, True)])
def test_colours_of_sixteen_bits_of_which_few_levels_are_left(tmp_path: Path, most: int, good: bool) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(10):
            _deep_colours(tmp_path / name / f"{number}.png", RANDOM.integers(0, most + 1, (8, 8, 3)))
    if good:
        assert datasets.load(str(tmp_path), root=tmp_path).train.decoded().max() > 200
        return
    with pytest.raises(DataError, match="colour images of 16 bits use only 16 of 256 levels; stretch their values"):
        datasets.load(str(tmp_path), root=tmp_path)
