"""What may vary in spatially adaptive computation time."""

from __future__ import annotations

from spaces import act

SPACE = act.SPACE
PAPER = act.PAPER
IMAGENET = act.IMAGENET
