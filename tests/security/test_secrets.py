"""Passwords never get into what a study keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.spec.toml import to_toml
from tests.support.command import Run

PLAIN: dict[str, Any] = {
    "name": "secret",
    "data": {"name": "digits", "image_size": 8, "limit": 64},
    "budget": {"trials": 1, "epochs": 1},
    "methods": {"static": {"network": "resnet-8"}},
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"journal": "postgresql+psycopg://me:hush@db/x"}, "journal carries a password"),
        ({"journal": "postgresql+psycopg://db/x?user=me&password=hush"}, "PGPASSWORD, or write it into ~/.pgpass"),
        ({"tracking": {"uri": "http://me:hush@mlflow:5000"}}, "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ({"tracking": {"uri": "postgresql://me:hush@db/mlflow"}}, "tracking.uri carries a password"),
    ],
)
def test_a_password_is_refused_before_anything_is_written(
    cli: Run, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    file = tmp_path / "study.toml"
    file.write_text(to_toml({**PLAIN, **changes}))
    code, out, err = cli("search", file, "--studies", tmp_path / "studies")
    assert code == 2 and says in err and err.count("\n") == 1 and "hush" not in out + err
    assert not (tmp_path / "studies").exists()


def test_a_password_on_the_command_line_is_refused_too(cli: Run, tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text(to_toml(PLAIN))
    words = ("search", file, "--studies", tmp_path / "studies", "--tracking", "http://me:hush@127.0.0.1:9")
    code, out, err = cli(*words)
    assert code == 2 and "tracking.uri carries a password" in err and "hush" not in out + err
