"""Decoding one image file: the only place that opens any, be it of a folder, a Parquet file or a request.

Images come from strangers. Only raster formats that Pillow decodes by itself are read (for PostScript it would start
Ghostscript, a program), only regular files, and only up to `MOST_BYTES` and `MOST_PIXELS`, which is checked before
anything is unpacked.
"""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zlib
from pathlib import Path

from PIL import Image, ImageOps

from trainables.data.depth import Scale, is_deep, values
from trainables.data.errors import DataError, DataMissing

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "TGA", "ICO", "JPEG2000", "PCX", "AVIF")
MOST_BYTES = 256 * 2**20
MOST_PIXELS = 100 * 10**6
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def decode(source: Path | bytes, name: str, scale: Scale | None = None) -> Image.Image:
    """An image of mode L (grey) or RGB, upright, transparency dropped; `name` is what an error calls it.

    `scale`: of grey pixels of more than eight bits, by default that of 16 bits. Raises `DataError` where it is not a
    whole image of `FORMATS`, is no regular file, or is larger than the limits, and for floating-point pixels without a
    `scale`.
    """
    return in_bytes(opened(source, name), name, scale)


def opened(source: Path | bytes, name: str) -> Image.Image:
    """An image of whatever mode its file has, upright. Raises `DataError` as `decode` does."""
    try:
        _regular(source, name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is ours
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
        if image.width * image.height > MOST_PIXELS:
            raise DataError(
                f"{name} has {image.width:,} x {image.height:,} pixels; at most {MOST_PIXELS // 10**6} million are read"
            )
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
    except FileNotFoundError:
        raise DataMissing(f"no image at {name}") from None
    except DataError:
        raise
    except _DAMAGE as error:
        reason = (
            "cannot be decoded" if isinstance(error, Image.UnidentifiedImageError) else " ".join(str(error).split())
        )
        raise DataError(f"{name} is not a whole image file ({reason})") from None
    return image


def in_bytes(image: Image.Image, name: str, scale: Scale | None = None) -> Image.Image:
    """An image as `decode` gives it."""
    if image.mode in ("L", "RGB"):
        return image
    if is_deep(image):  # Pillow's own conversion would clip at 255
        pixels = values(image, name)
        if scale is None and image.mode == "F":
            raise DataError(f"{name} holds floating-point pixels; save it with 8 bits a channel")
        return Image.fromarray((scale or Scale()).apply(pixels))
    if image.mode == "P":
        return image.convert("RGBA").convert("RGB")  # by way of the palette's own transparency
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def _regular(source: Path | bytes, name: str) -> None:
    """Raise `DataError` where a source is no regular file, or larger than `MOST_BYTES`."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        seen = source.stat()
        if not stat.S_ISREG(seen.st_mode):
            raise DataError(f"{name} is no regular file")
        size = seen.st_size
    if size > MOST_BYTES:
        raise DataError(f"{name} has {size / 2**20:.0f} MiB; at most {MOST_BYTES // 2**20} are read")
