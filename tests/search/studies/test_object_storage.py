"""Studies in object storage: a real S3 over HTTP, a real PostgreSQL, a real cluster, and a driver on two machines."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from search.__main__ import app
from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.points import files as points
from search.studies.courier import Courier
from search.studies.folder import StudyFolder
from search.studies.roots import cache_of, under
from search.studies.stored import all_studies
from search.study import Study
from tests.support.faulty import Driven, Nodes, create
from tests.support.killing import faults
from tests.support.postgres import INSTALLED, postgresql
from tests.support.stored import bucket
from trainables.serving import load_network
from trainables.worker.remote import Remote, StorageError, remote_at


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with bucket() as found:
        yield found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Another machine: nothing of an earlier one's cache is there."""

    def at(name: str) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))

    at("first")
    return at


def test_a_search_moves_to_another_machine(address: str, machine: Any) -> None:
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb)")
    with postgresql() as journal:
        nodes = Nodes(2)
        try:
            _move(address, machine, journal, nodes.address)
        finally:
            nodes.shutdown()
        _use(address)


def _move(address: str, machine: Any, journal: str, cluster: str) -> None:
    remote = remote_at(address)
    first = cache_of(address)
    study = create(first, "moved", {"*": ("wait", 1)}, budget={"trials": 2, "epochs": 2}, journal=journal)
    driven = Driven(first, "moved", cluster)
    driven.until(lambda state: [t.epoch for t in state.trials.values() if t.state == "running"] == [1, 1])
    driven.kill()
    assert remote.names("moved/checkpoints") == ["t0000", "t0001"]
    assert not list(study.folder.checkpoints.rglob("epoch-*"))  # nothing lies where workers and driver share a disk

    machine("second")
    second = cache_of(address)
    assert second != first and not (second / "moved").exists()
    code, digest = Driven(second, "moved", cluster).wait()
    moved = Study.load("moved", root=second)
    assert code == 0 and faults(moved, digest) == []
    state = moved.state()
    assert [trial.state for trial in state.trials.values()] == ["finished"] * 2
    assert state.cost_epochs == 4  # what lay in the storage was not trained again


def _use(address: str) -> None:
    """Look at it, fetch from it, tidy it up and remove it, as a person does."""
    place, remote = ["--studies", address], remote_at(address)

    def says(*words: str) -> Any:
        result = CliRunner().invoke(app, [*words, *place, "--json"])
        assert result.exit_code == 0, (words, result.output, result.exception)
        return json.loads(result.stdout)

    (study,) = all_studies(cache_of(address))
    there = points.read(under(study.folder.storage or "", "points"))
    assert sorted(there.column("point_id").to_pylist()) == sorted(
        f"{trial.id}-{epoch}-{i}"
        for trial in study.state().trials.values()
        for epoch, curve in trial.curves.items()
        for i in range(len(curve))
    )
    front = says("frontier", "moved")
    best = front["points"][-1] if isinstance(front, dict) else front[-1]
    shutil.rmtree(study.folder.checkpoints, ignore_errors=True)  # only a cache
    name = study.state().trials[best["trial"]].checkpoint
    assert name and load_network(study.folder.checkpoint(name))[0].name == "static"
    assert [path.parent.name for path in study.folder.checkpoints.rglob("epoch-*")] == [best["trial"]]

    remote.write("moved/checkpoints/t0099/epoch-0001/state.json", "{}")
    assert says("gc", "moved")[0]["folders"] >= 1 and not remote.exists("moved/checkpoints/t0099/epoch-0001/state.json")
    assert says("extend", "moved", "--trials", "5")["budget"]["trials"] == 5
    assert "trials = 5" in (remote.read("moved/study.toml") or "")
    says("delete", "moved", "--yes")
    assert remote.sizes("moved") == {} and not study.folder.path.exists()
    assert all_studies(cache_of(address)) == []


