"""The search space of ConvNet-AIG."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "target": Range(0.2, 0.9),
        "target_weight": LogRange(0.1, 10.0),
    }
)

# Veit and Belongie (2018), section 4.1, and the public code: 350 epochs, divided by 10 at 150 and 250.
PAPER = {
    "network": "resnet-110",
    "shortcut": "B",
    "gate": "conv1x1",
    "relaxation": "gumbel_straight_through",
    "temperature": 1.0,
    "target": 0.6,
    "target_weight": 2.0,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-4,
    "batch_size": 256,
    "schedule": "step",
    "lr_decay_at": (150 / 350, 250 / 350),
    "lr_decay": 0.1,
}

# On ImageNet bodies, from pretrained weights (section 4.2): 100 epochs, divided by 10 every 30. The rates of
# ResNet-50 and ResNet-101 differ from block to block: ``profile="imagenet"``.
IMAGENET = {
    **PAPER,
    "network": "resnet-50-imagenet",
    "profile": "imagenet",
    "target": 0.7,
    "target_weight": 1.0,
    "weight_decay": 1e-4,
    "lr_decay_at": (0.3, 0.6, 0.9),
}


def imagenet_targets(network: str, target: float) -> tuple[float, ...]:
    """The paper's target rate of every block of an ImageNet body at rate t; blocks that matter most have 1.

    ``resnet-50-imagenet`` (t from 0.4 to 0.7) has 16 blocks, ``resnet-101-imagenet`` (t of 0.3 or
    0.5) has 33. Raises `ValueError` for another body.
    """
    t = target
    if network == "resnet-50-imagenet":
        return (1, 1, 0.8, 1, t, t, t, 1, t, t, t, t, t, 1, 0.7, 1)
    if network == "resnet-101-imagenet":
        return (1,) * 8 + (t,) * 25
    raise ValueError(
        f"network = {network!r}: the paper has rates per block for resnet-50-imagenet and resnet-101-imagenet"
    )
