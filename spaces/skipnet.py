"""The search space of SkipNet: its gates, and the rewards of its second stage."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

_REWARDED = When("variant", ("hrl_sp", "hrl_s", "rl"))
_REFINED = When("variant", ("hrl_sp",))

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "variant": Choice(("sp", "hrl_sp")),
        "gate": Choice(("rnn", "ff1", "ff2", "linear")),
        "rnn_size": Choice((5, 10, 20), when=When("gate", ("rnn",))),
        "relaxation": Choice(("straight_through", "softmax")),
        "alpha": LogRange(1e-3, 4.0, or_zero=True, stage=2, when=_REWARDED),
        "beta": Choice(("one", "alpha/N"), stage=2, when=_REWARDED),
        "rl_weight": LogRange(0.01, 3.0, stage=2, when=_REWARDED),
        "discount": Range(0.9, 1.0, stage=2, when=_REWARDED),
        "hrl_lr": LogRange(1e-5, 1e-3, stage=2, when=_REFINED),
    }
)

# Wang et al. (2018), section 4.1: 64,000 iterations of 128 images, divided by 10 at 32,000 and 48,000, then
# 10,000 of hybrid reinforcement learning at 1e-4. Alpha is swept there; 0.1 is the public code's.
PAPER = {
    "network": "resnet-110",
    "variant": "hrl_sp",
    "shortcut": "B",
    "gate": "rnn",
    "rnn_size": 10,
    "relaxation": "straight_through",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
    "warmup": 400 / 64_000,  # of 110 layers, as He et al. have it
    "warmup_lr": 0.01,
    "alpha": 0.1,
    "beta": "one",
    "rl_weight": 1.0,
    "discount": 1.0,
    "hrl_share": 10 / 74,
    "hrl_lr": 1e-4,
}
