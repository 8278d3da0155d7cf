"""Problems of two objectives and several fidelities that nobody of this project made: YAHPO Gym's surrogate of LCBench.

``lcbench:TASK`` (an OpenML task): error = 1 - validation accuracy of a multilayer perceptron after 1 to 52 epochs, as
the surrogate foretells it; cost = MACs of the funnel that LCBench trained (Auto-PyTorch's rule, with the inputs and
classes of the data set); fidelity = epochs. LCBench: Zimmer et al., Auto-PyTorch Tabular (TPAMI 2021); the surrogate:
Pfisterer et al., YAHPO Gym (AutoML 2022), whose data (Apache 2.0) holds the folder ``lcbench`` with ``model.onnx`` and
``encoding.json``; that folder has to be given. The surrogate runs in onnxruntime, no dependency of the project.

A configuration is evaluated at all fidelities in one call and cached. Needs numpy and onnxruntime alone.
"""

from __future__ import annotations

import json
import math
import random
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

FRONTS = Path(__file__).resolve().parent / "fronts"

# OpenML: attributes (without the target) and classes of LCBench's data sets
SHAPE = {
    "3945": (230, 2), "7593": (54, 7), "34539": (9, 2), "126025": (14, 2), "126026": (118, 2), "126029": (16, 2),
    "146212": (9, 7), "167104": (14, 2), "167149": (36, 2), "167152": (216, 10), "167161": (20, 2), "167168": (18, 4),
    "167181": (21, 2), "167184": (4, 2), "167185": (856, 9), "167190": (5, 2), "167200": (28, 2), "167201": (42, 3),
    "168329": (27, 100), "168330": (54, 4), "168331": (180, 10), "168335": (50, 2), "168868": (170, 2),
    "168908": (1636, 2), "168910": (800, 7), "189354": (7, 2), "189862": (144, 2), "189865": (20, 2),
    "189866": (78, 2), "189873": (60, 355), "189905": (6, 4), "189906": (16, 7), "189908": (784, 10), "189909": (6, 3),
}  # fmt: skip
SUITE = ("167152", "167185", "189873", "167168", "126026", "146212", "167181", "168329", "168335", "189908")
"""The first four are of YAHPO's official suites (168331 is left out, whose surrogate has an artefact at an error of
0.13); the others were taken for the spread of their inputs and classes, before anything ran on them. 189906, 168330 and
189354 are for a check of what was decided on these: nothing is tuned on them."""

Config = dict[str, Any]
Table = tuple[np.ndarray, np.ndarray, float]
"""(errors (epochs,), MACs (epochs,), seconds an epoch) of a configuration."""
Segment = tuple[Config, int, int, float, float]
"""(configuration, first epoch, last epoch, time at its end, seconds an epoch): what a contender trained."""


class Unavailable(Exception):
    """What a problem needs is not here; one line."""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A number from `low` to `high` that is drawn uniformly, of its logarithm where `log`; or one of `options`."""

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False
    options: tuple[str, ...] = ()

    def at(self, unit: float) -> Any:
        """The value at a place in [0, 1)."""
        if self.options:
            return self.options[min(int(unit * len(self.options)), len(self.options) - 1)]
        if self.log:
            value = math.exp(math.log(self.low) + unit * (math.log(self.high) - math.log(self.low)))
        else:
            value = self.low + unit * (self.high - self.low)
        value = min(max(value, self.low), self.high)
        return round(value) if self.integer else float(value)

    def place(self, value: float) -> float:
        """The place of a value in [0, 1]."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


MLP = (
    Parameter("batch_size", 16, 512, log=True, integer=True),
    Parameter("learning_rate", 1e-4, 1e-1, log=True),
    Parameter("momentum", 0.1, 0.99),
    Parameter("weight_decay", 1e-5, 1e-1),
    Parameter("num_layers", 1, 5, integer=True),
    Parameter("max_units", 64, 1024, log=True, integer=True),
    Parameter("max_dropout", 0.0, 1.0),
)
"""The space of LCBench, in the order in which the surrogate reads it."""


