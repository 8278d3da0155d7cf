from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import search
import trainables
from spaces.moved import MODULES, NAMES, Finder, install, new_place

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("import trainables.fit", "trainables.fit has moved: import trainables.training.training"),
        ("from trainables.gates import relax", "trainables.gates has moved: import trainables.networks.gated.gates"),
        ("from trainables import epoch", "trainables.epoch has moved: import trainables.training.partial"),
        ("from trainables.data import Data", "from trainables.data.splits import Data"),
        (
            "from trainables.data import load",
            "load of trainables.data has moved: from trainables.data.datasets import load",
        ),
        (
            "from trainables.networks.resnet import ResidualBlock",
            "from trainables.networks.resnet.cifar import ResidualBlock",
        ),
        ("from search.state import StudyState", "from search.state.state import StudyState"),
        ("from search.storage import Courier", "search.storage has moved: import search.studies.roots"),
    ],
)
def test_an_old_place_is_answered_with_the_new_one(line: str, told: str) -> None:
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert told in done.stderr.splitlines()[-1]


def test_the_faces_for_plug_ins_stay() -> None:
    code = (
        "from trainables.method import Batch, Method, Optimiser, Phase, TrainingConfig, require\n"
        "from trainables.network import Inference, Routed, RoutedNetwork, Task, Unit\n"
        "from trainables.registry import get_method\n"
        "from trainables.version import code_version\n"
        "from trainables import checkpoints, fused, inference, normalisation, serving\n"
        "import trainables.inference.prepare\n"
        "assert checkpoints.load_network is serving.load_network\n"
        "assert fused.prepared is inference.prepare.prepared and normalisation.Normalisation.of\n"
        "assert get_method('static').__class__ is Method\n"
        "from search import Study, StudySpec"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_new_place_is_there() -> None:
    """By the sources: importing them all would take seconds."""

    def bound(module: str) -> set[str]:
        spec = importlib.util.find_spec(module)
        assert spec is not None and spec.origin is not None, module
        tree = ast.parse(Path(spec.origin).read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        return names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}

    for new in MODULES.values():
        assert importlib.util.find_spec(new) is not None, new
    for homes in NAMES.values():
        for home, names in homes.items():
            module, _, renamed = home.partition(":")
            assert set([renamed] if renamed else names.split()) <= bound(module), home


def test_other_code_of_the_same_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    install("trainables", trainables.__path__)
    install("search", search.__path__)
    mine = [finder for finder in sys.meta_path if isinstance(finder, Finder)]
    assert len(mine) == 2
    monkeypatch.setattr(trainables, "__path__", ["/somewhere/else"])
    assert all(finder.find_spec("trainables.epoch") is None for finder in mine)
    assert new_place("trainables.version") == "" and new_place("trainables.nothing") == ""
