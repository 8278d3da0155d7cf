"""The search space of ensembles of networks that are trained by themselves."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("basecnn", "resnet-8", "resnet-14", "resnet-20")),
        "members": Choice((2, 3, 4)),
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
    "schedule": "step",
    "lr_decay_at": (0.4, 0.75),
    "lr_decay": 0.1,
}
