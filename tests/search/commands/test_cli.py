"""The command line as a person meets it: the whole road once, and what bad input is told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from search.spec.toml import to_toml
from tests.support.command import Run

SPEC: dict[str, Any] = {
    "name": "road",
    "data": {"name": "digits", "image_size": 16},
    "budget": {"trials": 4, "epochs": 3},
    "rungs": {"epochs": [1], "grace": 1},
    "methods": {
        "static": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
        "skipnet": {"network": "resnet-8", "width": 0.25, "batch_size": 64, "gate": "linear"},
        "codinet": {"network": "resnet-8", "width": 0.25, "batch_size": 64, "views": 2},
        "imta": {"network": "msdnet-2", "width": 0.25, "batch_size": 64},
    },
}


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


def _file(folder: Path, **changes: Any) -> Path:
    path = folder / "study.toml"
    path.write_text(to_toml({**SPEC, **changes}))
    return path


def _road(cli: Run, studies: Path, ray_address: str) -> None:
    """The study of these tests, run once."""
    if not (studies / "road").exists():
        code, out, err = cli("search", _file(studies), "--studies", studies, "--address", ray_address, "--json")
        assert code == 0, err
        record = json.loads(out)
        assert record["trials"]["total"] == 4 and record["trials"]["failed"] == 0 and record["front_points"] >= 2
        assert record["state"] == "finished" and record["hypervolume"] > 0


def test_what_a_finished_study_keeps(cli: Run, studies: Path, ray_address: str) -> None:
    from search.points import files as points
    from search.state.retention import kept_checkpoints
    from search.study import Study

    _road(cli, studies, ray_address)
    study = Study.load("road", root=studies)
    state = study.state()
    for trial in state.trials.values():
        assert all(len(curve) >= (1 if trial.method == "static" else 9) for curve in trial.curves.values())
    told = sum(len(c) for t in state.trials.values() for c in t.curves.values())
    table = points.read(study.folder.points)
    assert table.num_rows == told and set(table.column("split").to_pylist()) == {"validation"}
    kept = {f"{p.parent.name}/{p.name}" for p in study.folder.checkpoints.glob("*/epoch-*")}
    assert kept == kept_checkpoints(state)
    assert {point.checkpoint for point in study.frontier()} <= kept
    before = state.count()
    assert study.launch(address=ray_address) == "finished"  # nothing is run again
    assert study.state().count() == before


def test_the_whole_road(cli: Run, studies: Path, ray_address: str, tmp_path: Path) -> None:
    _road(cli, studies, ray_address)
    at = ("--studies", studies)
    code, out, _ = cli("frontier", "road", *at, "--json")
    front = json.loads(out)
    assert code == 0 and front["points"] and front["reference"]["error"] == pytest.approx(0.9)
    assert {"point_id", "method", "accuracy", "macs", "knobs", "checkpoint"} <= set(front["points"][0])
    macs = [p["macs"] for p in front["points"]]
    assert macs == sorted(macs)
    assert len(json.loads(cli("frontier", "road", *at, "--knee", "--json")[1])["points"]) == 1

    code, out, _ = cli("report", "road", *at, "--out", tmp_path, "--json")
    files = json.loads(out)
    assert code == 0 and Path(files["png"]).stat().st_size > 5000 and "<html" in Path(files["html"]).read_text()[:200]

    budget = str(max(macs))
    promote = ("promote", "road", *at, "--max-macs", budget, "--model", "road", "--json")
    code, out, err = cli(*promote)
    assert code == 0, err
    record = json.loads(out)
    assert record["alias"] == "champion" and record["validation"]["macs"] <= max(macs)
    assert 0 <= record["test"]["low"] <= record["test"]["accuracy"] <= record["test"]["high"] <= 1

    code, out, err = cli("predict", "--model", "road@champion", *at, "--split", "test", "--json")
    assert code == 0, err
    predicted = json.loads(out)
    assert predicted["count"] == record["test"]["count"]
    assert predicted["accuracy"] == pytest.approx(record["test"]["accuracy"])
    assert predicted["macs"] == pytest.approx(record["test"]["macs"])
    again = json.loads(cli(*promote)[1])
    assert again["test"] == record["test"]  # the test split was not evaluated a second time

    versions = json.loads(cli("history", "--model", "road", *at, "--json")[1])
    assert [v["version"] for v in versions] == [record["version"]] and versions[0]["aliases"] == ["champion"]
    assert versions[0]["study"] == "road" and cli("history", "--model", "road", *at)[0] == 0
    code, out, err = cli("rollback", "--model", "road", *at)
    assert code == 2 and not out and "none before it" in err

    code, out, _ = cli("status", "road", *at, "--json")
    status = json.loads(out)
    assert {"study", "state", "trials", "epochs", "seconds", "hypervolume", "front_points"} <= set(status)
    assert {"running", "stopped", "finished", "failed", "total"} <= set(status["trials"])
    story = json.loads(cli("status", "road", *at, "--trial", "t0001", "--json")[1])
    assert [e["kind"] for e in story["events"]][:2] == ["ask", "start"]
    assert [r["study"] for r in json.loads(cli("list", *at, "--json")[1])] == ["road"]
    for words in (("status", "road"), ("frontier", "road"), ("list",), ("status", "road", "--trial", "t0000")):
        code, out, _ = cli(*words, *at)
        assert code == 0 and out.strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("frontier", "raod"), "no study 'raod'.*did you mean 'road'"),
        (("frontier", "road", "--max-macs", "12"), "no operating point has at most 12 MACs; the cheapest costs"),
        (("frontier", "road", "--max-macs", "few"), "'few' is not a number; write"),
        (("frontier", "road", "--min-accuracy", "95"), r"accuracies lie in \[0, 1\]"),
        (("frontier", "road", "--method", "sdv"), "no trial of method 'sdv'"),
        (("status", "road", "--trial", "t9999"), "no trial 't9999'"),
        (("stop", "road"), "is not running"),
        (("promote", "road", "--max-macs", "12", "--model", "m"), "the cheapest costs"),
        (("promote", "road", "--model", "a/b"), "model name 'a/b'"),
        (("predict", "--model", "nobody@champion", "--split", "test"), "no (registered )?model"),
        (("predict", "--model", "nobody", "--split", "test"), "write NAME@ALIAS"),
        (("predict", "--model", "x@y"), "give --images FILES or --split test"),
    ],
)
def test_bad_questions_get_one_line(
    cli: Run, studies: Path, ray_address: str, words: tuple[str, ...], message: str
) -> None:
    import re

    _road(cli, studies, ray_address)
    code, out, err = cli(*words, "--studies", studies)
    line = " ".join(err.split())
    assert code == 2 and not out and "Traceback" not in err
    assert line.startswith("error: ") and re.search(message, line), line


@pytest.mark.parametrize(
    ("changes", "words", "message"),
    [
        ({}, ("--methods", "skipnt"), "unknown method 'skipnt'; did you mean 'skipnet'"),
        ({}, ("--trials", "0"), "budget.trials = 0"),
        ({}, ("--trials", "-1"), "budget.trials = -1"),
        ({}, ("--time", "later"), "'later' is not a time"),
        ({}, ("--name", "a b"), "study name 'a b'"),
        ({}, ("--data", "nowhere"), "nowhere"),
        ({}, ("--tracking", "http://127.0.0.1:9"), "http://127.0.0.1:9 does not answer"),
        ({}, ("--preset", "digits"), "one study file or one --preset"),
        ({"methods": {"skipnet": {"gate": "rnx"}}}, (), "skipnet takes one of"),
        ({"methods": {"skipnet": {"lr": {"low": 2.0, "high": 1.0}}}}, (), "upside down"),
        ({"methods": {"imta": {"network": "msdnet-3", "growth": 0}}}, (), "growth = 0"),
        ({"data": {"name": "digits", "image_size": 4}}, (), "image|too small"),
        ({"methods": {"blockdrop": {}}}, ("--epochs", "2"), "methods.blockdrop: epochs = 2: 3 phases .* need at least"),
        ({"surprise": 1}, (), "unknown key 'surprise'"),
    ],
)
def test_bad_studies_are_refused_before_anything_is_written(
    cli: Run, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...], message: str
) -> None:
    import re

    root = tmp_path / "studies"
    code, out, err = cli("search", _file(tmp_path, **changes), "--studies", root, *words)
    line = " ".join(err.split())
    assert code == 2 and not out and "Traceback" not in err
    assert re.search(message, line), line
    assert not list(root.glob("*/")) if root.exists() else True


def test_images_that_are_none_and_a_damaged_study(cli: Run, studies: Path, ray_address: str, tmp_path: Path) -> None:
    import shutil

    _road(cli, studies, ray_address)
    shutil.copytree(studies / "road", tmp_path / "road")
    points = next((tmp_path / "road" / "points").glob("*.parquet"))
    points.write_bytes(points.read_bytes()[:200])
    code, _, err = cli("report", "road", "--studies", tmp_path, "--out", tmp_path)
    assert code == 2 and points.name in "".join(err.split())
    journal = tmp_path / "road" / "control.db"
    journal.write_bytes(journal.read_bytes()[: journal.stat().st_size // 2])
    code, _, err = cli("status", "road", "--studies", tmp_path)
    assert code == 2 and "journal" in err


def test_methods_describe_and_dry_run(cli: Run, tmp_path: Path) -> None:
    code, out, _ = cli("methods", "--json")
    found = {m["name"]: m for m in json.loads(out)}
    assert code == 0 and {"static", "skipnet", "codinet", "imta"} <= set(found)
    assert all(m["paper"] and m["networks"] and m["space"] for m in found.values())
    code, out, _ = cli("describe", "codinet", "--network", "resnet-110", "--json")
    record = json.loads(out)
    assert code == 0 and record["params"] == 1_829_654 and record["macs_full"] == 252_887_680 + 96_864
    keys = "method variant network params params_by_part macs_full macs_min units exits paper_cost config"
    assert set(keys.split()) <= set(record)
    assert json.loads(cli("describe", "skipnet", "--network", "resnet-38", "--json")[1])["params"] == 571_263
    told = cli("describe", "imta")[1]
    assert "in the paper's unit (MADDs = MACs" in told and "    params              288,094  626,520  " in told
    wide = json.loads(cli("describe", "static", "--network", "resnet-8", "--set", "width=2.0", "--json")[1])
    assert wide["config"]["width"] == 2.0
    for words, message in (
        (("describe", "codinett"), "did you mean 'codinet'"),
        (("describe", "codinet", "--network", "resnet-9"), "resnet-9"),
        (("describe", "codinet", "--variant", "fulll"), "did you mean 'full'"),
        (("describe", "codinet", "--set", "gama=1"), "did you mean 'gamma'"),
        (("describe", "codinet", "--set", "gamma"), "write key=value"),
        (("describe", "imta", "--network", "msdnet-3", "--image-size", "5"), "5"),
    ):
        code, out, err = cli(*words)
        assert code == 2 and message in " ".join(err.split()) and not out
    code, out, _ = cli("search", _file(tmp_path), "--dry-run", "--json")
    assert code == 0 and json.loads(out)["most_epochs"] == 12
    code, out, _ = cli("methods", "codinet")
    assert code == 0 and "gamma" in out


def test_every_command_has_help_with_an_example_and_nothing_of_it_is_lost_as_markup() -> None:
    code = """
