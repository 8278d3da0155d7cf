"""MLflow's database has another schema than the MLflow here understands: one line, whatever is asked."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from search.spec.toml import to_toml
from tests.support.command import Run
from tests.support.kept_study import keep

_OLDER = "0584bdc529eb"
_COMMANDS = ("promote", "rollback", "history", "predict", "track", "search")


def _ask(cli: Run, command: str, root: Path, uri: str, story: type) -> tuple[int, str, str]:
    at = ("--studies", root / "studies", "--tracking", uri)
    if command == "search":
        study = {"name": "new", "data": {"name": "digits", "image_size": 8, "limit": 64}}
        (root / "new.toml").write_text(to_toml(study))
        return cli("search", root / "new.toml", *at)
    if command == "predict":
        return cli("predict", "--model", "digits@champion", "--split", "test", *at)
    if command in ("history", "rollback"):
        return cli(command, "--model", "digits", *at)
    told = story()
    told.report(told.ask(0), 9, [(0.9, 1e6)])
    keep(told, root / "studies", "told")
    if command == "track":
        return cli("track", "told", "--to", uri, "--studies", root / "studies")
    return cli("promote", "told", "--model", "digits", "--max-macs", "2M", *at)


def _change(root: Path, statement: str) -> None:
    with sqlite3.connect(root / "mlflow.db") as connection:
        connection.execute(statement)


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_newer_schema_is_told(cli: Run, tmp_path: Path, uri: str, story: type, command: str) -> None:
    _change(tmp_path, "UPDATE alembic_version SET version_num = 'fedcba987654'")
    code, out, said = _ask(cli, command, tmp_path, uri, story)
    assert code == 2 and not out and said.count("\n") == 1, said
    assert "has the schema fedcba987654 of a newer MLflow (here is " in said
    assert not (tmp_path / "studies" / "new").exists()


@pytest.mark.parametrize("command", ["rollback", "history", "predict", "track"])
def test_an_older_schema_says_how_to_upgrade(cli: Run, tmp_path: Path, uri: str, story: type, command: str) -> None:
    _change(tmp_path, f"UPDATE alembic_version SET version_num = '{_OLDER}'")
    code, out, said = _ask(cli, command, tmp_path, uri, story)
    assert code == 1 and not out and said.count("\n") == 1, said
    assert f"found version {_OLDER}" in said and "mlflow db upgrade" in said and str(tmp_path) in said


@pytest.mark.parametrize("command", ["rollback", "history", "predict"])
def test_a_registry_that_answers_nonsense_is_told(
    cli: Run, tmp_path: Path, uri: str, story: type, command: str
) -> None:
    _change(tmp_path, "ALTER TABLE registered_models RENAME COLUMN description TO said")
    _change(tmp_path, "ALTER TABLE registered_model_aliases RENAME COLUMN version TO number")
    code, out, said = _ask(cli, command, tmp_path, uri, story)
    assert code in (1, 2) and not out and said.count("\n") == 1 and "no such column" in said, said


def test_a_file_that_is_no_database_is_told(cli: Run, tmp_path: Path, uri: str, story: type) -> None:
    (tmp_path / "mlflow.db").write_text("no database, but long enough to be taken for one " * 40)
    code, out, said = _ask(cli, "history", tmp_path, uri, story)
    assert code == 2 and not out and said.count("\n") == 1 and "file is not a database" in said
