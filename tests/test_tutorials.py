"""The quickest tutorial runs, as `make tutorials` runs all of them: real files, a real search, a real registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
QUICK = {"own-images.md": "promoted: shapes@champion is version 1"}
"""What a suite has time for, and a line that it has to print."""


@pytest.mark.parametrize("name", QUICK)
def test_a_quick_tutorial_runs(name: str) -> None:
    command = [sys.executable, str(ROOT / "docs" / "tools" / "run.py"), str(ROOT / "docs" / "tutorials" / name)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    assert QUICK[name] in ran.stdout
