"""From a trained network to its curve: settings, the knobs found for them, operating points.

Shape legend: K exits, n images, C classes, S settings.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.contracts.method import Method
from trainables.contracts.network import Inference, Knobs, RoutedNetwork
from trainables.contracts.objective import ACCURACY, BALANCED
from trainables.data.encoded import Images
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.balanced import balanced
from trainables.inference.predictions import Collected, Predictions
from trainables.inference.prepare import prepared

CPU_BATCH, DEVICE_BATCH, DEVICE_PIXELS = 128, 1024, 2**20
"""Images of a batch of a curve: on CPUs larger ones leave the caches. A GPU waits once a gate, however large the batch
is: it takes so many images, or as many as have so many pixels, but never fewer than a CPU."""


@dataclass(slots=True)
class Curve:
    """All operating points of one network on one split.

    `points`: one plain dict per setting, in the order of the settings: setting, knobs, accuracy,
    correct, count, macs (mean per image), macs_std, path_length, distinct_paths and, for networks
    with exits, exit_fractions. `correct`: (S, n) bool. `diagnostics`: what is said once per curve.
    `seconds`: what it cost. `predictions`: what every point answers on every image, where that was asked for.
    """

    points: list[dict[str, Any]]
    correct: np.ndarray
    diagnostics: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    predictions: Predictions | None = None


@dataclass(slots=True)
class _Tally:
    """What is kept of the images seen so far under one setting, on their device."""

    correct: list[Tensor] = field(default_factory=list)
    macs: list[Tensor] = field(default_factory=list)
    paths: list[Tensor] = field(default_factory=list)
    lengths: list[Tensor] = field(default_factory=list)
    exits: list[Tensor] = field(default_factory=list)

    def add(self, result: Inference, labels: Tensor) -> None:
        self.correct.append(result.logits.argmax(dim=1).eq(labels))
        self.macs.append(result.macs)
        self.paths.append(result.path)
        length = result.decisions.double().sum(dim=1) if result.length is None else result.length.double()
        self.lengths.append(length)
        if result.exits is not None:
            self.exits.append(result.exits)

    def brought(self) -> _Tally:
        """The same on the host: what was seen stays on the device until all of it is."""
        names = ("correct", "macs", "paths", "lengths", "exits")
        parts = {name: getattr(self, name) for name in names}
        return _Tally(**{name: [torch.cat(each).cpu()] if each else [] for name, each in parts.items()})

    def point(self, setting: Mapping[str, Any], knobs: Knobs, exits: int) -> dict[str, Any]:
        correct, macs = torch.cat(self.correct), torch.cat(self.macs)
        point: dict[str, Any] = {
            "setting": dict(setting),
            "knobs": dict(knobs),
            "accuracy": float(correct.double().mean()),
            "correct": int(correct.sum()),
            "count": len(correct),
            "macs": float(macs.mean()),
            "macs_std": float(macs.std(unbiased=False)),
            "path_length": float(torch.cat(self.lengths).mean()),
            "distinct_paths": len(torch.unique(torch.cat(self.paths), dim=0)),
        }
        if self.exits:
            taken = torch.bincount(torch.cat(self.exits), minlength=exits).double() / len(correct)
            point["exit_fractions"] = [round(share, 6) for share in taken.tolist()]
        return point

    def unit_shares(self) -> list[float]:
        return [round(share, 6) for share in torch.cat(self.paths).double().mean(dim=0).tolist()]


def _batches(images: Images, size: int) -> Iterable[Tensor]:
    if isinstance(images, Tensor) and images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)  # as networks are trained
    return images.split(size)


@torch.inference_mode()
@ieee_float32()
def exit_logits(network: RoutedNetwork, images: Images, batch_size: int = 256) -> Tensor:
    """All exits' logits (K, n, C) from one pass in eval mode."""
    network.eval()
    parts = [torch.stack(network(batch).logits) for batch in _batches(images, batch_size)]
    return torch.cat(parts, dim=1)


