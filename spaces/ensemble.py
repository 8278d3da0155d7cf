"""What may vary in ensembles of networks that are trained by themselves."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

_ALIKE = ("basecnn", "resnet-8", "resnet-14", "resnet-20")

SPACE = with_training(
    {
        "network": Choice((*_ALIKE, "basecnn+widecnn+deepcnn")),
        "members": Choice((2, 3, 4), when=When("network", _ALIKE)),
        "average": Choice(("logits", "probabilities")),
        "width": Range(0.5, 2.0),
        "lr": LogRange(0.01, 0.3),
    }
)

# Tissera et al. (2021), section 6.1: three BaseCNNs, the recipe of the multi-path networks.
PAPER = {
    "network": "basecnn",
    "members": 3,
    "average": "logits",
    "width": 1.0,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "lr_decay_at": (0.4, 0.75),
    "lr_decay": 0.1,
}
