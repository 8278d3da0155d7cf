"""One rule for where MLflow is, the same for every command."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.catalogue.doctor import _mlflow
from search.tracking.server import chosen_uri
from tests.support.command import Run
from tests.support.tracked import free_port


def test_options_come_before_the_environment_and_that_before_the_neighbour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert chosen_uri(None, tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert chosen_uri(None, tmp_path) == "http://127.0.0.1:1" and chosen_uri("off", tmp_path) == "off"


def test_every_command_asks_the_server_of_the_environment(
    cli: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing listens there, which each of them says before it begins."""
    address = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    file = tmp_path / "study.toml"
    file.write_text('name = "x"\n[data]\nname = "digits"\nimage_size = 8\n[methods.static]\nnetwork = "resnet-8"\n')
    for words in (("search", file), ("history", "--model", "m"), ("rollback", "--model", "m")):
        code, _, err = cli(*words, "--studies", tmp_path / "studies")
        assert code == 2 and f"{address} does not answer" in err, (words, err)
    assert not (tmp_path / "studies").exists()
    with pytest.raises(Exception, match="does not answer"):
        _mlflow()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/of-the-environment.db")
    code, _, err = cli("history", "--model", "m", "--studies", tmp_path / "studies")
    assert code == 2 and "of-the-environment.db" in err and "(MLFLOW_TRACKING_URI)" in _mlflow()
