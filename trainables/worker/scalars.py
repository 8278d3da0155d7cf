"""Curves for TensorBoard: a trial's losses and figures by epoch, as event files that its worker writes.

``tensorboard --logdir studies/NAME/tensorboard`` shows them while the search runs, one line a trial. The package
tensorboard is an extra; where a node lacks it, or the disk is full, one line says so and training goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger("routefront.worker")


def scalars_of(report: Mapping[str, Any]) -> dict[str, float]:
    """What a report of one epoch says, by the names that MLflow has (`search.tracking.names`)."""
    found = {f"loss/{name}": value for name, value in report.get("losses", {}).items()}
    found |= {name: report[name] for name in ("lr", "seconds", "cost_epochs") if name in report}
    found |= {f"system/{name}": value for name, value in report.get("machine", {}).items()}
    points = report.get("curve", {}).get("points", [])
    if points:
        best = max(points, key=lambda point: (point["accuracy"], -point["macs"]))
        found |= {"accuracy": best["accuracy"], "macs": best["macs"]}
        found["macs_min"] = min(point["macs"] for point in points)
        found |= {name: best[name] for name in ("merit", "cost") if name in best}
    return {name: float(value) for name, value in found.items()}


class Scalars:
    """Writes the scalars of one trial into `folder`; without a folder it does nothing."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writer: Any = None

    def add(self, report: Mapping[str, Any]) -> None:
        """Write what an epoch's report says; of epochs that are trained again only the last is shown."""
        if self._folder is None:
            return
        try:
            if self._writer is None:
                from torch.utils.tensorboard import SummaryWriter

                self._writer = SummaryWriter(str(self._folder), purge_step=report["epoch"])
            for name, value in scalars_of(report).items():
                self._writer.add_scalar(name, value, report["epoch"])
            self._writer.flush()
        except (ImportError, OSError) as error:
            _log.warning("no curves for TensorBoard in %s: %s", self._folder, error)
            self._folder = self._writer = None

    def close(self) -> None:
        """Nothing comes any more."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
