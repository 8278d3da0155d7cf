"""What may vary in MSDNets whose exits are trained together."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("msdnet-3", "msdnet-4", "msdnet-5", "msdnet-7")),
        "variant": Choice(("none", "ge")),
        "ge_scales": Choice(("all", "coarsest"), when=When("variant", ("ge",))),
        "growth": Choice((4, 6, 8, 12)),
        "channels": Choice((8, 16, 32)),
        "reduction": Range(0.25, 1.0),
        "early_weight": Range(0.5, 2.0),
        "lr": LogRange(0.01, 0.3),
    }
)

# Li et al. (2019), section 4: the network of Table 1, 300 epochs of batches of 64, divided by 10 at 150 and 225.
PAPER = {
    "network": "msdnet-7",
    "variant": "none",
    "growth": 6,
    "channels": 16,
    "step_mode": "lin_grow",
    "step": 1,
    "base": 1,
    "reduction": 0.5,
    "bottleneck": True,
    "early_weight": 1.0,
    "curve_points": 40,
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "batch_size": 64,
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
}
