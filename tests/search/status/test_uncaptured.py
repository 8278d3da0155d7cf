"""A capture that ended for a trial: from the training's report through the journal to `status`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from search.journal.database import Journal, sqlite_address
from tests.support.command import Run
from tests.support.kept_study import keep
from tests.support.noise import noise
from tests.support.simcuda import sim
from trainables.registry import get_method
from trainables.training.training import Training


def _report() -> dict[str, Any]:
    """The first report of a training whose objective reads a value of the device, which capture refuses."""
    method = get_method("static")

    def objective(network: Any, batch: Any, phase: Any) -> Any:
        terms = method.objective(network, batch, phase)
        return {name: value if value.item() > -1 else -value for name, value in terms.items()}

    config = method.configure({"network": "resnet-8", "width": 0.25, "batch_size": 4})
    changed = dataclasses.replace(method, objective=objective)
    with sim():
        return Training(changed, config, noise(22, 8, 5, 6), epochs=1, device="cuda").step()


def test_status_says_that_a_trial_went_on_without_cuda_graphs(story: type, tmp_path: Path, cli: Run) -> None:
    report = _report()
    assert report["uncaptured"]
    told = story(("static",))
    told.ask(0)
    told.report("t0000", 1, [(0.5, 4e5)], uncaptured=report["uncaptured"], captured_steps=0)
    told.decide("t0000", 1, "finish")
    study = keep(told, tmp_path)
    assert study.state().trials["t0000"].uncaptured == report["uncaptured"]
    code, out, _ = cli("status", "story", "--studies", tmp_path, "--trust")
    said = [line for line in out.splitlines() if line.startswith("CUDA graphs: ")]
    assert code == 0 and len(said) == 1 and said[0].startswith("CUDA graphs: 1 trial went on without (t0000: "), out


def test_where_nothing_was_given_up_status_says_nothing(story: type, tmp_path: Path, cli: Run) -> None:
    told = story(("static",))
    told.ask(0)
    told.report("t0000", 1, [(0.5, 4e5)], captured_steps=12)
    told.decide("t0000", 1, "finish")
    keep(told, tmp_path)
    assert "CUDA graphs" not in cli("status", "story", "--studies", tmp_path, "--trust")[1]


def test_secrets_in_cudas_words_are_blotted_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-long-secret-key")
    journal = Journal(sqlite_address(tmp_path / "control.db"), "s", create=True)
    journal.acquire()
    event = journal.append("report", {"epoch": 1, "uncaptured": "RuntimeError: a-long-secret-key"}, "t0000")
    journal.close()
    assert event.payload["uncaptured"] == "RuntimeError: ***"
