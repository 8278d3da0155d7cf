"""``cluttered-digits``: scikit-learn's handwritten digits in clutter, from easy to hard, without a download.

After the cluttered MNIST of Mnih et al., "Recurrent Models of Visual Attention" (arXiv 1406.6247, section 4.1:
digits among fragments of other digits) and the photographs behind digits of Larochelle et al. (ICML 2007,
section 3.1). Every image has a difficulty in [0, 1] that is drawn evenly; with it grow the clutter, the noise and
the deformation, and size and contrast shrink. So there are images that a small network classifies and images that
need a large one, which is what gates and early exits live on.

The 1,797 digits and the two photographs are divided before anything is drawn: no digit and no piece of a
photograph is in two splits. All draws come from fixed seeds, and what turns them into pixels is arithmetic that
IEEE 754 defines to the last bit (no sines, no matrix products): the same images on every machine.

Shape legend: n images, S = 32 pixels along an edge, F = 12 pixels of a fragment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from trainables.data.image_files import resized
from trainables.data.published import DatasetStatus, digits_of_scikit_learn, from_scikit_learn
from trainables.data.splits import Augment, Source, Split, divide

NAME = "cluttered-digits"
SIZE = 32
FRAGMENT = 12
COPIES = (6, 3, 3)
"""How often every digit of the train, validation and test split is drawn."""
BANDS = ((0, 1, 3), (4,), (2,))
"""Which fifths of the photographs' columns are behind the digits of the train, validation and test split."""
MOST_FRAGMENTS = 2

_CHUNK = 512  # images drawn at once: their floating-point arrays stay in the processor's cache
_CELLS = 8  # scikit-learn's digits are 8 x 8, in 17 levels


def difficulties(count: int, copies: int, random: np.random.RandomState) -> np.ndarray:
    """Difficulties (copies * count,) in [0, 1): copy c of every digit is uniform in [c / copies, (c + 1) / copies)."""
    first = np.repeat(np.arange(copies), count)
    return (first + random.uniform(size=copies * count)) / copies


def drawn(
    digits: np.ndarray, difficulty: np.ndarray, photographs: list[np.ndarray], random: np.random.RandomState
) -> np.ndarray:
    """Digits (n, 8, 8) in [0, 16], each drawn into clutter of its difficulty (n,): (n, 1, S, S) uint8.

    At difficulty d a digit is 27 - 9 d pixels large (1.5 more or less), turned by at most 8 + 14 d degrees,
    sheared and stretched by at most 0.05 + 0.12 d, anywhere inside the image; 100 to 170 grey levels brighter than
    a piece of one of the `photographs` (grey, uint8, each at least S pixels along both edges) whose own contrast
    grows with d; among floor(2 d + u) fragments of other digits, u uniform in [0, 1), 0.4 to 0.8 of its contrast;
    with
    probability 0.5 d behind a bar of 1 to 3 pixels; under noise of at most 12 + 24 d levels.
    """
    cells = np.pad(digits.astype(np.float32) / 16, ((0, 0), (1, 1), (1, 1)))
    images = np.empty((len(digits), 1, SIZE, SIZE), dtype=np.uint8)
    for begin in range(0, len(digits), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        images[part, 0] = _chunk(cells, cells[part], difficulty[part], photographs, random)
    return images


def _between(low: Any, high: Any, count: int, random: np.random.RandomState) -> np.ndarray:
    return low + (high - low) * random.uniform(size=count)


def _chunk(
    pool: np.ndarray, cells: np.ndarray, d: np.ndarray, photographs: list[np.ndarray], random: np.random.RandomState
) -> np.ndarray:
    count = len(cells)
    edge = 27 - 9 * d + _between(-1.5, 1.5, count, random)
    slack = (SIZE - edge) / 2
    centre = (SIZE - 1) / 2 + slack[:, None] * random.uniform(-1, 1, (count, 2))
    digit = _warped(cells, edge, d, centre, SIZE, random)

    level = _between(30, 80, count, random)
    contrast = _between(150 - 50 * d, 170 - 30 * d, count, random)
    texture = _pieces(photographs, count, random) * _between(0.1 + 0.1 * d, 0.2 + 0.4 * d, count, random)[:, None, None]
    image = level[:, None, None] + texture

    fragments = np.floor(MOST_FRAGMENTS * d + random.uniform(size=count))
    for which in range(MOST_FRAGMENTS):
        mine = np.flatnonzero(fragments > which)
        _add_fragments(image, mine, pool, edge, d, level + contrast * _between(0.4, 0.8, count, random), random)
    image += digit * ((level + contrast)[:, None, None] - image)
    _add_bars(image, d, centre, edge, level + contrast * random.uniform(size=count), random)

    noise = random.randint(0, 256, (2, count, SIZE, SIZE), dtype=np.uint8)
    image += (noise[0].astype(np.float64) + noise[1] - 255) * ((12 + 24 * d) / 255)[:, None, None]
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8)


