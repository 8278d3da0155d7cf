"""Pixels of more than eight bits: which of their values become black and white.

Files say little of it. A camera of twelve bits writes 0 to 4,095 into pixels of 16, a mask 0 to 255. So one scale holds
for a whole data set: what its files say, else the range of its training images.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from trainables.data.errors import DataError

_PNG = b"\x89PNG\r\n\x1a\n"
_MAX_SAMPLE_VALUE = 281  # TIFF 6.0, section 8
_DARK = 32  # of 256 levels: as many as 13 bits in 16 leave


@dataclass(frozen=True, slots=True)
class Scale:
    """`low` becomes 0 and `high` 255, in units of a file's pixels; what lies beyond is clipped.

    Whole numbers from 0 to 2^bits - 1 keep their eight highest bits.
    """

    low: float = 0.0
    high: float = 65535.0

    @classmethod
    def of(cls, record: Sequence[float] | None) -> Scale | None:
        """The scale of a `record`, None where there is none."""
        return None if record is None else cls(float(record[0]), float(record[1]))

    def record(self) -> list[float]:
        """[low, high], for JSON."""
        return [self.low, self.high]

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of any type as uint8."""
        if np.issubdtype(pixels.dtype, np.integer) and self._bits is not None:
            return (pixels.astype(np.int64) >> (self._bits - 8)).clip(0, 255).astype(np.uint8)
        levels = (pixels.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.rint(levels.clip(0, 255)).astype(np.uint8)

    @property
    def _bits(self) -> int | None:
        bits = int(self.high).bit_length()
        return bits if self.low == 0 and bits >= 8 and self.high == 2**bits - 1 else None


def is_deep(image: Image.Image) -> bool:
    """Whether an image's grey pixels have more than eight bits."""
    return image.mode.startswith("I") or image.mode == "F"


def values(image: Image.Image, name: str) -> np.ndarray:
    """The pixels of a deep image. Raises `DataError` where they are no numbers."""
    pixels = np.asarray(image)
    if image.mode == "F" and not np.isfinite(pixels).all():
        raise DataError(f"{name} holds pixels that are no numbers (NaN or infinite)")
    return pixels


def said_by(image: Image.Image, source: Path | bytes) -> int | None:
    """How many bits a deep image's file says that its values have; None where it does not say."""
    if image.format == "PNG":
        return _significant_bits(source)
    tags = getattr(image, "tag_v2", {})
    most = tags.get(_MAX_SAMPLE_VALUE)
    most = most[0] if isinstance(most, tuple) and most else most
    return int(most).bit_length() if isinstance(most, int | float) and most > 0 else None


def _significant_bits(source: Path | bytes) -> int | None:
    """The chunk sBIT of a PNG (its specification, section 11.3.2.7), which comes before the pixels."""
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
        if file.read(8) != _PNG:
            return None
        while len(head := file.read(8)) == 8 and head[4:] not in (b"IDAT", b"IEND"):
            length = int.from_bytes(head[:4], "big")
            if head[4:] == b"sBIT":
                return max(file.read(min(length, 4)), default=0) or None
            file.seek(length + 4, io.SEEK_CUR)
    return None


def colour_is_deep(image: Image.Image, source: Path | bytes) -> bool:
    """Whether a colour image's file has 16 bits a channel, of which Pillow keeps the higher eight."""
    if image.format == "PNG":
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            return file.read(25)[24:] == b"\x10"
    bits = getattr(image, "tag_v2", {}).get(258, ())  # BitsPerSample
    return isinstance(bits, tuple) and max(bits, default=8) > 8


class Depths:
    """What the training images of a set hold, gathered image by image."""

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.floats = self.shallow = False
        self._bits: int | None = None
        self._silent = False
        self._colours, self._brightest = "", 0
        self._first_float = ""

    def note(self, image: Image.Image, source: Path | bytes, name: str) -> None:
        """Take an image into account, as it came out of its file."""
        if is_deep(image):
            pixels, bits = values(image, name), said_by(image, source)
            self.low, self.high = min(self.low, float(pixels.min())), max(self.high, float(pixels.max()))
            if image.mode == "F":
                self.floats, self._first_float = True, self._first_float or name
            self._bits = max(bits or 0, self._bits or 0)
            self._silent |= bits is None
        else:
            self.shallow = True
            if image.mode != "L" and self._brightest < _DARK and colour_is_deep(image, source):
                self._colours = self._colours or name
                self._brightest = max(self._brightest, int(np.asarray(image.convert("RGB")).max()))

    def scale(self) -> Scale | None:
        """The scale of the set, None where no training image is deep. Raises `DataError` where there is none."""
        if self._colours and 0 < self._brightest < _DARK:
            raise DataError(
                f"{self._colours} and the other colour images of 16 bits use only {self._brightest + 1} of 256 levels;"
                " stretch their values to 0 to 65,535, or save them with 8 bits a channel"
            )
        if not np.isfinite(self.high):
            return None
        if self.floats and self.shallow:
            raise DataError(
                f"{self._first_float} holds floating-point pixels, other images of the set do not;"
                " save all with 8 bits a channel"
            )
        if self.floats or self.low < 0:
            for high in (1.0, 255.0):
                if 0 <= self.low and self.high <= high:
                    return Scale(0.0, high)
            low = min(0.0, self.low)
            return Scale(low, max(self.high, low + 1))
        bits = 0 if self._silent else self._bits or 0  # a file that was stretched to all 16 bits says fewer, too
        return Scale(0.0, float(2 ** max(8, bits, int(self.high).bit_length()) - 1))
