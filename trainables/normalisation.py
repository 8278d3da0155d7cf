"""How pixels become a network's inputs: by channel constants, or every image by itself.

The one formula for training, evaluation and serving: a decision that is drawn from a hash of the inputs
(`trainables.networks.gated.gates`) is the same everywhere only if the inputs are, to the last bit.

Shape legend: B images, C channels, S pixels along an edge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainables.constants import constant


@dataclass(frozen=True, slots=True)
class Normalisation:
    r"""One way to normalise images (B, C, S, S).

    By `mean` and `std` of the C channels, in units of pixels in [0, 1]:

    .. math:: (x / 255 - mean_c) / std_c

    With `per_image`, where both are empty, every image by the mean and the deviation of its own N = C S S
    values x in [0, 255], as TensorFlow's ``per_image_standardization`` has it, which the public code of SACT
    (arXiv 1612.02297) applies behind crop and flip:

    .. math:: (x - mean(x)) / \max(std(x), 1 / \sqrt N)
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    per_image: bool = False

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Normalisation:
        """The inverse of `record`; records of models that were promoted earlier have `mean` and `std` alone."""
        return cls(tuple(record["mean"]), tuple(record["std"]), bool(record.get("per_image", False)))

    def record(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"mean": list(map(float, self.mean)), "std": list(map(float, self.std)), "per_image": self.per_image}

    def apply(self, images: Tensor) -> Tensor:
        """Images (B, C, S, S) with values in [0, 255], of any type, as float32 in new memory.

        The result of an image does not depend on the others of its batch.
        """
        pixels = images.to(torch.float32, copy=True)
        if self.per_image:
            mean, std = _of_each(pixels)
        else:
            mean, std = (
                constant(values, torch.float32, images.device).mul(255).view(1, -1, 1, 1)
                for values in (self.mean, self.std)
            )
        return pixels.sub_(mean).div_(std)


def _of_each(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of every image (B, C, S, S), at least 1 / sqrt(C S S), as (B, 1, 1, 1) float32.

    Sums of whole pixels are exact in float64, in whatever order a device or a batch adds them up.
    """
    count, each = pixels.shape[1:].numel(), (1, 2, 3)
    mean = pixels.sum(each, keepdim=True, dtype=torch.float64) / count
    squares = pixels.square().sum(each, keepdim=True, dtype=torch.float64) / count
    return mean.float(), (squares - mean.square()).clamp(min=1 / count).sqrt().float()


DATA, NONE, IMAGE = "data", "none", "image"

RESNET = Normalisation((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
"""Of the public code of CoDiNet, SkipNet and ConvNet-AIG, for CIFAR-100 too: here the data sets' own constants."""
CONSTANTS = {
    "resnet": RESNET,
    "msdnet": Normalisation((0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "blockdrop-32": Normalisation((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
}
"""Constants of CIFAR-10 by whose public code has them: ``msdnet`` that of MSDNet and IMTA, ``blockdrop-32``
that of BlockDrop for its ResNet-32 on CIFAR-10 (its other CIFAR networks take pixels in [0, 1]). ``imagenet`` is what
nearly all of torchvision's pretrained weights want, ``half`` what the others do."""
_CIFAR100 = {"msdnet": Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))}

NORMALISATIONS = (DATA, NONE, IMAGE, *CONSTANTS)
"""What a configuration's `normalise` may be."""


def word_of(normalisation: Normalisation) -> str:
    """The word for constants, or nothing where there is none."""
    return next((word for word, known in CONSTANTS.items() if known == normalisation), "")


def chosen(word: str, *, own: Normalisation, channels: int, dataset: str) -> Normalisation:
    """The normalisation that one of `NORMALISATIONS` names, for a data set whose own one is `own`.

    Published constants apply as they are to whatever has three channels; ``msdnet`` has others for the
    data set ``cifar100``. Raises `ValueError` for images of other channels, and for another word.
    """
    if word == DATA:
        return own
    if word == NONE:
        return Normalisation((0.0,) * channels, (1.0,) * channels)
    if word == IMAGE:
        return Normalisation(per_image=True)
    if word not in CONSTANTS:
        raise ValueError(f"normalise = {word!r}: must be one of {', '.join(NORMALISATIONS)}")
    if channels != 3:
        given = f"{dataset} has {channels} channel{'s' if channels > 1 else ''}"
        raise ValueError(f"normalise = {word!r}: are constants of RGB images, and {given}; take data, none or image")
    found = _CIFAR100 if dataset.partition(":")[0] == "cifar100" else {}
    return found.get(word, CONSTANTS[word])