def _warped(
    cells: np.ndarray, edge: np.ndarray, d: np.ndarray, centre: np.ndarray, size: int, random: np.random.RandomState
) -> np.ndarray:
    """Padded digits (n, 10, 10) turned, sheared and stretched, `edge` (n,) pixels large, in [0, 1]: (n, size, size).

    `centre` (n, 2) is where the middle of a digit lies, (row, column). Bilinear, and edges sharpened back to about
    one pixel, as in ``hybrid-digits``.
    """
    count = len(cells)
    half = (8 + 14 * d) * (np.pi / 360) * random.uniform(-1, 1, count)  # tan(x / 2) of a small angle x is about x / 2
    cosine, sine = (1 - half**2) / (1 + half**2), 2 * half / (1 + half**2)
    shear, stretch = (0.05 + 0.12 * d) * random.uniform(-1, 1, (2, count))
    along = np.arange(size)
    rows, columns = along - centre[:, :1], along - centre[:, 1:]
    scale = _CELLS / edge
    # where pixel (i, j) lies in the digit's own cells: rotation, then shear and stretch
    down, right = scale / (1 + stretch), scale * (1 + stretch)
    y = (down * cosine)[:, None, None] * rows[:, :, None] - (down * sine)[:, None, None] * columns[:, None, :]
    x = (right * sine)[:, None, None] * rows[:, :, None] + (right * cosine)[:, None, None] * columns[:, None, :]
    x += shear[:, None, None] * y
    y, x = (np.clip(at + (_CELLS - 1) / 2, -1, _CELLS - 1e-3) + 1 for at in (y, x))
    row, column = y.astype(np.intp), x.astype(np.intp)
    y, x = (y - row).astype(np.float32), (x - column).astype(np.float32)
    width = _CELLS + 2
    first = row * width + column + (np.arange(count) * width * width)[:, None, None]
    flat = cells.ravel()
    above = flat[first] * (1 - x) + flat[first + 1] * x
    below = flat[first + width] * (1 - x) + flat[first + width + 1] * x
    value = above * (1 - y) + below * y
    gain = np.maximum(1, edge / _CELLS)[:, None, None]
    return np.clip((value - 0.5) * gain + 0.5, 0, 1)


def _pieces(photographs: list[np.ndarray], count: int, random: np.random.RandomState) -> np.ndarray:
    """Pieces of the photographs (count, S, S), each minus its mean, in one of the eight positions of a square."""
    pieces = np.empty((count, SIZE, SIZE))
    which = random.randint(len(photographs), size=count)
    corner = random.uniform(size=(count, 2))
    turn = random.randint(2, size=(3, count))
    for index in range(count):
        photograph = photographs[which[index]]
        top, left = (corner[index] * (np.array(photograph.shape) - SIZE + 1)).astype(int)
        piece = photograph[top : top + SIZE, left : left + SIZE]
        piece = piece[::-1] if turn[0, index] else piece
        piece = piece[:, ::-1] if turn[1, index] else piece
        pieces[index] = piece.T if turn[2, index] else piece
    return pieces - np.rint(pieces.mean(axis=(1, 2), keepdims=True))


