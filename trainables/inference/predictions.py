"""What every operating point of a curve answers on every validation image, kept in one small file.

Cascades are made of it after the trials (`search.cascades`), without a network being run again. Kept are, for every
setting of the curve with the knobs that are stored for it: class probabilities in half precision (where classes are
many the five largest and what is left for all others), MACs, the path, and the exit where there are exits. Calibrated
knobs are found without labels on the whole split, and the answers here are those with them: what promotion executes.

The file is NumPy's ``.npz``, compressed; it is read without pickle.

Shape legend: S settings, n images, C classes, U units.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainables.contracts.network import Inference

PREDICTIONS = "predictions.npz"
VERSION = 1
FEW, TOP = 16, 5
"""Up to so many classes all probabilities are kept, above them so many largest."""
_LARGEST = 1 << 30


class PredictionsError(ValueError):
    """A file of kept predictions that is damaged, of another version, or not of the curve that it lies beside."""


def probabilities(logits: Tensor) -> np.ndarray:
    """Class probabilities (n, C) of logits, float32, rounded as they are kept.

    They are rounded to half precision; above `FEW` classes the `TOP` largest are, and what is left is the same for
    every other class. Cascades decide by these figures alone, when they are composed and when they are served, so that
    both decide the same.
    """
    exact = logits.detach().float().softmax(dim=1).cpu()
    if exact.shape[1] <= FEW:
        return exact.half().float().numpy()
    return spread(*_top(exact), exact.shape[1])


def _top(exact: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest (n, `TOP`) float16, their classes uint16, and the sum of the others (n,) float16."""
    largest, classes = exact.topk(TOP, dim=1)
    rest = (1.0 - largest.double().sum(dim=1)).clamp(min=0.0)
    return largest.half().numpy(), classes.numpy().astype(np.uint16), rest.half().numpy()


def spread(largest: np.ndarray, classes: np.ndarray, rest: np.ndarray, count: int) -> np.ndarray:
    """Probabilities (n, `count`) float32 of the largest, their classes and the sum of the others."""
    found = np.repeat((rest.astype(np.float32) / (count - largest.shape[1]))[:, None], count, axis=1)
    np.put_along_axis(found, classes.astype(np.intp), largest.astype(np.float32), axis=1)
    return found


