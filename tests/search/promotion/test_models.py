"""What a promoted model answers: several budgets from one checkpoint, one's own images, over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import routefront
from search.errors import InputError
from search.promotion.calibration import best_setting, own_images
from search.promotion.choice import find
from search.promotion.models import Registered, load, predict, predict_split
from search.promotion.promotion import promote_study
from search.study import Study
from tests.support.promoting import client, point_of
from trainables.data.image_files import export
from trainables.data.splits import Data
from trainables.serving import load_network


def mean(rows: list[dict[str, Any]], name: str = "macs") -> float:
    return float(np.mean([row[name] for row in rows]))


@pytest.fixture(params=["skipnet", "imta"])
def served(request: pytest.FixtureRequest, tiny: Study, registry: str, digits_small: Data) -> Registered:
    words = {"model": "digits", "uri": registry, "data": digits_small}
    promote_study(tiny, point=point_of(tiny, request.param), **words)
    return load("digits@champion", registry)


def test_what_is_served_is_prepared(served: Registered) -> None:
    network = served.model.unwrap_python_model().network
    assert any(type(module).__name__ == "FusedConv" for module in network.modules())
    assert not any(type(module) is torch.nn.BatchNorm2d for module in network.modules())


def test_one_model_answers_at_several_budgets(served: Registered, digits_small: Data) -> None:
    images, curve = digits_small.validation.images, served.serving["curve"]
    macs = sorted({setting["macs"] for setting in curve})
    assert len(macs) >= 2
    for budget in (macs[0], macs[len(macs) // 2], macs[-1] * 2):
        rows = list(predict(served, images, max_macs=budget))
        best = max((s for s in curve if s["macs"] <= budget), key=lambda s: (s["accuracy"], -s["macs"]))
        again = list(predict(served, images, knobs=best["knobs"]))
        assert rows == again
        # calibrated settings were costed across halves
        assert mean(rows) == pytest.approx(best["macs"], rel=0.25 if served.serving["exits"] else 1e-3)
    for budget in (macs[0] * 0.9, -1.0, float("nan")):
        with pytest.raises(InputError, match="the cheapest setting costs"):
            list(predict(served, images[:2], max_macs=budget))
    with pytest.raises(InputError, match="not both"):
        list(predict(served, images[:2], max_macs=macs[-1], knobs=curve[0]["knobs"]))


def test_the_public_names_load_and_predict(
    served: Registered, registry: str, digits_small: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`routefront.load` and `routefront.predict` find what the command line finds and answer alike."""
    monkeypatch.setenv("ROUTEFRONT_STUDIES", str(tmp_path))
    images = digits_small.test.images[:20]
    expected = list(predict(served, images))
    model = routefront.load("digits@champion")
    assert (model.name, model.version, model.alias) == ("digits", "1", "champion")
    assert model.classes == digits_small.classes and model.task == digits_small.task
    assert (model.knobs, model.method) == (served.serving["knobs"], served.serving["method"])
    assert model.macs_full == model.network.macs_full and "digits@champion (version 1)" in repr(model)
    assert isinstance(model.network, routefront.RoutedNetwork)

    assert routefront.predict(model, images) == expected
    assert routefront.predict(model, torch.from_numpy(images)) == expected
    assert routefront.predict("digits/1", images, uri=registry) == expected
    assert routefront.predict("digits/1", images, studies=str(tmp_path)) == expected
    assert model.predict(images[:0]) == []
    setting = min(model.curve, key=lambda setting: setting["macs"])
    cheap = model.predict(images, max_macs=setting["macs"] + 1)
    assert cheap == list(predict(served, images, max_macs=setting["macs"] + 1))
    assert model.predict(images, knobs=setting["knobs"]) == list(predict(served, images, knobs=setting["knobs"]))
    with torch.inference_mode():
        pixels = model.normalise(torch.from_numpy(images))
        generator = torch.Generator().manual_seed(int(model.knobs.get("seed", 0)))
        answer = model.network.infer(pixels, model.knobs, generator=generator)
    assert answer.logits.argmax(1).tolist() == [row["label"] for row in expected]

    folder = tmp_path / "own"
    paths = export(digits_small.test.take(range(5)), folder, digits_small.classes)
    rows = model.predict(paths)
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected[:5]
    assert [row["image"] for row in rows] == [str(path) for path in paths]
    assert {row["image"] for row in model.predict(folder)} == {str(path) for path in paths}