def _add_fragments(
    image: np.ndarray,
    mine: np.ndarray,
    pool: np.ndarray,
    edge: np.ndarray,
    d: np.ndarray,
    ink: np.ndarray,
    random: np.random.RandomState,
) -> None:
    """Draw one fragment, F x F pixels of some digit of the same size, into each image in `mine`, in place."""
    count = len(mine)
    others = pool[random.randint(len(pool), size=count)]
    middle = (FRAGMENT - 1) / 2 + (edge[mine] / 4)[:, None] * random.uniform(-1, 1, (count, 2))
    fragment = _warped(others, edge[mine], d[mine], middle, FRAGMENT, random)
    top, left = random.randint(SIZE - FRAGMENT + 1, size=(2, count))
    along = np.arange(FRAGMENT)
    at = mine[:, None, None], (top[:, None] + along)[:, :, None], (left[:, None] + along)[:, None, :]
    image[at] += fragment * (ink[mine, None, None] - image[at])


def _add_bars(
    image: np.ndarray,
    d: np.ndarray,
    centre: np.ndarray,
    edge: np.ndarray,
    shade: np.ndarray,
    random: np.random.RandomState,
) -> None:
    """Draw a bar across the digit, upright or level, into some images, in place."""
    count = len(image)
    barred = random.uniform(size=count) < 0.5 * d
    upright = random.randint(2, size=count)
    middle = centre[np.arange(count), upright] + edge / 4 * random.uniform(-1, 1, count)
    begin = np.rint(middle - 0.5)
    thick = np.floor(1 + (1 + d) * random.uniform(size=count))
    along = np.arange(SIZE)
    inside = (along >= begin[:, None]) & (along < (begin + thick)[:, None]) & barred[:, None]
    mask = np.where(upright[:, None, None], inside[:, None, :], inside[:, :, None])
    image[:] = np.where(mask, shade[:, None, None], image)


def _photographs() -> list[np.ndarray]:
    """Scikit-learn's two photographs in grey at half their size, uint8."""
    photographs = []
    for name in ("china.jpg", "flower.jpg"):
        with Image.open(from_scikit_learn(f"images/{name}")) as file:
            picture = np.asarray(file)
        height, width = (edge // 2 for edge in picture.shape[:2])
        blocks = picture[: 2 * height, : 2 * width].reshape(height, 2, width, 2, 3)
        photographs.append((blocks.sum(axis=(1, 3, 4), dtype=np.int64) // 12).astype(np.uint8))
    return photographs


def _bands(photographs: list[np.ndarray], which: tuple[int, ...]) -> list[np.ndarray]:
    pieces = []
    for photograph in photographs:
        width = photograph.shape[1] // 5
        pieces += [photograph[:, band * width : (band + 1) * width] for band in which]
    return pieces


def read_cluttered(image_size: int | None, seed: int) -> Source:
    """The data set, S pixels along an edge unless `image_size` says otherwise; `seed` divides digits into splits."""
    images, labels = digits_of_scikit_learn()
    digits = images.astype(np.uint8)[:, None]
    classes = tuple(str(digit) for digit in range(10))
    size = image_size or SIZE
    augment = Augment.written(size)
    halves = divide(Source(classes=classes, train=Split(digits, labels), augment=augment), seed)
    photographs = _photographs()
    splits = []
    for number, (split, copies) in enumerate(zip(halves, COPIES, strict=True)):
        random = np.random.RandomState(number)  # its stream is frozen by NumPy
        difficulty = difficulties(len(split), copies, random)
        few = np.tile(split.decoded()[:, 0], (copies, 1, 1))
        images = drawn(few, difficulty, _bands(photographs, BANDS[number]), random)
        splits.append(Split(resized(images, size), np.tile(split.labels, copies)))
    train, validation, test = splits
    return Source(classes=classes, train=train, validation=validation, test=test, augment=augment)


def catalogue() -> DatasetStatus:
    """Always complete: everything it is made of comes with scikit-learn."""
    return DatasetStatus(NAME, True, True, "scikit-learn", (), "made of what comes with scikit-learn")
