"""Studies are composed, promoted and served; what cannot be is one line and leaves nothing behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from search.cascades.front import cascade_points
from search.errors import InputError, RunError
from search.report.watch import Page
from search.state.retention import kept_checkpoints
from search.study import Study
from search.tracking.server import default_uri
from tests.support.command import Run
from tests.support.kept_study import keep
from tests.support.promoting import copied
from trainables.data.splits import Data, Split
from trainables.export.folder import seal
from trainables.inference.predictions import PREDICTIONS


@pytest.fixture(scope="module")
def composed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the study `tiny`, composed; nobody changes it."""
    root = tmp_path_factory.mktemp("composed")
    copied(trained, root)
    Study.load("tiny", root=root).compose(splits=1, most=24)
    return root


@pytest.fixture
def own(composed: Path, tmp_path: Path) -> Study:
    copied(composed, tmp_path)
    return Study.load("tiny", root=tmp_path)


def test_cascades_are_points_of_the_study(composed: Path, cli: Run) -> None:
    study = Study.load("tiny", root=composed)
    state = study.state()
    (record,) = state.cascades
    points = cascade_points(state)
    assert len(points) == len(record["points"]) > 3 and record["compared"] > 10_000 and record["images"] == 360
    for point, told in zip(points, record["points"], strict=True):
        assert point.kind == point.method == "cascade" and point.accuracy == told["expected"] <= told["accuracy"]
        assert told["low"] <= told["expected"] <= told["high"] and 0 <= told["membership"] <= 1
        assert told["going"][0] == 1 and told["going"] == sorted(told["going"], reverse=True)
        assert {m["checkpoint"] for m in told["members"]} <= kept_checkpoints(state)
    table = pq.read_table(composed / "tiny" / "cascades" / "0001.parquet").to_pylist()
    assert [row["point_id"] for row in table] == [point.point_id for point in points]
    assert {row["point_kind"] for row in table} == {"cascade"} and "cascades" in "".join(study.folder.written()[0])
    code, out, _ = cli("frontier", "tiny", "--studies", str(composed), "--json")
    both = json.loads(out)["points"]
    code_without, out, _ = cli("frontier", "tiny", "--studies", str(composed), "--no-cascades", "--json")
    alone = json.loads(out)["points"]
    assert code == code_without == 0
    assert {p["kind"] for p in both} == {"point", "cascade"} and {p["kind"] for p in alone} == {"point"}
    best = {p["macs"]: p["accuracy"] for p in both}
    for point in alone:  # nothing of the front is lost
        assert max(accuracy for macs, accuracy in best.items() if macs <= point["macs"]) >= point["accuracy"]
    budget = both[len(both) // 2]["macs"]
    _, out, _ = cli("frontier", "tiny", "--studies", str(composed), "--max-macs", f"{budget:.0f}", "--json")
    assert all(p["macs"] <= budget for p in json.loads(out)["points"])


def test_the_command_tells_what_it_gains(tiny: Study, cli: Run) -> None:
    root = str(tiny.folder.path.parent)
    code, _, err = cli("frontier", "tiny", "--studies", root, "--with-cascades")
    assert code == 2 and "has no cascades yet; compose it first: routefront compose tiny" in err
    code, out, err = cli(
        "compose", "tiny", "--studies", root, "--members", "2", "--splits", "1", "--most", "16", "--rule", "margin-last"
    )
    assert code == 0, err
    assert "that were compared" in out and "with cascades" in out and "fewer MACs" in out
    code, out, _ = cli("frontier", "tiny", "--studies", root)
    assert code == 0 and "cascade margin-last" in out and "what is expected of them" in out
    assert tiny.state().cascades[0]["rules"] == ["margin-last"]


def test_a_search_that_ends_composes(tiny: Study, story: type, tmp_path: Path) -> None:
    """What `compose = true` does behind the last trial: it never fails a study that is finished."""
    said: list[str] = []
    told = story()
    trial = told.ask(0)
    told.report(trial, 9, [(0.5, 1e6)])
    nothing = keep(told, tmp_path, "nothing")
    for study in (nothing, tiny):
        with study.driving() as driver:
            study._compose(driver, said.append)
    assert said[0].startswith("no cascades: no checkpoint of nothing keeps predictions")
    assert said[-1].endswith("cascades on the front: routefront frontier tiny --with-cascades")
    assert tiny.state().cascades and not nothing.state().cascades


def test_a_page_that_is_watched_composes_what_is_there_so_far(tiny: Study) -> None:
    """With `compose = true`, while the study searches; the page records nothing."""
    assert "<h2>Cascades</h2>" not in Page(tiny).body("html")[0].decode()
    live = Study(tiny.spec.model_copy(update={"compose": True}), tiny.folder)
    page = Page(live)
    html = page.body("html")[0].decode()
    assert "These are of the networks so far, and recorded nowhere." in html and "c0000-2-0" in html
    sections = json.loads(page.body("json")[0])["sections"]
    assert "recorded nowhere" in sections["cascades"]
    assert not tiny.state().cascades and not (tiny.folder.path / "cascades").exists()
    tiny.compose(splits=1, most=24)
    html = Page(live).body("html")[0].decode()
    assert "recorded nowhere" not in html and "c0001-2-0" in html  # the study has ended: what it recorded


def test_a_cascade_is_promoted_served_and_rolled_back(own: Study, digits_small: Data) -> None:
    from search.promotion.history import rollback
    from search.promotion.models import load, predict

    uri = default_uri(own.folder.path.parent)
    points = cascade_points(own.state())
    dear, cheap = points[-1], points[len(points) // 2]
    first = own.promote(model="digits", uri=uri, point=cheap.point_id, data=digits_small)
    gates = {gate["name"]: gate for gate in first["gates"]}
    assert list(gates) == [
        "checkpoint", "validation", "decisions", "macs", "forward", "latency", "seeds", "champion", "test"
    ]  # fmt: skip
    assert all(gate["passed"] is not False for gate in gates.values()) and gates["decisions"]["passed"]
    assert np.isclose(gates["macs"]["evidence"]["counted"], gates["macs"]["evidence"]["charged"])
    second = own.promote(model="digits", uri=uri, cascades=True, max_macs=2 * dear.macs, data=digits_small)
    assert second["version"] == "2" and second["point_id"] == max(points, key=lambda p: p.accuracy).point_id
    served = load("digits@champion", uri)
    split = digits_small.validation
    rows = list(predict(served, split.images))
    assert np.isclose(np.mean([row["macs"] for row in rows]), second["validation"]["measured_macs"])
    right = np.mean([row["label"] == label for row, label in zip(rows, split.labels, strict=True)])
    assert np.isclose(right, second["validation"]["measured_accuracy"])
    assert {row["exit"] for row in rows} <= set(range(len(served.serving["exits"]))) and len(
        {r["exit"] for r in rows}
    ) > 1
    cheapest = min(each["macs"] for each in served.serving["curve"])
    less = list(predict(served, split.images[:100], max_macs=1.3 * cheapest))
    assert np.mean([row["macs"] for row in less]) < np.mean([row["macs"] for row in rows[:100]])
    with pytest.raises(InputError, match="the cheapest setting costs"):
        list(predict(served, split.images[:4], max_macs=0.5 * cheapest))
    _leaves(own.folder.path / "out", uri, split)
    assert rollback("digits", "champion", uri)["version"] == "1"
    single = own.promote(
        model="other", uri=uri, point="t0000-3-0", data=digits_small
    )  # a member by itself still can be
    assert single["promoted"]
    with pytest.raises(InputError, match="--calibrate-on takes a single operating point"):
        own.promote(model="digits", uri=uri, point=dear.point_id, calibrate_on=own.folder.path, data=digits_small)


def _leaves(folder: Path, uri: str, split: Split) -> None:
    """The champion, a cascade, leaves as its members with their rule and answers outside as the registry's model."""
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")
    from search.promotion.export import export_model
    from search.promotion.models import load, predict
    from trainables.export.routefront_runner import CascadeRunner, Refused, Runner
    from trainables.export.routefront_runner import load as opened

    with pytest.raises(InputError, match=r"--int8: digits.* is a cascade, which leaves as ONNX graphs in float32"):
        export_model("digits@champion", folder, uri=uri, int8=True)
    with pytest.raises(InputError, match=r"--to pt2: digits.* is a cascade"):
        export_model("digits@champion", folder, uri=uri, to="pt2")
    record = export_model("digits@champion", folder, uri=uri, limit=200)
    names = ["logits", "path", "macs", "answers", "cascade path", "cascade macs"]
    assert {gate["name"]: gate["passed"] for gate in record["gates"]} == dict.fromkeys(names, True)
    runner = opened(folder)
    assert isinstance(runner, CascadeRunner)
    rows = list(predict(load("digits@champion", uri), split.images[:100]))
    found = runner.predict(split.images[:100])
    for name in ("label", "macs", "exit"):
        assert found[name].tolist() == [row[name] for row in rows], name
    assert len(set(found["exit"].tolist())) > 1
    cheapest = min(each["macs"] for each in runner.settings)
    less = runner.predict(split.images[:100], max_macs=1.3 * cheapest)
    assert less["macs"].mean() < found["macs"].mean()
    with pytest.raises(Refused, match="thresholds of this cascade are"):
        runner.predict(split.images[:2], values={"thresholds": []})
    with pytest.raises(Refused, match="holds a cascade, which CascadeRunner runs"):
        Runner(folder)
    manifest = folder / runner.members[0]["folder"] / "manifest.json"
    told = json.loads(manifest.read_text())
    seal(manifest.parent, {**told, "rule": "another"})
    with pytest.raises(Refused, match=r"member .* was changed: its digest is not that of the manifest"):
        opened(folder)


def test_what_was_composed_must_still_be_there(own: Study, digits_small: Data) -> None:
    uri = default_uri(own.folder.path.parent)
    point = cascade_points(own.state())[-1]
    with pytest.raises(InputError, match="no cascade meets the budget; the cheapest costs"):
        own.promote(model="digits", uri=uri, cascades=True, max_macs=10, data=digits_small)
    with pytest.raises(InputError, match="no cascade 'c0009-2-0' in study 'tiny'; there are c0001"):
        own.promote(model="digits", uri=uri, point="c0009-2-0", data=digits_small)
    member = own.state().cascades[-1]["points"][-1]["members"][0]
    folder = own.folder.checkpoints / member["checkpoint"]
    changed(folder, "network.safetensors", other_weights)
    with pytest.raises(RunError, match="gate checkpoint"):
        own.promote(model="digits", uri=uri, point=point.point_id, data=digits_small)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="no checkpoint at"):
        own.promote(model="digits", uri=uri, point=point.point_id, data=digits_small)


def changed(folder: Path, name: str, change: Any) -> None:
    """Change a file of a checkpoint and its digest with it."""
    change(folder / name)
    record = json.loads((folder / "state.json").read_text())
    record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "state.json").write_text(json.dumps(record))


