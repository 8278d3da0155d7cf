"""Decoding one image file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from trainables.data.errors import DataError, DataMissing

_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(source: Path | bytes, name: str) -> Image.Image:
    """An image of mode L (grey) or RGB, upright, transparency dropped; `name` is what an error calls it.

    Raises `DataError` where it is not a whole image that Pillow reads.
    """
    try:
        image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataMissing(f"no image at {name}") from None
    except _DAMAGE as error:
        reason = (
            "cannot be decoded" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        )
        raise DataError(f"{name} is not a whole image file ({reason})") from None
    if image.mode in ("L", "RGB"):
        return image
    if image.mode.startswith("I"):  # 16 bits a pixel, which Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels; save it with 8 bits a channel")
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")  # by way of the palette's own transparency
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