@torch.inference_mode()
@ieee_float32()
def curve(
    method: Method,
    network: RoutedNetwork,
    images: Images,
    labels: Tensor,
    *,
    settings: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    keep: bool = False,
    merit: str = ACCURACY,
) -> Curve:
    """The curve of a network on normalised `images` (n, channels, size, size) without augmentation.

    Gates are swept in one pass that branches where decisions differ. Calibrated knobs (exit
    thresholds) are found on one half of the images and scored on the other, both ways; the knobs
    that are stored come from the whole. The network's mode is left as it was. `batch_size` is by
    default `CPU_BATCH`, on other devices what `DEVICE_BATCH` and `DEVICE_PIXELS` allow. With `keep` the curve has its
    `predictions`. `merit`: `BALANCED` makes accuracies means over the classes (`trainables.inference.balanced`).
    """
    if batch_size is None:
        fitting = min(DEVICE_BATCH, DEVICE_PIXELS // (images.shape[-2] * images.shape[-1]))
        batch_size = CPU_BATCH if labels.device.type == "cpu" else max(CPU_BATCH, fitting)
    started = time.perf_counter()
    training = network.training
    network.eval()
    asked = list(settings if settings is not None else method.settings(network.config))
    if method.calibrate is not None and len(labels) < 2:
        raise ValueError(f"{len(labels)} validation image(s) cannot be halved to calibrate exit thresholds")
    kept = [Collected() for _ in asked] if keep else None
    try:
        if method.calibrate is not None:
            tallies, knobs, order = _calibrated(method, prepared(network), images, labels, asked, batch_size, kept)
        else:
            tallies, knobs, order = _swept(prepared(network), images, labels, asked, batch_size, seed, kept)
    finally:
        network.train(training)
    tallies = [tally.brought() for tally in tallies]
    points = [
        tally.point(setting, k, len(network.exits)) for tally, setting, k in zip(tallies, asked, knobs, strict=True)
    ]
    middle = tallies[len(tallies) // 2]
    diagnostics = {
        "units": [unit.name for unit in network.units],
        "setting": dict(asked[len(asked) // 2]),
        "unit_shares": middle.unit_shares(),
    }
    correct = torch.stack([torch.cat(tally.correct) for tally in tallies])[:, order].numpy()
    if merit == BALANCED:
        points = [point | balanced(right, labels.cpu().numpy()) for point, right in zip(points, correct, strict=True)]
    predictions = None if kept is None else Predictions.collected(kept, labels)
    return Curve(points, correct, diagnostics, time.perf_counter() - started, predictions)


def _swept(
    network: RoutedNetwork,
    images: Images,
    labels: Tensor,
    knobs: list[Mapping[str, Any]],
    batch_size: int,
    seed: int,
    kept: list[Collected] | None,
) -> tuple[list[_Tally], list[Mapping[str, Any]], Tensor]:
    tallies = [_Tally() for _ in knobs]
    generator = torch.Generator(images.device).manual_seed(seed)
    for batch, truth in zip(_batches(images, batch_size), _batches(labels, batch_size), strict=True):
        results = network.sweep(batch, knobs, generator=generator)
        for tally, result in zip(tallies, results, strict=True):
            tally.add(result, truth)
        for each, result in zip(kept or (), results, strict=kept is not None):
            each.add(result)
    return tallies, knobs, torch.arange(len(labels))


def _calibrated(
    method: Method,
    network: RoutedNetwork,
    images: Images,
    labels: Tensor,
    asked: list[Mapping[str, Any]],
    batch_size: int,
    kept: list[Collected] | None,
) -> tuple[list[_Tally], list[Mapping[str, Any]], Tensor]:
    assert method.calibrate is not None
    logits = exit_logits(network, images, batch_size)
    even, odd = (torch.arange(begin, len(labels), 2, device=labels.device) for begin in (0, 1))
    tallies: list[_Tally] = []
    knobs: list[Mapping[str, Any]] = []
    for index, setting in enumerate(asked):
        tally = _Tally()
        for found_on, scored_on in ((odd, even), (even, odd)):
            found = method.calibrate(setting, logits[:, found_on])
            tally.add(network.replay(logits[:, scored_on], found), labels[scored_on])
        tallies.append(tally)
        knobs.append(method.calibrate(setting, logits))
        if kept is not None:
            kept[index].add(network.replay(logits, knobs[-1]))
    return tallies, knobs, torch.argsort(torch.cat([even, odd])).cpu()


@torch.inference_mode()
@ieee_float32()
def evaluate(
    network: RoutedNetwork,
    images: Images,
    labels: Tensor,
    knobs: Knobs,
    *,
    batch_size: int = 128,
    seed: int = 0,
    merit: str = ACCURACY,
) -> Curve:
    """One operating point, executed by the hard pass: what promotion measures and serving does.

    `merit` as in `curve`.
    """
    started = time.perf_counter()
    training = network.training
    network.eval()
    tally = _Tally()
    generator = torch.Generator(images.device).manual_seed(int(knobs.get("seed", seed)))
    try:
        fast = prepared(network)
        for batch, truth in zip(_batches(images, batch_size), _batches(labels, batch_size), strict=True):
            tally.add(fast.infer(batch, knobs, generator=generator), truth)
    finally:
        network.train(training)
    tally = tally.brought()
    point = tally.point({}, knobs, len(network.exits))
    correct = torch.cat(tally.correct).numpy()
    if merit == BALANCED:
        point |= balanced(correct, labels.cpu().numpy())
    return Curve([point], correct[None], {}, time.perf_counter() - started)