def other_weights(path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: tensor * 1.5 for name, tensor in load_file(path).items()}, path)


def other_version(path: Path) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez_compressed(path, **{**arrays, "version": np.array(9)})


def other_split(path: Path) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    np.savez_compressed(path, **{**arrays, "labels": arrays["labels"][::-1]})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_version, "was kept by another version"),
        (other_split, "was measured on another validation split"),
        (lambda path: path.write_bytes(b"PK"), "is damaged"),
    ],
)
def test_predictions_that_do_not_fit_are_one_line(change: Any, says: str, tiny: Study) -> None:
    trial = next(iter(tiny.state().trials.values()))
    changed(tiny.folder.checkpoints / f"{trial.id}/epoch-0003", PREDICTIONS, change)
    with pytest.raises(InputError, match=says) as caught:
        tiny.compose()
    assert "\n" not in str(caught.value) and not (tiny.folder.path / "cascades").exists()
    assert not tiny.state().cascades


def test_members_that_cannot_be_are_one_line(tiny: Study, cli: Run) -> None:
    root = ("--studies", str(tiny.folder.path.parent))
    shutil.rmtree(tiny.folder.checkpoints / "t0001" / "epoch-0003")
    for words, says in (
        (["--point", "t0000-3-0"], "1 member: a cascade takes at least two"),
        (["--point", "t0000-3-0", "--point", "t0001-3-1"], "its checkpoint t0001/epoch-0003 is gone"),
        (["--point", "t0000-3-0", "--point", "t0009-3-1"], "no point 't0009-3-1' in study 'tiny'"),
        (["--point", "other:t0000-3-0"], "study 'other' is not among tiny"),
        (["--members", "5"], "members 5: a cascade has 2 to 4"),
        (["--rule", "best"], "rule 'best': write one of probability-last"),
        (["--splits", "0"], "splits 0"),
        (["--most", "1"], "--most 1"),
    ):
        code, _, err = cli("compose", "tiny", *root, *words)
        assert code == 2 and says in err and len(err.strip().splitlines()) == 1, err


