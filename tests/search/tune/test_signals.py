"""Signals of schedulers and of Ctrl-C, really sent to a search that runs."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from search.spec.toml import to_toml
from search.study import Study
from tests.support.tracked import until

ROOT = Path(__file__).resolve().parents[3]
SPEC = {
    "name": "long",
    "data": {"name": "digits", "image_size": 8, "limit": 700},
    "budget": {"trials": 1, "epochs": 3},
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 1}},
}


def _searching(folder: Path, address: str) -> subprocess.Popen[str]:
    (folder / "study.toml").write_text(to_toml(SPEC))
    words = [sys.executable, "-m", "search", "search", str(folder / "study.toml"), "--address", address]
    process = subprocess.Popen(
        [*words, "--studies", str(folder), "--tracking", "off"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    until(lambda: (folder / "long" / "study.toml").exists() or process.poll() is not None)
    study = Study.load("long", root=folder)
    until(lambda: any(trial.epoch == 1 for trial in study.state().trials.values()) or process.poll() is not None)
    assert process.poll() is None, process.communicate()
    return process


def test_the_first_signal_ends_a_search_behind_checkpoints(ray_address: str, tmp_path: Path) -> None:
    process = _searching(tmp_path, ray_address)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate()
    assert process.returncode == 143, err
    study = Study.load("long", root=tmp_path)
    assert out.startswith("terminated: ") and "terminated; go on with: routefront resume long" in err
    assert "SIGTERM: stopping behind checkpoints" in err and "Traceback" not in err and "Check failed" not in err
    assert study.status() == "terminated"
    assert list(study.folder.checkpoints.glob("t0000/epoch-0001-*"))  # in the middle of the second epoch
    assert not study.state().trials["t0000"].over


def test_the_second_one_ends_it_at_once(ray_address: str, tmp_path: Path) -> None:
    process = _searching(tmp_path, ray_address)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "stopping behind checkpoints" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 143
    assert Study.load("long", root=tmp_path).status() == "interrupted"
