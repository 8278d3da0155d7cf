"""Images on the device: transfer, normalisation, augmentation, batches. No loop over images.

Shape legend: n images, B images of a batch, C channels, S pixels along an edge.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.constants import constant
from trainables.contracts.recipe import Batch, Mixed
from trainables.data.encoded import RATIOS, TRIES, Images, LazyImages
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
    along = torch.arange(width, device=images.device)
    down = along if height == width else torch.arange(height, device=images.device)
    columns = torch.where(flips[:, None], along.flip(0), along) if how.flip else along.expand(count, width)
    rows = down + shifts[0, :, None]
    columns = columns + shifts[1, :, None]
    # one gather over flattened pixels: six times as fast on a CPU core as indexing by four axes
    pixels = (rows[:, :, None] * (width + 2 * how.pad) + columns[:, None, :]).flatten(1)
    padded = _padded(images, how).flatten(2)
    return padded.gather(2, pixels[:, None].expand(-1, channels, -1)).view(count, channels, height, width)


def area_crops(images: Tensor, area: tuple[float, float], generator: torch.Generator | None = None) -> Tensor:
    """Crops (B, C, h, w) of images (B, C, h, w) uint8, each by its own draw, enlarged to their size.

    The share of the area is uniform within `area`, the aspect ratio log-uniform within `RATIOS`; of `TRIES` draws the
    first that lies within the image counts, else the middle (torchvision's RandomResizedCrop). Bilinear.
    """
    count, _, height, width = images.shape
    at = generator.device if generator is not None else images.device
    draws = torch.rand(4, count, TRIES, generator=generator, device=at).to(images.device)
    low, high = map(math.log, RATIOS)
    size = (area[0] + (area[1] - area[0]) * draws[0]) * (height * width)
    ratio = torch.exp(low + (high - low) * draws[1])
    across, down = (size * ratio).sqrt(), (size / ratio).sqrt()
    fits = (across <= width) & (down <= height)
    first = fits.to(torch.int8).argmax(dim=1, keepdim=True)
    none = ~fits.any(dim=1)
    left, top = ((1 - part).gather(1, first).squeeze(1) for part in (draws[3], draws[2]))
    w = torch.where(none, min(width, height * RATIOS[1]), across.gather(1, first).squeeze(1))
    h = torch.where(none, min(height, width / RATIOS[0]), down.gather(1, first).squeeze(1))
    left = torch.where(none, 0.5, left) * (width - w)
    top = torch.where(none, 0.5, top) * (height - h)
    zero = torch.zeros_like(w)
    rows = torch.stack([w / width, zero, (2 * left + w) / width - 1], dim=1)
    lines = torch.stack([zero, h / height, (2 * top + h) / height - 1], dim=1)
    where = F.affine_grid(torch.stack([rows, lines], dim=1), list(images.shape), align_corners=False)
    found = F.grid_sample(images.float(), where, mode="bilinear", padding_mode="border", align_corners=False)
    return found.round().clamp(0, 255).to(images.dtype)


def by_policy(images: Tensor, policy: str, seed: tuple[int, int]) -> Tensor:
    """Images (B, C, h, w) uint8, each augmented by torchvision's ``randaugment`` or ``trivialaugment``.

    torchvision draws from the process's generator: it is set to what follows from `seed`, and put back behind it.
    """
    from torchvision.transforms import v2  # late: it takes a process seconds

    transform = v2.RandAugment() if policy == "randaugment" else v2.TrivialAugmentWide()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        return torch.stack([transform(image) for image in images])


def mix(
    images: Tensor, labels: Tensor, data: Data, views: int, generator: torch.Generator | None
) -> tuple[Tensor, Mixed | None]:
    """A batch (B, C, h, w) mixed with the batch that begins one image (`views` copies) later, and what came in.

    *mixup*: lambda x_1 + (1 - lambda) x_2. *cutmix*: a rectangle of the share 1 - lambda of the other image,
    around a uniform point, cut at the edges. One lambda a batch, from Beta(alpha, alpha), as a quotient of gammas.
    """
    if not (data.mixup or data.cutmix):
        return images, None
    at = generator.device if generator is not None else images.device
    height, width = images.shape[2:]
    others = images.roll(views, 0)

    def beta(alpha: float) -> Tensor:
        both = torch._standard_gamma(constant((alpha, alpha), torch.float64, at), generator=generator)
        return (both[0] / both.sum().clamp(min=1e-300)).to(images.device, torch.float32)

    share = beta(data.mixup) if data.mixup else beta(data.cutmix)
    mixed = share * images + (1 - share) * others if data.mixup else images
    if data.cutmix:
        edge = (1 - (beta(data.cutmix) if data.mixup else share)).sqrt()
        middle = torch.rand(3, generator=generator, device=at).to(images.device)

        def within(size: int, point: Tensor) -> Tensor:
            places = torch.arange(size, device=images.device) + 0.5
            return (places - point * size).abs() < edge * size / 2

        inside = within(height, middle[0])[:, None] & within(width, middle[1])
        cut, left = torch.where(inside, others, images), 1 - inside.float().mean()
        if data.mixup:
            mixed, share = (torch.where(middle[2] < 0.5, *each) for each in ((cut, mixed), (left, share)))
        else:
            mixed, share = cut, left
    return mixed, Mixed(labels.roll(views, 0), share)


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
    gave for the network that is trained. A policy (`data.policy`) has its own draws, from one number of the generator:
    it runs on the host, image by image, and nothing is captured. `batch_size` counts all
    copies, so that a batch has ``max(1, batch_size // views)`` different images. The last batch may
    be smaller; it is left out where it would hold a single image, of which batch-norm (and a loss
    over pairs of images) can make nothing. Nothing waits for the device, but for images in files
    once an epoch. With `place` the generator is where it was when the epoch began, and the batches before
    that place are left out.
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
    seed = None
    if data.policy != "none":
        seed = int(torch.randint(2**31, (1,), generator=generator, device=at))  # waits for the device, once an epoch
    if place is not None:
        assert generator is not None
        generator.set_state(place.generator)

    def finished(chunk: Tensor, pixels: Tensor, number: int = 0) -> Batch:
        truth = labels[chunk.repeat_interleave(views)]
        pixels = augment(pixels, how, generator, truth)
        if seed is not None:
            pixels = by_policy(pixels, data.policy, (seed, number))
        inputs, mixed = mix(normalise(pixels, data), truth, data, views, generator)
        counted = weights if data.balance == "loss" else None
        return Batch(images=inputs, labels=truth, views=views, generator=generator, class_weights=counted, mixed=mixed)

    def taken(chunk: Tensor, number: int = 0) -> Batch:
        assert isinstance(images, Tensor)
        pixels = images[chunk.repeat_interleave(views)]
        return finished(chunk, pixels if how.area is None else area_crops(pixels, how.area, generator), number)

    if read is not None:
        for number, (chunk, pixels) in enumerate(zip(chunks[done:], read, strict=True), done):
            yield Drawn((), functools.partial(finished, chunk, pixels, number))
        return
    for number, chunk in enumerate(chunks[done:], done):
        yield Drawn((chunk,), taken) if seed is None else Drawn((), functools.partial(taken, chunk, number))


def in_order(images: Images, labels: Tensor, data: Data, *, batch_size: int) -> Iterator[Batch]:
    """The images of an evaluation: normalised, not augmented, in their order, none left out."""
    for batch, truth in zip(images.split(batch_size), labels.split(batch_size), strict=True):
        yield Batch(images=normalise(batch, data), labels=truth)
