"""Curves for TensorBoard: what a worker writes is read back by TensorBoard's own reader."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.errors import InputError
from search.spec.study import StudySpec
from search.tune.run import check_scalars
from search.tune.searcher import constants
from trainables.data.datasets import default_root, load
from trainables.worker.scalars import Scalars, scalars_of

CONFIG: dict[str, Any] = {
    "trial": "t0000", "method": "static", "seed": 5, "epochs": 2, "evaluate_at": [2], "diagnostics": False,
    "config": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
}  # fmt: skip


def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """By name (step, value), as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return {name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_a_worker_writes_what_its_trial_reports(tmp_path: Path) -> None:
    from trainables.worker.ray_trainable import RoutedTrainable

    data = load("digits", root=default_root(), image_size=8)

    class Here(RoutedTrainable):
        def setup(self, config: dict[str, Any], data_: Any = None) -> None:
            super().setup(config, data)

    told = {**CONFIG, "checkpoints": str(tmp_path / "checkpoints"), "scalars": True}
    trial = Here(told)
    reports = [json.loads(trial.step()["report"]) for _ in range(2)]
    assert not any("error" in report for report in reports), reports
    trial.cleanup()
    shown = read(tmp_path / "tensorboard" / "t0000")
    losses = [(report["epoch"], pytest.approx(report["losses"]["cross_entropy"])) for report in reports]
    assert shown["loss/cross_entropy"] == losses
    (point,) = reports[1]["curve"]["points"]
    assert shown["accuracy"] == [(2, pytest.approx(point["accuracy"]))] and shown["macs"] == [(2, point["macs"])]
    assert shown["lr"][0][0] == 1 and "system/cpu_seconds" in shown


def test_an_epoch_that_is_trained_again_is_shown_once(tmp_path: Path) -> None:
    for epochs, loss in ((range(1, 4), 1.0), (range(3, 5), 2.0)):  # the second worker begins behind epoch 2
        scalars = Scalars(tmp_path)
        for epoch in epochs:
            scalars.add({"epoch": epoch, "losses": {"a": loss}})
        scalars.close()
    assert read(tmp_path)["loss/a"] == [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]


def test_without_the_switch_nothing_is_written(tmp_path: Path) -> None:
    scalars = Scalars(None)
    scalars.add({"epoch": 1, "losses": {"a": 1.0}})
    scalars.close()
    spec = {"name": "s", "methods": {"static": {}}}
    assert constants(StudySpec.parse(spec))["scalars"] is False
    assert constants(StudySpec.parse({**spec, "tracking": {"tensorboard": True}}))["scalars"] is True


def test_a_folder_that_cannot_be_written_is_one_line_and_training_goes_on(tmp_path: Path, caplog: Any) -> None:
    (tmp_path / "file").write_text("")
    scalars = Scalars(tmp_path / "file" / "t0000")
    for epoch in (1, 2):
        scalars.add({"epoch": epoch, "losses": {"a": 1.0}})
    assert len(caplog.records) == 1 and "no curves for TensorBoard" in caplog.text


def test_a_trainables_own_axes_have_their_figures() -> None:
    points = [{"accuracy": 0.5, "macs": 10.0, "merit": 0.5, "cost": 3.0}, {"accuracy": 0.4, "macs": 5.0}]
    found = scalars_of({"epoch": 1, "losses": {}, "curve": {"points": points}})
    assert found == {"accuracy": 0.5, "macs": 10.0, "macs_min": 5.0, "merit": 0.5, "cost": 3.0}


def test_what_no_worker_could_write_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="is no folder"):
        check_scalars(SimpleNamespace(storage="s3://bucket/studies"))  # type: ignore[arg-type]
    check_scalars(SimpleNamespace(storage=""))  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'routefront\[tensorboard\]'"):
        check_scalars(SimpleNamespace(storage=""))  # type: ignore[arg-type]
