"""Wherever a network goes, its images are normalised as in its training: curve, gates, latency, service."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from search.errors import InputError
from search.promotion.choice import find
from search.promotion.models import Registered, load, predict, predict_split
from search.promotion.promotion import promote_study
from search.spec.study import StudySpec
from search.study import Study
from search.tracking.server import default_uri, quiet
from tests.benchmarks.training import check_methods
from tests.support.promoting import METHODS, copied, point_of, spec, train
from trainables.checkpoints import STATE
from trainables.contracts.network import RoutedNetwork, Task
from trainables.data.image_files import export
from trainables.data.splits import Augment, Data, Split, digest
from trainables.registry import get_method
from trainables.serving import load_network
from trainables.training.training import Training

DATA = {"name": "digits", "limit": 400, "image_size": 8}


def by_image(images: np.ndarray) -> torch.Tensor:
    """(x - mean) / max(std, 1 / sqrt(pixels)) of each, by numpy."""
    each = [(x - x.mean()) / max(x.std(), 1 / np.sqrt(x.size)) for x in images.astype(np.float64)]
    return torch.from_numpy(np.stack(each)).float()


@torch.inference_mode()
def answers(network: RoutedNetwork, inputs: torch.Tensor, knobs: dict[str, Any]) -> np.ndarray:
    """Probabilities (n, C) of the hard pass."""
    generator = torch.Generator().manual_seed(int(knobs.get("seed", 0)))
    return network.infer(inputs, knobs, generator=generator).logits.double().softmax(dim=1).numpy()


@pytest.fixture(scope="module")
def looks(tmp_path_factory: pytest.TempPathFactory, digits_small: Data) -> Path:
    """A root with the study `looks`: images one by one, but for one method; a trial each, all trained."""
    root = tmp_path_factory.mktemp("looks")
    methods = {
        "skipnet": {**METHODS["skipnet"], "crop": 2},
        "static": {**METHODS["static"], "normalise": "none"},
        "sdv": {"network": "resnet-8", "width": 0.25, "batch_size": 32, "lr": 0.1},
    }
    said = spec("looks", data={**DATA, "normalise": "image"}, methods=methods)
    train(Study.create(said, root=root, data=digits_small), digits_small)
    return root


@pytest.fixture
def study(looks: Path, tmp_path: Path) -> Study:
    copied(looks, tmp_path)
    return Study.load("looks", root=tmp_path)


def network_of(study: Study, point: Any) -> RoutedNetwork:
    return load_network(study.folder.checkpoints / point.checkpoint)[1]


def test_a_study_says_it_for_all_methods_and_a_method_for_itself(study: Study) -> None:
    configs = {trial.method: trial.config for trial in study.state().trials.values()}
    assert {name: config["normalise"] for name, config in configs.items()} == {
        "skipnet": "image", "static": "none", "sdv": "image",
    }  # fmt: skip
    assert configs["skipnet"]["crop"] == 2 and "crop" not in configs["static"]
    plain = StudySpec.parse({"name": "s", "methods": {"skipnet": {}}})
    assert "normalise" not in plain.spaces()["skipnet"].parameters
    chosen = StudySpec.parse({"name": "s", "methods": {"skipnet": {"normalise": ["data", "image"]}}})
    assert chosen.spaces()["skipnet"]["normalise"].contains("image")


def test_a_promoted_network_sees_images_as_in_its_training(
    study: Study, digits_small: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, images = default_uri(tmp_path), digits_small.validation.images
    point = find(study.state(), point_of(study, "skipnet", 4))
    network, knobs = network_of(study, point), dict(point.knobs)
    right = answers(network, by_image(images), knobs)
    wrong = answers(network, torch.from_numpy((images / 255 - digits_small.mean) / digits_small.std).float(), knobs)
    assert np.abs(right - wrong).max() > 0.05  # else nothing is shown below
    accuracy = float((right.argmax(axis=1) == digits_small.validation.labels).mean())
    assert point.accuracy == pytest.approx(accuracy, abs=0.006)  # the curve

    export(digits_small.validation, tmp_path / "mine", digits_small.classes)
    words: dict[str, Any] = {"model": "digits", "uri": uri, "data": digits_small, "point": point.point_id}
    record = promote_study(study, max_latency=60.0, calibrate_on=tmp_path / "mine", max_macs=point.macs, **words)
    gates = {gate["name"]: gate for gate in record["gates"]}
    assert all(gates[name]["passed"] for name in ("validation", "macs", "forward", "latency"))
    assert gates["validation"]["evidence"]["measured_accuracy"] == pytest.approx(accuracy, abs=0.006)
    curve = {json.dumps(p["knobs"]): p["accuracy"] for p in study.state().trials[point.trial].curves[point.epoch]}
    assert record["calibration"]["accuracy"] == pytest.approx(curve[json.dumps(record["knobs"])], abs=0.006)

    served = load("digits@champion", uri)
    assert served.serving["normalisation"] == {"mean": [], "std": [], "per_image": True}
    rows = list(predict(served, images, knobs=knobs))
    np.testing.assert_allclose([row["probabilities"] for row in rows], right, atol=1e-4)
    monkeypatch.chdir(tmp_path)
    found = predict_split("digits@champion", "validation", uri=uri)
    assert found["accuracy"] == pytest.approx(record["validation"]["measured_accuracy"], abs=0.006)

    timed = study.frontier(latency=True)
    assert timed and all(p.latency_ms and p.latency_ms > 0 for p in timed)


def test_other_inputs_of_other_methods_and_drawn_paths_are_served_to_the_bit(
    study: Study, digits_small: Data, tmp_path: Path
) -> None:
    uri, images = default_uri(tmp_path), digits_small.validation.images
    for method, inputs in (("static", torch.from_numpy(images / 255).float()), ("sdv", by_image(images))):
        point = find(study.state(), point_of(study, method))
        promote_study(study, model=method, uri=uri, data=digits_small, point=point.point_id)
        served = load(f"{method}@champion", uri)
        rows = list(predict(served, images))
        found = np.array([row["probabilities"] for row in rows])
        if method == "static":
            np.testing.assert_allclose(found, answers(network_of(study, point), inputs, dict(point.knobs)), atol=1e-4)
            assert len(served.serving["normalisation"]["mean"]) == 1
            as_promoted_before(served, images, found, tmp_path)
            continue
        # whether a block runs is drawn from a hash of the inputs: their last bit decides
        hits = (found.argmax(axis=1) == digits_small.validation.labels).sum()
        assert hits == round(point.accuracy * len(images))
        assert math.fsum(row["macs"] for row in rows) == pytest.approx(point.macs * len(images), rel=1e-12)


def as_promoted_before(served: Registered, images: np.ndarray, expected: np.ndarray, tmp_path: Path) -> None:
    """The same model with what models had that were promoted before: mean and std alone."""
    assert served.files is not None
    (folder,) = {path.parent for path in Path(served.files.name).rglob("MLmodel")}
    shutil.copytree(folder, tmp_path / "before")
    (serving,) = (tmp_path / "before").rglob("serving.json")
    said = json.loads(serving.read_text())
    said["normalisation"] = {name: said["normalisation"][name] for name in ("mean", "std")}
    serving.write_text(json.dumps(said))
    table = quiet().pyfunc.load_model(str(tmp_path / "before")).predict(images)
    assert np.array_equal(np.stack(table["probabilities"].to_numpy()), expected)


def test_what_a_checkpoint_does_not_say_is_the_default(study: Study, digits_small: Data, tmp_path: Path) -> None:
    """Checkpoints of before there was a choice are promoted, those of another choice than the journal's are not."""
    point = find(study.state(), point_of(study, "static"))
    path = study.folder.checkpoints / point.checkpoint / STATE
    record = json.loads(path.read_text())
    uri = default_uri(tmp_path)
    words: dict[str, Any] = {"model": "digits", "uri": uri, "data": digits_small, "point": point.point_id}
    del record["config"]["crop"]
    path.write_text(json.dumps(record))
    assert promote_study(study, dry_run=True, **words)["why"] == ""
    del record["config"]["normalise"]
    path.write_text(json.dumps(record))
    with pytest.raises(InputError, match="is another one: its config has normalise = 'data', expected 'none'"):
        promote_study(study, dry_run=True, **words)


