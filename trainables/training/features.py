"""Training on a frozen trunk: what its last layers read, computed fast, or once for all epochs.

Shape legend: n images, B images of a batch, V views, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from trainables.contracts.network import evaluating
from trainables.contracts.recipe import Batch
from trainables.data.augment import Drawn, Place, area_crops, augment, normalise
from trainables.data.encoded import Images, LazyImages
from trainables.data.splits import Data
from trainables.inference.prepare import prepared
from trainables.networks.msdnet.collaboration import CollaborativeMSDNet

_FAST: WeakKeyDictionary[CollaborativeMSDNet, tuple[int, CollaborativeMSDNet]] = WeakKeyDictionary()


@torch.no_grad()
def trunk_features(network: CollaborativeMSDNet, images: Tensor) -> Tensor:
    """What the last layers read (B, F) of normalised images (B, channels, size, size), without gradient.

    Where the trunk is in eval mode, a prepared copy of it computes (equal to rounding) as long as its
    weights stay; a trunk in training mode updates its batch-norm statistics.
    """
    frozen = not network.stages.training
    if not frozen or torch.is_autocast_enabled(images.device.type):
        return network.trunk(images)
    parts = (network.stages, network.classifiers)
    # every write into a tensor raises its version, whoever writes: optimisers, checkpoints, batch norm
    versions = sum(t._version for part in parts for t in (*part.parameters(), *part.buffers()))
    kept = _FAST.get(network)
    if kept is None or kept[0] != versions or kept[1].unit_macs.device != network.unit_macs.device:
        fast = prepared(network)
        assert isinstance(fast, CollaborativeMSDNet)
        kept = _FAST[network] = (versions, fast)
    return kept[1].trunk(images)


class FeatureCache:
    """Features of V fixed augmented copies of every training image, kept in memory: 4 V n F bytes.

    `images` (n, C, S, S) uint8, in memory or in files, and `labels` (n,) are those of `to_device`. The
    copies follow from `seed` alone, so that a training that is taken up again reads the same.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        images: Images,
        labels: Tensor,
        data: Data,
        *,
        views: int,
        seed: int,
        batch_size: int = 256,
    ) -> None:
        draws = torch.Generator(images.device).manual_seed(seed)
        self.labels, self.replacement = labels, data.replacement
        how, chunks = data.training_augment, torch.arange(len(labels)).split(batch_size)
        parts: list[Tensor] = []
        for _ in range(views):
            if isinstance(images, LazyImages):
                read = images.crops(iter(chunks), views=1, area=how.area, generator=draws)
            else:
                read = iter(images.split(batch_size))
                if how.area is not None:
                    read = (area_crops(pixels, how.area, draws) for pixels in read)
            for pixels, truth in zip(read, labels.split(batch_size), strict=True):
                copies = normalise(augment(pixels, how, draws, truth), data)
                parts.append(features(copies.contiguous(memory_format=torch.channels_last)))
        self.features = torch.cat(parts).unflatten(0, (views, len(labels)))
        """(V, n, F)"""

    def batches(self, batch_size: int, generator: torch.Generator, place: Place | None = None) -> Iterator[Batch]:
        """The batches of `draws`, made."""
        return (each.make(*each.indices) for each in self.draws(batch_size, generator, place))

    def draws(self, batch_size: int, generator: torch.Generator, place: Place | None = None) -> Iterator[Drawn]:
        """One epoch, shuffled: every image once, in a copy that is drawn; ``images`` of a batch are (B, F).

        Of data that is drawn with replacement, as many images as there are. A last batch of a single
        image is left out, and with `place` what was done, as in `data.augment.batches`.
        """
        views, count = self.features.shape[:2]
        at = generator.device
        if self.replacement:
            order = torch.randint(count, (count,), generator=generator, device=at).to(self.labels.device)
        else:
            order = torch.randperm(count, generator=generator, device=at).to(self.labels.device)
        drawn = torch.randint(views, (count,), generator=generator, device=at).to(order.device)
        done = place.done if place else 0
        if place is not None:
            generator.set_state(place.generator)

        def made(view: Tensor, index: Tensor) -> Batch:
            return Batch(images=self.features[view, index], labels=self.labels[index], generator=generator)

        for index, view in zip(order.split(batch_size)[done:], drawn.split(batch_size)[done:], strict=True):
            if len(index) == 1 < batch_size:
                return
            yield Drawn((view, index), made)


def cache_of(
    network: CollaborativeMSDNet, images: Images, labels: Tensor, data: Data, *, views: int, seed: int
) -> FeatureCache:
    """The cache of a network's trunk as it is now, in eval mode."""
    data = data.for_config(network.config)
    with evaluating(network):
        return FeatureCache(lambda x: trunk_features(network, x), images, labels, data, views=views, seed=seed)
