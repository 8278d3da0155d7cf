"""Images on the device: transfer, normalisation, augmentation, batches. No loop over images.

Shape legend: n images, B images of a batch, C channels, S pixels along an edge.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.constants import constant
from trainables.contracts.recipe import Batch
from trainables.data.encoded import Images, LazyImages
from trainables.data.splits import Augment, Split

if TYPE_CHECKING:
    from trainables.data.splits import Data


def _shared(array: np.ndarray) -> Tensor:
    """A tensor over the memory of an array that may be read-only (Ray's object store)."""
    with warnings.catch_warnings():
        # a copy would cost every trial the whole data set; instead nothing here writes in place
        warnings.filterwarnings("ignore", message=".*not writable")
        return torch.from_numpy(array)


def to_device(split: Split, device: torch.device | str) -> tuple[Images, Tensor]:
    """Images (n, C, S, S) uint8 and labels (n,) int64 of a split on `device`.

    On the CPU they share the memory of the split, which may be read-only: never write to them.
    Images that stay in files are `LazyImages`, whose batches are decoded and sent when they are asked for.
    """
    labels = _shared(split.labels).to(device)
    if isinstance(split.images, np.ndarray):
        return _shared(split.images).to(device), labels
    return LazyImages(split.images, device), labels


@overload
def normalise(images: Tensor, data: Data) -> Tensor: ...
@overload
def normalise(images: Images, data: Data) -> Images: ...
def normalise(images: Images, data: Data) -> Images:
    """Images (B, C, S, S) uint8 as float32, as `data.normalisation` has it; new memory.

    Of images that stay in files each batch, once it is decoded. Raises `ValueError` where no configuration
    chose a normalisation (`Data.for_config`): the data set's own one may not be the network's.
    """
    how = data.normalisation
    if how is None:
        raise ValueError(f"images of {data.name}: no configuration chose their normalisation, see Data.for_config")
    return images.finished(how.apply) if isinstance(images, LazyImages) else how.apply(images)


def _padded(images: Tensor, how: Augment) -> Tensor:
    """Images (B, C, S, S) with `how.pad` pixels more on every side: 0, or the image's mean colour."""
    pad = how.pad
    if how.fill == "black":
        return F.pad(images, (pad,) * 4)
    count, channels, height, width = images.shape
    mean = images.mean(dim=(2, 3), keepdim=True, dtype=torch.float32)
    colour = mean if images.is_floating_point() else mean.round()
    padded = colour.to(images.dtype).expand(count, channels, height + 2 * pad, width + 2 * pad).contiguous()
    padded[:, :, pad : pad + height, pad : pad + width] = images
    return padded


def augment(
    images: Tensor, how: Augment, generator: torch.Generator | None = None, labels: Tensor | None = None
) -> Tensor:
    """Every image of a batch (B, C, S, S) shifted, and perhaps flipped, by its own draw.

    The shift is uniform over [-pad, pad] in both directions (so that it does not matter which comes
    first, flip or shift); what comes in is 0, before normalisation, thus black, as in the papers'
    code, or the mean colour of the image. `labels` (B,) are needed where some classes are not
    flipped. A new tensor of the same shape and type. The draws are made on the generator's device:
    the same generator state gives the same images.
    """
    count, channels, height, width = images.shape
    at = generator.device if generator is not None else images.device
    span = 2 * how.pad + 1
    shifts = torch.randint(span, (2, count), generator=generator, device=at).to(images.device)
    flips = torch.rand(count, generator=generator, device=at).to(images.device) < 0.5
    if how.flip and how.unflipped:
        if labels is None:
            raise ValueError(f"labels = None: classes {how.unflipped} are not flipped, so augment needs the labels")
        for label in how.unflipped:  # compared one by one: a tensor of them would have to reach the device
            flips &= labels != label
    if not how.pad:  # in whatever order the pixels lie in memory
        return torch.where(flips[:, None, None, None], images.flip(3), images) if how.flip else images.clone()
    along, down = torch.arange(width, device=images.device), torch.arange(height, device=images.device)
    columns = torch.where(flips[:, None], along.flip(0), along) if how.flip else along.expand(count, width)
    rows = down + shifts[0, :, None]
    columns = columns + shifts[1, :, None]
    # one gather over flattened pixels: six times as fast on a CPU core as indexing by four axes
    pixels = (rows[:, :, None] * (width + 2 * how.pad) + columns[:, None, :]).flatten(1)
    padded = _padded(images, how).flatten(2)
    return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view(count, channels, height, width)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an epoch goes on: behind so many of its batches, with the generator's state there."""

    done: int
    generator: Tensor


class Drawn(NamedTuple):
    """A batch that is drawn and not made yet: ``make(*indices)`` makes it.

    `indices` lie on the images' device, and what `make` does there depends on nothing else that changes from batch to
    batch but the generator, so that it may be captured. None of them: the host decodes the images; nothing is captured.
    """

    indices: tuple[Tensor, ...]
    make: Callable[..., Batch]


def batches(
    images: Images,
    labels: Tensor,
    data: Data,
    *,
    batch_size: int,
    views: int = 1,
    generator: torch.Generator | None = None,
    place: Place | None = None,
) -> Iterator[Batch]:
    """The batches of `draws`, made."""
    drawn = draws(images, labels, data, batch_size=batch_size, views=views, generator=generator, place=place)
    return (each.make(*each.indices) for each in drawn)


def draws(
    images: Images,
    labels: Tensor,
    data: Data,
    *,
    batch_size: int,
    views: int = 1,
    generator: torch.Generator | None = None,
    place: Place | None = None,
) -> Iterator[Drawn]:
    """One epoch of training: every image in `views` augmented copies, which are neighbours; shuffled.

    With `data.replacement` as many images as there are, drawn with replacement; where classes are balanced by sampling
    every class as often as any other.

    `images` (n, C, S, S) uint8 and `labels` (n,) are those of `to_device`, `data` what `Data.for_config`
    gave for the network that is trained. `batch_size` counts all
    copies, so that a batch has ``max(1, batch_size // views)`` different images. The last batch may
    be smaller; it is left out where it would hold a single image, of which batch-norm (and a loss
    over pairs of images) can make nothing. Nothing waits for the device, but for images in files
    once an epoch. With `place` the generator is where it was when the epoch began, and the batches before
    that place are left out. Raises `ValueError` where images in memory are to be cropped by area.
    """
    at = generator.device if generator is not None else images.device
    count = len(labels)
    weights = constant(data.class_weights(), torch.float32, labels.device) if data.balance != "none" else None
    if data.balance == "sampled":
        assert weights is not None
        order = torch.multinomial(weights[labels].to(at), count, replacement=True, generator=generator).to(
            images.device
        )
    elif data.replacement:
        order = torch.randint(count, (count,), generator=generator, device=at).to(images.device)
    else:
        order = torch.randperm(count, generator=generator, device=at).to(images.device)
    step = max(1, batch_size // views)
    chunks = [chunk for chunk in order.split(step) if not len(chunk) == 1 < step]
    how, done, read = data.training_augment, place.done if place else 0, None
    if isinstance(images, LazyImages):
        indices = (chunk.cpu() for chunk in chunks)
        read = images.crops(indices, views=views, area=how.area, generator=generator, done=done)
    elif how.area is not None:
        raise ValueError(f"area = {how.area}: images in memory have one size; only those in files are cropped by area")
    if place is not None:
        assert generator is not None
        generator.set_state(place.generator)

    def finished(chunk: Tensor, pixels: Tensor) -> Batch:
        truth = labels[chunk.repeat_interleave(views)]
        inputs = normalise(augment(pixels, how, generator, truth), data)
        counted = weights if data.balance == "loss" else None
        return Batch(images=inputs, labels=truth, views=views, generator=generator, class_weights=counted)

    if read is not None:
        for chunk, pixels in zip(chunks[done:], read, strict=True):
            yield Drawn((), functools.partial(finished, chunk, pixels))
        return
    assert isinstance(images, Tensor)
    for chunk in chunks[done:]:
        yield Drawn((chunk,), lambda chunk: finished(chunk, images[chunk.repeat_interleave(views)]))


def in_order(images: Images, labels: Tensor, data: Data, *, batch_size: int) -> Iterator[Batch]:
    """The images of an evaluation: normalised, not augmented, in their order, none left out."""
    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield Batch(images=normalise(batch, data), labels=truth)
