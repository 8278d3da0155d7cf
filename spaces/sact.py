"""The search space of spatially adaptive computation time (SACT)."""

from __future__ import annotations

from spaces import act

SPACE = act.SPACE
PAPER = act.PAPER
IMAGENET = act.IMAGENET