def test_the_courier_takes_up_what_another_machine_wrote(
    address: str, machine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("search.studies.courier._LOOK_SECONDS", 0.2)
    folder = StudyFolder(cache_of(address) / "told")
    folder.path.mkdir()
    remote = remote_at(folder.storage or "")
    for trial in ("t0000", "t0001"):
        for epoch in (1, 2):
            remote.write(f"checkpoints/{trial}/epoch-{epoch:04d}/state.json", "{}")
    courier = Courier(folder)
    remote.write("study.toml", "name = 'told'")
    remote.write("stop", "")
    courier.ask_to_leave("t0001")
    remote.write("checkpoints/t0001/left.json", json.dumps({"kind": "memory", "why": "much"}))
    assert courier.note_of("t0001") == {"kind": "memory", "why": "much"}
    courier.tidy(["t0000"], {"t0000/epoch-0002"})
    while not folder.stop.exists() or not folder.spec.exists():
        pass
    courier.close()
    assert folder.spec.read_text() == "name = 'told'" and not remote.exists("checkpoints/t0001/left.json")
    assert remote.exists("checkpoints/t0001/leave")
    assert folder.kept() == {"t0000/epoch-0002", "t0001/epoch-0001", "t0001/epoch-0002"}
    assert folder.checkpoint("t0001/epoch-0002").joinpath("state.json").read_text() == "{}"


# -- bad input -------------------------------------------------------------------------------------


def _refused(text: str, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--studies", text])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


def test_a_study_without_a_database_is_refused(address: str, machine: Any) -> None:
    said = _refused(address, "search", "--preset", "digits")
    assert "need a journal in PostgreSQL" in said and 'journal = "postgresql+psycopg://' in said
    assert remote_at(address).names("") == [] or "digits" not in remote_at(address).names("")


def test_addresses_that_are_none(address: str, machine: Any) -> None:
    assert "'foo://x' is no address of a storage" in _refused("foo://x", "list")
    assert "leave them to the environment" in _refused("s3://key:word@bucket/x", "list")
    with pytest.raises(StorageError, match=r"the storage s3://other/x cannot be used: .*NO_SUCH_BUCKET"):
        Remote(address.replace("//bucket/group", "//other/x")).write("study.toml", "")


def test_a_storage_that_is_away(machine: Any) -> None:
    """Nothing listens there: a command says so in one line, a worker's report ends the study and loses nothing."""
    gone = "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1"
    with pytest.raises(StorageError, match=r"the storage s3://bucket/x cannot be used: .*onnect"):
        Remote(gone, patience=0.0).read("study.toml")


def test_a_worker_that_cannot_store_ends_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from search.engine.driver import Driver
    from trainables.data.datasets import default_root, load
    from trainables.worker.ray_trainable import RoutedTrainable

    study = create(tmp_path, "away", budget={"trials": 1, "epochs": 2})
    place = tmp_path / "storage"
    place.write_text("a file where a folder should be")
    monkeypatch.setattr("trainables.worker.shelf.remote_at", lambda address: Remote(address, patience=0.0))
    journal = Journal(sqlite_address(study.folder.control), "away")
    journal.acquire()
    driver = Driver(study.folder, study.spec, journal)
    try:
        driver.replay(journal.events())
        trial = driver.ask()
        assert trial is not None
        values = {k: v for k, v in trial.config.items() if k != "method"}
        worker = RoutedTrainable.__new__(RoutedTrainable)
        worker.setup(
            {"trial": trial.id, "method": trial.method, "config": values, "seed": 1, "epochs": 2, "evaluate_at": [2],
             "checkpoints": str(tmp_path), "storage": place.as_uri(), "threads": 1},
            load("digits", root=default_root(), image_size=8, limit=64),
        )  # fmt: skip
        report = json.loads(worker.step()["report"])
        assert report["away"] and driver.report(trial.id, report) == "stop"
        assert (
            driver.stopping == "away" and "cannot be used" in driver.trouble and not driver.state.trials[trial.id].over
        )
    finally:
        driver.release()


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(InputError, match="which caches the studies of s3://bucket/x, cannot be written"):
        cache_of("s3://bucket/x")
