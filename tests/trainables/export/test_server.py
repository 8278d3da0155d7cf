"""The runner as a server: really started, asked by several clients at once, and told wrong things."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainables.export.test_families import exported, network_of, pixels
from trainables.export.routefront_runner import Runner

pytest.importorskip("onnx", reason="onnx is not installed: pip install 'routefront[export]'")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: pip install 'routefront[export]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network, curve, _ = network_of("imta")
    folder = tmp_path_factory.mktemp("served") / "out"
    exported(network, curve, folder)
    return folder


@pytest.fixture(scope="module")
def served(folder: Path) -> Iterator[tuple[str, subprocess.Popen[str], Path]]:
    log = folder.parent / "log"
    words = [sys.executable, "routefront_runner.py", "serve", ".", "--port", "0", "--log", str(log), "--window", "50"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1], process, log
    finally:
        process.kill()
        process.wait()


def ask(address: str, body: bytes | None = None, kind: str = "application/octet-stream") -> tuple[int, Any]:
    request = urllib.request.Request(address, body, {"Content-Type": kind} if body is not None else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())["error"]


def test_many_clients_get_what_one_would_and_all_are_counted(folder: Path, served: Any) -> None:
    address, process, log = served
    images = pixels()
    expected = Runner(folder).predict(images)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda k: ask(f"{address}/predict", images[k : k + 3].tobytes()), range(0, 39, 3)))
    assert {status for status, _ in parts} == {200}
    rows = [row for _, text in parts for row in json.loads(text)["predictions"]]
    assert [row["exit"] for row in rows] == expected["exit"][:39].tolist()
    assert [row["macs"] for row in rows] == expected["macs"][:39].tolist()
    assert np.abs(np.array([row["probabilities"] for row in rows]) - expected["probabilities"][:39]).max() < 1e-5

    status, text = ask(f"{address}/predict", json.dumps({"images": images[:2].tolist()}).encode(), "application/json")
    assert status == 200 and [row["label"] for row in json.loads(text)["predictions"]] == expected["label"][:2].tolist()
    status, text = ask(
        f"{address}/predict?max_macs=0.5", images[:1].tobytes()
    )  # the test's curve has costs 0, 1, 2 ...
    assert status == 200

    wrong = {
        f"{address}/predict": (b"abc", "3 bytes are no whole number of images of 256 bytes"),
        f"{address}/predict?max_macs=-1": (images[:1].tobytes(), "max_macs '-1' is no number above 0"),
        f"{address}/predict?macs=1": (images[:1].tobytes(), "unknown parameter 'macs'; /predict takes max_macs"),
    }
    for where, (body, says) in wrong.items():
        assert ask(where, body) == (400, says)
    assert ask(f"{address}/predict", b"{", "application/json")[1].startswith("the body is not JSON")
    floats = json.dumps({"images": [[[[0.5]]]]}).encode()
    assert "whole numbers from 0 to 255" in ask(f"{address}/predict", floats, "application/json")[1]
    assert ask(f"{address}/predict", bytes(500_000))[0] == 413
    assert ask(f"{address}/nothing")[0] == 404

    status, text = ask(f"{address}/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(values["routefront_images_total"]) == 42
    assert float(values["routefront_requests_total"]) == 15
    assert float(values["routefront_refused_total"]) == 7
    assert sum(float(value) for name, value in values.items() if name.startswith("routefront_exit_images")) == 42

    assert ask(f"{address}/predict", images[:20].tobytes())[0] == 200
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    lines = [json.loads(line) for file in log.iterdir() for line in file.read_text().splitlines()]
    assert [line["images"] for line in lines] == [61]
    assert sum(line["requests"] for line in lines) == 16


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["serve", "nowhere"], "nowhere is no exported model: it has no manifest.json"),
        (
            ["serve", ".", "--port", "99999"],
            "--port takes 0 to 65535, --threads and --window whole numbers of at least 1",
        ),
        (["serve", ".", "--log", "manifest.json/x"], "log folder manifest.json/x cannot be written: Not a directory"),
        (["predict", ".", "manifest.json"], "manifest.json holds no array of numpy"),
    ],
)
def test_bad_input_is_one_line(folder: Path, words: list[str], says: str) -> None:
    done = subprocess.run(
        [sys.executable, "routefront_runner.py", *words], cwd=folder, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says) and done.stderr.count("\n") == 1
