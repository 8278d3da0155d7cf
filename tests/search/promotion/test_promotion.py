"""From the frontier to the registry and back: real trainings, a real SQLite registry, a bare process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.errors import InputError
from search.frontier.pool import StudyPoints
from search.frontier.query import cheapest, most_accurate
from search.journal.database import Journal, sqlite_address
from search.pareto.confidence import wilson
from search.promotion import candidate
from search.promotion.choice import Budget, choose, find
from search.promotion.gates import repeats
from search.promotion.history import history, rollback
from search.promotion.models import load, predict
from search.promotion.promotion import model_code, promote_study
from search.promotion.versions import Evidence
from search.studies.stored import load_data
from search.study import Study
from tests.support.promoting import client, point_of, spec
from trainables.data.splits import Data


@pytest.fixture
def images(digits_small: Data) -> Data:
    return digits_small


@pytest.fixture
def study(tiny: Study) -> Study:
    return tiny


@pytest.fixture
def uri(registry: str) -> str:
    return registry


BARE = """
import json, os, sys
for name in ("ray", "optuna", "search", "cluster", "torchvision", "sklearn", "sqlalchemy_missing"):
    sys.modules[name] = None
import mlflow, numpy as np
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
table = model.predict(np.load(sys.argv[3]))
import trainables
code = "code" in trainables.__file__.split(os.sep)
print(json.dumps({"label": table["label"].tolist(), "macs": table["macs"].mean(), "bundled": code}))
"""


def in_a_bare_process(tmp_path: Path, uri: str, model: str, images: np.ndarray) -> dict[str, Any]:
    """Predictions of a process that has neither this checkout nor ray, optuna or pickles."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    np.save(folder / "images.npy", images)
    (folder / "bare.py").write_text(BARE)
    done = subprocess.run(
        [sys.executable, "-P", "bare.py", uri, model, "images.npy"],
        cwd=folder,
        env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_promoted_point_serves_what_was_measured_in_a_process_without_us(
    study: Study, uri: str, images: Data, tmp_path: Path
) -> None:
    record = promote_study(study, model="digits", alias="champion", method="skipnet", uri=uri, data=images)
    served = in_a_bare_process(tmp_path, uri, "models:/digits@champion", images.validation.images)
    assert served["bundled"]
    accuracy = float(np.mean(np.array(served["label"]) == images.validation.labels))
    assert accuracy == record["validation"]["measured_accuracy"]
    assert served["macs"] == pytest.approx(record["validation"]["measured_macs"])
    assert json.loads(json.dumps(record)) == record
    ledger = study.state().promotions
    assert [{k: v for k, v in line.items() if k != "time"} for line in ledger] == [
        {k: v for k, v in record.items() if k not in ("promoted", "why")}
    ]


def test_a_version_says_where_it_comes_from(
    study: Study, uri: str, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, asked = type(client(uri)).create_model_version, {}
    monkeypatch.setattr(type(client(uri)), "create_model_version", lambda *a, **k: (asked.update(k), make(*a, **k))[1])
    record = promote_study(study, model="digits", uri=uri, data=images)
    found = client(uri).get_model_version_by_alias("digits", "champion")
    point, test = find(study.state(), record["point_id"]), record["test"]
    assert (found.tags["study"], found.tags["trial"], found.tags["epoch"]) == ("tiny", point.trial, str(point.epoch))
    assert json.loads(found.tags["knobs"]) == point.knobs
    assert float(found.tags["validation_accuracy"]) == point.accuracy == record["validation"]["accuracy"]
    assert float(found.tags["test_accuracy"]) == test["accuracy"] == test["correct"] / test["count"]
    assert test["low"] < test["accuracy"] < test["high"] and test["count"] == len(images.test.labels)
    assert float(found.tags["share"]) == pytest.approx(point.macs / point.macs_full)
    assert found.tags["data_hash"] == images.hash
    assert asked["model_id"] == found.source.split("/")[-1]  # a server insists on it, a database does not
    run = client(uri).get_run(found.run_id)
    parent = client(uri).get_run(run.data.tags["mlflow.parentRunId"])
    assert parent.data.tags["routefront.kind"] == "study" and run.info.status == "FINISHED"
    text = (
        Path(client(uri).get_logged_model(found.source.split("/")[-1]).artifact_location[7:]) / "MLmodel"
    ).read_text()
    assert str(Path(__file__).parents[3]) not in text and str(study.folder.path) not in text
    (line,) = history("digits", uri)
    assert (line["version"], line["aliases"], line["point_id"]) == ("1", ["champion"], record["point_id"])


def test_the_alias_moves_the_ledger_knows_the_version_before_and_rollback_returns(
    study: Study, uri: str, images: Data
) -> None:
    first = promote_study(study, model="digits", point=point_of(study, "skipnet"), uri=uri, data=images)
    second = promote_study(study, model="digits", uri=uri, data=images)
    assert (first["version"], first["previous"]) == ("1", None)
    assert (second["version"], second["previous"]) == ("2", "1")
    assert load("digits@champion", uri).version == "2"
    assert rollback("digits", "champion", uri) == {
        "model": "digits",
        "alias": "champion",
        "version": "1",
        "previous": "2",
    }
    assert load("digits@champion", uri).version == "1"
    with pytest.raises(InputError, match="none before it"):
        rollback("digits", "champion", uri)
    third = promote_study(study, model="digits", uri=uri, data=images)
    assert (third["version"], third["previous"]) == ("2", "1")
    assert [promotion["version"] for promotion in study.state().promotions] == ["1", "2", "2"]


def test_a_point_is_registered_and_tested_once(
    study: Study, uri: str, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, measured, splits = candidate.measure, Evidence.measured, []
    monkeypatch.setattr(candidate, "measure", lambda n, d, split, k: (splits.append(split), measure(n, d, split, k))[1])
    monkeypatch.setattr(
        Evidence, "measured", lambda self, data, split: (splits.append(split), measured(self, data, split))[1]
    )
    first = promote_study(study, model="digits", uri=uri, data=images)
    second = promote_study(study, model="digits", alias="shadow", uri=uri, data=images)
    assert splits == ["validation", "test", "validation"]
    assert (first["version"], second["version"]) == ("1", "1") and first["test"] == second["test"]
    assert client(uri).get_registered_model("digits").aliases == {"champion": 1, "shadow": 1}
    assert second["previous"] is None


def test_choosing_takes_the_best_under_the_budget_whose_checkpoint_exists(study: Study) -> None:
    state, folder = study.state(), study.folder
    source = StudyPoints(study, state)
    points = [find(state, f"{t}-{e}-{i}") for t, e, i in state.front()]
    assert choose(source, Budget()).point_id == points[-1].point_id
    assert choose(source, Budget(points[0].macs)).point_id == points[0].point_id
    least = points[0].accuracy
    assert choose(source, Budget(min_accuracy=least)).point_id == points[0].point_id
    for most in (None, points[-1].macs, points[0].macs):  # what `frontier` answers, too
        assert choose(source, Budget(most)) == most_accurate(study.frontier(max_macs=most))
    assert choose(source, Budget(min_accuracy=least)) == cheapest(study.frontier(min_accuracy=least))
    shutil.rmtree(folder.checkpoints / points[-1].checkpoint)
    second = choose(source, Budget())
    assert second.checkpoint != points[-1].checkpoint and second.accuracy <= points[-1].accuracy
    shutil.rmtree(folder.checkpoints)
    with pytest.raises(InputError, match="none has its checkpoint"):
        choose(source, Budget())


def test_a_budget_that_no_point_meets_names_the_nearest(study: Study, uri: str, images: Data) -> None:
    for budget in ({"max_macs": 10.0}, {"min_accuracy": 0.9999}):
        with pytest.raises(InputError, match=r"the cheapest costs .* MACs .* the most accurate has .*%") as caught:
            promote_study(study, model="digits", uri=uri, data=images, **budget)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no trial of method 'codinet'"):
        promote_study(study, model="digits", uri=uri, data=images, method="codinet")
    for point in ("t0000-7-0", "t9999-1-0", "nonsense"):
        with pytest.raises(InputError, match=r"no (point|trial)"):
            promote_study(study, model="digits", uri=uri, data=images, point=point)
    assert study.state().promotions == []


@pytest.mark.parametrize("damage", ["cut", "changed", "missing", "exchanged"])
def test_a_damaged_checkpoint_is_not_promoted(study: Study, uri: str, images: Data, damage: str) -> None:
    state = study.state()
    point = find(state, point_of(study, "skipnet", 0))
    path = study.folder.checkpoints / point.checkpoint / "network.safetensors"
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        path.write_bytes(content[:-4] + b"\x00\x01\x02\x03")
    elif damage == "missing":
        path.unlink()
    else:
        shutil.rmtree(path.parent)
        shutil.copytree(study.folder.checkpoints / point.trial / "epoch-0002", path.parent)
    with pytest.raises(InputError) as caught:
        promote_study(study, model="digits", point=point.point_id, uri=uri, data=images)
    assert "\n" not in str(caught.value) and "checkpoint" in str(caught.value)
    assert client(uri).search_registered_models() == []


def test_figures_that_do_not_repeat_are_not_promoted(study: Study, uri: str, images: Data) -> None:
    with study.driving() as driver:  # a journal that tells of a better curve than the checkpoint has
        trial = next(trial for trial in driver.state.trials.values() if trial.method == "static")
        curve = [{**trial.curves[trial.epoch][0], "accuracy": 0.999, "macs": 100.0}]
        payload = {"epoch": 99, "phase": "train", "comparable": True, "losses": {}, "cost_epochs": 99.0, "seconds": 1.0}
        payload |= {"curve": {"points": curve}, "checkpoint": trial.checkpoint, "macs_full": trial.macs_full}
        payload |= {"params": trial.params}
        driver.record("report", payload, trial.id)
    assert find(study.state(), f"{trial.id}-99-0").checkpoint == trial.checkpoint
    with pytest.raises(InputError, match="is another one: its epoch is 3"):
        promote_study(study, model="digits", point=f"{trial.id}-99-0", uri=uri, data=images)
    point = find(study.state(), f"{trial.id}-99-0")
    measured = {"accuracy": point.accuracy - 0.05, "macs": point.macs, "correct": 1, "count": 360}
    assert repeats(point, measured, calibrated=False).passed is False
    assert repeats(point, {**measured, "accuracy": point.accuracy - 0.001}, calibrated=False).passed
    assert repeats(point, {**measured, "accuracy": point.accuracy, "macs": 120.0}, calibrated=False).passed is False
    assert study.state().promotions == [] and client(uri).search_registered_models() == []


def test_other_images_are_refused(study: Study, uri: str, images: Data) -> None:
    others = spec(data={"name": "digits", "limit": 200, "image_size": 8})
    with pytest.raises(InputError, match="other images"):
        promote_study(study, model="digits", uri=uri, data=load_data(others))


@pytest.fixture
def promoted(study: Study, uri: str, images: Data) -> Iterator[dict[str, Any]]:
    yield promote_study(study, model="digits", method="skipnet", uri=uri, data=images)


def test_unknown_models_aliases_and_versions_say_which_there_are(promoted: dict[str, Any], uri: str) -> None:
    for model, says in (
        ("digit@champion", "did you mean 'digits'"),
        ("digits@champoin", "did you mean 'champion'"),
        ("digits/7", "it has 1"),
        ("digits", "NAME@ALIAS"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            load(model, uri)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="nothing was promoted there yet"):
        load("digits@champion", uri.replace("mlflow.db", "other.db"))
    with pytest.raises(InputError, match="did you mean 'digits'"):
        history("digitz", uri)


def test_names_that_the_registry_would_refuse_are_refused_first(study: Study, uri: str) -> None:
    for name, alias in (("a/b", "champion"), ("", "champion"), ("digits", "v3"), ("digits", "a b"), ("digits", "")):
        with pytest.raises(InputError, match="is not possible"):
            promote_study(study, model=name, alias=alias, uri=uri)


def test_predictions_take_other_knobs_and_refuse_wrong_ones(promoted: dict[str, Any], uri: str, images: Data) -> None:
    model = load("digits@champion", uri)
    pixels = images.test.images[:150]
    rows = list(predict(model, pixels))
    assert len(rows) == 150 and set(rows[0]) >= {"label", "class", "confidence", "macs"}
    assert rows[0]["class"] == images.classes[rows[0]["label"]]
    (name,) = [knob for knob in promoted["knobs"] if knob != "seed"]
    closed = list(predict(model, pixels, knobs={name: 1e9}))
    assert np.mean([row["macs"] for row in closed]) <= np.mean([row["macs"] for row in rows])
    for knobs, says in (({"thresold": 1.0}, "unknown knob"), ({name: "high"}, "values such as")):
        with pytest.raises(InputError, match=says):
            list(predict(model, pixels, knobs=knobs))
    with pytest.raises(InputError, match="shape"):
        list(predict(model, pixels[:, :, 1:]))
    assert list(predict(model, pixels[:0])) == []


def test_a_model_of_an_older_code_runs_with_the_code_it_brought(
    promoted: dict[str, Any], uri: str, images: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    import trainables
    import trainables.version

    rows = list(predict(load("digits@champion", uri), images.test.images[:20]))
    monkeypatch.setattr(trainables.version, "code_version", lambda: "a later one")
    before = sys.modules["trainables.registry"]
    old = load("digits@champion", uri)
    assert sys.modules["trainables"] is trainables and sys.modules["trainables.registry"] is before
    network = old.model.unwrap_python_model().network
    assert "code" in Path(sys.modules["trainables"].__file__ or "").parts or type(network).__module__ in sys.modules
    assert type(network) is not getattr(sys.modules[type(network).__module__], type(network).__name__)
    assert list(predict(old, images.test.images[:20])) == rows


def test_a_promotion_signs_and_both_loaders_ask_for_it(
    study: Study, uri: str, images: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that was stored before there was a key is signed by the next promotion of the same point."""
    key, public = tmp_path / "key.pem", tmp_path / "key.pub.pem"
    key.touch(mode=0o600)
    for words in (["genpkey", "-algorithm", "ed25519", "-out", key], ["pkey", "-in", key, "-pubout", "-out", public]):
        subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True)
    words = {"model": "signed", "uri": uri, "data": images, "method": "static"}
    promote_study(study, alias="first", **words)
    monkeypatch.setenv("ROUTEFRONT_TRUSTED_KEYS", str(public))
    with pytest.raises(InputError, match="model signed version 1 is not signed by a key of ROUTEFRONT_TRUSTED_KEYS"):
        load("signed@first", uri)
    monkeypatch.setenv("ROUTEFRONT_SIGNING_KEY", str(key))
    assert promote_study(study, alias="second", **words)["version"] == "1"
    assert load("signed@second", uri).version == "1"
    assert in_a_bare_process(tmp_path, uri, "models:/signed@second", images.validation.images)["bundled"]


def test_wilson_interval() -> None:
    assert wilson(90, 100) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


def test_the_model_code_is_found_in_a_checkout() -> None:
    assert model_code() == Path(__file__).parents[3] / "mlflow" / "routed_classifier.py"


def test_a_study_in_another_hand_is_not_promoted_from(study: Study, uri: str, images: Data) -> None:
    journal = Journal(sqlite_address(study.folder.control), "tiny")
    with subprocess.Popen(["sleep", "60"]) as other:
        journal.acquire()
        import sqlalchemy as sa

        with sa.create_engine(journal.address).begin() as connection:
            connection.execute(sa.text(f"UPDATE leases SET pid = {other.pid}"))
        with pytest.raises(InputError, match=f"process {other.pid}"):
            promote_study(study, model="digits", uri=uri, data=images)
        other.kill()
