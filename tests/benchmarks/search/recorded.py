"""The recorded trainings as a problem for the simulation: what any configuration shows, by a model fitted to the table.

Between the rows of the table (`record_table.py`) answers an ensemble of extremely randomised trees (Geurts, Ernst and
Wehenkel, 2006; scikit-learn's), one a method: from a configuration to the whole of its training, all epochs and all
points of their curves at once. It is of another kind than the processes of `search.sampling.surrogate`, so that no
contender is asked about its own model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from search.pareto.front import Archive
from search.sampling.codec import Codec
from search.sampling.proposals import seed_of
from spaces.space import Space, drawn
from tests.benchmarks.search.record_table import spec

FILE = Path(__file__).with_name("recorded.json")
POINTS = 11
"""Points of a curve whose method shows more than one."""
_DRAWS = 3000  # configurations of a method that the ideal front is looked for in, beside the table's

Array = np.ndarray


class Recorded:
    """A table of real trainings, continued to all configurations of its spaces.

    A row's curve at an epoch is [accuracy on the even validation images, on the odd ones, (on the test images,) MACs]
    by setting, taken at `POINTS` places between its cheapest and its dearest setting. The model learns the mean of
    both halves. `exact` is what it says of a configuration, shifted by what another seed changes (the deviation
    between the table's repeated trainings; one draw for every configuration). `curve` is what the even images would
    say: half of the difference between both halves, times the square root of two, of a row of the method that the
    configuration's draw names, is added; so the noise has the size and the correlation between epochs and settings
    that it has in the table. No test image is read. Between the epochs of the table the last one counts.
    """

    def __init__(self, file: Path = FILE) -> None:
        table = json.loads(file.read_text())
        self.data, self.epochs = table["data"], table["epochs"]
        rows: dict[str, list[dict[str, Any]]] = {}
        for row in table["rows"]:
            row["curves"] = {int(epoch): row["curves"][epoch] for epoch in sorted(row["curves"], key=int)}
            rows.setdefault(row["config"]["method"], []).append(row)
        spaces = spec(self.epochs).spaces()
        self.at = list(table["rows"][0]["curves"])
        deviation = seeds_apart([row for each in rows.values() for row in each], self.epochs)
        self.models = {name: _Fitted(spaces[name], rows[name], self.at, deviation) for name in spaces if name in rows}
        self.spaces: Mapping[str, Space] = {name: spaces[name] for name in self.models}
        self.papers: Mapping[str, Mapping[str, Any]] = {name: {} for name in self.spaces}
        dearest = max(point[-1] for each in rows.values() for row in each for point in row["curves"][self.epochs])
        self.reference = (0.9, dearest)
        self._ideal: float | None = None

    def _shown(self, config: Mapping[str, Any], epoch: int) -> tuple[Array, Array, Array]:
        exact, even, macs = self.models[config["method"]].of(config)
        at = max(0, int(np.searchsorted(self.at, epoch, side="right")) - 1)
        return exact[at], even[at], macs[at]

    def curve(self, config: Mapping[str, Any], seed: int, epoch: int) -> list[tuple[float, float]]:
        """See `search.simulation.simulation.Problem`."""
        _, even, macs = self._shown(config, epoch)
        return list(zip(even.tolist(), macs.tolist(), strict=True))

    def exact(self, config: Mapping[str, Any], epoch: int) -> list[tuple[float, float]]:
        """(error, MACs) of every setting, without the noise of the images."""
        accuracy, _, macs = self._shown(config, epoch)
        return list(zip((1 - accuracy).tolist(), macs.tolist(), strict=True))

    def seconds(self, config: Mapping[str, Any]) -> float:
        """Seconds of an epoch."""
        return self.models[config["method"]].seconds(config)

    @property
    def ideal(self) -> float:
        """The hypervolume of the best front: of the table's configurations and many more, trained in full."""
        if self._ideal is None:
            archive = Archive(self.reference)
            for name, model in self.models.items():
                rng = random.Random(seed_of("ideal", name))
                draws = [{"method": name, **drawn(self.spaces[name], rng, {})} for _ in range(_DRAWS)]
                for accuracy, macs in model.last([*model.configs, *draws]):
                    for error, work in zip((1 - accuracy).tolist(), macs.tolist(), strict=True):
                        archive.add(error, work)
            self._ideal = archive.hypervolume
        return self._ideal


class _Fitted:
    """The trees of one method, and its rows' noise. Accuracies as logits, MACs as logarithms."""

    def __init__(self, space: Space, rows: Sequence[dict[str, Any]], epochs: Sequence[int], deviation: float) -> None:
        from sklearn.ensemble import ExtraTreesRegressor

        self.configs = [row["config"] for row in rows]
        self._codec, self._deviation = Codec(space), deviation
        most = max(len(row["curves"][epoch]) for row in rows for epoch in epochs)
        self._shape = 2, len(epochs), 1 if most == 1 else POINTS
        told = [np.stack([_resampled(row["curves"][epoch], self._shape[2]) for epoch in epochs], 1) for row in rows]
        halves = np.stack(told)[:, :2]  # (rows, even and odd, epochs, points)
        mean, macs = halves.mean(1), np.log(np.stack(told)[:, 2])
        self._noise = (_logit(halves[:, 0]) - _logit(halves[:, 1])) / np.sqrt(2)
        answers = np.stack([_logit(mean), macs], 1).reshape(len(rows), -1)
        self._trees = ExtraTreesRegressor(100, min_samples_leaf=2, random_state=0)
        pace = np.log([row["seconds"] for row in rows])
        self._trees.fit(self._features(self.configs), np.column_stack([answers, pace]))
        self._known: dict[str, tuple[Array, Array, Array, float]] = {}

    def _features(self, configs: Sequence[Mapping[str, Any]]) -> Array:
        return np.concatenate([np.zeros((len(configs), 1)), *self._codec.features(self._codec.encode(configs))], 1)

    def _foretold(self, configs: Sequence[Mapping[str, Any]]) -> tuple[Array, Array, Array]:
        """(logits (n, epochs, points), logarithms of MACs alike, logarithms of seconds (n,))."""
        answers = self._trees.predict(self._features(configs))
        figures = answers[:, :-1].reshape(-1, *self._shape)
        return figures[:, 0], figures[:, 1], answers[:, -1]

    def _all(self, config: Mapping[str, Any]) -> tuple[Array, Array, Array, float]:
        key = repr(sorted(config.items(), key=lambda item: item[0]))
        if key not in self._known:
            (logits,), (macs,), (pace,) = self._foretold([config])
            draw = np.random.default_rng(seed_of("seed", key))
            logits = logits + self._deviation * draw.normal()
            noise = self._noise[draw.integers(len(self._noise))]
            self._known[key] = _share(logits), _share(logits + noise), np.exp(macs), float(np.exp(pace))
        return self._known[key]

    def of(self, config: Mapping[str, Any]) -> tuple[Array, Array, Array]:
        """(accuracy, accuracy with the noise of the images, MACs) by epoch and point."""
        return self._all(config)[:3]

    def last(self, configs: Sequence[Mapping[str, Any]]) -> list[tuple[Array, Array]]:
        """(accuracy, MACs) of the last epoch's points, of every configuration, with the mean seed."""
        logits, macs, _ = self._foretold(configs)
        return list(zip(_share(logits[:, -1]), np.exp(macs[:, -1]), strict=True))

    def seconds(self, config: Mapping[str, Any]) -> float:
        """Seconds of an epoch."""
        return self._all(config)[3]


def seeds_apart(rows: Sequence[Mapping[str, Any]], epoch: int) -> float:
    """The deviation between seeds of the logit of a training's mean accuracy; 0 where nothing was trained twice.

    What is due to the images cancels: all seeds are scored on the same ones.
    """
    groups: dict[int, list[float]] = {}
    for row in rows:
        accuracy = np.mean([point[:2] for point in row["curves"][epoch]])
        groups.setdefault(row.get("number", id(row)), []).append(float(_logit(accuracy)))
    repeated = [np.var(each, ddof=1) for each in groups.values() if len(each) > 1]
    return float(np.sqrt(np.mean(repeated))) if repeated else 0.0


def _resampled(points: Sequence[Sequence[float]], count: int) -> Array:
    """(even, odd, MACs) (3, count): a curve at evenly spaced places between its cheapest and its dearest setting."""
    ordered = np.array(sorted(([point[0], point[1], point[-1]] for point in points), key=lambda point: point[2])).T
    places, wanted = np.linspace(0, 1, ordered.shape[1]), np.linspace(0, 1, count)
    return np.stack([np.interp(wanted, places, each) for each in ordered])


def _logit(share: Any) -> Any:
    share = np.clip(share, 0.01, 0.99)
    return np.log(share / (1 - share))


def _share(logit: Array) -> Array:
    return 1 / (1 + np.exp(-logit))
