"""Which methods a study takes that names none, and what options leave of a study file's rungs."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from search.errors import InputError
from search.spec.study import StudySpec
from search.study import Study
from tests.support.command import Run
from trainables.data.image_files import export
from trainables.data.splits import Split
from trainables.registry import METHODS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images of 30 x 30 pixels, which multipath's networks cannot halve often enough."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 1, 30, 30), dtype=np.uint8)
    export(Split(pixels, np.arange(20) % 2), tmp_path / "set", ("a", "b"))
    return tmp_path / "set"


def _spec(folder: Path, **changes: Any) -> StudySpec:
    budget = {"trials": 2, "epochs": 4}
    return StudySpec.parse({"name": "own", "data": {"name": str(folder)}, "budget": budget, **changes})


def test_methods_that_nobody_named_are_left_out_in_one_line_each(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "routefront.search"):
        study = Study.create(_spec(folder), root=tmp_path)
    left = [record.getMessage() for record in caplog.records]
    assert len(left) == len(METHODS) - len(study.spec.methods) >= 1
    (said,) = [line for line in left if line.startswith("method multipath is left out: ")]
    assert "30" in said and "multiple of" in said and "\n" not in said
    assert "multipath" not in study.spec.methods and {"static", "skipnet"} <= study.spec.methods.keys()
    assert study.state().created["spec"]["methods"].keys() == study.spec.methods.keys()
    again = Study.create(_spec(folder), root=tmp_path)  # the same command once more
    assert again.spec.methods == study.spec.methods


def test_methods_that_were_named_are_an_error(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"methods\.multipath: .*30.*multiple of"):
        Study.create(_spec(folder, methods={"static": {}, "multipath": {}}), root=tmp_path)
    assert not (tmp_path / "own").exists()


def test_where_no_method_is_left_it_says_why(tmp_path: Path) -> None:
    for number in range(20):
        path = tmp_path / "tiny" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), number, dtype=np.uint8)).save(path)
    only = {"multipath": {}}
    spec = _spec(tmp_path / "tiny").model_copy(update={"methods": only})
    spec.__pydantic_fields_set__.discard("methods")
    with pytest.raises(InputError, match="no method can be trained so: "):
        Study.create(spec, root=tmp_path)


def test_too_few_epochs_leave_methods_out_of_a_forecast(
    cli: Run, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "own.toml").write_text(f'name = "own"\n[data]\nname = "{folder}"\n')
    code, out, said = cli("search", tmp_path / "own.toml", "--epochs", 1, "--dry-run", "--json", "--studies", tmp_path)
    assert code == 0, said
    space = json.loads(out)["space"]
    assert "static" in space and "imta" not in space
    assert any("method imta is left out: epochs = 1: 2 phases" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("epochs", "rungs", "left"), [(2, [1], "2, 5"), (5, [2], "5"), (9, [2, 5], "")])
def test_epochs_leave_rungs_of_the_file_behind(
    cli: Run, tmp_path: Path, epochs: int, rungs: list[int], left: str
) -> None:
    words = "search", "--preset", "digits", "--epochs", epochs, "--dry-run", "--json", "--studies", tmp_path
    code, out, said = cli(*words)
    assert code == 0, said
    assert (f"rungs at epochs {left} are left out: a full training has {epochs}" in said) == bool(left)
    spec = json.loads(out)
    assert spec["rungs"] == rungs


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a" * 101, "study name 'aaaaaaaaaaaaaaaaaaaa'... has 101 characters; it may have 100"),
        ("-a", "the first a letter or digit"),
        ("", "the first a letter or digit"),
    ],
)
def test_a_name_says_its_rule(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        StudySpec.parse({"name": name})


@pytest.mark.parametrize(
    ("method", "values", "said"),
    [
        ("static", {"lr": 900.0}, r"lr = 900\.0: a learning rate lies above 0 and below 100"),
        ("static", {"lr": {"low": 0.1, "high": 200.0}}, r"lr = 200\.0: a learning rate lies above 0 and below 100"),
        ("static", {"warmup_lr": 100.0}, r"warmup_lr = 100\.0: a learning rate lies above 0 and below 100; 0 is a"),
        ("codinet", {"stage2_lr": 100.0}, r"stage2_lr = 100\.0: a learning rate lies above 0 and below 100"),
        ("blockdrop", {"policy_lr": -1.0}, r"policy_lr = -1\.0: a learning rate lies above 0 and below 100"),
        ("imta", {"phase2_lr": 100.0}, r"phase2_lr = 100\.0: a learning rate lies above 0 and below 100"),
        ("skipnet", {"hrl_lr": 100.0}, r"hrl_lr = 100\.0: a learning rate lies above 0 and below 100"),
        ("static", {"width": 1e6}, r"width = 1000000\.0: a channel multiplier lies above 0 and is at most 100"),
        ("ensemble", {"members": 10**9}, "members = 1000000000: must be a whole number from 2 to 100; 0 takes"),
        ("ensemble", {"members": 1}, "members = 1: must be a whole number from 2 to 100"),
        ("imta", {"curve_points": 0}, "curve_points = 0: must be a whole number from 2 to 40"),
        ("multipath", {"se_ratio": -2}, "se_ratio = -2: must be a whole number of at least 1; 0 is "),
    ],
)
def test_what_is_beyond_a_limit_is_told_the_limit(method: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"methods.{method}: {said}"):
        StudySpec.parse({"name": "s", "methods": {method: values}})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"budget": {"time": 0}}, "budget.time = 0: a time must be longer than nothing"),
        ({"resources": {"patience": 0}}, "resources.patience = 0: a patience must be longer than nothing"),
        ({"constraints": {"max_macs": float("nan")}}, "nan: a limit must be above 0"),
        ({"constraints": {"max_seconds": 0}}, "constraints.max_seconds = 0: a limit must be above 0"),
    ],
)
def test_amounts_of_nothing_name_their_field(table: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        StudySpec.parse({"name": "s", **table})
