"""Few bytes that stand for many, texts without end, files that are none: refused by limits, in one line."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.journal.events import Event
from search.points import files as points
from search.points.schema import SCHEMA
from search.state.state import StudyState
from search.units import knobs_text
from tests.support.kept_study import keep
from trainables.data import parquet
from trainables.data.errors import DataError
from trainables.data.parquet import read_parquet

READ = """import resource, sys
from pathlib import Path
limit = int(sys.argv[3])
import torch, pyarrow.parquet
from trainables.data.parquet import read_parquet
from search.points import files as points
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
try:
    read_parquet(Path(sys.argv[2]), None) if sys.argv[1] == "images" else points.read(sys.argv[2])
except ValueError as error:
    print(f"refused: {error}")
"""


def within(megabytes: int, what: str, path: Path) -> str:
    """What reading says in a process of its own that may take so much memory, and dies of more."""
    words = [sys.executable, "-c", READ, what, str(path), str(megabytes * 2**20)]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def _png(extra: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("L", (8, 8)).save(file, "PNG")
    return file.getvalue() + bytes(extra)


def _images(path: Path, content: Any, labels: Any, **options: Any) -> Path:
    pq.write_table(
        pa.table({"image": content, "label": labels}), path, compression="zstd", store_schema=False, **options
    )
    return path


def test_one_large_image_a_thousand_times_takes_little_memory(tmp_path: Path) -> None:
    """A whole image with 7 MB behind it, once in the file, in a thousand rows: 7 GB."""
    one = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([_png(7 * 10**6)]))
    path = _images(tmp_path / "train.parquet", one, [i % 2 for i in range(1000)])
    assert path.stat().st_size < 60_000
    assert within(3500, "images", path) == ""


@pytest.mark.parametrize("kind", ["bytes", "rows"])
def test_images_that_would_unpack_to_far_more_than_the_file_are_refused(tmp_path: Path, kind: str) -> None:
    if kind == "bytes":
        content, labels = pa.array([bytes(3 * 10**6 + i) for i in range(100)]), [0, 1] * 50
    else:
        content = pa.DictionaryArray.from_arrays(pa.array([0] * 10**6, pa.int32()), pa.array([_png()]))
        labels = pa.array([0] * 10**6)
    path = _images(tmp_path / "train.parquet", content, labels, use_dictionary=kind == "rows")
    with pytest.raises(
        DataError, match=r"bytes and would unpack to 1[,\d]* images of .*; such files are not read"
    ) as e:
        read_parquet(path, None)
    assert "\n" not in str(e.value)


def test_a_data_set_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "train-0.parquet")
    with pytest.raises(DataError, match=r"train-0\.parquet is no regular file"):
        read_parquet(tmp_path, None)


def test_class_names_that_are_nested_deep(tmp_path: Path) -> None:
    table = pa.table({"image": [_png()] * 2, "label": [0, 1]}).replace_schema_metadata({"classes": "[" * 100_000})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataError, match="the class names in the schema metadata cannot be read"):
        read_parquet(tmp_path / "train.parquet", None)


def test_ordinary_images_are_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _images(tmp_path / "train.parquet", [_png(i) for i in range(700)], [i % 2 for i in range(700)])
    whole = read_parquet(path, None)
    monkeypatch.setattr(parquet, "_ROWS", 3)
    assert len(whole.train.labels) == 700
    assert (read_parquet(path, None).train.labels == whole.train.labels).all()


# -- operating points ------------------------------------------------------------------------------


def _points(folder: Path, rows: int, **texts: str) -> Path:
    """A file of points with many rows; `texts` are one long text for all of them."""
    columns = []
    for field in SCHEMA:
        if field.name == "point_id" and "point_id" not in texts:
            value: Any = pa.array([f"t0000-1-{i}" for i in range(rows)])
        elif pa.types.is_string(field.type):
            one = pa.array([texts.get(field.name, "x")])
            value = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), one)
        else:
            value = pa.array([1] * rows, field.type)
        columns.append(value)
    folder.mkdir()
    names, table = SCHEMA.names, pa.Table.from_arrays(columns, names=SCHEMA.names)
    assert table.column_names == names
    with pq.ParquetWriter(folder / "0-a.parquet", table.schema, compression="zstd", store_schema=False) as writer:
        writer.write_table(table)
        writer.add_key_value_metadata({key.decode(): value.decode() for key, value in (SCHEMA.metadata or {}).items()})
    return folder


def test_points_that_would_unpack_to_gigabytes_are_refused(tmp_path: Path) -> None:
    folder = _points(tmp_path / "points", 5000, config="{}" + " " * 10**6)
    assert sum(p.stat().st_size for p in folder.iterdir()) < 60_000
    said = within(2500, "points", folder)
    assert said.startswith(f"refused: the operating points in {folder} have ") and "would unpack to 5,000,0" in said
    folder = _points(tmp_path / "same", 5000, point_id="t0000-1-0" + " " * 10**6)
    assert "would unpack to 5,000,0" in within(2500, "points", folder)


def test_pipes_among_the_points_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "0-a.parquet")
    assert len(points.read(tmp_path)) == 0  # only files are listed
    (tmp_path / "1-a.parquet").symlink_to(tmp_path / "0-a.parquet")
    assert len(points.read(tmp_path)) == 0


# -- JSON ------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("payload", "says"),
    [(DEEP, "is nested too deep"), ("1" * 5000, "was cut off"), ('{"a": ', "was cut off")],
)
def test_events_that_cannot_be_read(story: type, tmp_path: Path, payload: str, says: str) -> None:
    import sqlite3

    study = keep(story(), tmp_path, "x")
    with sqlite3.connect(study.folder.control) as database:
        database.execute("UPDATE events SET payload = ? WHERE seq = 2", (payload,))
    journal = Journal(sqlite_address(study.folder.control), "x")
    with pytest.raises(InputError, match=f"is damaged: event 2 {says}"):
        list(journal.events())
    journal.close()


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0}, {"epoch": 10**400}, {"epoch": "1"}, {"epoch": True}, {"seconds": float("nan")},
        {"cost_epochs": float("inf")}, {"params": -1}, {"macs_full": "many"}, {"losses": None, "epoch": None},
        {"curve": {"points": [{"accuracy": float("nan"), "macs": 1}]}},
        {"curve": {"points": [{"accuracy": 2, "macs": 1}]}}, {"curve": {"points": [{"accuracy": 1, "macs": 0}]}},
        {"curve": {"points": [{"accuracy": 1, "macs": 10**400}]}}, {"curve": {"points": [{}]}}, {"curve": []},
    ],
)  # fmt: skip
def test_reports_with_impossible_numbers(story: Any, change: dict[str, Any]) -> None:
    told = story()
    trial = told.ask(0)
    told.report(trial, 1, [(0.9, 1e6)])
    *before, report = told.events
    event = Event(report.seq, report.time, report.kind, report.trial, {**report.payload, **change})
    with pytest.raises(InputError, match=r"the journal is damaged: event 5 \(report\): ") as error:
        StudyState.of([*before, event])
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_texts_of_points(tmp_path: Path) -> None:
    for text in (DEEP, "{", "1" * 5000):
        with pytest.raises(InputError) as error:
            knobs_text(text)
        assert len(str(error.value)) < 200


@pytest.mark.parametrize("kind", ["pipe", "deep"])
def test_study_files_that_are_none(cli: Any, story: type, tmp_path: Path, kind: str) -> None:
    study = keep(story(), tmp_path, "x")
    if kind == "pipe":
        study.folder.spec.unlink()
        os.mkfifo(study.folder.spec)
    else:
        study.folder.spec.write_text(f"a = {DEEP}")
    code, _, said = cli("status", "x", "--studies", tmp_path)
    assert code == 2 and said.count("\n") == 1 and ("no regular file" in said or "nested too deep" in said)
