"""Images that stay encoded in their files and are decoded batch by batch, for sets too large for memory.

`ImageFiles` stands in a `Split` for the array of images, `LazyImages` on a device for the tensor.
Training images are crops of random area and aspect ratio, evaluated ones are resized and cut in the
middle, as ImageNet is used in the papers. Batches are decoded one ahead, by as many threads
as torch has in the process, while the network works on the one before.

Shape legend: n images, B images of a batch, V views, C channels, S pixels along an edge.
"""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from trainables.data.decoding import decode
from trainables.data.resizing import Size, edges, resize

TRIES = 10
"""How often a random crop is drawn until it lies within the image; then the middle is taken (torchvision's rule)."""
RATIOS = (3 / 4, 4 / 3)
"""Aspect ratios of random crops."""
_READ_AHEAD = 128


@dataclass(frozen=True, slots=True, eq=False)
class ImageFiles:
    """Colour images (n, 3, h, w) uint8 that lie in files: `names` (n,) bytes under `folder`, `lengths` (n,) bytes long.

    Indexing decodes, as images are evaluated (by `rule`); `take` and `len` do not.
    """

    folder: str
    names: np.ndarray
    lengths: np.ndarray
    size: Size
    rule: str = "preset"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, 3, h, w), as the array would have it."""
        return len(self.names), 3, *edges(self.size)

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """What tells one set from another: names and lengths of the files."""
        return self.names, self.lengths

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> ImageFiles:
        """The files at `indices` (m,)."""
        return dataclasses.replace(self, names=self.names[indices], lengths=self.lengths[indices])

    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> np.ndarray:
        """The evaluated images at `index`, (m, 3, S, S) uint8, decoded."""
        chosen = self.take(np.arange(len(self))[index])
        parts = [part.numpy() for part in LazyImages(chosen).split(_READ_AHEAD)]
        return np.concatenate(parts) if parts else np.empty(chosen.shape, dtype=np.uint8)

    def decoded(self, which: int) -> Image.Image:
        """An image in its own size, of mode RGB; `DataError` where it is not a whole image file."""
        path = Path(self.folder, os.fsdecode(self.names[which]))
        image = decode(path, str(path))
        return image if image.mode == "RGB" else image.convert("RGB")


def random_box(
    width: int, height: int, area: tuple[float, float], draws: np.ndarray
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of a crop with a uniform share of the `area` and a log-uniform aspect ratio.

    Szegedy et al. (arXiv 1409.4842, section 6), in torchvision's form. `draws` (TRIES, 4) are
    uniform in [0, 1): area, ratio, top, left.
    """
    shares = area[0] + (area[1] - area[0]) * draws[:, 0]
    low, high = np.log(RATIOS)
    ratios = np.exp(low + (high - low) * draws[:, 1])
    widths = np.rint(np.sqrt(shares * width * height * ratios)).astype(int)
    heights = np.rint(np.sqrt(shares * width * height / ratios)).astype(int)
    fits = np.flatnonzero((0 < widths) & (widths <= width) & (0 < heights) & (heights <= height))
    if len(fits):
        w, h = int(widths[fits[0]]), int(heights[fits[0]])
        top, left = int(draws[fits[0], 2] * (height - h + 1)), int(draws[fits[0], 3] * (width - w + 1))
    else:
        w, h = min(width, round(height * RATIOS[1])), min(height, round(width / RATIOS[0]))
        top, left = (height - h) // 2, (width - w) // 2
    return left, top, left + w, top + h


class LazyImages:
    """Stands for the tensor of a split's images on a device: uint8, or float32 once it is to be normalised.

    Indexing chooses images without decoding them; `split` and `crops` yield batches.
    """

    def __init__(
        self,
        files: ImageFiles,
        device: torch.device | str = "cpu",
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.files = files
        self.device = torch.device(device)
        self._finish = finish

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(n, 3, S, S), as the tensor would have it."""
        return self.files.shape

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Tensor) -> LazyImages:
        return LazyImages(self.files.take(index.cpu().numpy()), self.device, self._finish)

    def finished(self, finish: Callable[[Tensor], Tensor]) -> LazyImages:
        """The same images, each batch passed through `finish` on the device."""
        return LazyImages(self.files, self.device, finish)

    def split(self, size: int) -> Iterator[Tensor]:
        """Batches (B, 3, S, S) of `size` images in their order, as they are evaluated."""
        return self._batches(
            [(int(which), None) for which in range(begin, min(begin + size, len(self)))]
            for begin in range(0, len(self), size)
        )

    def crops(
        self,
        chunks: Iterable[Tensor],
        *,
        views: int = 1,
        area: tuple[float, float] | None,
        generator: torch.Generator | None,
        done: int = 0,
    ) -> Iterator[Tensor]:
        """For each of the `chunks` (B,) of indices a batch (B V, 3, S, S), the views of an image being neighbours.

        `area` bounds the crops' share of an image; None takes the evaluated image, `views` times.
        One number is drawn from `generator`, from which the draws of all batches follow. The first `done` batches
        are left out.
        """
        at = generator.device if generator is not None else "cpu"
        seed = int(torch.randint(2**62, (1,), generator=generator, device=at))
        random = torch.Generator().manual_seed(seed)

        def jobs() -> Iterator[list[tuple[int, np.ndarray | None]]]:
            for number, chunk in enumerate(chunks):
                draws = torch.rand(len(chunk), views, TRIES, 4, generator=random).numpy()
                if number < done:
                    continue
                yield list(zip(chunk.tolist(), draws, strict=True))

        return self._batches(jobs(), area=area, views=views)

    def _batches(
        self,
        jobs: Iterable[list[tuple[int, np.ndarray | None]]],
        *,
        area: tuple[float, float] | None = None,
        views: int = 1,
    ) -> Iterator[Tensor]:
        size, rule = self.files.size, self.files.rule
        height, width = edges(size)

        def fill(out: np.ndarray, which: int, draws: np.ndarray | None) -> None:
            """The views (V, S, S, 3) of one image."""
            image = self.files.decoded(which)
            if area is None or draws is None:
                out[:] = np.asarray(resize(image, size, rule))
                return
            for view, drawn in zip(out, draws, strict=True):
                box = random_box(*image.size, area, drawn)
                view[:] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR, box=box))

        def finished(pixels: np.ndarray, running: list[Future[None]]) -> Tensor:
            for one in running:
                one.result()
            # channels last in memory, as networks take them
            batch = torch.from_numpy(pixels.reshape(-1, height, width, 3)).permute(0, 3, 1, 2).to(self.device)
            return batch if self._finish is None else self._finish(batch)

        ahead: deque[tuple[np.ndarray, list[Future[None]]]] = deque()
        pool = ThreadPoolExecutor(max(1, torch.get_num_threads()), thread_name_prefix="decode")
        try:
            for job in jobs:
                pixels = np.empty((len(job), views, height, width, 3), dtype=np.uint8)
                ahead.append((pixels, [pool.submit(fill, out, *one) for out, one in zip(pixels, job, strict=True)]))
                if len(ahead) > 1:
                    yield finished(*ahead.popleft())
            while ahead:
                yield finished(*ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)


Images = Tensor | LazyImages
"""Images of a split on a device."""
