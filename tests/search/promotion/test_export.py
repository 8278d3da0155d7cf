"""A promoted model leaves the registry as a folder that runs without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.errors import InputError, RunError
from search.promotion import export
from search.promotion.export import export_model
from search.promotion.models import load, predict
from search.promotion.promotion import promote_study
from search.study import Study
from tests.support.promoting import point_of
from trainables.data.splits import Data

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'routefront[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")

ALONE = """
import json, sys
import numpy as np
sys.path[:0] = [sys.argv[1]]
from routefront_runner import Runner
answers = Runner(sys.argv[1]).predict(np.load(sys.argv[2]))
print(json.dumps({"label": answers["label"].tolist(), "macs": answers["macs"].tolist(),
    "foreign": sorted({"torch", "mlflow", "trainables", "search"} & set(sys.modules))}))
"""


@pytest.fixture
def promoted(tiny: Study, registry: str, digits_small: Data) -> str:
    promote_study(tiny, point=point_of(tiny, "skipnet", 5), model="digits", uri=registry, data=digits_small)
    return registry


def test_a_champion_runs_outside(promoted: str, tmp_path: Path, digits_small: Data) -> None:
    folder = tmp_path / "exported"
    record = export_model("digits@champion", folder, uri=promoted, limit=100)
    assert {gate["name"]: gate["passed"] for gate in record["gates"]} == dict.fromkeys(("logits", "path", "macs"), True)
    assert {path.name for path in folder.iterdir()} >= {"manifest.json", "routefront_runner.py", "stem.onnx"}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["model"]["method"] == "skipnet" and manifest["model"]["registered"] == "1"

    images = digits_small.test.images[:50]
    np.save(tmp_path / "images.npy", images)
    words = [sys.executable, "-c", ALONE, str(folder), str(tmp_path / "images.npy")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=folder, check=True)
    said = json.loads(done.stdout)
    rows = list(predict(load("digits@champion", promoted), images))
    assert said["label"] == [row["label"] for row in rows]
    assert said["macs"] == [row["macs"] for row in rows]
    assert said["foreign"] == []


def test_what_fails_its_gate_is_not_written(promoted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export.reference

    def other(*arguments: Any) -> dict[str, Any]:
        found = real(*arguments)
        return {**found, "logits": found["logits"] * 1.001}

    monkeypatch.setattr(export, "reference", other)
    with pytest.raises(RunError, match=r"was not exported: gate logits fails: differ by 0\.001 of"):
        export_model("digits@champion", tmp_path / "exported", uri=promoted, limit=20)
    assert not (tmp_path / "exported").exists()
    assert not list(tmp_path.glob(".exported*"))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"to": "coreml"}, "--to 'coreml': it takes onnx"),
        ({"opset": 9}, "--opset 9: it takes 17 to 20"),
        ({"limit": 0}, "--limit 0: at least one image"),
    ],
)
def test_bad_input_is_one_line(uri: str, tmp_path: Path, words: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says):
        export_model("digits@champion", tmp_path / "exported", uri=uri, **words)
    assert not (tmp_path / "exported").exists()


def test_a_folder_that_exists_stays(uri: str, tmp_path: Path) -> None:
    kept = tmp_path / "exported"
    kept.mkdir()
    with pytest.raises(InputError, match="exported exists already"):
        export_model("digits@champion", kept, uri=uri)
    assert list(kept.iterdir()) == []
    with pytest.raises(InputError, match="no registered model 'digits'"):
        export_model("digits@champion", tmp_path / "other", uri=uri)
    assert not (tmp_path / "other").exists()
