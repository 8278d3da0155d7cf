"""The search space of stochastic depth: how often blocks are dropped, and whether at inference too."""

from __future__ import annotations

from spaces.space import Choice, Range
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "variant": Choice(("sdv", "original")),
        "drop": Range(0.0, 0.9),
        "mode": Choice(("uniform", "linear")),
    }
)

# The baseline of Wang et al. (2018), section 4.1, on SkipNet's recipe; it is swept over the drop rate there.
PAPER = {
    "network": "resnet-110",
    "variant": "sdv",
    "mode": "uniform",
    "shortcut": "B",
    "drop": 0.5,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
    "warmup": 400 / 64_000,  # of 110 layers, as He et al. have it
    "warmup_lr": 0.01,
}

# Huang et al. (2016), section 4: 500 epochs, divided by 10 at a half and at three quarters, Nesterov's momentum.
ORIGINAL = {
    **PAPER,
    "variant": "original",
    "mode": "linear",
    "shortcut": "pool",
    "nesterov": True,
}
