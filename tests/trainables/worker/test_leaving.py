"""A worker that is asked to leave: a real process, in the middle of an epoch."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainables import checkpoints
from trainables.data.datasets import default_root, load
from trainables.registry import get_method
from trainables.training.training import Training
from trainables.worker.shelf import LEAVE, Shelf, ask_to_leave, note_of, own_folder

ROOT = Path(__file__).resolve().parents[3]
VALUES: dict[str, Any] = {"network": "resnet-8", "width": 0.25, "batch_size": 2}
DATA: dict[str, Any] = {"root": default_root(), "image_size": 8, "limit": 700}  # an epoch takes a few seconds

WORKER = """
import json, sys
from trainables.worker import shelf
from trainables.data.datasets import default_root, load
from trainables.worker.ray_trainable import RoutedTrainable

shelf._LOOK_SECONDS = shelf._LOOK_FAR_SECONDS = 0.1

class Here(RoutedTrainable):
    def setup(self, config):
        super().setup(config, load("digits", root=default_root(), image_size=8, limit=700))

trial = Here(json.loads(sys.argv[1]))
for _ in range(2):
    print(json.dumps(json.loads(trial.step()["report"]).get("losses")), flush=True)
"""


@pytest.fixture(scope="module")
def straight() -> tuple[Any, Any]:
    """The losses of both epochs where nobody asks."""
    method, data = get_method("static"), load("digits", **DATA)
    training = Training(method, method.configure(VALUES), data, epochs=2, seed=5, evaluate_at=[2])
    return training.step()["losses"], training.step()["losses"]


@pytest.mark.parametrize("stored", [False, True], ids=["in a folder", "in a storage"])
def test_it_keeps_the_steps_that_are_done_and_another_one_ends_the_epoch_as_if_nothing_had_been(
    tmp_path: Path, stored: bool, straight: tuple[Any, Any]
) -> None:
    config = {
        "trial": "t0000", "method": "static", "config": VALUES, "seed": 5, "epochs": 2, "evaluate_at": [2],
        "checkpoints": "/nowhere" if stored else str(tmp_path), "storage": tmp_path.as_uri() if stored else None,
        "threads": 1, "device": "cpu", "diagnostics": False,
    }  # fmt: skip
    folder = tmp_path / "t0000"
    ask_to_leave(folder)  # of the worker before, which is gone
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, json.dumps(config)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    assert not (folder / LEAVE).exists()
    ask_to_leave(folder)
    assert process.stdout.read() == "" and process.wait(60) == -signal.SIGKILL
    note = note_of(folder)
    assert note is not None and note["kind"] == "drained" and "steps of epoch 2 are done" in note["why"]
    kept = checkpoints.newest(folder)
    assert kept is not None and kept.name.startswith("epoch-0001-") and kept != folder / "epoch-0001"

    method, data = get_method("static"), load("digits", **DATA)
    other = Training(method, method.configure(VALUES), data, epochs=2, seed=5, evaluate_at=[2])
    assert first == straight[0]
    if stored:
        assert not list(own_folder().parent.glob(f"{process.pid}/**/epoch-*"))  # it cleared its working place
        shelf = Shelf("/nowhere", "t0000", tmp_path.as_uri())
        kept = shelf.newest()
        assert kept is not None and kept.is_relative_to(own_folder())
    other.restore(kept)
    assert other.partial is not None and other.epoch == 1
    assert other.step()["losses"] == straight[1]