@dataclass(slots=True)
class Collected:
    """Gathers one setting's answers batch by batch, on their device."""

    logits: list[Tensor] = field(default_factory=list)
    macs: list[Tensor] = field(default_factory=list)
    paths: list[Tensor] = field(default_factory=list)
    exits: list[Tensor] = field(default_factory=list)

    def add(self, result: Inference) -> None:
        """Take the answers for a batch."""
        self.logits.append(result.logits)
        self.macs.append(result.macs)
        self.paths.append(result.path)
        if result.exits is not None:
            self.exits.append(result.exits)


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers of S operating points on n images.

    `labels` (n,) what is right; `macs` (S, n) float64; `path` (S, n, U) float16 shares in [0, 1]; `exits` (S, n) or
    None. Probabilities are either `every` (S, n, C) float16, or `largest` (S, n, `TOP`) float16 with `classes` and
    `rest` (S, n).
    """

    count: int
    labels: np.ndarray
    macs: np.ndarray
    path: np.ndarray
    exits: np.ndarray | None = None
    every: np.ndarray | None = None
    largest: np.ndarray | None = None
    classes: np.ndarray | None = None
    rest: np.ndarray | None = None

    @property
    def settings(self) -> int:
        """How many operating points there are."""
        return len(self.macs)

    def of(self, setting: int) -> np.ndarray:
        """Probabilities (n, C) float32 of one setting, as `probabilities` gives them."""
        if self.every is not None:
            return self.every[setting].astype(np.float32)
        assert self.largest is not None and self.classes is not None and self.rest is not None
        return spread(self.largest[setting], self.classes[setting], self.rest[setting], self.count)

    @classmethod
    def collected(cls, settings: Sequence[Collected], labels: Tensor) -> Predictions:
        """The answers that were gathered on images with these labels."""
        stacked: dict[str, list[np.ndarray]] = {}
        classes = settings[0].logits[0].shape[1]
        for each in settings:
            exact = torch.cat(each.logits).float().softmax(dim=1).cpu()
            found: dict[str, np.ndarray] = {}
            if classes <= FEW:
                found["every"] = exact.half().numpy()
            else:
                found["largest"], found["classes"], found["rest"] = _top(exact)
            found["macs"] = torch.cat(each.macs).double().cpu().numpy()
            found["path"] = torch.cat(each.paths).half().cpu().numpy()
            if each.exits:
                found["exits"] = torch.cat(each.exits).cpu().numpy().astype(np.uint8)
            for name, array in found.items():
                stacked.setdefault(name, []).append(array)
        arrays = {name: np.stack(parts) for name, parts in stacked.items()}
        return cls(classes, labels.cpu().numpy().astype(np.uint16), **arrays)

    def arrays(self) -> dict[str, np.ndarray]:
        """What is written: paths of whole units take a bit each."""
        found = {"version": np.array(VERSION), "count": np.array(self.count), "labels": self.labels, "macs": self.macs}
        whole = bool(((self.path == 0) | (self.path == 1)).all())
        found["units"] = np.array(self.path.shape[2])
        found["path_bits" if whole else "path"] = np.packbits(self.path > 0, axis=2) if whole else self.path
        for name in ("exits", "every", "largest", "classes", "rest"):
            if (array := getattr(self, name)) is not None:
                found[name] = array
        return found


def write(path: Path, predictions: Predictions) -> None:
    """Write the file."""
    with path.open("wb") as file:
        np.savez_compressed(file, **predictions.arrays())  # pyright: ignore[reportArgumentType]


def read(path: Path) -> Predictions:
    """The predictions of a file. Raises `PredictionsError` where it is damaged or of another version."""
    try:
        with zipfile.ZipFile(path) as packed:
            size = sum(info.file_size for info in packed.infolist())
        if size > _LARGEST:
            raise PredictionsError(f"{path} would unpack to {size:,} bytes; no checkpoint keeps so much")
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except PredictionsError:
        raise
    except FileNotFoundError:
        raise PredictionsError(f"{path} is not there: no predictions were kept with this checkpoint") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise PredictionsError(f"{path} is damaged: {error}") from None
    version = arrays.pop("version", np.array(0))
    if version.shape != () or int(version) != VERSION:
        said = int(version) if version.shape == () else "none"
        raise PredictionsError(f"{path} was kept by another version (it says {said}, this one reads {VERSION})")
    try:
        return _checked(arrays)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PredictionsError(f"{path} is damaged: {error}") from None


_KINDS = {
    "labels": "u2", "macs": "f8", "path": "f2", "every": "f2", "largest": "f2", "classes": "u2", "rest": "f2",
    "exits": "u1",
}  # fmt: skip


def _checked(arrays: Mapping[str, np.ndarray]) -> Predictions:
    """The arrays of a file, their shapes and values being those of predictions; `ValueError` otherwise."""
    found = dict(arrays)
    count, units = int(found.pop("count")), int(found.pop("units"))
    settings, images = found["macs"].shape
    shapes = {
        "labels": (images,), "every": (settings, images, count), "largest": (settings, images, TOP),
        "classes": (settings, images, TOP), "rest": (settings, images), "exits": (settings, images),
    }  # fmt: skip
    if "path_bits" in found:
        bits = np.unpackbits(found.pop("path_bits"), axis=2, count=units)
        found["path"] = bits.astype(np.float16)
    for name, shape in {**shapes, "path": (settings, images, units)}.items():
        if name in found and found[name].shape != shape:
            raise ValueError(f"{name} has the shape {found[name].shape}, not {shape}")
    for name, kind in _KINDS.items():
        if name in found and found[name].dtype != np.dtype(kind):
            raise ValueError(f"{name} is of type {found[name].dtype}")
    if ("every" in found) == ({"largest", "classes", "rest"} <= found.keys()):
        raise ValueError("there are no class probabilities in it")
    if not (np.isfinite(found["macs"]).all() and (found["macs"] > 0).all()):
        raise ValueError("its MACs are not finite and above 0")
    shares = [found[name] for name in ("every", "largest", "rest", "path") if name in found]
    if not all(((share >= 0) & (share <= 1)).all() for share in shares):
        raise ValueError("its probabilities or paths lie outside [0, 1]")
    if int(found["labels"].max(initial=0)) >= count or ("classes" in found and int(found["classes"].max()) >= count):
        raise ValueError(f"it names classes beyond its {count}")
    return Predictions(count, **found)
