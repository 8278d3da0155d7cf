"""Studies, registries and storages in folders whose names mean something in an address: ``a ?b#c%20d``."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.spec.toml import to_toml
from search.tracking.server import artifact_location, check_server, default_uri
from tests.support.kept_study import keep
from tests.support.unprivileged import run
from trainables.worker.remote import Remote

STRANGE = "a ?b#c%20d"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / STRANGE).mkdir()
    return tmp_path / STRANGE


def test_the_whole_road_in_one_folder(root: Path, tmp_path: Path) -> None:
    study = {
        "name": "road",
        "data": {"name": "digits", "image_size": 8, "limit": 64},
        "budget": {"trials": 1, "epochs": 1},
        "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 32}},
        "resources": {"workers": 1},
    }
    (root / "road.toml").write_text(to_toml(study))
    at = ("--studies", root)
    answers = run(
        [],
        ["search", root / "road.toml", *at],
        ["status", "road", "--json", *at],
        ["frontier", "road", "--json", *at],
        ["promote", "road", "--model", "road", "--max-macs", "1T", *at],
        ["history", "--model", "road", "--json", *at],
        ["predict", "--model", "road@champion", "--split", "test", "--limit", 4, "--json", *at],
    )
    assert [code for code, _, _ in answers] == [0] * 6, answers
    assert json.loads(answers[1][1])["state"] == "finished"
    (point,) = json.loads(answers[2][1])["points"]
    (version,) = json.loads(answers[4][1])
    assert version["aliases"] == ["champion"] and version["point_id"] == point["point_id"]
    assert json.loads(answers[5][1])["count"] == 4
    assert {path.name for path in tmp_path.iterdir()} == {STRANGE}  # nothing went to another place
    assert {path.name for path in root.iterdir()} == {"road.toml", "road", "mlflow.db", "mlflow-artifacts"}


def test_databases_lie_where_the_path_says(root: Path, tmp_path: Path, story: type) -> None:
    study = keep(story(), root, "told")
    assert (root / "told" / "control.db").is_file() and study.state().seq == 2
    address = sqlite_address(root / "group.db")
    Journal(address, "told", create=True).close()
    assert (root / "group.db").is_file() and Journal(address, "told").last() == 0
    check_server(default_uri(root))
    location = artifact_location(default_uri(root), tmp_path, "50% ?")
    assert location is not None and Path(root / "mlflow-artifacts").as_uri() in location
    assert {path.name for path in tmp_path.iterdir()} == {STRANGE}


def test_an_export_lies_where_the_path_says(root: Path, tmp_path: Path, story: type) -> None:
    from search.sampling.optuna_export import to_optuna

    told = story()
    told.report(told.ask(0), 9, [(0.9, 1e6)])
    to_optuna(told.state, told.spec, root / "out.db")
    assert optuna.get_all_study_names(sqlite_address(root / "out.db")) == ["story", "story (points)"]
    assert {path.name for path in tmp_path.iterdir()} == {STRANGE}


def test_a_storage_by_its_uri(root: Path) -> None:
    Remote(root.as_uri()).write("x/y", "z")
    assert (root / "x" / "y").read_text() == "z"


@pytest.mark.parametrize(("mark", "written"), [("?", "%3F"), ("#", "%23")])
def test_an_address_that_would_lead_elsewhere_is_refused(tmp_path: Path, mark: str, written: str) -> None:
    with pytest.raises(ValueError, match=f"is written {written}"):
        Remote(f"file://{tmp_path}/a{mark}b")
    if mark == "?":
        address = f"sqlite:///{tmp_path}/a?b/mlflow.db"
        with pytest.raises(InputError, match=f"is written {written}"):
            check_server(address)
        with pytest.raises(InputError, match=f"is written {written}"):
            Journal(address, "s", create=True)
    assert list(tmp_path.iterdir()) == []
