"""At which strength of a corruption accuracy drops, at which `routefront drift` alarms, and how often without a cause.

    python tests/benchmarks/inference/bench_drift.py [--data cifar10] [--root data] [--method imta] [--epochs 20]
    python tests/benchmarks/inference/bench_drift.py --data IMAGES --checkpoint FOLDER [--limit 2500]

Trains one network, or takes that of a checkpoint of these images. The counts of the validation images at one setting of
its curve are the reference; judged are windows of test images: clean ones (drawn again and again) and corrupted ones
at five strengths. Strengths are those of D. Hendrycks, T. Dietterich, "Benchmarking neural network robustness to
common corruptions and perturbations", ICLR 2019, for CIFAR; brightness is added to all channels. ``drop``: points of
accuracy lost; ``alarms``: share of windows.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.promotion.drift import ALPHA, judge
from search.promotion.gates import reference_of
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.data import datasets
from trainables.data.augment import normalise
from trainables.data.splits import Data
from trainables.export.routefront_runner import figures_of
from trainables.inference.evaluation import curve
from trainables.inference.prepare import prepared
from trainables.registry import get_method
from trainables.serving import load_network
from trainables.training.training import Training

NETWORKS: dict[str, dict[str, Any]] = {
    "imta": {"network": "msdnet-5"},
    "skipnet": {"network": "resnet-38"},
    "codinet": {"network": "resnet-38"},
    "act": {"network": "preact-resnet-32"},
}
STRENGTHS = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "brightness": (0.05, 0.1, 0.15, 0.2, 0.3),
}


def corrupted(images: Tensor, kind: str, strength: float) -> Tensor:
    """Images uint8 (n, c, h, h) under a corruption."""
    pixels = images.float() / 255
    if kind == "noise":
        pixels = pixels + strength * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    elif kind == "blur":
        grid = torch.arange(-4, 5).float()
        line = torch.exp(-(grid**2) / (2 * strength**2))
        line = (line / line.sum()).expand(pixels.shape[1], 1, -1)
        across = F.conv2d(F.pad(pixels, (4, 4, 0, 0), "replicate"), line[:, :, None, :], groups=pixels.shape[1])
        pixels = F.conv2d(F.pad(across, (0, 0, 4, 4), "replicate"), line[:, :, :, None], groups=pixels.shape[1])
    elif kind == "contrast":
        mean = pixels.mean(dim=(2, 3), keepdim=True)
        pixels = (pixels - mean) * strength + mean
    else:
        pixels = pixels + strength
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)


@torch.inference_mode()
def answers(network: RoutedNetwork, data: Data, images: Tensor, knobs: Any) -> dict[str, np.ndarray]:
    """What the served model would count of images uint8 (n, c, h, h)."""
    fast, parts = prepared(network), []
    for batch in normalise(images, data.for_config(network.config)).split(128):
        result = fast.infer(batch, knobs)
        part = {"macs": result.macs.double().numpy(), "path": result.path.double().numpy()}
        part["probabilities"] = result.logits.double().softmax(dim=1).numpy()
        parts.append(part if result.exits is None else {**part, "exit": result.exits.numpy()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def alarms(found: dict[str, np.ndarray], rows: list[np.ndarray], reference: Any, network: RoutedNetwork) -> float:
    """The share of windows, given by their rows, that alarm."""
    units, exits = [unit.name for unit in network.units], [exit.name for exit in network.exits]
    hits = 0
    for some in rows:
        window = figures_of({name: values[some] for name, values in found.items()}, len(exits))
        hits += judge({**window, "begun": 0.0, "ended": 1.0}, reference, units, exits, ALPHA)["alarm"]
    return hits / len(rows)


def trained(given: argparse.Namespace, data: Data) -> tuple[Method, RoutedNetwork]:
    """A network of this script's own, trained here."""
    method = get_method(given.method)
    values = dict(NETWORKS[given.method]) | ({"network": given.network} if given.network else {})
    config = method.configure(values)
    training = Training(method, config, data, epochs=given.epochs, seed=0, evaluate_at=[given.epochs])
    while not training.done:
        training.step()
    return method, training.network.eval()


def kept(folder: Path, data: Data) -> tuple[Method, RoutedNetwork]:
    """That of a checkpoint, which must have been trained on these images."""
    method, network, record = load_network(folder)
    if record["data"]["hash"] != data.hash:
        raise SystemExit(f"{folder} was trained on {record['data']['name']}, not on {data.name}")
    return method, network


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--root", type=Path, default=datasets.default_root())
    parser.add_argument("--method", default="imta", choices=list(NETWORKS))
    parser.add_argument("--network", help="another network than the method's here")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--window", type=int, default=1000)
    parser.add_argument("--clean", type=int, default=500, help="windows of clean images")
    parser.add_argument("--checkpoint", type=Path, help="a trial's checkpoint folder, instead of a training")
    parser.add_argument("--limit", type=int, help="so many test images alone")
    given = parser.parse_args()
    torch.set_num_threads(1)
    how = {"image_size": given.image_size} if given.image_size else {}
    data = datasets.load(given.data, root=given.root, **how)
    method, network = kept(given.checkpoint, data) if given.checkpoint else trained(given, data)
    own = data.for_config(network.config)
    validation = normalise(torch.from_numpy(data.validation.decoded()), own)
    points = curve(method, network, validation, torch.from_numpy(data.validation.labels)).points
    point = min(points, key=lambda each: abs(each["macs"] / network.macs_full - 0.6))
    knobs = point["knobs"]
    reference = reference_of(network, data, knobs)
    images, labels = torch.from_numpy(data.test.decoded()[: given.limit]), data.test.labels[: given.limit]
    clean = answers(network, data, images, knobs)
    accuracy = float((clean["probabilities"].argmax(axis=1) == labels).mean())
    share, size = point["macs"] / network.macs_full, min(given.window, len(labels))
    print(f"{method.name} {network.config.network} on {given.data}, {knobs}:")
    print(f"{accuracy:.1%} at {share:.0%} of the MACs, windows of {size} images")
    draw = np.random.default_rng(0)
    again = [draw.choice(len(labels), size, replace=False) for _ in range(given.clean)]
    print(f"clean: {alarms(clean, again, reference, network):.2%} of {given.clean} windows alarm")
    rows = [part for part in np.array_split(draw.permutation(len(labels)), max(1, len(labels) // size)) if len(part)]
    print("corruption  strength    drop   MACs  alarms")
    for kind, strengths in STRENGTHS.items():
        for strength in strengths:
            found = answers(network, data, corrupted(images, kind, strength), knobs)
            drop = accuracy - float((found["probabilities"].argmax(axis=1) == labels).mean())
            change = found["macs"].mean() / clean["macs"].mean() - 1
            share = alarms(found, rows, reference, network)
            print(f"{kind:10s}  {strength:8.2f}  {100 * drop:6.1f}  {change:+5.0%}  {share:6.0%}", flush=True)


if __name__ == "__main__":
    main()
