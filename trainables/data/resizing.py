"""How images of any size become images of one: the rules of ``[data] resize``.

=========== ==========================================================================================================
rule        an image of any height and width
=========== ==========================================================================================================
``fit``     is resized until it just covers the size, and the middle is cut out
``preset``  is resized until it covers 256/224 of the size, and the middle is cut out, as torchvision's presets do it
            (the shorter edge to 256 pixels, 224 cut out)
``stretch`` is resized to the size, whatever becomes of its proportions: nothing is cut off
=========== ==========================================================================================================

All are bilinear and antialiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainables.data.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

RULES = ("fit", "preset", "stretch")
Size = int | tuple[int, int]
"""Pixels along an edge of square images, else (height, width)."""
MARGIN = 256 / 224
LEAST = 4


def edges(size: Size) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else size


def checked(size: Size | Sequence[int] | None) -> Size | None:
    """A size as it is meant: one number, or height and width where they differ. Raises `DataError` for what is none."""
    given = list(size) if isinstance(size, Sequence) and not isinstance(size, str) else [size]
    if size is None:
        return None
    if not all(isinstance(each, int) and not isinstance(each, bool) and each >= LEAST for each in given):
        raise DataError(
            f"image_size = {size!r}: it takes a whole number of at least {LEAST} pixels, or [height, width]"
        )
    if len(given) > 2 or not given:
        raise DataError(f"image_size = {size!r}: it takes one number, or two: [height, width]")
    height, width = int(given[0]), int(given[-1])  # type: ignore[arg-type]
    return height if height == width else (height, width)


def shown(size: Size) -> str:
    """In words, ``48 x 64``."""
    return " x ".join(map(str, edges(size)))


def resize(image: Image.Image, size: Size, rule: str = "fit") -> Image.Image:
    """An image of the size, by one of `RULES`; itself where it has that size already and nothing is cut off it."""
    from PIL import Image, ImageOps  # late: whoever reads a study file needs the rules' names alone

    height, width = edges(size)
    how = Image.Resampling.BILINEAR  # Pillow's is antialiased
    if rule != "preset" and image.size == (width, height):
        return image
    if rule == "stretch":
        return image.resize((width, height), how)
    if rule == "fit":
        return ImageOps.fit(image, (width, height), how)
    return centre(image, size)


def centre(image: Image.Image, size: Size) -> Image.Image:
    """The image resized until it covers 256/224 of `size`, then the middle: what ImageNet is evaluated on."""
    from PIL import Image

    height, width = edges(size)
    if image.width * height < image.height * width:
        across = round(width * MARGIN)
        down = int(across * image.height / image.width)
    else:
        down = round(height * MARGIN)
        across = int(down * image.width / image.height)
    image = image.resize((max(across, width), max(down, height)), Image.Resampling.BILINEAR)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))
