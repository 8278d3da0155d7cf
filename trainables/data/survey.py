"""What a folder of images holds, found before anything is trained: sizes, balance, duplicates, broken files.

Every file is decoded once, as training would decode it (`trainables.data.decoding`). Nothing is written.
"""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from trainables.data import layout
from trainables.data.decoding import FORMATS, in_bytes, opened
from trainables.data.depth import is_deep
from trainables.data.errors import DataError, DataMissing

SHOWN = 10
"""Files of one kind that are named; the others are counted."""
UNEVEN = 3.0
"""Above this ratio of the largest to the smallest class, balance is worth a line."""
LONG = 1.25
_ORIENTATION = 0x0112
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")


@dataclass(slots=True)
class Survey:
    """What was found. `counts`: images by split and class. `broken`: (file, why). `twins`: files that hold one picture.

    Of the twins, `between`: those in two splits; `contrary`: those in two classes.
    """

    folder: Path
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    rotated: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)
    twins: list[list[str]] = field(default_factory=list)
    between: list[list[str]] = field(default_factory=list)
    contrary: list[list[str]] = field(default_factory=list)

    @property
    def images(self) -> int:
        """How many were decoded."""
        return sum(self.sizes.values())

    @property
    def ratio(self) -> float | None:
        """Training images of the largest class over those of the smallest; None where a class has none."""
        counts = self._training().values()
        return max(counts) / min(counts) if counts and min(counts) else None

    def _training(self) -> dict[str, int]:
        return self.counts.get("train", {})

    def advice(self) -> list[str]:
        """What should be done before a training, a line each; the first ones keep it from beginning."""
        said, train = [], self._training()
        if len(train) < 2:
            said.append(f"there is one class only ({', '.join(train) or 'none'}); two are needed to tell apart")
        if empty := [name for name, count in train.items() if count == 0]:
            said.append(f"no training image of {_some(empty)}: add some, or remove the folder")
        if self.broken:
            said.append(f"{len(self.broken)} files are no images that can be read: remove them or save them again")
        if single := [name for name, count in train.items() if count == 1]:
            said.append(f"one training image only of {_some(single)}: nothing of it can be held out")
        if self.between:
            said.append(
                f"{len(self.between)} pictures are in two splits: accuracy on them is remembered, not learnt; keep one"
            )
        if self.contrary:
            said.append(f"{len(self.contrary)} pictures are in two classes: one of the labels is wrong")
        if self.ratio is not None and self.ratio >= UNEVEN:
            said.append(
                f"the largest class has {self.ratio:.1f} times the training images of the smallest: consider"
                ' balance = "sampled" or balance = "loss" below [data], merit = "balanced_accuracy" below [objective]'
            )
        if "validation" in self.counts and "test" not in self.counts:
            said.append("there is no test split: a promoted model has the figures alone by which it was chosen")
        if len(self.sizes) > 1:
            said.append(f"images differ in size: give image_size, for example {self.usual_size()}")
        return said

    def usual_size(self) -> int | list[int]:
        """An `image_size` to begin with: the power of two up to 224 that the shorter edges reach in the median.

        [height, width] where images are longer than `LONG` times their shorter edge in the median, in steps of eight.
        """
        if not self.sizes:
            return 32
        shorter = statistics.median(min(size) for size in self.sizes.elements())
        edge = max((size for size in (16, 32, 64, 128, 224) if size <= shorter), default=16)
        ratio = statistics.median(width / height for width, height in self.sizes.elements())
        longer = 8 * round(edge * max(ratio, 1 / ratio) / 8)
        if max(ratio, 1 / ratio) < LONG:
            return edge
        return [edge, longer] if ratio > 1 else [longer, edge]

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        shorter = sorted(min(size) for size in self.sizes.elements())
        longer = sorted(max(size) for size in self.sizes.elements())
        return {
            "name": str(self.folder),
            "images": self.images,
            "splits": self.counts,
            "ratio": None if self.ratio is None else round(self.ratio, 2),
            "shorter_edge": _three(shorter),
            "longer_edge": _three(longer),
            "not_square": sum(count for (w, h), count in self.sizes.items() if w != h),
            "kinds": dict(self.kinds.most_common()),
            "rotated_by_exif": self.rotated,
            "broken": [{"file": name, "why": why} for name, why in self.broken],
            "same_picture": self.twins,
            "same_picture_in_two_splits": self.between,
            "same_picture_in_two_classes": self.contrary,
            "advice": self.advice(),
        }


def _three(ordered: list[int]) -> list[int]:
    """The least, the median and the largest."""
    return [ordered[0], int(statistics.median(ordered)), ordered[-1]] if ordered else []


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def survey(folder: Path, tick: Callable[[int], None] = lambda done: None) -> Survey:
    """Decode every image of a folder of class folders, or of splits of these; `tick` hears how many are done.

    Raises `DataMissing` where there is no folder, `DataError` where it has no class folders.
    """
    if not folder.is_dir():
        raise DataMissing(f"{folder} is no folder")
    tops = layout.splits(folder) or {"train": folder}
    found = Survey(folder)
    where: dict[str, list[tuple[str, str, str]]] = {}  # by digest of the pixels: split, class, file
    for split, top in tops.items():
        names = layout.class_folders(top)
        if not names and split == "train":
            raise DataError(f"{top} has no class folders with images: expected {top}/<class>/<image>")
        found.counts[split] = dict.fromkeys(names, 0)
        for name in names:
            for path in layout.files(top / name):
                _look(found, where, split, name, path)
                tick(found.images + len(found.broken))
    for several in where.values():
        if len(several) < 2:
            continue
        files = [file for _, _, file in several]
        found.twins.append(files)
        if len({split for split, _, _ in several}) > 1:
            found.between.append(files)
        if len({name for _, name, _ in several}) > 1:
            found.contrary.append(files)
    return found


def _look(found: Survey, where: dict[str, list[tuple[str, str, str]]], split: str, name: str, path: Path) -> None:
    try:
        image = opened(path, str(path))
        kind = _kind(image)
        digest = hashlib.sha256(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
        if not is_deep(image):
            in_bytes(image, str(path))
    except (DataError, DataMissing) as error:
        found.broken.append((str(path), str(error).removeprefix(f"{path} ")))
        return
    found.counts[split][name] += 1
    found.sizes[image.size] += 1
    found.kinds[kind] += 1
    found.rotated += _turned(path)
    where.setdefault(digest.hexdigest(), []).append((split, name, str(path)))


def _turned(path: Path) -> bool:
    """Whether a camera says that the picture must be turned (it is, when it is read)."""
    with Image.open(path, formats=FORMATS) as image:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)


def _kind(image: Image.Image) -> str:
    if is_deep(image):
        return "grey of more than 8 bits"
    if image.mode in _ALPHA or "transparency" in image.info:
        return "with transparency, which is dropped"
    return {"L": "grey", "1": "black and white", "RGB": "colour", "P": "palette", "CMYK": "CMYK"}.get(
        image.mode, image.mode
    )
