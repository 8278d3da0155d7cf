"""The recipe of a training: what configurations have in common, optimisers, phases, batches."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainables.contracts.optimisers import SGD, FusedAdam
from trainables.normalisation import NORMALISATIONS

DECAYED = ("all", "kernels")
BALANCES = ("none", "sampled", "loss")
POLICIES = ("none", "randaugment", "trivialaugment")


LEARNING_RATE = "a learning rate lies above 0 and below 100"
WIDTH = "a channel multiplier lies above 0 and is at most 100"
"""Rules of several fields, as their messages say them."""


def require(good: bool, name: str, value: Any, rule: str) -> None:
    """Raise `ValueError` with the value and the rule unless `good`."""
    if not good:
        raise ValueError(f"{name} = {value!r}: {rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """What every method's configuration has: the body and the shared recipe.

    `width` multiplies the body's channels. The learning rate anneals to zero along half a cosine; with
    ``schedule="step"`` it is multiplied by `lr_decay` at the shares `lr_decay_at` of a phase's steps, with
    ``"exponential"`` by `lr_decay` steadily, once over the whole phase. `warmup` is the share of the first
    phase's steps over which the rate rises linearly, or stays at `warmup_lr` where that is not 0.

    `decayed`: what weight decay acts on, ``all`` parameters or ``kernels`` alone: weights of convolutions and linear
    layers, no biases and no batch norms. `label_smoothing`: the share of the target that is spread over all classes.

    `precision` is the arithmetic of the training passes: ``float32``, ``bfloat16`` where autocast allows it (weights,
    losses and evaluation stay float32), or ``auto``: bfloat16 where the device has instructions for it. `compiled` has
    the network's regions compiled by torch.compile, which costs about a minute and needs a C++ compiler on CPUs.

    `normalise`: what images are normalised by, in training and ever after. ``data``: the constants of the known
    data set, else statistics of the training split; ``none``: pixels in [0, 1]; ``image``: each by its own mean
    and deviation; ``resnet``, ``msdnet``, ``blockdrop-32``: constants that public code has for CIFAR, taken as
    they are for any images of three channels (`trainables.normalisation`). `crop`: by how many pixels training
    images are shifted at most, counted at the size that they are trained in; -1 is the data set's own.

    `balance`: what is done about classes of different sizes. ``sampled``: an epoch draws as many images as there are,
    with replacement, every class as often as any other. ``loss``: the cross entropy of an image of class c counts
    :math:`n / (C n_c)` times, n_c being the training images of C classes.

    What else is done to training images, all of it off by default. `area`: crops of a random share of the image, at
    least so large, and of a random aspect ratio between 3/4 and 4/3 (Szegedy et al., arXiv 1409.4842, section 6), in
    place of shifts. `augment`: torchvision's ``randaugment`` (Cubuk et al., arXiv 1909.13719) or ``trivialaugment``
    (Müller and Hutter, arXiv 2103.10158). `mixup` and `cutmix`: the alpha of the Beta(alpha, alpha) by which a batch is
    mixed with its neighbours (Zhang et al., arXiv 1710.09412; Yun et al., arXiv 1905.04899); with both, a draw decides
    for each batch. The loss is lambda CE(y_1) + (1 - lambda) CE(y_2).
    """

    network: str = "resnet-20"
    variant: str = ""
    width: float = 1.0
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    batch_size: int = 128
    decayed: str = "all"
    label_smoothing: float = 0.0
    schedule: str = "cosine"
    lr_decay_at: tuple[float, ...] = (0.5, 0.75)
    lr_decay: float = 0.1
    warmup: float = 0.0
    warmup_lr: float = 0.0
    precision: str = "float32"
    compiled: bool = False
    normalise: str = "data"
    crop: int = -1
    balance: str = "none"
    area: float = 0.0
    augment: str = "none"
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        require(0 < self.width <= 100, "width", self.width, WIDTH)
        require(0 < self.lr < 100, "lr", self.lr, LEARNING_RATE)
        require(0 <= self.momentum < 1, "momentum", self.momentum, "must be in [0, 1)")
        require(0 <= self.weight_decay, "weight_decay", self.weight_decay, "must not be negative")
        whole = isinstance(self.batch_size, int) and not isinstance(self.batch_size, bool)
        require(whole and self.batch_size >= 1, "batch_size", self.batch_size, "must be a whole number of at least 1")
        known = self.schedule in ("step", "cosine", "exponential")
        require(known, "schedule", self.schedule, "must be step, cosine or exponential")
        require(all(0 < s < 1 for s in self.lr_decay_at), "lr_decay_at", self.lr_decay_at, "shares lie in (0, 1)")
        require(0 < self.lr_decay <= 1, "lr_decay", self.lr_decay, "must be in (0, 1]")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "must be a share in [0, 1)")
        rule = f"{LEARNING_RATE}; 0 is a linear rise"
        require(0 <= self.warmup_lr < 100, "warmup_lr", self.warmup_lr, rule)
        require(self.decayed in DECAYED, "decayed", self.decayed, f"must be {' or '.join(DECAYED)}")
        smooth = self.label_smoothing
        require(0 <= smooth < 1, "label_smoothing", smooth, "must be in [0, 1)")
        require(self.momentum > 0 or not self.nesterov, "momentum", self.momentum, "Nesterov's must be above 0")
        known = self.precision in ("float32", "bfloat16", "auto")
        require(known, "precision", self.precision, "must be float32, bfloat16 or auto")
        known = self.normalise in NORMALISATIONS
        require(known, "normalise", self.normalise, f"must be one of {', '.join(NORMALISATIONS)}")
        require(self.balance in BALANCES, "balance", self.balance, f"must be one of {', '.join(BALANCES)}")
        require(0 <= self.area <= 1, "area", self.area, "must be a share of the image in [0, 1]; 0 is none")
        require(self.augment in POLICIES, "augment", self.augment, f"must be one of {', '.join(POLICIES)}")
        for name in ("mixup", "cutmix"):
            rule = "the alpha of a Beta distribution lies above 0 and is at most 100; 0 is none"
            require(0 <= getattr(self, name) <= 100, name, getattr(self, name), rule)
        whole = isinstance(self.crop, int) and not isinstance(self.crop, bool)
        rule = "must be a whole number of pixels; -1 is the data set's own padding"
        require(whole and self.crop >= -1, "crop", self.crop, rule)

    @property
    def rate(self) -> float:
        """The learning rate that the shared recipe begins with."""
        return self.lr


def kernel(parameter: Tensor) -> bool:
    """Whether a parameter is the weight of a convolution or of a linear layer, and no bias or scale of a norm."""
    return parameter.dim() > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfLife:
    """A half-life of `steps` steps, of at least `least` and at most `most` of a phase's steps.

    Where `least` and `most` are the same, it is that share of any phase.
    """

    steps: float = 0.0
    least: float = 0.0
    most: float = math.inf

    def share(self, steps: int) -> float:
        """The half-life as a share of a phase of `steps` steps: ``clamp(self.steps / steps, least, most)``."""
        return min(max(self.steps / steps, self.least), self.most)

    def left(self, share: float, steps: int) -> float:
        """What is left of 1 after `share` of a phase of `steps` steps, in (0, 1]."""
        return 0.5 ** (share / self.share(steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class DonorConfig(TrainingConfig):
    """What a method adds that may begin with the weights of a trained static network (`trainables.training.donors`).

    `donor`: a checkpoint folder, a .safetensors file of our names, in a study file also a registered model
    (``models:/NAME@ALIAS``) or ``study``, the best matching static network of the study itself; empty: none. With
    one, `donor_lr` takes the place of `lr`.
    """

    donor: str = ""
    donor_lr: float = 0.03

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require(0 < self.donor_lr < 100, "donor_lr", self.donor_lr, LEARNING_RATE)
        both = self.donor and getattr(self, "pretrained", "")
        require(not both, "donor", self.donor, "the weights come from `pretrained` already; give one of both")

    @property
    def rate(self) -> float:
        """See `TrainingConfig`."""
        return self.donor_lr if self.donor else self.lr


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimiser:
    """SGD, or Adam with its usual moments, and a schedule in shares of the phase's steps.

    The exponential schedule takes `half_life`, where there is one, in place of `decay`.
    """

    lr: float
    kind: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0
    decayed: str = "all"
    schedule: str = "step"
    decay_at: tuple[float, ...] = ()
    decay: float = 0.1
    half_life: HalfLife | None = None
    warmup: float = 0.0
    warmup_lr: float = 0.0

    @classmethod
    def of(cls, config: TrainingConfig, **changes: Any) -> Optimiser:
        """The shared recipe of a configuration, with changes."""
        recipe = cls(
            lr=config.rate,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            decayed=config.decayed,
            schedule=config.schedule,
            decay_at=config.lr_decay_at,
            decay=config.lr_decay,
            warmup=config.warmup,
            warmup_lr=config.warmup_lr,
        )
        return dataclasses.replace(recipe, **changes)

    def over(self, parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, in its fused form; it numbers them in the order of `ordered`.

        Raises `ValueError` for a kind that is not sgd or adam.
        """
        free = [] if self.decayed == "all" else [each for each in parameters if not kernel(each)]
        bound = [each for each in parameters if self.decayed == "all" or kernel(each)]
        groups: list[dict[str, Any]] = [{"params": bound}] if bound else []
        groups += [{"params": free, "weight_decay": 0.0}] if free else []
        if self.kind == "adam":
            return FusedAdam(groups, lr=self.lr, weight_decay=self.weight_decay, fused=True)
        require(self.kind == "sgd", "kind", self.kind, "an optimiser is sgd or adam")
        return SGD(
            groups,
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            fused=True,
        )

    def ordered(self, named: Iterable[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
        """Parameters by name in the order in which `over` numbers them: those that decay first."""
        return sorted(named, key=lambda each: self.decayed == "kernels" and not kernel(each[1]))

    def lr_at(self, share: float, steps: int = 1) -> float:
        """The learning rate after `share` of the phase's `steps` steps, share in [0, 1]."""
        if share < self.warmup and self.warmup_lr:
            return self.warmup_lr
        if share < self.warmup:
            return self.lr * (share + 1e-3) / (self.warmup + 1e-3)
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * share))
        if self.schedule == "exponential" and self.half_life is not None:
            return self.lr * self.half_life.left(share, steps)
        if self.schedule == "exponential":
            return self.lr * self.decay**share
        return self.lr * self.decay ** sum(share >= at for at in self.decay_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with its own trained modules, modes, optimiser and relaxation.

    `share` of the total epochs. `trained` and `frozen` are prefixes of parameter names: a
    parameter is trained when it has a prefix of `trained` and none of `frozen`; frozen modules run
    in eval mode when listed in `eval_mode` too, so that their batch-norm statistics stay.
    `batch_size` 0 is the configuration's. `source`: ``images``, augmented anew in every epoch, or
    ``features``, those of `cached_views` fixed augmented copies, computed once by `Method.features`.
    `comparable`: whether the phase's curves may be compared with later ones by the rungs. `capturable`: whether a GPU
    may repeat its steps without Python (`trainables.training.steps`): no step waits for the device, all of one batch
    size launch the same kernels, and no number of the host enters them that changes from step to step but by
    `Method.anneal`. What is not capturable says how often a step waits for a GPU at most: `waits`, and `waits_by_block`
    more for every block that may be skipped; None where that is not known.
    """

    name: str
    optimiser: Optimiser
    share: float = 1.0
    trained: tuple[str, ...] = ("",)
    frozen: tuple[str, ...] = ()
    eval_mode: tuple[str, ...] = ()
    relaxation: str = ""
    source: str = "images"
    cached_views: int = 0
    batch_size: int = 0
    comparable: bool = True
    capturable: bool = False
    waits: int | None = None
    waits_by_block: int = 0

    def __post_init__(self) -> None:
        waits = bool(self.waits or self.waits_by_block)
        require(not (self.capturable and waits), "waits", self.waits, "steps that can be captured never wait")

    def most_waits(self, blocks: int) -> int | None:
        """How often a step waits for a GPU at most, with so many skippable blocks; None where that is not known."""
        if self.capturable:
            return 0
        return None if self.waits is None else self.waits + self.waits_by_block * blocks

    def trains(self, parameter: str) -> bool:
        """Whether a parameter, by its full name, is trained in this phase."""
        return parameter.startswith(self.trained) and not (self.frozen and parameter.startswith(self.frozen))


def plan(phases: tuple[Phase, ...], epochs: int) -> list[tuple[Phase, int, int]]:
    """(phase, first epoch, last epoch), 1-based: shares of the total in whole epochs, each at least one.

    Raises `ValueError` where there are fewer epochs than phases.
    """
    if epochs < len(phases):
        names = ", ".join(phase.name for phase in phases)
        raise ValueError(f"epochs = {epochs!r}: {len(phases)} phases ({names}) need at least one epoch each")
    total = sum(phase.share for phase in phases)
    planned: list[tuple[Phase, int, int]] = []
    begun, share = 0, 0.0
    for i, phase in enumerate(phases):
        share += phase.share
        left = len(phases) - 1 - i
        end = epochs if left == 0 else min(max(round(epochs * share / total), begun + 1), epochs - left)
        planned.append((phase, begun + 1, end))
        begun = end
    return planned


class Mixed(NamedTuple):
    """What a batch was mixed with: the other images' `labels` (B,), and the `share` () that its own kept."""

    labels: Tensor
    share: Tensor


@dataclass(slots=True)
class Batch:
    """A training batch: the `views` augmented copies of one image are neighbours.

    `images` (L * views, channels, size, size), `labels` (L * views,). `class_weights` (C,): what the cross entropy of
    every class counts, where classes are balanced by the loss (``F.cross_entropy(..., weight=)``). `share` of the
    phase's `steps` steps have been taken before it, in [0, 1), for curricula and annealing. `mixed`: what its images
    were mixed with, of methods that say `Method.mixes`.
    """

    images: Tensor
    labels: Tensor
    views: int = 1
    generator: torch.Generator | None = None
    share: float = 0.0
    steps: int = 1
    class_weights: Tensor | None = None
    mixed: Mixed | None = None

    def cross_entropy(self, logits: Tensor, smoothing: float = 0.0) -> Tensor:
        """The mean cross entropy of logits (B, C), with class weights; of mixed images that of both labels."""

        def of(labels: Tensor) -> Tensor:
            return F.cross_entropy(logits, labels, weight=self.class_weights, label_smoothing=smoothing)

        own = of(self.labels)
        return own if self.mixed is None else own * self.mixed.share + of(self.mixed.labels) * (1 - self.mixed.share)
