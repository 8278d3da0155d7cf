"""The recorded trainings as a problem for the simulation: a configuration shows what its nearest kin showed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spaces.scale import place
from spaces.space import Range, Space
from tests.benchmarks.search.record_table import spec

FILE = Path(__file__).with_name("recorded.json")


class Recorded:
    """A table of real trainings (`record_table.py`).

    A configuration shows the curves of the nearest one of its method: numbers count by their place in their range, a
    choice that differs counts as a whole range. `curve` is what the even validation images said, `exact` what
    the odd ones did, so that luck in the choice is not rewarded. Between the epochs of the table the
    last one counts.
    """

    def __init__(self, file: Path = FILE) -> None:
        table = json.loads(file.read_text())
        self.data, self.epochs = table["data"], table["epochs"]
        self.rows: dict[str, list[dict[str, Any]]] = {}
        for row in table["rows"]:
            row["curves"] = {int(epoch): curve for epoch, curve in row["curves"].items()}
            self.rows.setdefault(row["config"]["method"], []).append(row)
        self.spaces: Mapping[str, Space] = {n: s for n, s in spec(self.epochs).spaces().items() if n in self.rows}
        self.papers: Mapping[str, Mapping[str, Any]] = {name: {} for name in self.spaces}
        rows = [row for rows in self.rows.values() for row in rows]
        self.reference = (0.9, max(point[-1] for row in rows for point in row["curves"][self.epochs]))
        self._found: dict[str, dict[str, Any]] = {}

    def nearest(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The recorded training that a configuration stands for."""
        key = repr(sorted(config.items(), key=lambda item: item[0]))
        if key not in self._found:
            space = self.spaces[config["method"]]
            self._found[key] = min(self.rows[config["method"]], key=lambda row: _distance(space, row["config"], config))
        return self._found[key]

    def _points(self, config: Mapping[str, Any], epoch: int) -> list[list[float]]:
        curves = self.nearest(config)["curves"]
        return curves[max(at for at in curves if at <= epoch)]

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> list[tuple[float, float]]:
        """See `search.simulation.simulation.Problem`."""
        return [(point[0], point[-1]) for point in self._points(config, epoch)]

    def exact(self, config: Mapping[str, Any], epoch: int) -> list[tuple[float, float]]:
        """(error, MACs) of every setting on the images that no contender was shown."""
        return [(1 - point[1], point[-1]) for point in self._points(config, epoch)]

    def seconds(self, config: Mapping[str, Any]) -> float:
        """Seconds of an epoch."""
        return self.nearest(config)["seconds"]

    @property
    def ideal(self) -> float:
        """The hypervolume of all recorded full trainings on the scored images."""
        from search.pareto.front import Archive

        archive = Archive(self.reference)
        for rows in self.rows.values():
            for row in rows:
                for error, macs in self.exact(row["config"], self.epochs):
                    archive.add(error, macs)
        return archive.hypervolume


def _distance(space: Space, one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    parts = []
    for name, parameter in space.parameters.items():
        if name not in one and name not in other:
            continue
        a, b = one.get(name), other.get(name)
        if isinstance(parameter, Range) and a and b:
            parts.append(abs(place(parameter, a) - place(parameter, b)))
        else:
            parts.append(float(a != b))
    return float(np.sum(parts))
