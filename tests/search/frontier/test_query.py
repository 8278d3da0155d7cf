"""Questions to the points of studies: fronts of several, budgets, layers, filters, files, bad questions."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search.commands.frontier_tables import front_table
from search.errors import InputError
from search.frontier.answer import ask
from search.frontier.files import cell, write_csv, write_parquet
from search.frontier.point import FrontPoint, front_point
from search.frontier.published import published, published_for
from search.frontier.query import front_rows, most_accurate
from search.points import files as point_store
from search.units import printable
from tests.support.command import Run
from tests.support.kept_study import keep

CURVES = {
    "static": [[(0.90, 4e6)], [(0.95, 8e6)]],
    "skipnet": [[(0.80, 2e6), (0.91, 5e6), (0.93, 7e6)], [(0.70, 1e6), (0.85, 3e6), (0.93, 7e6)]],
}


def told(story: type, **config: Any) -> Any:
    one = story()
    for number, (method, curve) in enumerate((m, c) for m, curves in CURVES.items() for c in curves):
        trial = one.ask(number, method, network=f"resnet-{8 + 6 * (number % 2)}", **config)
        one.report(trial, 1, curve, params=1000 * (number + 1))
        one.decide(trial, 1, "finish")
    one.add("ended", {"why": "finished"})
    return one


@pytest.fixture
def study(story: type, tmp_path: Path) -> Any:
    return keep(told(story), tmp_path, flushed=True)


def _by_state(study: Any) -> list[FrontPoint]:
    state = study.state()
    return [front_point(state, key) for key in state.front()]


def test_the_front_of_the_files_is_that_of_the_journal(study: Any) -> None:
    by_state = _by_state(study)
    by_files = ask([study]).points
    assert [(p.point_id, p.accuracy, p.macs) for p in by_files] == [(p.point_id, p.accuracy, p.macs) for p in by_state]
    assert by_files[0] == by_state[0]  # every column survives the files
    assert ask([study]).hypervolume == pytest.approx(study.state().hypervolume)


def test_points_that_miss_a_constraint_are_on_no_front(story: type, tmp_path: Path) -> None:
    one = story()
    trial = one.ask(0, "static")
    one.report(trial, 1, [(0.9, 1e6), (0.95, 2e6)])
    one.add("ended", {"why": "finished"})
    one.spec = one.spec.model_copy(update={"constraints": type(one.spec.constraints)(max_macs=1.5e6)})
    study = keep(one, tmp_path, flushed=True)
    assert [p.point_id for p in ask([study]).points] == ["t0000-1-0"] == [p.point_id for p in _by_state(study)]


def test_an_interrupted_study_is_read_from_its_journal(story: type, tmp_path: Path) -> None:
    one = told(story)
    one.events.pop()
    study = keep(one, tmp_path)
    assert len(ask([study]).points) == len(_by_state(study)) > 2
    later = keep(one, tmp_path, "later", flushed=True)
    next(later.folder.points.glob("*.parquet")).write_bytes(b"PAR1")  # not looked at while a driver may be at work
    assert len(ask([later]).points) > 2


def test_budgets_floors_layers_and_filters(study: Any) -> None:
    whole = ask([study]).points
    assert [p.macs for p in whole] == [1e6, 2e6, 3e6, 4e6, 5e6, 7e6, 8e6]
    assert most_accurate(ask([study], max_macs=6e6).points).accuracy == 0.91
    assert [p.macs for p in ask([study], min_accuracy=0.92).points] == [7e6, 8e6]
    assert [p.macs for p in ask([study], methods=["static"]).points] == [4e6, 8e6]
    assert {p.network for p in ask([study], networks=["resnet-14"]).points} == {"resnet-14"}
    assert {p.params for p in ask([study], max_params=2000).points} <= {1000, 2000}
    assert [p.knobs for p in ask([study], methods=["skipnet"], knobs={"threshold": 0.1}).points] == [
        {"threshold": 0.1}, {"threshold": 0.1}]  # fmt: skip
    assert {p.knobs["threshold"] for p in ask([study], knobs={"threshold": (0.1, 0.2)}).points} == {0.1, 0.2}
    layered = ask([study], layers=5).points
    assert len({(p.accuracy, p.macs) for p in layered}) == len(layered) == 7  # the equal points are told once


def test_fronts_of_methods_beside_the_joint_one(study: Any) -> None:
    front = ask([study], by_method=True)
    assert set(front.methods) == {"static", "skipnet"}
    for name, own in front.methods.items():
        assert {p.method for p in own} == {name} and front.hypervolumes[name] < front.hypervolume
        assert [p.point_id for p in own] == [p.point_id for p in ask([study], methods=[name]).points]


def test_several_studies_have_one_front(story: type, tmp_path: Path) -> None:
    one = keep(told(story), tmp_path, "one", flushed=True)
    better = story()
    trial = better.ask(0, "static")
    better.report(trial, 1, [(0.99, 1.5e6)])
    two = keep(better, tmp_path, "two", reference={"error": 0.9, "macs": 2e8})
    front = ask([one, two, one])
    assert [(p.study, p.macs) for p in front.points] == [("one", 1e6), ("two", 1.5e6)]
    assert front.reference == (0.9, 2e8) and list(front.studies) == ["one", "two"]
    assert front.record()["study"] is None and front.record()["studies"] == ["one", "two"]


@pytest.mark.parametrize(
    "data",
    [
        {"hash": "1" * 64, "task": {"classes": 10, "size": 16, "channels": 1}},
        {"hash": "0" * 64, "task": {"classes": 10, "size": 32, "channels": 1}},
    ],
)
def test_data_sets_are_never_mixed(story: type, tmp_path: Path, data: dict[str, Any]) -> None:
    one, two = keep(told(story), tmp_path, "one"), told(story)
    other = keep(two, tmp_path, "two", data={**two.events[0].payload["data"], **data})
    with pytest.raises(InputError, match="different images: points of different data sets share no front"):
        ask([one, other])


def test_the_layers_are_those_of_moocore() -> None:
    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 12)), max_size=60), st.integers(1, 6))
    def check(pairs: list[tuple[int, int]], layers: int) -> None:
        error, macs = np.array([e / 12 for e, _ in pairs]), np.array([float(m) for _, m in pairs])
        found = front_rows(error, macs, layers)
        unique = sorted(set(zip(error.tolist(), macs.tolist(), strict=True)))
        ranks = moocore.pareto_rank(np.array(unique)) if unique else np.zeros(0)
        for layer in range(layers):
            expected = {pair for pair, rank in zip(unique, ranks, strict=True) if rank == layer}
            rows = found[layer].tolist() if layer < len(found) else []
            assert {(error[r], macs[r]) for r in rows} == expected and len(rows) == len(expected)

    check()


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"methods": ["sdv"]}, "no trial of method 'sdv' in this study; known: skipnet, static"),
        ({"methods": ["skpnet"]}, "did you mean 'skipnet'"),
        ({"variants": ["x"]}, "no trial of variant 'x'"),
        ({"networks": ["resnet-9"]}, "no trial of network 'resnet-9'"),
        ({"max_params": 10}, "no operating point has at most 10 parameters; the smallest network has 1k"),
        ({"knobs": {"q": 1}}, "has the knobs q 1; knobs there are threshold"),
        ({"min_accuracy": 95}, r"accuracies lie in \[0, 1\]"),
        ({"layers": 0}, "layers 0: ask for 1"),
    ],
)
def test_bad_questions(study: Any, wishes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask([study], **wishes)


def test_a_budget_that_nothing_meets_says_the_cheapest(study: Any) -> None:
    front = ask([study], max_macs=12)
    assert not front.points and "the cheapest costs 1M MACs (70.0 %)" in front.empty
    assert "the most accurate has 95.0 % (8M MACs)" in front.empty
    assert "accuracy of at least 99.0 %" in ask([study], min_accuracy=0.99).empty


def test_a_folder_of_another_version(story: type, tmp_path: Path, study: Any) -> None:
    odd = keep(told(story), tmp_path, "odd", reference={"point": [0.9, 1e8]})
    with pytest.raises(InputError, match=r"another version of routefront: its first event lacks reference\.error"):
        ask([odd])
    path = next(study.folder.points.glob("*.parquet"))
    table = pq.read_table(path)
    newer = {point_store._VERSION_KEY: b"99"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(InputError, match="99"):
        ask([study])


# -- what is written -------------------------------------------------------------------------------

EVIL = ['=HYPERLINK("http://evil.example")', "+1+1", "-2+3", "@SUM(A1)", "\t=1", " =1", "%0A=1"]


@pytest.mark.parametrize("name", EVIL)
def test_no_cell_is_a_formula(name: str) -> None:
    assert str(cell(name)).startswith("'") and cell(name).endswith(name)
    assert cell("resnet-8") == "resnet-8" and cell(-1.5) == -1.5 and cell({"=a": 1}).startswith("{")


def test_files_hold_what_was_asked(story: type, tmp_path: Path) -> None:
    one = story()
    trial = one.ask(0, "static", network="=cmd|' /C calc'!A0", variant="[red]<b>\x1b[31mx")
    one.report(trial, 1, [(0.9, 1e6)])
    study = keep(one, tmp_path)
    front = ask([study], sure=True)
    write_csv(front.points, tmp_path / "f.csv")
    with (tmp_path / "f.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["network"] == "'=cmd|' /C calc'!A0" and float(row["macs"]) == 1e6 and float(row["membership"]) == 1
    assert json.loads(row["knobs"]) == {"threshold": 0.0}
    write_parquet(front.points, tmp_path / "f.parquet")
    (record,) = pq.read_table(tmp_path / "f.parquet").to_pylist()
    assert record["network"].startswith("=cmd") and record["low"] < 0.9 < record["high"]
    from rich.console import Console

    console = Console(width=120, record=True, file=(tmp_path / "t").open("w"), force_terminal=True)
    console.print(front_table(front, front.points))
    shown = (tmp_path / "t").read_text()
    assert "\x1b[31m" not in shown and "[red]<b>?[31mx" in re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert printable("a\x1b]8;;\u202eb\n") == "a?]8;;?b?"


def test_printed_points_stay_with_their_data_set() -> None:
    found = published()
    assert {p.dataset for p in found} == {"cifar10", "cifar100", "svhn", "imagenet"}
    assert all(0.5 < p.accuracy < 1 and p.source and p.table and p.cost is not None for p in found)
    assert all(p.macs is None or 1e6 < p.macs < 1e10 for p in found)
    assert {p.dataset for p in published_for("cifar10:/data/x")} == {"cifar10"} and not published_for("digits")
    assert not published_for("cifar-10") and not published_for("imagenet-100")
    imta = {p.name: p for p in published_for("cifar100")}
    assert imta["IMTA, exit 7 of 7"].accuracy == 0.7596 and imta["IMTA, exit 7 of 7"].cited == "IMTA, table 1"


def test_the_command(study: Any, cli: Run, tmp_path: Path) -> None:
    def run(*words: object) -> tuple[int, str, str]:
        return cli(*words, "--studies", tmp_path)

    code, out, _ = run("frontier", "story", "--max-macs", "6M", "--best", "--json")
    found = json.loads(out)
    (point,) = found["points"]
    assert code == 0 and point["macs"] == 5e6 and 0 <= point["membership"] <= 1 and point["evidence"] == "counts"
    assert point["low"] < 0.91 < point["high"] and set(found["methods"]) == {"static", "skipnet"}
    files = {name: tmp_path / f"f.{name}" for name in ("csv", "parquet", "png")}
    code, out, _ = run(
        "frontier", "story", "--csv", files["csv"], "--parquet", files["parquet"], "--plot", files["png"]
    )
    assert code == 0 and all(path.stat().st_size > 500 for path in files.values()) and "95.0 %" in out
    assert json.loads(run("frontier", "story", "--history", "--json")[1])[0]["history"][-1]["hypervolume"] > 0
    assert "skipnet alone" in run("frontier", "story", "--by-method", "--papers")[1]
    for words, message in (
        (("--max-macs", "12"), "the cheapest costs 1M MACs"),
        (("--best", "--knee"), "give one of --best, --cheapest, --knee"),
        (("--knob", "q"), "write name=value"),
        (("--knob", "q=a..b"), "no range of numbers"),
        (("--axis", "time"), "the cost is macs, latency or latency-64"),
        (("--runtime", "tflite"), "what runs a point is torch or onnxruntime"),
        (("--batch", "16"), "images are timed alone (1) or by 64"),
        (("--axis", "latency", "--batch", "64"), "needs batches of 1, not --batch 64"),
        (("--latency",), "no checkpoint of these points is left to measure"),
        (("--csv", tmp_path), "cannot be written"),
        (("--parquet", tmp_path / "no" / "f"), "cannot be written"),
    ):
        code, out, err = run("frontier", "story", *words)
        assert code == 2 and not out and message in " ".join(err.split()), err
