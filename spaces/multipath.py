"""The search space of multi-path networks: how many paths, how and where they are routed."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

_SINGLE = ("basecnn", "resnet-8", "resnet-20")
_MANY = (
    *(f"basecnn-{paths}" for paths in (2, 3, 4, 5)),
    *(f"resnet-8-{paths}" for paths in (2, 3, 4, 5)),
    *("resnet-20-2", "resnet-20-3"),
)

SPACE = with_training(
    {
        "network": Choice((*_MANY, *_SINGLE)),
        "variant": Choice(("cc", "cp", "stitch", "none"), when=When("network", _MANY)),
        "gate_size": Choice((4, 8, 16, 32, 64), when=When("variant", ("cc", "cp"))),
        "places": Choice(("published", "all", "first", "last"), when=When("variant", ("cc", "cp", "stitch"))),
        "width": Range(0.5, 2.0),
        "lr": LogRange(0.01, 0.3),
    }
)

# Tissera et al. (2021), section 6.1: 200 epochs of batches of 128, divided by 10 after 80 and 150. Weight decay is
# not stated.
PAPER = {
    "network": "basecnn-3",
    "variant": "cc",
    "gate_size": 16,
    "places": "published",
    "width": 1.0,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.4, 0.75),
    "lr_decay": 0.1,
}
