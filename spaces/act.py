"""The search space of adaptive computation time, for whole images (ACT)."""

from __future__ import annotations

from spaces.space import Choice, LogRange
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("preact-resnet-14", "preact-resnet-20", "preact-resnet-32")),
        "tau": LogRange(1e-4, 0.1),
    }
)

# Figurnov et al. (2017), section 4.1, and the public code's example: 100,000 iterations of 128 images, divided
# by 10 at 60,000, 75,000 and 90,000. The code standardises images one by one and shifts them by 2 pixels at most.
PAPER = {
    "network": "preact-resnet-32",
    "tau": 0.01,
    "eps": 0.01,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 2e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.6, 0.75, 0.9),
    "lr_decay": 0.1,
    "normalise": "image",
    "crop": 2,
}

# On ImageNet, from a trained network without halting (section 4.2 and the public code): divided by 10 every 30
# epochs; how many there are is not said, 100 are assumed. The code trains on several machines, 32 images each.
IMAGENET = {
    **PAPER,
    "network": "preact-resnet-101-imagenet",
    "tau": 0.005,
    "lr": 0.05,
    "weight_decay": 1e-4,
    "batch_size": 32,
    "label_smoothing": 0.1,
    "lr_decay_at": (0.3, 0.6, 0.9),
    "normalise": "data",
    "crop": -1,
}