def test_the_public_names_refuse_in_one_line(
    served: Registered, registry: str, digits_small: Data, tmp_path: Path
) -> None:
    images = digits_small.test.images[:2]
    for name, says in (
        ("digits", "NAME@ALIAS"),
        (3, "NAME@ALIAS"),
        ("digit@champion", "did you mean 'digits'"),
        ("digits@champoin", "did you mean 'champion'"),
        ("digits/7", "it has 1"),
    ):
        with pytest.raises(routefront.InputError, match=says) as error:
            routefront.load(name, uri=registry)
        assert "\n" not in str(error.value)
    elsewhere = tmp_path / "elsewhere"
    for uri, says in (("off", "in a registry"), (f"sqlite:///{elsewhere}/mlflow.db", "nothing was promoted there")):
        with pytest.raises(routefront.InputError, match=says):
            routefront.load("digits@champion", uri=uri)
    with pytest.raises(routefront.InputError, match="nothing was promoted there"):
        routefront.predict("digits@champion", images, studies=elsewhere)
    model = routefront.load("digits@champion", uri=registry)
    with pytest.raises(routefront.InputError, match="loaded already"):
        routefront.predict(model, images, uri=registry)
    for given, words, says in (
        (images[0], {}, "not uint8 of shape"),
        (images.astype(np.float32), {}, "not float32"),
        ([], {}, "empty list"),
        (tmp_path / "none.png", {}, "no image at"),
        ([tmp_path / "mlflow.db"], {}, "mlflow.db"),
        (images, {"max_macs": 0}, "above 0"),
        (images, {"max_macs": float("nan")}, "above 0"),
        (images, {"max_macs": 1}, "the cheapest setting costs"),
        (images, {"knobs": {"thresold": 1}}, "unknown knob"),
    ):
        with pytest.raises(routefront.InputError, match=says) as error:
            model.predict(given, **words)
        assert "\n" not in str(error.value)


def test_a_row_says_probabilities_macs_and_path(served: Registered, tiny: Study, digits_small: Data) -> None:
    images = digits_small.test.images[:70]
    rows, serving = list(predict(served, images)), served.serving
    point = find(tiny.state(), serving["point_id"])
    network = load_network(tiny.folder.checkpoints / point.checkpoint)[1]
    assert serving["units"] == [unit.name for unit in network.units]
    for row in rows:
        assert len(row["probabilities"]) == 10 and sum(row["probabilities"]) == pytest.approx(1)
        assert row["label"] == int(np.argmax(row["probabilities"])) and row["confidence"] == max(row["probabilities"])
        assert len(row["path"]) == len(network.units) and set(row["path"]) <= {0.0, 1.0}
        assert row["macs"] == network.fixed_macs + float(np.dot(row["path"], network.unit_macs))
        assert ("exit" in row) == bool(serving["exits"])
    json.dumps(rows, allow_nan=False)
    # whatever the company: each image costs and says what it does alone
    alone = [next(predict(served, images[i : i + 1])) for i in (0, 33, 69)]
    assert [row["path"] for row in alone] == [rows[i]["path"] for i in (0, 33, 69)]
    np.testing.assert_allclose(
        [r["probabilities"] for r in alone], [rows[i]["probabilities"] for i in (0, 33, 69)], atol=1e-5
    )


# -- one's own images ------------------------------------------------------------------------------


