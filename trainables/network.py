"""The contract of a network, at the place that plug-ins import from: it stays where modules move.

The definitions are in `trainables.contracts.network`, that of `macs_of` in `trainables.execution.macs`.
"""

from __future__ import annotations

from trainables.contracts.network import Exit, Inference, Knobs, Routed, RoutedNetwork, Task, Unit, evaluating
from trainables.execution.macs import macs_of

__all__ = ["Exit", "Inference", "Knobs", "Routed", "RoutedNetwork", "Task", "Unit", "evaluating", "macs_of"]