def _session(folder: Path) -> Any:
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Unavailable(
            "onnxruntime is not installed; `pip install --target FOLDER onnxruntime` and PYTHONPATH=FOLDER bring it"
            " without touching the project's environment"
        ) from None
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        str(folder / "model.onnx"), sess_options=options, providers=["CPUExecutionProvider"]
    )


class Public:
    """One problem by its key; `data` is the folder with the surrogate.

    `spaces`: by method the parameters. `reference`: (error, MACs) of the hypervolume: guessing, the largest network.
    Raises `Unavailable` where the data or onnxruntime are missing, and for another key.
    """

    epochs = 52

    def __init__(self, key: str, data: Path) -> None:
        self.key = key
        scenario, _, self.instance = key.partition(":")
        if scenario != "lcbench" or self.instance not in SHAPE:
            raise Unavailable(f"problem {key!r}: must be lcbench: and one of {', '.join(SHAPE)}")
        for name in ("encoding.json", "model.onnx"):
            if not (data / name).is_file():
                raise Unavailable(f"--data {str(data)!r}: has no {name}; it must be YAHPO Gym's folder lcbench")
        self._task = json.loads((data / "encoding.json").read_text())["OpenML_task_id"][self.instance]
        self._session = _session(data)
        self._cache: dict[tuple, Table] = {}
        self.spaces = {"mlp": MLP}
        largest = self.macs({"num_layers": 5, "max_units": 1024})
        self.reference = (1 - 1 / SHAPE[self.instance][1], largest * 1.01)

    def macs(self, config: Mapping[str, Any]) -> float:
        """Of one row through the funnel: equal steps from max_units down to the classes."""
        inputs, classes = SHAPE[self.instance]
        layers, units = int(config["num_layers"]), int(config["max_units"])
        step = max(0, (units - classes) // layers)
        total, before = 0, inputs
        for i in range(layers):
            now = units - i * step
            total, before = total + before * now, now
        return float(total + before * classes)

    def sample(self, rng: random.Random) -> Config:
        """A configuration drawn uniformly."""
        method = rng.choice(list(self.spaces))
        return {"method": method, **{each.name: each.at(rng.random()) for each in self.spaces[method]}}

    def key_of(self, config: Mapping[str, Any]) -> tuple:
        """What tells configurations apart."""
        return tuple(sorted(config.items()))

    def table(self, config: Config) -> Table:
        """What a configuration shows after every epoch."""
        key = self.key_of(config)
        if key not in self._cache:
            errors, seconds = self._foretold([config], np.arange(1, self.epochs + 1, dtype=np.float32))
            self._cache[key] = errors[0], np.full(self.epochs, self.macs(config)), seconds[0]
        return self._cache[key]

    def forget(self) -> None:
        """Empty the cache."""
        self._cache.clear()

    @property
    def cached(self) -> int:
        """How many configurations are cached."""
        return len(self._cache)

    def errors_at(self, configs: Sequence[Config], epochs: Sequence[int]) -> np.ndarray:
        """Errors (configurations, epochs) at some epochs; not cached."""
        return self._foretold(configs, np.array(epochs, dtype=np.float32))[0]

    def _foretold(self, configs: Sequence[Config], epochs: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """(errors (configurations, epochs), seconds of an epoch by configuration)."""
        rest = np.array([[config[each.name] for each in MLP] for config in configs], dtype=np.float32)
        numbers = np.column_stack([np.tile(epochs, len(configs)), np.repeat(rest, len(epochs), axis=0)])
        tasks = np.full((len(numbers), 1), self._task, np.int32)
        names = [each.name for each in self._session.get_inputs()]
        found = self._session.run(None, {names[0]: tasks, names[1]: numbers})[0]
        found = found.reshape(len(configs), len(epochs), -1)  # seconds so far, validation accuracy in %, ...
        errors = 1 - np.clip(found[:, :, 1], 0, 100) / 100
        return errors.astype(float), [max(float(s) / float(epochs[-1]), 0.05) for s in found[:, -1, 0]]


# -- fronts -----------------------------------------------------------------------------------------------------------


class Front:
    """Non-dominated (error, log10 cost), with its hypervolume against a reference (error, cost)."""

    def __init__(self, reference: tuple[float, float]) -> None:
        self._error, self._cost = reference[0], math.log10(reference[1])
        self.costs: list[float] = []
        self.errors: list[float] = []

    def add(self, error: float, cost: float) -> bool:
        """Whether a point was new on the front."""
        x = math.log10(cost)
        if not (error < self._error and x < self._cost):
            return False
        i = bisect_right(self.costs, x)
        if i and self.errors[i - 1] <= error:
            return False
        j = i
        if i and self.costs[i - 1] == x:
            i -= 1
        while j < len(self.costs) and self.errors[j] >= error:
            j += 1
        self.costs[i:j], self.errors[i:j] = [x], [error]
        return True

    def volume(self) -> float:
        """The hypervolume."""
        widths = np.diff([*self.costs, self._cost])
        return float(((self._error - np.array(self.errors)) * widths).sum()) if self.costs else 0.0


def best_front(problem: Public, folder: Path, seed: int = 0, samples: int = 20000, rounds: int = 12) -> dict[str, Any]:
    """What regret is counted against: a large random sample, and local search around its front.

    Read from `FRONTS` or from `folder`, where it is written when it was computed.
    """
    name = problem.key.replace(":", "-") + ".json"
    for file in (FRONTS / name, folder / name):
        if file.exists():
            return json.loads(file.read_text())
    rng, front, owners = random.Random(seed), Front(problem.reference), list[Config]()
    some = sorted({max(1, round(problem.epochs * share)) for share in (0.4, 0.6, 0.8, 0.9, 1.0)})

    def take(configs: Sequence[Config]) -> None:
        for start in range(0, len(configs), 200):
            part = configs[start : start + 200]
            for config, errors in zip(part, problem.errors_at(part, some), strict=True):
                cost = problem.macs(config)
                if any([front.add(float(error), cost) for error in errors]):  # every epoch counts, not the first alone
                    owners.append(config)

    take([problem.sample(rng) for _ in range(samples)])
    history = [front.volume()]
    for _ in range(rounds):
        parents = owners[-400:]
        take([_child(problem, rng.choice(parents), rng) for _ in range(2000)])
        history.append(front.volume())
    points = list(zip(front.errors, front.costs, strict=True))
    found = {"volume": front.volume(), "history": history, "points": points, "reference": problem.reference}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(found))
    return found


def _child(problem: Public, parent: Config, rng: random.Random) -> Config:
    """A configuration near another: half of its parameters moved."""
    child, width = dict(parent), 10 ** rng.uniform(-2.5, -0.5)
    for each in problem.spaces[parent["method"]]:
        if rng.random() < 0.5:
            place = each.place(parent[each.name]) + rng.gauss(0, width)
            child[each.name] = each.at(min(1.0, max(0.0, place)))
    return child


def trace(problem: Public, segments: Sequence[Segment], trainings: int) -> list[float]:
    """Hypervolume after every full training's worth of epochs, at most `trainings` of them.

    Every epoch is an operating point at the moment at which it was over, for every contender alike.
    """
    ticks = []
    for config, first, last, end, seconds in segments:
        errors, costs, _ = problem.table(config)
        for epoch in range(first, last + 1):
            ticks.append((end - (last - epoch) * seconds, float(errors[epoch - 1]), float(costs[epoch - 1])))
    ticks.sort(key=lambda tick: tick[0])
    front, volumes = Front(problem.reference), []
    for count, (_, error, cost) in enumerate(ticks, 1):
        front.add(error, cost)
        if count % problem.epochs == 0:
            volumes.append(front.volume())
            if len(volumes) == trainings:
                break
    return volumes
