"""The search space of skipped blocks on any backbone."""

from __future__ import annotations

from spaces.aig import PAPER as AIG
from spaces.space import Choice, LogRange, Range
from spaces.training import with_training

SPACE = with_training(
    {
        "network": Choice(("torchvision:mobilenet_v3_small",)),
        "target": Range(0.2, 0.9),
        "target_weight": LogRange(0.1, 10.0),
    }
)

# Veit and Belongie (2018), section 4.1, whose losses and gates these are, on their own network.
PAPER = {name: value for name, value in AIG.items() if name not in ("shortcut", "gate")}
