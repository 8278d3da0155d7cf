"""The search space of MSDNets whose exits are trained together, and help one another in a second phase."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Range, When
from spaces.training import with_training

_EQUAL = When("variant", ("ge", "all", "ge_isc", "ge_ofa"))
_PATHS = When("variant", ("isc", "all", "ge_isc", "isc_ofa"))
_TAUGHT = When("variant", ("ofa", "all", "ge_ofa", "isc_ofa"))
_PHASES = When("variant", ("isc", "ofa", "all", "ge_isc", "ge_ofa", "isc_ofa"))

# Phase I is the first stage; what it does not read is marked as of the second. The share of the epochs
# that phase II takes is not among those: it ends the first.
SPACE = with_training(
    {
        "network": Choice(tuple(f"msdnet-{k}" for k in (3, 4, 5, 6, 7, 8))),
        "variant": Choice(("none", "ge", "isc", "ofa", "all")),
        "ge_scales": Choice(("all", "coarsest"), when=_EQUAL),
        "growth": Choice((4, 6, 8, 12)),
        "channels": Choice((8, 16, 32)),
        "step_mode": Choice(("lin_grow", "even")),
        "reduction": Range(0.25, 1.0),
        "early_weight": Range(0.5, 2.0),
        "lr": LogRange(0.01, 0.3),
        "phase2_share": Choice((0.125, 0.25, 0.375, 0.5), when=_PHASES),
        "phase2_lr": LogRange(0.01, 0.3, stage=2, when=_PHASES),
        "heads": Choice(("fresh", "tuned"), stage=2, when=_PHASES),
        "isc": Choice(("fc", "identity"), stage=2, when=_PATHS),
        "detach": Choice((True, False), stage=2, when=When("isc", ("fc", "identity"))),
        "alpha": Range(0.1, 1.0, stage=2, when=_TAUGHT),
        "temperature": LogRange(1.0, 8.0, stage=2, when=_TAUGHT),
        "teacher": Choice(("frozen", "live"), stage=2, when=_TAUGHT),
    }
)

# Li et al. (2019), section 4: the network of Table 1 with all three techniques, 300 epochs and 180 of the second
# phase, batches of 64, divided by 10 at half and three quarters of each. Alpha and T are not printed: the
# public ImageNet script's. The public code has constants of its own for CIFAR.
PAPER = {
    "network": "msdnet-7",
    "variant": "all",
    "ge_scales": "all",
    "growth": 6,
    "channels": 16,
    "step_mode": "lin_grow",
    "step": 1,
    "base": 1,
    "reduction": 0.5,
    "bottleneck": True,
    "early_weight": 1.0,
    "isc": "fc",
    "detach": True,
    "heads": "fresh",
    "alpha": 0.9,
    "temperature": 1.0,
    "teacher": "frozen",
    "phase2_share": 180 / 480,
    "phase2_lr": 0.1,
    "curve_points": 40,
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 1e-4,
    "batch_size": 64,
    "schedule": "step",
    "lr_decay_at": (0.5, 0.75),
    "lr_decay": 0.1,
    "normalise": "msdnet",
}

# On ImageNet: 90 epochs of each phase, divided by 10 at 30 and 60, batches of 256.
IMAGENET = {
    **PAPER,
    "network": "msdnet-5-imagenet4",
    "growth": 16,
    "channels": 32,
    "step_mode": "even",
    "step": 4,
    "base": 4,
    "phase2_share": 0.5,
    "batch_size": 256,
    "lr_decay_at": (1 / 3, 2 / 3),
    "normalise": "data",
}
