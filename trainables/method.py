"""What a plug-in's method is made of, at the place that plug-ins import from: it stays where modules move.

The definitions are in `trainables.contracts`.
"""

from __future__ import annotations

from trainables.contracts.method import (
    Method,
    config_dict,
    cross_entropy_of_exits,
    one_captured_phase,
    one_phase,
    one_view,
    scheduled,
    single_setting,
)
from trainables.contracts.recipe import (
    DECAYED,
    Batch,
    DonorConfig,
    HalfLife,
    Optimiser,
    Phase,
    TrainingConfig,
    kernel,
    plan,
    require,
)

__all__ = [
    "DECAYED",
    "Batch",
    "DonorConfig",
    "HalfLife",
    "Method",
    "Optimiser",
    "Phase",
    "TrainingConfig",
    "config_dict",
    "cross_entropy_of_exits",
    "kernel",
    "one_captured_phase",
    "one_phase",
    "one_view",
    "plan",
    "require",
    "scheduled",
    "single_setting",
]
