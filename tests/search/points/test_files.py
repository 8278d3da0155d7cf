import os
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from search.frontier.point import front_point, point_of
from search.points import files as points
from search.points.canonical import canonical_text
from search.points.rows import PointRows
from search.points.table import state_table


def row(number, **changes):
    return {
        "point_id": f"t{number // 10:04d}-3-{number % 10}",
        "study": "digits",
        "trial": f"t{number // 10:04d}",
        "config_id": "0123456789ab",
        "repeat": 0,
        "method": ("skipnet", "imta")[number % 2],
        "variant": "sp",
        "network": "resnet-38",
        "image_size": 32,
        "dataset": "digits",
        "data_hash": "abc",
        "split": "validation",
        "phase": "joint",
        "epoch": 3,
        "cost_epochs": 3.5,
        "setting": {"threshold": 0.5},
        "knobs": {"threshold": 0.5, "seed": 1},
        "accuracy": 0.9,
        "correct": 90,
        "count": 100,
        "macs": 1e6 + number,
        "macs_std": 10.0,
        "macs_full": 5_000_000,
        "params": 1000,
        "seconds": 1.5,
        "seed": 2**62,
        "checkpoint": "t/epoch-0003",
        "config": {"width": 16},
        "code_version": "0.1.0+abc",
    } | changes


def rows(*numbers):
    return [row(n) for n in numbers]


def files(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def test_a_round_trip(tmp_path):
    path = points.write(rows(0, 1), tmp_path / "points")
    assert Path(path).parent == tmp_path / "points" and files(tmp_path / "points") == [Path(path).name]
    table = points.read(tmp_path / "points")
    assert table.schema.equals(points.SCHEMA)
    first, second = table.to_pylist()
    assert first["setting"] == '{"threshold": 0.5}' and first["knobs"] == '{"seed": 1, "threshold": 0.5}'
    assert second["schema_version"] == points.VERSION
    same = {k: v for k, v in row(1).items() if k not in ("setting", "knobs", "config")}
    assert same.items() <= second.items()


@pytest.mark.parametrize("make", [True, False])
def test_no_file_is_an_empty_table(tmp_path, make):
    folder = tmp_path / "points"
    if make:
        folder.mkdir()
        (folder / ".x.parquet.tmp").write_bytes(b"half")
        (folder / "notes.txt").write_text("hello")
    assert points.read(folder).schema.equals(points.SCHEMA) and len(points.read(folder)) == 0
    assert points.read(folder, columns=["macs", "trial"]).schema.names == ["macs", "trial"]
    assert points.compact(folder) is None


def test_each_point_once_and_the_first_written_stands(tmp_path):
    points.write(rows(0, 1, 2, 1), tmp_path)
    points.write([row(2, accuracy=0.1), row(3)], tmp_path)
    table = points.read(tmp_path)
    assert table["macs"].to_pylist() == [1e6, 1e6 + 1, 1e6 + 2, 1e6 + 3]
    assert table["accuracy"].to_pylist() == [0.9] * 4
    assert len(points.read(tmp_path, columns=["macs"])) == 4


def test_columns_and_filters(tmp_path):
    points.write(rows(*range(10)), tmp_path)
    points.write(rows(*range(10, 20)), tmp_path)
    table = points.read(
        tmp_path, columns=["macs", "method"], filters=[("method", "=", "imta"), ("macs", ">=", 1e6 + 15)]
    )
    assert table.column_names == ["macs", "method"] and table["macs"].to_pylist() == [1e6 + 15, 1e6 + 17, 1e6 + 19]
    assert len(points.read(tmp_path, filters=pc.field("trial") == "t0001")) == 10
    with pytest.raises(ValueError, match="unknown column flops"):
        points.read(tmp_path, columns=["flops"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"accuracy": 97.2}, "accuracy"),
        ({"accuracy": float("nan")}, "accuracy"),
        ({"accuracy": None}, "accuracy"),
        ({"macs": 0.0}, "macs"),
        ({"macs": float("nan")}, "macs"),
        ({"epoch": 3.5}, "truncated"),
        ({"seed": 2**64}, "schema"),
        ({"flops": 3}, "unknown column flops"),
    ],
)
def test_a_wrong_row_is_refused_and_nothing_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        points.write([row(0), row(1, **change)], tmp_path)
    with pytest.raises(ValueError, match="missing column trial"):
        points.write([{k: v for k, v in row(0).items() if k != "trial"}], tmp_path)
    with pytest.raises(ValueError, match="no operating points"):
        points.write([], tmp_path)
    assert files(tmp_path) == []


@pytest.mark.parametrize("keep", [0, 10, 0.5, -3])
def test_a_truncated_file_is_named(tmp_path, keep):
    points.write(rows(0), tmp_path)
    broken = Path(points.write(rows(1), tmp_path))
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    for act in (points.read, points.compact):
        with pytest.raises(ValueError, match=broken.name) as caught:
            act(tmp_path)
        assert "\n" not in str(caught.value)
    assert len(files(tmp_path)) == 2


