"""Thresholds for a user's own images: the settings of a checkpoint's curve, found and costed on them anew.

A setting that is calibrated (how many images each exit is to answer) gets new thresholds; a setting that
is a threshold itself (gates, halting) stays, and is costed anew. With labels (class folders) the most
accurate setting under the budget is chosen by the accuracy on these images, thresholds found on one half
and scored on the other, both ways; without labels by the accuracy on the study's validation split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from search.errors import InputError
from search.promotion.models import image_files
from search.units import show_count
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.data import datasets
from trainables.data.splits import Data, Split
from trainables.inference.evaluation import curve

_LEAST = 16


@dataclass(frozen=True, slots=True)
class OwnImages:
    """A user's images (n, channels, size, size) uint8; `labels` (n,) where the folders are classes, else None."""

    name: str
    images: np.ndarray
    labels: np.ndarray | None
    digest: str

    def record(self) -> dict[str, Any]:
        """Plain values: which images, how many, whether labelled."""
        labelled = self.labels is not None
        return {"folder": self.name, "images": len(self.images), "labelled": labelled, "digest": self.digest}


def own_images(folder: Path, data: Data) -> OwnImages:
    """The images under a folder; in class folders of the data set's classes they are labelled.

    Raises `InputError` where there are fewer than 16, some folders are classes and others not, or a
    file is no image.
    """
    paths = image_files([folder])
    if len(paths) < _LEAST:
        raise InputError(f"{folder} holds {len(paths)} image(s); calibrating takes at least {_LEAST}")
    folders = [path.parent.name for path in paths]
    unknown = sorted(set(folders) - set(data.classes))
    if unknown and set(folders) & set(data.classes):
        raise InputError(
            f"folder {unknown[0]!r} in {folder} is no class of {data.name}; the others are: name all folders as"
            " classes, or put the images into one folder without labels"
        )
    try:
        images = datasets.read_images(paths, data.task, data.scale, data.resize or "fit")
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    labels = None if unknown else np.array([data.classes.index(name) for name in folders], dtype=np.int64)
    digest = hashlib.sha256(images.tobytes())
    digest.update(b"" if labels is None else labels.tobytes())
    return OwnImages(folder.resolve().name, images, labels, digest.hexdigest())


def calibrated_curve(
    method: Method, network: RoutedNetwork, own: OwnImages, data: Data, known: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """The settings of the curve `known` on one's own images: setting, knobs, macs (per image), accuracy.

    `accuracy` is that on these images where they are labelled, else that of `known`.
    """
    labels = np.zeros(len(own.images), dtype=np.int64) if own.labels is None else own.labels
    images, truth = datasets.to_device(Split(own.images, labels), "cpu")
    inputs = datasets.normalise(images, data.for_config(network.config))
    settings = [point["setting"] for point in known]
    found = curve(method, network, inputs, torch.as_tensor(truth), settings=settings, merit=data.merit).points
    return [
        {
            "setting": before["setting"],
            "knobs": now["knobs"],
            "macs": now["macs"],
            "accuracy": now["accuracy"] if own.labels is not None else before["accuracy"],
        }
        for before, now in zip(known, found, strict=True)
    ]


def best_setting(points: Sequence[dict[str, Any]], max_macs: float) -> dict[str, Any]:
    """The most accurate setting of at most `max_macs`, of equals the cheapest; `InputError` where none is."""
    fitting = [point for point in points if point["macs"] <= max_macs]
    if not fitting:
        cheapest = min(point["macs"] for point in points)
        raise InputError(
            f"no setting costs at most {show_count(max_macs)} MACs on these images; the cheapest costs"
            f" {show_count(cheapest)}"
        )
    return max(fitting, key=lambda point: (point["accuracy"], -point["macs"]))
