"""What may vary in SkipNet's supervised phase."""

from __future__ import annotations

from spaces.space import Choice, Fixed, When
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("resnet-8", "resnet-14", "resnet-20", "resnet-32")),
        "variant": Fixed("sp"),
        "gate": Choice(("rnn", "ff1", "ff2", "linear")),
        "rnn_size": Choice((5, 10, 20), when=When("gate", ("rnn",))),
        "relaxation": Choice(("straight_through", "softmax")),
    }
)

# Wang et al. (2018), section 4.1: 64,000 iterations of 128 images, divided by 10 at 32,000 and 48,000.
PAPER = {
    "network": "resnet-110",
    "variant": "sp",
    "shortcut": "B",
    "gate": "rnn",
    "rnn_size": 10,
    "relaxation": "straight_through",
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "batch_size": 128,
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
}
