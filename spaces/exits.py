"""The search space of early exits on any backbone."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

_FROZEN = When("variant", ("frozen",))

# The trunk of the frozen variant is the first stage: what only its heads read is of the second.
SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "variant": Choice(("joint", "sdn", "frozen")),
        "exits": Choice((3, 4, 5)),
        "where": Choice(("stages", "shares")),
        "head": Choice(("pool", "mixed", "conv")),
        "early_weight": LogRange(0.1, 1.0, when=When("variant", ("joint",))),
        "trunk_share": Range(0.5, 0.8, when=_FROZEN),
        "heads_lr": LogRange(0.01, 0.3, stage=2, when=_FROZEN),
    }
)

# Kaya et al. (2019), section 3 and appendix: ResNet-56 on CIFAR, six internal classifiers at even shares of the
# computation, 100 epochs, batches of 128, divided by 10 at epochs 35, 60 and 85; weights rise to the exits' shares.
PAPER = {
    "network": "resnet-56",
    "variant": "sdn",
    "exits": 7,
    "where": "shares",
    "head": "mixed",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.35, 0.6, 0.85),
    "lr_decay": 0.1,
}
