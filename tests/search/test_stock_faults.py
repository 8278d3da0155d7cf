"""What stock Ray Tune with Optuna does where this project claims to do better: these fail when it learns."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.search import stock

ROOT = Path(__file__).parents[2]


def _ran(address: str, folder: Path, mode: str) -> tuple[int, list[dict[str, Any]]]:
    words = [sys.executable, "-m", "tests.search.stock", address, str(folder), mode]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=200)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert said, done.stderr[-2000:]
    return done.returncode, said


@pytest.mark.timeout(400)
def test_stock_asha_forgets_its_rungs_when_its_driver_is_killed(ray_address: str, tmp_path: Path) -> None:
    code, said = _ran(ray_address, tmp_path, "run")
    assert code == -signal.SIGKILL
    assert sum(said[-1]["rungs"]) > 0
    code, said = _ran(ray_address, tmp_path, "restore")
    assert code == 0 and sum(said[0]["rungs"]) == 0


@pytest.mark.timeout(300)
def test_stock_optuna_search_takes_stopped_trials_for_complete(ray_address: str, tmp_path: Path) -> None:
    code, said = _ran(ray_address, tmp_path, "whole")
    stopped = sum(epochs < stock.EPOCHS for epochs in said[-1]["epochs"])
    assert code == 0 and stopped > 0
    assert [state for state, _ in said[-1]["told"]] == ["COMPLETE"] * stock.TRIALS