import sys
from rich.text import Text
from typer.main import get_command
from typer.testing import CliRunner
from search.__main__ import app

def commands(group, *above):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *above, name)
        else:
            yield [*above, name], command

found = list(commands(get_command(app)))
assert len(found) > 20
for words, command in found:
    result = CliRunner().invoke(app, [*words, "--help"])
    assert result.exit_code == 0 and "Example" in result.output, words
    for each in command.params:
        assert each.help and Text.from_markup(each.help).plain == each.help, (words, each.name)
assert not {"torch", "ray", "mlflow", "optuna"} & set(sys.modules), "help must be quick"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_a_study_without_an_operating_point_is_no_success(cli: Run, ray_address: str, tmp_path: Path) -> None:
    methods = {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 2}}
    budget = {"trials": 1, "epochs": 9, "time": "1s"}
    file = _file(tmp_path, name="short", methods=methods, budget=budget, rungs={"enabled": False})
    code, out, err = cli("search", file, "--studies", tmp_path, "--address", ray_address, "--tracking", "off")
    assert code == 1 and out.startswith("failed: 0 trials finished")
    assert "the budget ended before any trial had an operating point" in err
    assert json.loads(cli("status", "short", "--studies", tmp_path, "--json")[1])["state"] == "failed"
    code, out, err = cli("resume", "short", "--studies", tmp_path, "--address", ray_address, "--tracking", "off")
    assert code == 1 and out.startswith("failed: ")  # and nothing was started
