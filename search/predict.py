"""Batch prediction with a registered model: image files, or a split of the model's own data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from search.errors import InputError
from search.registered import Registered, load, predict
from trainables import data as datasets
from trainables.network import Task

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")


def _record(
    model: Registered, names: list[str], images: np.ndarray, truth: list[str] | None, max_macs: float | None
) -> dict[str, Any]:
    rows = list(predict(model, images, max_macs=max_macs))
    for row, name, label in zip(rows, names, truth or [None] * len(names), strict=True):
        row["image"] = name
        row["truth"] = label
    hits = [row["class"] == row["truth"] for row in rows] if truth is not None else None
    return {
        "model": model.shown,
        "count": len(rows),
        "macs": float(np.mean([row["macs"] for row in rows])),
        "macs_full": float(model.serving.get("macs_full") or 0),
        "accuracy": float(np.mean(hits)) if hits is not None else None,
        "predictions": rows,
    }


def predict_split(
    model: str,
    split: str,
    *,
    uri: str,
    root: Path | None = None,
    limit: int | None = None,
    max_macs: float | None = None,
) -> dict[str, Any]:
    """Classify a split ("validation" or "test") of the data set that the model was trained on.

    `max_macs`: as in `search.registered.predict`. Raises `InputError` where the images at hand are not
    those of the promotion.
    """
    if split not in ("validation", "test"):
        raise InputError(f"--split {split!r}: it takes validation or test")
    registered = load(model, uri)
    made_of = registered.serving["data"]
    try:
        data = datasets.load(
            made_of["name"],
            root=root or datasets.default_root(),
            image_size=registered.serving["task"]["size"],
            limit=made_of.get("limit"),
        )
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    if data.hash != made_of["hash"]:
        raise InputError(
            f"{made_of['name']!r} here holds other images than the model was trained on"
            f" (digest {data.hash[:12]}, then {made_of['hash'][:12]}); classify files with --images"
        )
    chosen = getattr(data, split)
    images, labels = chosen.images[:limit], chosen.labels[:limit]
    names = [f"{split} {i}" for i in range(len(labels))]
    return _record(registered, names, images, [data.classes[label] for label in labels], max_macs)


def predict_images(
    model: str, given: list[Path], *, uri: str, limit: int | None = None, max_macs: float | None = None
) -> dict[str, Any]:
    """Classify image files; in folders, the name of an image's folder is its class where the model knows it."""
    paths = image_files(given)[:limit]
    registered = load(model, uri)
    try:
        images = datasets.read_images(paths, Task(**registered.serving["task"]))
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    classes = set(registered.serving["classes"])
    folders = [path.parent.name for path in paths]
    truth = folders if all(folder in classes for folder in folders) else None
    return _record(registered, [str(path) for path in paths], images, truth, max_macs)


def image_files(given: list[Path]) -> list[Path]:
    """The image files among paths and below folders, in order; `InputError` where there are none."""
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise InputError(f"{path} holds no image ({', '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise InputError(f"no image at {path}")
    return found
