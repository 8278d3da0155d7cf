r"""Two models on the same labelled images: differences of accuracy and MACs with paired intervals, and a verdict.

Both answer every image, so that what an image is worth for one is compared with what it is worth for the other. With b
images that only the first has right, c that only the second has right, and n images, the difference of accuracies is
:math:`(c - b) / n`; its interval is Wald's with half an image added to each of the four cells (A. Agresti, Y. Min,
"Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine 24, 2005):

.. math:: \tilde d = \frac{c - b}{n + 2} \pm 1.96 \frac{\sqrt{b + c + 1 - (c - b)^2 / (n + 2)}}{n + 2}

MACs: the mean of the images' differences, :math:`\pm 1.96\, s / \sqrt n`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.errors import InputError
from search.promotion.gates import Gate
from search.promotion.models import Registered, image_files, load, predict
from search.units import show_count, show_share
from trainables.contracts.network import RoutedNetwork, Task
from trainables.data import datasets
from trainables.data.augment import normalise
from trainables.data.splits import Data
from trainables.inference.prepare import prepared

LEAST = 30
"""Labelled images below which no interval says anything."""
MARGIN = 0.01
"""How much accuracy may be lost for "not worse", where nothing else is asked."""
_Z = 1.959964


def compare(
    first: str, second: str, folder: Path, *, uri: str, margin: float = MARGIN, limit: int | None = None
) -> dict[str, Any]:
    """Two registered models on the class folders of `folder`; differences are second minus first.

    Raises `InputError` where a model is missing, images have no class that both know, or there are fewer than `LEAST`.
    """
    check_margin(margin)
    models = [load(name, uri) for name in (first, second)]
    paths, truth = labelled(folder, [set(model.serving["classes"]) for model in models], limit)
    answers = [_answers(model, paths, truth) for model in models]
    return {
        "first": models[0].shown,
        "second": models[1].shown,
        "data": str(folder),
        **paired(answers[0], answers[1], margin),
    }


def check_margin(margin: float) -> None:
    """Raise `InputError` unless a margin is a share of images."""
    if not 0 <= margin < 1:
        raise InputError(f"--margin {margin}: a loss of accuracy lies in [0, 1), for example 0.01")


def labelled(folder: Path, known: list[set[str]], limit: int | None = None) -> tuple[list[Path], list[str]]:
    """The image files of class folders and their classes; `InputError` where a folder is no class of all models."""
    paths = image_files([folder])[:limit]
    truth = [path.parent.name for path in paths]
    strange = sorted({name for name in truth if not all(name in classes for classes in known)})
    if strange:
        raise InputError(f"folder {strange[0]!r} in {folder} is no class of the models; name folders as their classes")
    if len(paths) < LEAST:
        raise InputError(f"{folder} holds {len(paths)} labelled images; comparing takes at least {LEAST}")
    return paths, truth


def _answers(model: Registered, paths: list[Path], truth: list[str]) -> dict[str, np.ndarray]:
    try:
        images = datasets.read_images(paths, Task(**model.serving["task"]), model.scale, model.resize)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    rows = list(predict(model, images))
    right = np.array([row["class"] == label for row, label in zip(rows, truth, strict=True)])
    return {"right": right, "macs": np.array([row["macs"] for row in rows])}


def paired(first: Mapping[str, np.ndarray], second: Mapping[str, np.ndarray], margin: float) -> dict[str, Any]:
    """Differences of ``right`` (n,) bool and ``macs`` (n,), second minus first, and the verdict on accuracy.

    ``better``: the interval lies above 0; ``worse``: below 0; ``not worse``: above -margin; else ``undecided``.
    """
    n = len(first["right"])
    lost = int((first["right"] & ~second["right"]).sum())
    won = int((second["right"] & ~first["right"]).sum())
    middle = (won - lost) / (n + 2)
    error = math.sqrt(max(won + lost + 1 - (won - lost) ** 2 / (n + 2), 0.0)) / (n + 2)
    low, high = middle - _Z * error, middle + _Z * error
    macs = second["macs"] - first["macs"]
    spread = _Z * float(macs.std(ddof=1)) / math.sqrt(n) if n > 1 else math.inf
    mean = float(macs.mean())
    verdict = "undecided"
    if low > 0:
        verdict = "better"
    elif high < 0:
        verdict = "worse"
    elif low >= -margin:
        verdict = "not worse"
    return {
        "images": n,
        "accuracy": [float(first["right"].mean()), float(second["right"].mean())],
        "macs": [float(first["macs"].mean()), float(second["macs"].mean())],
        "only_first": lost,
        "only_second": won,
        "accuracy_difference": {"mean": (won - lost) / n, "low": low, "high": high},
        "macs_difference": {"mean": mean, "low": mean - spread, "high": mean + spread},
        "margin": margin,
        "verdict": verdict,
    }


def gate(
    champion: str | None, network: RoutedNetwork, data: Data, knobs: Any, folder: Path, uri: str, margin: float
) -> Gate:
    """Gate ``compare`` of a candidate against the registered model `champion` on labelled images.

    It passes where the candidate is better or not worse; without a champion it cannot be evaluated.
    """
    if champion is None:
        return Gate("compare", None, "no champion yet", {"data": str(folder)})
    model = load(champion, uri)
    paths, truth = labelled(folder, [set(model.serving["classes"]), set(data.classes)])
    try:
        images = datasets.read_images(paths, network.task, data.scale, data.resize or "fit")
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    found = paired(_answers(model, paths, truth), _of_network(network, data, knobs, images, truth), margin)
    difference, macs = found["accuracy_difference"], found["macs_difference"]
    says = (
        f"{found['verdict']} on {found['images']} images: accuracy {100 * difference['mean']:+.2f} points"
        f" ({100 * difference['low']:+.2f} to {100 * difference['high']:+.2f}), MACs {macs['mean']:+.3g} an image;"
        f" at most {100 * margin:g} points may be lost"
    )
    return Gate("compare", found["verdict"] in ("better", "not worse"), says, {"data": str(folder), **found})


@torch.inference_mode()
def _of_network(
    network: RoutedNetwork, data: Data, knobs: Any, images: np.ndarray, truth: list[str]
) -> dict[str, np.ndarray]:
    fast, right, macs = prepared(network), [], []
    classes = np.array(data.classes, dtype=object)
    for start in range(0, len(images), 128):
        inputs = normalise(torch.from_numpy(images[start : start + 128]), data.for_config(network.config))
        result = fast.infer(inputs, knobs)
        right.append(classes[result.logits.argmax(dim=1).numpy()] == np.array(truth[start : start + 128], dtype=object))
        macs.append(result.macs.double().numpy())
    return {"right": np.concatenate(right).astype(bool), "macs": np.concatenate(macs)}


def lines_of(record: Mapping[str, Any]) -> list[str]:
    """What a person reads of a comparison."""
    lines = []
    for k, name in enumerate(("first", "second")):
        said = f"{show_share(record['accuracy'][k])} at {show_count(record['macs'][k])} MACs"
        lines.append(f"{record[name]}: {said}")
    gain, macs = record["accuracy_difference"], record["macs_difference"]
    lines.append(
        f"accuracy {100 * gain['mean']:+.2f} points (95 %: {100 * gain['low']:+.2f} to {100 * gain['high']:+.2f}),"
        f" MACs {macs['mean']:+.4g} an image (95 %: {macs['low']:+.4g} to {macs['high']:+.4g})"
    )
    share = f"at most {100 * record['margin']:g} points may be lost"
    lines.append(f"the second is {record['verdict']} on {record['images']} images ({share})")
    return lines