def darker(data: Data, folder: Path, count: int, *, labelled: bool) -> Path:
    """Images of the validation split with half of their contrast, as another camera would take them."""
    few = data.validation.take(np.arange(count))
    half = type(few)((few.images // 2).astype(np.uint8), few.labels)
    if labelled:
        export(half, folder, data.classes)
        return folder
    folder.mkdir()
    for number, image in enumerate(half.images):
        Image.fromarray(image[0]).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_thresholds_are_found_on_ones_own_images(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path, labelled: bool
) -> None:
    folder = darker(digits_small, tmp_path / "mine", 120, labelled=labelled)
    point = point_of(tiny, "imta", 1)
    known = find(tiny.state(), point)
    words: dict[str, Any] = {"model": "digits", "uri": registry, "data": digits_small, "point": point}
    before = promote_study(tiny, **words)
    record = promote_study(tiny, alias="mine", max_macs=known.macs * 1.2, calibrate_on=folder, **words)
    own = record["calibration"]
    assert (own["folder"], own["images"], own["labelled"]) == ("mine", 120, labelled)
    assert ("accuracy" in own) == labelled and own["macs"] <= known.macs * 1.2
    assert record["version"] != before["version"] and record["knobs"] != before["knobs"]
    served = load("digits@mine", registry)
    assert served.serving["knobs"] == record["knobs"] and served.serving["calibration"] == own
    rows = list(predict(served, own_images(folder, digits_small).images))
    assert mean(rows) == pytest.approx(own["macs"], rel=0.25)
    tags = client(registry).get_model_version("digits", record["version"]).tags
    assert tags["calibrated_on"] == own["digest"]
    assert predict_split("digits@mine", "validation", uri=registry)["accuracy"] == pytest.approx(
        record["validation"]["measured_accuracy"]
    )


def test_folders_that_cannot_calibrate_are_refused(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path
) -> None:
    few = darker(digits_small, tmp_path / "few", 15, labelled=False)
    mixed = darker(digits_small, tmp_path / "mixed", 40, labelled=True)
    (mixed / "3").rename(mixed / "three")
    broken = darker(digits_small, tmp_path / "broken", 20, labelled=False)
    (broken / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    bomb = darker(digits_small, tmp_path / "bomb", 20, labelled=False)
    Image.new("1", (20_000, 20_000)).save(bomb / "000.png")  # 50 kB that would be 400 MB
    (tmp_path / "empty").mkdir()
    for folder, says in (
        (few, "15 image"), (mixed, "'three' .* is no class"), (broken, "000.png"), (bomb, "000.png .*bomb"),
        (tmp_path / "empty", "holds no image"), (tmp_path / "nowhere", "no image at"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says) as caught:
            promote_study(tiny, model="digits", uri=registry, data=digits_small, calibrate_on=folder)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="the cheapest costs 100"):
        best_setting([{"macs": 100.0, "accuracy": 0.5}], 99.0)
    assert tiny.state().promoting == {} and client(registry).search_registered_models() == []


# -- over HTTP -------------------------------------------------------------------------------------


def ask(address: str, body: Any) -> tuple[int, Any]:
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_mlflow_serves_and_predicts(tiny: Study, registry: str, digits_small: Data, tmp_path: Path) -> None:
    promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point_of(tiny, "skipnet"))
    images = digits_small.test.images[:6]
    model = load("digits@champion", registry)
    curve = model.serving["curve"]
    cheapest = min(curve, key=lambda setting: setting["macs"])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    beside = str(Path(sys.executable).parent)  # MLflow calls uvicorn by its name
    env = {**os.environ, "MLFLOW_TRACKING_URI": registry, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{beside}{os.pathsep}{env['PATH']}"
    words = ["-m", "models:/digits@champion", "--env-manager", "local"]
    mlflow = [sys.executable, "-P", "-m", "mlflow", "models"]
    log = (tmp_path / "server.log").open("w+")
    server = subprocess.Popen(
        [*mlflow, "serve", *words, "-h", "127.0.0.1", "-p", str(port), "--workers", "1"],
        cwd=tmp_path, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        (tmp_path / "in.json").write_text(json.dumps({"inputs": images.tolist()}))
        done = subprocess.run(
            [*mlflow, "predict", *words, "-i", "in.json", "-o", "out.json"],
            cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        address, ending = f"http://127.0.0.1:{port}", time.monotonic() + 300
        while time.monotonic() < ending and server.poll() is None:
            try:
                urllib.request.urlopen(f"{address}/ping", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        code, answer = ask(address, {"inputs": images.tolist()})
        assert code == 200, (answer, log.seek(0), log.read()[-2000:])
        expected = json.loads(json.dumps(list(predict(model, images))))
        assert answer["predictions"] == expected
        assert json.loads((tmp_path / "out.json").read_text())["predictions"] == expected
        code, answer = ask(address, {"inputs": images.tolist(), "params": {"max_macs": int(cheapest["macs"]) + 1}})
        assert code == 200 and answer["predictions"] == json.loads(
            json.dumps(list(predict(model, images, knobs=cheapest["knobs"])))
        )
        knobs = {"inputs": images.tolist(), "params": {"knobs": json.dumps(cheapest["knobs"])}}
        assert ask(address, knobs) == (200, answer)
        for same in (images / 255, images.astype(float)):
            code, told = ask(address, {"inputs": same.tolist()})
            assert code == 200 and told["predictions"] == expected
        flat = {"columns": [str(i) for i in range(64)], "data": images.reshape(6, 64).tolist()}
        assert ask(address, {"dataframe_split": flat})[1]["predictions"] == expected
        for wrong, says in (
            (images / 127.5 - 1, "pixels from -1 to 1; this model takes"),
            (images * 0.7, "floats from 0 to "),
            (images.astype(int) * 2, "pixels from 0 to "),
            (images[:, :, 1:], "images of shape (6, 1, 7, 8); this model takes (n, 1, 8, 8)"),
            (images[0], "images of shape (1, 8, 8)"),
        ):
            code, text = ask(address, {"inputs": wrong.tolist()})
            assert code == 400 and json.loads(text)["message"].startswith(says), text
            assert "\n" not in json.loads(text)["message"] and len(text) < 300
        for body, says in (
            ({"inputs": images.tolist(), "params": {"max_macs": 1.0}}, "the cheapest setting costs"),
            ({"inputs": images.tolist(), "params": {"knobs": "{"}}, "not JSON"),
            ({"inputs": images[:, :, 1:].tolist()}, "shape"),
            ({"inputs": images.tolist(), "params": {"max_macs": "cheap"}}, "max_macs"),
        ):
            code, text = ask(address, body)
            assert code == 400 and says in text, (code, text)
        assert Counter(len(row["path"]) for row in expected) == {len(model.serving["units"]): 6}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)  # the workers too; the session is the server's own
        server.wait(30)
        log.close()
