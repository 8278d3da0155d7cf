"""The search space of CoDiNet."""

from __future__ import annotations

from spaces.space import Choice, Fixed, LogRange, Range, When
from spaces.training import with_training

_CONSISTENT = When("variant", ("full", "con_only"))
_DIVERSE = When("variant", ("full",))

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "variant": Fixed("full"),  # a weight of 0 is an ablation already; name the variants to compare them
        "gate": Choice(("linear", "rnn")),
        "relaxation": Choice(("gumbel", "softmax")),
        "temperature": LogRange(0.3, 3.0),
        "views": Choice((2, 4)),
        "alpha": LogRange(1e-2, 2.0, or_zero=True, when=_CONSISTENT),
        "beta": LogRange(1e-2, 2.0, or_zero=True, when=_DIVERSE),
        "gamma": LogRange(1e-3, 0.5, or_zero=True),
        "margin_consistency": Range(0.0, 1.0, when=_CONSISTENT),
        "margin_diversity": Range(0.1, 2.0, when=_DIVERSE),
        "stage2_lr": LogRange(1e-3, 3e-2, stage=2),
    }
)

# Wang et al. (2021), section 4.1, with the views of its figures and the README's 60 images a batch;
# 220 epochs divided by 10 at 150 and 200. Gamma is swept there: 0 gave the best accuracy of CIFAR-10.
PAPER = {
    "network": "resnet-110",
    "variant": "full",
    "shortcut": "A",
    "gate": "linear",
    "relaxation": "gumbel",
    "temperature": 1.0,
    "views": 4,
    "alpha": 0.2,
    "beta": 0.2,
    "gamma": 0.0,
    "margin_consistency": 0.2,
    "margin_diversity": 0.5,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 240,
    "schedule": "step",
    "lr_decay_at": (150 / 220, 200 / 220),
    "lr_decay": 0.1,
    "stage2_share": 0.1,
    "stage2_lr": 0.01,
}
