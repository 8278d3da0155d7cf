"""What configurations of methods on any backbone have in common."""

from __future__ import annotations

from dataclasses import dataclass

from trainables.contracts.recipe import TrainingConfig, require
from trainables.networks.backbones.source import is_backbone, named, wishes
from trainables.networks.backbones.weights import CACHE
from trainables.networks.resnet.cifar import NETWORKS as OURS
from trainables.normalisation import DATA, Normalisation, word_of

NETWORKS = (
    *OURS,
    *(
        f"torchvision:{name}"
        for name in (
            "convnext_tiny",
            "densenet121",
            "efficientnet_b0",
            "mnasnet0_5",
            "mobilenet_v2",
            "mobilenet_v3_large",
            "mobilenet_v3_small",
            "regnet_y_400mf",
            "resnet18",
            "resnet50",
            "shufflenet_v2_x0_5",
            "swin_t",
            "vit_b_16",
        )
    ),
    "torchvision:MODEL",
    "timm:MODEL",
    "FILE.py:FUNCTION",
)
"""Backbones for `routefront methods`: those that were tried, and how others are named."""


def check_backbone(config: TrainingConfig, pretrained: str, resolution: float) -> None:
    """Raise `ValueError` for a network, a share of the images' size or weights that cannot be.

    Pretrained weights want the pixels that they were trained on: with them, `normalise` that was left at ``data``
    becomes the weights' own.
    """
    named(config.network)
    require(0 < resolution <= 2, "resolution", resolution, "a multiple of the images' size, above 0 and at most 2")
    if not pretrained:
        return
    require(is_backbone(config.network), "pretrained", pretrained, f"there are no weights of {config.network}")
    kind, _, name = pretrained.partition(":")
    try:
        found = wishes(config.network, name if kind == CACHE else "")
    except ValueError as error:
        raise ValueError(f"pretrained = {pretrained!r}: {error}") from None
    if found and config.normalise == DATA:
        word = word_of(Normalisation(found["mean"], found["std"]))
        object.__setattr__(config, "normalise", word or DATA)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackboneConfig(TrainingConfig):
    """A `network` that others wrote (`networks.backbones.source`), or one of our ResNets.

    `pretrained`: a file of its weights, or ``cache``, ``cache:NAME``: those that lie in torchvision's cache already
    (`networks.backbones.weights`). `resolution` multiplies the size of the images before the network reads them.
    """

    pretrained: str = ""
    resolution: float = 1.0

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        check_backbone(self, self.pretrained, self.resolution)
