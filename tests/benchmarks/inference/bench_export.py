"""Milliseconds an image of exported networks: our prepared network, the parts, the ``If`` file, the dense network.

Run quietly, on one thread, with what is to be timed made beforehand by ``--prepare``:

    python tests/benchmarks/inference/bench_export.py --folder exports --server --prepare
    python tests/benchmarks/inference/bench_export.py --folder exports --server --out export.json

Without ``--folder`` both are one command. ``--server`` adds the throughput of the runner's server against ``mlflow
models serve`` (`bench_server`).

Networks are as drawn, their routers' last layers scaled so that images differ; the knob of each is set where the
images cost half of the full network's MACs on average, or as near as it gets. What is timed is classifying images that
are in memory, normalised once: 64 images in batches of 1, 16 and 64; the forms take turns and the median counts.
``dense`` is one graph under onnxruntime that computes everything: for gated networks, columns and halting the network
of the same body without a choice, else all of the network itself. ``ratio`` is dense over the quicker of parts and If,
``efficiency`` the share of the saved MACs that is saved time, (1 - 1 / ratio) / (1 - share of MACs).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.benchmarks.inference import bench_server
from trainables.contracts.network import RoutedNetwork, Task
from trainables.export.families import program_of
from trainables.export.folder import write
from trainables.export.routefront_runner import Runner, Single
from trainables.inference.evaluation import exit_logits
from trainables.inference.latency import machine_of
from trainables.inference.prepare import prepared
from trainables.normalisation import Normalisation
from trainables.registry import get_method

TASK = Task(classes=10, size=32, channels=3)
NORMAL = Normalisation((0.5,) * 3, (0.25,) * 3)
IMAGES = 64
NETWORKS: dict[str, tuple[str, dict[str, Any], tuple[str, dict[str, Any]] | None]] = {
    "static": ("static", {"network": "resnet-38"}, None),
    "skipnet": ("skipnet", {"network": "resnet-38", "gate": "rnn"}, ("static", {"network": "resnet-38"})),
    "codinet": ("codinet", {"network": "resnet-38"}, ("static", {"network": "resnet-38"})),
    "codinet-wide": (
        "codinet",
        {"network": "resnet-38", "width": 2.0},
        ("static", {"network": "resnet-38", "width": 2.0}),
    ),
    "imta": ("imta", {"network": "msdnet-5"}, None),
    "decide": ("decide", {"network": "pyramid", "variant": "pragmatic"}, ("decide", {"network": "pyramid-static-8"})),
    "act": ("act", {"network": "preact-resnet-32"}, ("act", {"network": "preact-resnet-32", "variant": "vanilla"})),
    "multipath": ("multipath", {"network": "resnet-20-2"}, None),
}


def build(method: str, values: Mapping[str, Any]) -> RoutedNetwork:
    """A network in eval mode, the same in every run."""
    chosen = get_method(method)
    torch.manual_seed(0)
    network = chosen.build(chosen.configure(values), TASK).eval()
    for name, parameter in network.named_parameters():
        if name.startswith("router") and "norms" not in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1)
    return network


@torch.inference_mode()
def half(method: str, network: RoutedNetwork, images: torch.Tensor) -> tuple[dict[str, Any], float]:
    """Knobs near half of the full network's MACs, and their share of them."""
    chosen = get_method(method)
    if method == "imta":
        logits = exit_logits(network, images)
        tried = [chosen.calibrate({"q": q}, logits) for q in np.linspace(0.05, 2, 40)]  # type: ignore[misc]
    elif method == "decide":
        tried = [{"margin": float(margin)} for margin in np.linspace(-4, 4, 81)]
    elif method == "multipath":
        tried = [{"keep": 1}, {"threshold": 0.5}]
    elif method == "static":
        tried = [{}]
    else:
        tried = [{"threshold": float(t)} for t in np.linspace(0, 1, 101)]
    fast = prepared(network)
    shares = [float(fast.infer(images, knobs).macs.mean()) / network.macs_full for knobs in tried]
    best = min(range(len(tried)), key=lambda k: abs(shares[k] - 0.5))
    return tried[best], shares[best]


def exported(folder: Path, network: RoutedNetwork, knobs: Mapping[str, Any]) -> None:
    """The folder of a network at one setting."""
    folder.mkdir()
    curve = [{"knobs": dict(knobs), "accuracy": 0.0, "macs": 0.0}]
    names = [str(k) for k in range(TASK.classes)]
    program = program_of(network, [knobs])
    write(folder, network, program, settings=curve, promoted=knobs, classes=names, normalisation=NORMAL, model={})


