"""Hyperparameters that every method shares: one training recipe interface for all."""

from __future__ import annotations

from spaces.space import Choice, LogRange, Parameter, Space

# The CIFAR recipe of He et al. (2016), section 4.2, which all five papers start from.
TRAINING: dict[str, Parameter] = {
    "lr": LogRange(0.02, 0.3),
    "weight_decay": LogRange(1e-5, 1e-3),
    "batch_size": Choice((64, 128)),
    "schedule": Choice(("cosine", "step")),  # the papers step down; in short trainings a cosine ends higher
}


def with_training(parameters: dict[str, Parameter]) -> Space:
    """A method's own parameters behind the shared ones (its own win where names meet)."""
    return Space({**{n: p for n, p in TRAINING.items() if n not in parameters}, **parameters})