def test_the_check_of_all_methods_tests_the_images_as_trained(tmp_path: Path) -> None:
    changes = {"normalise": "image", "width": 0.25, "batch_size": 256}
    file = tmp_path / "row.json"
    check_methods.train("gated", "static resnet-8", 3, "digits", 1, changes, file)
    said = json.loads(file.read_text())["points"][0]
    data = check_methods.load("digits", root=tmp_path)
    method = get_method("static")
    config = method.configure({**check_methods.RECIPE, "network": "resnet-8", **changes})
    training = Training(method, config, data, epochs=1, seed=3)
    training.step()
    found = answers(training.network.eval(), by_image(data.test.images), {}).argmax(axis=1)
    assert said["correct"] == pytest.approx(int((found == data.test.labels).sum()), abs=1)


# -- what cannot be ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"data": {**DATA, "normalise": "images"}},
            "data.normalise = 'images': must be one of data, none, image, resnet",
        ),
        (
            {"data": {**DATA, "normalise": "msdnet"}},
            "methods.static: normalise = 'msdnet': are constants of RGB images",
        ),
        ({"methods": {"static": {"normalise": "images"}}}, "methods.static: normalise = 'images': must be one of"),
        ({"methods": {"static": {"crop": -2}}}, "methods.static: crop = -2: must be a whole number of pixels"),
        ({"methods": {"static": {"crop": 8}}}, "methods.static: crop = 8: images of 8 pixels can be shifted by 7"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(
    values: dict[str, Any], message: str, tmp_path: Path, digits_small: Data
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        Study.create(spec("s", **{"methods": {"static": {}}, **values}), root=tmp_path, data=digits_small)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


def test_constants_of_cifar_are_taken_for_other_coloured_images(tmp_path: Path) -> None:
    images = np.random.RandomState(0).randint(0, 256, (40, 3, 8, 8)).astype(np.uint8)
    split = Split(images, np.arange(40) % 2)
    looks = {"mean": (0.5,) * 3, "std": (0.3,) * 3, "augment": Augment(), "hash": digest(("a", "b"), (split,))}
    parts = {"train": split, "validation": split, "test": split}
    data = Data(name="noise", task=Task(classes=2, size=8), classes=("a", "b"), **parts, **looks)
    said = spec("s", data={"name": "noise", "normalise": "msdnet"}, methods={"static": {"network": "resnet-8"}})
    assert Study.create(said, root=tmp_path, data=data).spec.data.normalise == "msdnet"