def test_studies_of_other_images_labels_or_splits_are_refused(tmp_path: Path, story: type) -> None:
    data = next(e for e in story().events if e.kind == "created").payload["data"]
    keep(story(), tmp_path, "one")
    for name, change, says in (
        ("images", {"hash": "1" * 64}, "studies of different images"),
        ("labels", {"classes": data["classes"][::-1]}, "classes or orders of labels"),
        ("task", {"task": {**data["task"], "size": 8}}, "kinds of images"),
        ("splits", {"counts": [1000, 437, 360]}, "have different splits"),
    ):
        keep(story(), tmp_path, name, data={**data, **change})
        with pytest.raises(InputError, match=says):
            Study.load("one", root=tmp_path).compose(Study.load(name, root=tmp_path))


def test_a_study_that_kept_nothing_says_so(tmp_path: Path, story: type) -> None:
    told = story()
    trial = told.ask(0)
    told.report(trial, 9, [(0.5, 1e6), (0.6, 2e6)])
    study = keep(told, tmp_path, "old")
    with pytest.raises(InputError, match="no checkpoint of old keeps predictions"):
        study.compose()


def test_a_journal_from_a_stranger_names_no_other_files(tmp_path: Path, story: type) -> None:
    member = {"study": "story", "trial": "t0000", "checkpoint": "../../etc", "point_id": "t0000-1-0"}
    for bad in (member, {**member, "checkpoint": "t0000/epoch-0001", "study": "../.."}, {"study": "story"}):
        told = story()
        told.add("cascades", {"number": 1, "points": [{"members": [bad]}]})
        with pytest.raises(InputError, match="the journal is damaged"):
            _ = told.state
