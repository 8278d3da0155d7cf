"""One pass over the training images: steps, losses, and how far it came where it was interrupted."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainables.augment import Place, batches
from trainables.method import Batch, Phase

if TYPE_CHECKING:
    from trainables.fit import Training

_PREFIX = "partial/"


class Interrupted(Exception):  # nothing went wrong
    """A training was asked to leave in the middle of an epoch; its `save` keeps how far it came."""


@dataclass(frozen=True, slots=True)
class Partial:
    """An epoch that was begun: `steps` are done, whose loss terms are `history` (steps, terms) under `names`.

    `began` and `now` are the states of the training's generator before the epoch and behind those steps.
    """

    steps: int
    names: list[str]
    history: Tensor
    began: Tensor
    now: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint keeps of it beside `record`."""
        return {f"{_PREFIX}{name}": getattr(self, name) for name in ("history", "began", "now")}

    def record(self) -> dict[str, Any]:
        """The rest, as plain JSON values."""
        return {"steps": self.steps, "names": self.names}

    @classmethod
    def taken(cls, record: Mapping[str, Any] | None, tensors: dict[str, Tensor]) -> Partial | None:
        """What a checkpoint keeps, its tensors taken out of the others; None where it was written behind an epoch."""
        kept = {name.removeprefix(_PREFIX): tensors.pop(name) for name in list(tensors) if name.startswith(_PREFIX)}
        return cls(record["steps"], record["names"], **kept) if record else None


def train_epoch(
    training: Training, phase: Phase, epoch: int, epochs: int, views: int
) -> tuple[dict[str, float], float]:
    """Epoch `epoch` of `epochs` of a phase (from 0); mean loss terms and the last learning rate.

    Goes on behind `training.partial`, and leaves it there where `training.leaving` says so after a step.
    Raises `Interrupted` then, `FloatingPointError` where a loss is not finite.
    """
    optimiser, config, partial = training.optimiser, training.config, training.partial
    assert optimiser is not None
    size = phase.batch_size or config.batch_size
    steps = math.ceil(len(training.labels) / max(1, size // views))
    history: list[Tensor] = []
    names: list[str] = []
    place = None
    if partial is not None:
        history, names = list(partial.history.to(training.device)), partial.names
        training.generator.set_state(partial.began)
        place = Place(partial.steps, partial.now)
    began = training.generator.get_state()
    rate = phase.optimiser.lr
    for index, batch in enumerate(_batches(training, phase, size, views, place), len(history)):
        batch.share, batch.steps = (epoch + index / steps) / epochs, steps * epochs
        rate = phase.optimiser.lr_at(batch.share, batch.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        if batch.images.dim() == 4:
            batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(training.device.type, torch.bfloat16, enabled=training.bfloat16):
            terms = training.method.objective(training.network, batch, phase)
        optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        if training.method.adjust_gradients is not None:
            training.method.adjust_gradients(training.network, batch)
        optimiser.step()
        names = list(terms)
        history.append(torch.stack([term.detach() for term in terms.values()]))
        if training.leaving():
            now = training.generator.get_state()
            training.partial = Partial(index + 1, names, torch.stack(history).cpu(), began, now)
            raise Interrupted(f"{index + 1} of {steps} steps of epoch {training.epoch + 1} are done")
    training.partial = None
    if not history:
        raise ValueError(f"batch_size = {size!r}: no batch can be made of {len(training.labels)} training images")
    table = torch.stack(history).cpu()  # the only synchronisation with the device in an epoch
    bad = (~table.isfinite()).nonzero()
    if len(bad):
        at, term = int(bad[0, 0]), names[int(bad[0, 1])]
        raise FloatingPointError(
            f"loss term {term} became {table[at, bad[0, 1]].item()} in step {at + 1} of epoch {training.epoch + 1}"
        )
    means = table.double().mean(dim=0).tolist()
    return dict(zip(names, means, strict=True)), rate


def _batches(training: Training, phase: Phase, size: int, views: int, place: Place | None) -> Iterator[Batch]:
    """One epoch of a phase, from images or from features that are computed in its first epoch here."""
    images, labels, data, generator = training.images, training.labels, training.data, training.generator
    if phase.source == "images":
        return batches(images, labels, data, batch_size=size, views=views, generator=generator, place=place)
    method = training.method
    if method.features is None:
        raise ValueError(f"phase {phase.name!r} reads {phase.source!r}, which {method.name} does not make")
    if training.cache is None:  # its copies follow from the seed: a restored training makes the same
        of = training.network, images, labels, data
        training.cache = method.features(*of, views=phase.cached_views, seed=training.seed + 2)
    return training.cache.batches(size, generator, place)