def timed(
    forms: Mapping[str, Callable[[np.ndarray], Any]], images: np.ndarray, batch: int, repeats: int
) -> dict[str, float]:
    """Median milliseconds an image of every form, taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, form in forms.items():
            started = time.perf_counter()
            for start in range(0, len(images), batch):
                form(images[start : start + batch])
            if repeat:
                found[name].append(1000 * (time.perf_counter() - started) / len(images))
    return {name: statistics.median(times) for name, times in found.items()}


def made(name: str, scratch: Path) -> tuple[RoutedNetwork, dict[str, Any], float, np.ndarray]:
    """A network, its knobs, their share of the MACs, and images; both exports lie in `scratch` then."""
    from trainables.export.program import whole

    method, values, counterpart = NETWORKS[name]
    network = build(method, values)
    rng = np.random.default_rng(0)
    images = (rng.random((IMAGES, *TASK.image)) * np.logspace(-1, 0, IMAGES)[:, None, None, None] * 255).astype(
        np.uint8
    )
    inputs = NORMAL.apply(torch.from_numpy(images))
    folder = scratch / f"{name}-dense"
    if (folder / "manifest.json").exists():  # looking for the knobs takes longer than timing
        knobs = json.loads((scratch / name / "manifest.json").read_text())["promoted"]["knobs"]
        with torch.inference_mode():
            share = float(prepared(network).infer(inputs, knobs).macs.mean()) / network.macs_full
        return network, knobs, share, images
    knobs, share = half(method, network, inputs)
    exported(scratch / name, network, knobs)
    full = network if counterpart is None else build(*counterpart)
    folder.mkdir()
    # columns without a choice are computed whole by their own parts
    program = program_of(full, [{}]) if method == "decide" else whole(full, "everything is computed")
    names = [str(k) for k in range(TASK.classes)]
    curve = [{"knobs": {}, "accuracy": 0.0, "macs": 0.0}]
    how = {"settings": curve, "promoted": {}, "classes": names, "normalisation": NORMAL, "model": {}}
    write(folder, full, program, **how)
    return network, knobs, share, images


def row(name: str, repeats: int, scratch: Path) -> list[dict[str, Any]]:
    """Measure one network, print its lines; their records."""
    network, knobs, share, images = made(name, scratch)
    runner, single = Runner(scratch / name), Single(scratch / name)
    dense, fast = Runner(scratch / f"{name}-dense"), prepared(network)
    records = []

    @torch.inference_mode()
    def ours(pixels: np.ndarray) -> Any:
        return fast.infer(NORMAL.apply(torch.from_numpy(pixels)), knobs)

    size = sum(path.stat().st_size for path in (scratch / name).iterdir()) / 1e6
    for batch in (1, 16, 64):
        forms: dict[str, Callable[[np.ndarray], Any]] = {"ours": ours, "parts": runner.predict}
        if batch == 1:
            forms["if"] = single.predict
        forms["dense"] = dense.predict
        found = timed(forms, images, batch, repeats)
        ratio = found["dense"] / min(found["parts"], found.get("if", found["parts"]))
        times = "  ".join(
            f"{found[form]:8.3f}" if form in found else "       -" for form in ("ours", "parts", "if", "dense")
        )
        efficiency = (1 - 1 / ratio) / (1 - share) if share < 0.999 else None
        shown = "         -" if efficiency is None else f"{efficiency:10.0%}"
        print(f"{name:12s} {share:5.0%} {batch:5d}  {times}  {ratio:5.2f} {shown}  {size:6.2f}", flush=True)
        record = {"network": name, "share": share, "batch": batch, "ms": found, "ratio": ratio, "folder_mb": size}
        records.append({**record, "efficiency": efficiency})
    return records


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", default=",".join(NETWORKS))
    parser.add_argument("--folder", type=Path, help="where exports are kept, or lie already")
    parser.add_argument("--prepare", action="store_true", help="write the exports into --folder, time nothing")
    parser.add_argument("--server", action="store_true", help="the servers' throughput, too")
    parser.add_argument("--seconds", type=float, default=3, help="of every server and number of clients")
    parser.add_argument("--out", type=Path, help="a file of JSON for the figures")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as kept:
        scratch = given.folder or Path(kept)
        scratch.mkdir(parents=True, exist_ok=True)
        if given.prepare:
            for name in given.only.split(","):
                made(name, scratch)
            if given.server:
                bench_server.prepared(scratch / "server")
            return
        machine = {"processor": machine_of(torch.device("cpu")), "cpus": os.cpu_count(), "torch": torch.__version__}
        print(f"{machine['processor']}, one thread, load {os.getloadavg()[0]:.1f}, medians of {given.repeats} turns")
        print("network      share batch      ours     parts        if     dense  ratio efficiency  folder MB")
        record: dict[str, Any] = {
            "command": " ".join(["python", *sys.argv]),
            "machine": {**machine, "python": platform.python_version(), "load": os.getloadavg()[0]},
            "repeats": given.repeats,
            "rows": [],
        }
        for name in filter(None, given.only.split(",")):
            record["rows"] += row(name, given.repeats, scratch)
            if given.out is not None:  # what was measured is kept whatever comes
                given.out.write_text(json.dumps(record, indent=1) + "\n")
        if given.server:
            print("clients    runner    mlflow   ratio   (requests a second, one image each)")
            record["server"] = bench_server.compared(scratch / "server", [1, 8, 32], given.seconds)
        if given.out is not None:
            given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
