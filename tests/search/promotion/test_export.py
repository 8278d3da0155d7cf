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
from trainables.export.folder import file_record, seal
from trainables.export.pt2 import Pt2Runner
from trainables.export.routefront_runner import Refused, Runner

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
    assert {path.name for path in folder.iterdir()} >= {"manifest.json", "routefront_runner.py", "single.onnx"}
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


def test_a_champion_leaves_as_parts_of_torch_export(promoted: str, tmp_path: Path, digits_small: Data) -> None:
    folder = tmp_path / "exported"
    record = export_model("digits@champion", folder, uri=promoted, to="pt2", limit=40)
    assert all(gate["passed"] for gate in record["gates"]) and record["parts"] == len(list(folder.glob("*.pt2"))) > 3
    images = digits_small.test.images[:20]
    found = Pt2Runner(folder).predict(images)
    assert found["label"].tolist() == [row["label"] for row in predict(load("digits@champion", promoted), images)]
    alone = Pt2Runner(folder).predict(images[:1])  # a batch of one
    assert np.allclose(alone["logits"], found["logits"][:1], atol=1e-4)
    with pytest.raises(Refused, match=r"is no ONNX graph: .* holds parts of torch\.export"):
        Runner(folder)


def test_eight_bits_are_further_points_of_the_curve(promoted: str, tmp_path: Path, digits_small: Data) -> None:
    folder = tmp_path / "exported"
    record = export_model("digits@champion", folder, uri=promoted, int8=True, limit=150)
    gates = {gate["name"]: gate for gate in record["gates"]}
    assert gates["int8"]["passed"] and "in eight bits on 150 validation images" in gates["int8"]["says"]
    for point in record["int8"]:
        low, high = point["interval"]
        assert low <= point["accuracy"] <= high and point["macs"] > 0 and point["images"] == 150
    small, whole = Runner(folder, precision="int8"), Runner(folder)
    assert len(small.settings) == len(whole.settings) == len(record["int8"])
    images = digits_small.test.images[:100]
    mine, theirs = small.predict(images), whole.predict(images)
    assert np.abs(mine["logits"] - theirs["logits"]).max() > 1e-4  # other arithmetic
    assert (mine["label"] == theirs["label"]).mean() > 0.9
    with pytest.raises(Refused, match="precision 'int4': this folder has float32, int8"):
        Runner(folder, precision="int4")


def test_eight_bits_that_lose_accuracy_fail_their_gate(
    promoted: str, tmp_path: Path, digits_small: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quantised graph whose scales are lost answers alike for all images; right is here what float32 answers."""
    import onnx

    folder = tmp_path / "exported"
    export_model("digits@champion", folder, uri=promoted, limit=20)
    images = digits_small.test.images[:80]
    labels = Runner(folder).predict(images)["label"]
    assert np.bincount(labels).max() < 60
    real = export.add_int8

    def broken(folder: Path, images: np.ndarray) -> dict[str, Any]:
        manifest = real(folder, images)
        for record in manifest["precisions"]["int8"]["parts"].values():
            graph = onnx.load(str(folder / record["file"]))
            for each in graph.graph.initializer:
                if each.name.endswith("_scale"):
                    each.CopyFrom(onnx.numpy_helper.from_array(0 * onnx.numpy_helper.to_array(each), each.name))
            content = graph.SerializeToString()
            (folder / record["file"]).write_bytes(content)
            record |= file_record(record["file"], content)
        return seal(folder, manifest)

    monkeypatch.setattr(export, "add_int8", broken)
    gate = export.in_eight_bits(folder, images, labels)
    assert not gate.passed and "in eight bits on 80 validation images, -" in gate.says


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"to": "coreml"}, "--to 'coreml': it takes onnx or pt2"),
        ({"to": "pt2", "int8": True}, "--int8: onnxruntime quantises ONNX graphs, not pt2"),
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
