"""The contract of a network, at the place that plug-ins import from: it stays where modules move.

The definitions are in `trainables.contracts.network`.
"""

from __future__ import annotations

from trainables.contracts.network import Exit, Inference, Knobs, Routed, RoutedNetwork, Task, Unit, evaluating

__all__ = ["Exit", "Inference", "Knobs", "Routed", "RoutedNetwork", "Task", "Unit", "evaluating"]
