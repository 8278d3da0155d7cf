"""One's own photographs end to end: not square, of uneven classes, with a validation split and none for testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.errors import InputError
from search.frontier.answer import ask
from search.promotion.candidate import NO_TEST
from search.promotion.models import load, predict, predict_images, predict_split
from search.promotion.promotion import promote_study
from search.studies.stored import load_data
from search.study import Study
from search.tracking.server import default_uri
from tests.support.promoting import spec, train
from trainables.contracts.network import Task
from trainables.data import datasets

COUNTS = {"train": {"bright": 24, "dark": 8}, "val": {"bright": 12, "dark": 4}}


def photographs(folder: Path) -> Path:
    """Class folders of 20 x 30 pixels, bright ones and dark ones, whose edges differ from their middle."""
    random = np.random.RandomState(0)
    for split, classes in COUNTS.items():
        for name, count in classes.items():
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.randint(0, 120, (20, 30, 3)) + (120 if name == "bright" else 0)
                pixels[:2], pixels[-2:] = 255, 255
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{number}.png")
    return folder


def test_they_are_searched_promoted_and_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = photographs(tmp_path / "photographs")
    small = {"width": 0.25, "batch_size": 8, "mixup": 0.2, "area": 0.6}
    asked = spec(
        "own",
        data={"name": str(folder), "image_size": [8, 12], "resize": "preset", "balance": "sampled"},
        objective={"merit": "balanced_accuracy"},
        budget={"trials": 2, "epochs": 2},
        methods={"static": {"network": "resnet-8", **small}, "exits": {"network": "resnet-8", "exits": 2, **small}},
    )
    data = load_data(asked)
    assert data.task == Task(classes=2, size=(8, 12)) and data.merit == "balanced_accuracy"
    assert [len(each) for each in (data.train, data.validation, data.test)] == [32, 16, 0]
    study = Study.create(asked, root=tmp_path / "studies", data=data)
    train(study, data)
    created = study.state().created
    assert created["objective"]["merit"]["name"] == "balanced_accuracy" and created["data"]["resize"] == "preset"
    assert created["data"]["task"]["size"] == [8, 12] and created["data"]["counts"] == [32, 16, 0]
    front = ask([study], sure=True, expected=True)
    assert front.record()["objectives"]["error"] == "1 - validation balanced accuracy, in [0, 1]"
    assert all(point.evidence in ("counts", None) and point.interval for point in front.points)

    uri = default_uri(tmp_path / "studies")
    record = promote_study(study, model="own", method="exits", uri=uri, data=data)
    assert record["promoted"] and record["test"] is None
    assert next(gate for gate in record["gates"] if gate["name"] == "test") == {
        "name": "test", "passed": None, "says": NO_TEST, "evidence": {},
    }  # fmt: skip
    with pytest.raises(InputError, match="has no test split; take --split validation, or --images"):
        predict_split("own@champion", "test", uri=uri)
    found = predict_split("own@champion", "validation", uri=uri)
    hits = np.array([row["class"] == row["truth"] for row in found["predictions"]])
    shares = [hits[[row["truth"] == name for row in found["predictions"]]].mean() for name in ("bright", "dark")]
    assert np.mean(shares) == pytest.approx(record["validation"]["measured_accuracy"])
    files = predict_images("own@champion", [folder / "val"], uri=uri)  # read by the same rule: the same answers
    assert [row["label"] for row in files["predictions"]] == [row["label"] for row in found["predictions"]]
    registered = load("own@champion", uri)
    with pytest.raises(InputError, match=r"takes uint8 images of shape \(n, 3, 8, 12\)"):
        next(iter(predict(registered, np.zeros((1, 3, 12, 8), np.uint8))))
    assert not np.array_equal(
        datasets.load(str(folder), root=tmp_path, image_size=(8, 12)).validation.decoded(), data.validation.decoded()
    )
