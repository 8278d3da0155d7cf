"""Methods of other distributions, found by their entry points."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
METHOD = """
import dataclasses
from trainables.method import Method, TrainingConfig
from trainables.network import RoutedNetwork
{line}
from trainables.registry import METHODS

METHOD = dataclasses.replace(METHODS["static"], name="outside", title="A method from outside")
"""


def _methods(folder: Path, line: str) -> subprocess.CompletedProcess[str]:
    """`routefront methods outside` with a distribution that brings that method; `line` is one more of its imports."""
    info = folder / "outside-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[routefront.methods]\noutside = outside_method:METHOD\n")
    (folder / "outside_method.py").write_text(METHOD.format(line=line))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}
    command = [sys.executable, "-m", "search", "methods", "outside", "--json"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_plug_in_by_the_documented_faces(tmp_path: Path) -> None:
    done = _methods(tmp_path, "from search import StudySpec")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["title"] == "A method from outside"


def test_a_plug_in_that_imports_an_old_place_is_told_the_new_one(tmp_path: Path) -> None:
    done = _methods(tmp_path, "from trainables.gates import relax")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "outside_method:METHOD" in line
    assert "trainables.gates has moved: import trainables.networks.gated.gates" in line
