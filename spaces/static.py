"""The search space of static networks: the baselines, without routing."""

from __future__ import annotations

from spaces.space import Choice
from spaces.training import with_training

SPACE = with_training({"network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32", "densenet-bc-40"))})

# He et al. (2016), section 4.2: 64,000 iterations of 128 images, divided by 10 at 32,000 and 48,000.
PAPER = {
    "network": "resnet-110",
    "shortcut": "A",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
    "warmup": 400 / 64_000,
    "warmup_lr": 0.01,
}

# Huang et al. (2017), section 4.2: 300 epochs of batches of 64, divided by 10 at half and three quarters.
DENSE = {
    "network": "densenet-bc-100",
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "batch_size": 64,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
}
