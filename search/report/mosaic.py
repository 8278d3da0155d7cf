"""Images side by side, as pictures of a page and of files."""

from __future__ import annotations

import base64
import io
from html import escape

import numpy as np

COLUMNS = 10
_EXACT = 16  # pixels of an edge up to which pictures are stored without loss


def mosaic(images: np.ndarray, columns: int = COLUMNS, gap: int = 1, largest: int = 64) -> np.ndarray:
    """Images (m, channels, S, S) uint8 as one picture (rows, columns, 3), transparent where there is none: RGBA.

    Large images are thinned to at most `largest` pixels an edge.
    """
    step = -(-images.shape[-1] // largest)
    images = images[:, :, ::step, ::step]
    count, channels, size, _ = images.shape
    rows, edge = -(-count // columns), size + gap
    picture = np.zeros((rows * edge - gap, columns * edge - gap, 4), dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = edge * (i // columns), edge * (i % columns)
        colours = image if channels == 3 else image[:1].repeat(3, axis=0)
        picture[top : top + size, left : left + size, :3] = colours.transpose(1, 2, 0)
        picture[top : top + size, left : left + size, 3] = 255
    return picture


def picture(images: np.ndarray, label: str) -> str:
    """Images (m, channels, S, S) uint8 as one picture in a page."""
    return in_page(mosaic(images), label, images.shape[-1] <= _EXACT)


def in_page(pixels: np.ndarray, label: str, exact: bool) -> str:
    """A picture (h, w, 4) uint8 in a page, without loss where it is to be `exact`."""
    from PIL import Image

    file = io.BytesIO()
    # photographs of 32 pixels take a fifth of what PNG needs, and nobody sees the difference; digits stay exact
    how = {"lossless": True, "exact": True} if exact else {"quality": 90}
    Image.fromarray(pixels, "RGBA").save(file, "webp", **how)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="grid" alt="{escape(label)}" src="data:image/webp;base64,{data}">'