def test_a_damaged_page_is_noticed(tmp_path):
    points.write(rows(0), tmp_path)
    broken = Path(points.write(rows(1), tmp_path))
    content = bytearray(broken.read_bytes())
    content[300] ^= 0xFF
    broken.write_bytes(content)
    with pytest.raises(ValueError, match=f"{broken.name} is damaged"):
        points.read(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        points.compact(tmp_path)
    assert len(files(tmp_path)) == 2


def test_versions(tmp_path):
    older = points.SCHEMA.remove(points.SCHEMA.get_field_index("code_version"))
    points.write(rows(0), tmp_path)
    table = points.read(tmp_path).select(older.names)
    (path,) = tmp_path.iterdir()
    path.unlink()
    pq.write_table(table.replace_schema_metadata({b"routefront.points": b"1"}), path)
    assert points.read(tmp_path)["code_version"].to_pylist() == [None]
    points.write(rows(1), tmp_path)  # beside a file with a column that earlier releases had and nobody filled
    earlier = table.append_column("correct_bits", pa.nulls(1, pa.binary()))
    pq.write_table(earlier.replace_schema_metadata({b"routefront.points": b"1"}), path)
    assert sorted(points.read(tmp_path)["point_id"].to_pylist()) == ["t0000-3-0", "t0000-3-1"]
    points.compact(tmp_path)
    (path,) = tmp_path.iterdir()
    assert points.read(tmp_path).schema.equals(points.SCHEMA) and len(points.read(tmp_path)) == 2
    pq.write_table(table.replace_schema_metadata({b"routefront.points": b"2"}), path)
    with pytest.raises(ValueError, match=r"schema version 2; this release reads up to 1"):
        points.read(tmp_path)
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match="not a file of operating points"):
        points.read(tmp_path)


def test_compact_keeps_every_point_and_large_files(tmp_path):
    large = points.write(rows(*range(100, 150)), tmp_path)
    for start in range(0, 50, 5):
        points.write(rows(*range(start, start + 6)), tmp_path)
    before = points.read(tmp_path)
    stale = tmp_path / ".old.parquet.tmp"
    stale.write_bytes(b"half")
    os.utime(stale, (0, 0))
    merged = points.compact(tmp_path, small_rows=50)
    assert merged is not None and files(tmp_path) == sorted([Path(large).name, Path(merged).name])
    after = points.read(tmp_path)
    assert after.sort_by("point_id").equals(before.sort_by("point_id"))
    assert points.compact(tmp_path, small_rows=50) is None  # one merged file of 51 rows, one large


def test_a_crash_between_merge_and_removal_loses_nothing(tmp_path, monkeypatch):
    points.write(rows(0, 1), tmp_path)
    points.write(rows(2), tmp_path)

    def refuse(*_):
        raise OSError("power failure")

    monkeypatch.setattr(points, "_delete", refuse)
    with pytest.raises(OSError, match="power failure"):
        points.compact(tmp_path)
    monkeypatch.undo()
    assert len(files(tmp_path)) == 3 and len(points.read(tmp_path)) == 3
    points.compact(tmp_path)
    assert len(files(tmp_path)) == 1 and len(points.read(tmp_path)) == 3


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def half(table, path, **_):
        Path(path).write_bytes(b"PAR1 half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="disk full"):
        points.write(rows(0), tmp_path)
    assert files(tmp_path) == []


def test_readers_see_whole_files_while_points_are_written_and_compacted(tmp_path):
    points.write(rows(0), tmp_path)
    done, seen, problems = threading.Event(), [1], []

    def keep_reading():
        try:
            while not done.is_set():
                seen.append(len(points.read(tmp_path, columns=["macs"])))
        except Exception as error:
            problems.append(error)

    readers = [threading.Thread(target=keep_reading) for _ in range(2)]
    for reader in readers:
        reader.start()
    deadline, number = time.monotonic() + 3, 1
    while number < 150 and time.monotonic() < deadline:
        points.write(rows(number), tmp_path)
        number += 1
        if number % 10 == 0:
            points.compact(tmp_path)
    done.set()
    for reader in readers:
        reader.join()
    assert not problems and max(seen) <= number
    assert len(points.read(tmp_path)) == number


def test_through_a_pyarrow_filesystem(tmp_path):
    inside = fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem())
    assert len(points.read("study/points", filesystem=inside)) == 0
    points.write(rows(0), "study/points", filesystem=inside)
    points.write(rows(1), "study/points/", filesystem=inside)
    assert points.compact("study/points", filesystem=inside) is not None
    assert len(points.read(tmp_path / "study" / "points")) == 2
    assert len(points.read(f"file://{tmp_path}/study/points")) == 2
    memory = fs._MockFileSystem()
    points.write(rows(0), "bucket/points", filesystem=memory)
    assert len(points.read("bucket/points", filesystem=memory)) == 1


def test_equal_values_have_one_spelling_in_the_files_in_the_journal_and_on_the_front(story):
    one = story()
    trial = one.ask(0, "static")
    again = one.ask(1, "static")
    for name in (trial, again):
        one.report(name, 1, [(0.9, 1e6)])
        one.events[-1].payload["curve"]["points"][0]["setting"] = {"threshold": 0.5, "draws": 4}
        one.events[-1].payload["curve"]["points"][0]["knobs"] = {"threshold": 0.5, "draws": 4, "seed": 1}
    one.report(trial, 3, [(0.95, 1e6)], params=2000, macs_full=20_000_000)  # another phase, a larger network
    state = one.state
    made = PointRows(state)
    first = point_of(made.of(state.trials[trial], 1)[0])
    assert (first.params, first.macs_full) == (1000, 10_000_000)
    driven = [row for name, epoch in ((trial, 1), (trial, 3), (again, 1)) for row in made.of(state.trials[name], epoch)]
    table = state_table(state).to_pylist()
    assert [(row["repeat"], row["cost_epochs"]) for row in driven] == [(0, 1.0), (0, 3.0), (1, 1.0)]
    assert driven[0]["setting"] == '{"draws": 4, "threshold": 0.5}'
    assert [{name: row[name] for name in made} for row, made in zip(table, driven, strict=True)] == driven
    assert point_of(driven[2]) == front_point(state, (again, 1, 0)) == point_of(table[2])
    assert canonical_text('{"threshold": 0.5, "draws": 4}') == driven[0]["setting"]
