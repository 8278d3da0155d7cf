"""Requests a second of the runner's server against ``mlflow models serve``, at 1, 8 and 32 clients.

    python tests/benchmarks/inference/bench_server.py [--seconds 5] [--clients 1,8,32]

Trains a small network on the digits, promotes it, exports it, starts both servers on this machine and lets clients ask
for one image a request over connections that stay open. Both run on one thread a computation (OMP_NUM_THREADS=1).
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.promotion.export import export_model
from search.promotion.promotion import promote_study
from search.studies.stored import load_data
from search.study import Study
from search.tracking.server import default_uri
from tests.support.promoting import point_of, spec, train

PORTS = {"runner": 8471, "mlflow": 8472}


def prepared(root: Path) -> tuple[str, np.ndarray]:
    """A promoted and exported model below `root`, made unless it is there: the registry's address, and images."""
    values = {"network": "msdnet-3", "batch_size": 32, "lr": 0.1}
    wanted = spec("served", methods={"imta": values}, budget={"trials": 1, "epochs": 3})
    data, uri = load_data(wanted), default_uri(root)
    if (root / "exported").exists():
        return uri, data.test.images
    root.mkdir(parents=True, exist_ok=True)
    study = Study.create(wanted, root=root, data=data)
    train(study, data)
    promote_study(study, point=point_of(study, "imta", 6), model="digits", uri=uri, data=data)
    export_model("digits@champion", root / "exported", uri=uri)
    return uri, data.test.images


def started(words: list[str], port: int, path: str, **how: Any) -> subprocess.Popen[bytes]:
    """A server that answers."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **how)
    while process.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return process
        except OSError:
            time.sleep(0.2)
    raise SystemExit(f"{' '.join(words)} ended with {process.returncode}")


def rate(port: int, path: str, bodies: list[bytes], kind: str, clients: int, seconds: float) -> float:
    """Requests a second of so many clients."""
    counts, end = [0] * clients, time.perf_counter() + seconds

    def client(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while time.perf_counter() < end:
            body = bodies[(number + counts[number]) % len(bodies)]
            connection.request("POST", path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
            counts[number] += 1

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


def compared(root: Path, clients: list[int], seconds: float) -> list[dict[str, float]]:
    """Start both servers on a model below `root` and print a line for every number of clients; their records."""
    uri, images = prepared(root)
    folder, port = root / "exported", PORTS["runner"]
    words = [sys.executable, str(folder / "routefront_runner.py"), "serve", str(folder), "--port", str(port)]
    processes, found = [started(words, port, "/health")], []
    try:
        port = PORTS["mlflow"]
        words = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/digits@champion", "-p", str(port)]
        where = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_REGISTRY_URI": uri}
        where["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{where['PATH']}"  # MLflow looks for uvicorn there
        processes.append(started([*words, "--env-manager", "local"], port, "/ping", env=where))
        raw = [image.tobytes() for image in images[:64]]
        said = [json.dumps({"inputs": image[None].tolist()}).encode() for image in images[:64]]
        for count in clients:
            ours = rate(PORTS["runner"], "/predict", raw, "application/octet-stream", count, seconds)
            theirs = rate(PORTS["mlflow"], "/invocations", said, "application/json", count, seconds)
            print(f"{count:7d}  {ours:8.1f}  {theirs:8.1f}  {ours / theirs:6.1f}", flush=True)
            found.append({"clients": count, "runner": ours, "mlflow": theirs, "ratio": ours / theirs})
    finally:
        for process in processes:
            process.terminate()
            process.wait()
    return found


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--clients", default="1,8,32")
    given = parser.parse_args()
    print("clients    runner    mlflow   ratio   (requests a second, one image each)")
    with tempfile.TemporaryDirectory() as scratch:
        compared(Path(scratch), [int(count) for count in given.clients.split(",")], given.seconds)


if __name__ == "__main__":
    main()
