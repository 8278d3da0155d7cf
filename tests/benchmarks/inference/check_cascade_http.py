"""A cascade promoted, served by MLflow's own server and asked over HTTP, from nothing.

    python tests/benchmarks/inference/check_cascade_http.py [--folder FOLDER] [--port PORT]

Trains a small study on the digits (a minute), composes it, promotes the most accurate cascade, starts
``mlflow models serve`` and asks for images of the test split, without a budget and under ``max_macs``. Prints what came
back by image (label, MACs, the last member that was executed), and compares it with the model loaded here: labels
and MACs must be the same. Exits with 1 where they are not.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.promotion.models import load, predict
from search.studies.stored import load_data
from search.study import Study
from search.tracking.server import default_uri
from tests.support.in_process import search
from tests.support.promoting import spec

IMAGES = 64


def asked(port: int, images: np.ndarray, params: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that the server answers with."""
    body = json.dumps({"inputs": images.tolist(), "params": params}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())["predictions"]


def answering(port: int, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server answers."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit("the server has ended")


def compared(name: str, there: list[dict[str, Any]], here: list[dict[str, Any]], labels: np.ndarray) -> bool:
    """Print one row; whether server and library answered the same."""
    same = [a["label"] == b["label"] and np.isclose(a["macs"], b["macs"]) for a, b in zip(there, here, strict=True)]
    macs, last = np.array([row["macs"] for row in there]), np.array([row["exit"] for row in there])
    right = np.mean([row["label"] == label for row, label in zip(there, labels, strict=True)])
    shares = ", ".join(f"{(last == member).mean():.0%}" for member in range(last.max() + 1))
    first = ", ".join(f"{row['macs'] / 1e3:.0f}k" for row in there[:8])
    print(f"| {name} | {right:.1%} | {macs.mean() / 1e3:.0f}k | {shares} | {first} ... | {sum(same)}/{len(same)} |")
    return all(same)


def main() -> None:
    """Train, compose, promote, serve, ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the study lies (default: a temporary folder)")
    parser.add_argument("--port", type=int, default=0)
    asking = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = asking.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        wish = spec()
        data = load_data(wish)
        study = Study.create(wish, root=root, data=data)
        if not study.state().trials:
            search(study, data)
        uri = default_uri(root)
        record = study.compose(splits=1, most=24)
        promoted = study.promote(model="digits", uri=uri, cascades=True, max_macs=1e9, data=data)
        print(f"{len(record['points'])} cascades; promoted {promoted['point_id']}, version {promoted['version']}")
        for gate in promoted["gates"]:
            print(f"  {gate['name']}: {'passed' if gate['passed'] else 'annotates'}: {gate['says']}")
        with socket.socket() as free:
            free.bind(("127.0.0.1", asking.port))
            port = int(free.getsockname()[1])
        words = ["-m", "models:/digits@champion", "-h", "127.0.0.1", "-p", str(port), "--env-manager", "local"]
        beside = str(Path(sys.executable).parent)  # MLflow calls uvicorn by its name
        path = f"{beside}{os.pathsep}{os.environ['PATH']}"
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "mlflow", "models", "serve", *words, "--workers", "1"],
            cwd=root, env={**os.environ, "MLFLOW_TRACKING_URI": uri, "PYTHONPATH": "", "PATH": path},
            start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            answering(port, server)
            served = load("digits@champion", uri)
            images, labels = data.test.decoded()[:IMAGES], data.test.labels[:IMAGES]
            curve = [setting["macs"] for setting in served.serving["curve"]]
            budgets = [float(np.quantile(curve, share)) * 1.001 for share in (0.0, 0.5)]
            print(
                "\n| asked with | right | MACs an image | ended at member | MACs of the first images | as loaded here |"
            )
            print("|---|---|---|---|---|---|")
            good = True
            for budget in [None, *budgets]:
                params = {} if budget is None else {"max_macs": budget}
                here = list(predict(served, images, **params))
                name = "nothing" if budget is None else f"max_macs {budget / 1e3:.0f}k"
                good &= compared(name, asked(port, images, params), here, labels)
            try:
                asked(port, images[:1], {"max_macs": 1.0})
            except urllib.error.HTTPError as error:
                print(f"\nmax_macs 1: HTTP {error.code}, {error.read().decode()[:160]}")
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait()
    if not good:
        raise SystemExit("the server answered otherwise than the model loaded here")


if __name__ == "__main__":
    main()
