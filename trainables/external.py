"""Anything that trains step by step and shows operating points, as a trainable of a study.

A class in a file or in an installed package, named in the study file:

    [trainables.boosting]
    path = "mine.py:Boosting"

or handed to `Study.create`. It speaks the protocol `Trainable`; it need not inherit from it. Workers import the class
from its file: a class never travels as a pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import json
import math
import numbers
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Protocol

from spaces.space import Choice, Fixed, Parameter, Range, Space
from spaces.written import parameter_from
from trainables import checkpoints
from trainables.contracts.objective import Objective

_REFERENCE = re.compile(r"(?P<where>.+):(?P<name>[A-Za-z_]\w*)")
_POINT_KEYS = ("knobs", "count", "latency_ms")
_MOST_POINTS = 10_000
_MOST_OPTIONS = 1_000


class Trainable(Protocol):
    """What a trainable does. Only `space`, `setup` and `step` are needed; to be promoted also `save`, `restore` and
    `predict`.

    `space`: what is searched over, by name a `Range`, a `Choice`, a `Fixed`, or as study files write them: a list of
    options, a table ``{"low": 0.01, "high": 1, "log": True}``, a value that does not vary. `first`: a configuration
    that runs first. `data`: what figures are measured on; studies with the same word share a front.
    """

    space: ClassVar[Space | Mapping[str, Any]]
    first: ClassVar[Mapping[str, Any]]
    data: ClassVar[str]
    example: ClassVar[Any]
    packages: ClassVar[Sequence[str]]

    def setup(self, config: dict[str, Any], seed: int) -> None:
        """Begin a trial with a configuration of the space; called once, on a new object."""
        ...

    def step(self) -> Sequence[Mapping[str, Any]]:
        """Train one step, as often as ``budget.epochs`` says; return the operating points reached.

        A point is {merit, cost} by the names of the study's axes, for example {"error": 0.2, "ms": 3.1}, and where
        there are such ``knobs`` (the settings of inference that give it, plain values), ``count`` (of the examples
        that a share was measured on) and ``latency_ms``. Steps that are no rung may return none.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write files into an empty folder from which `restore` goes on. Without it, steps are repeated instead."""
        ...

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote; `setup` was called before."""
        ...

    def predict(self, inputs: Any, knobs: Mapping[str, Any]) -> Any:
        """Answers for inputs at the knobs of a point. Only what has this can be promoted and served."""
        ...

    def measure(self, knobs: Mapping[str, Any], split: str) -> Mapping[str, Any]:
        """The point that the trained model reaches at these knobs on "validation" or on "test", as `step` shows it.

        With it a promotion measures again what the trial had shown, and reads the test split once.
        """
        ...


def load(reference: str, name: str = "") -> type[Any]:
    """The class that ``file.py:Class`` or ``package.module:Class`` names.

    Raises ValueError with one line where it cannot be imported or does not speak the protocol.
    """
    match = _REFERENCE.fullmatch(reference)
    said = f"trainables.{name}: path = {reference!r}" if name else f"trainable {reference!r}"
    if match is None:
        raise ValueError(f"{said}: write a file and a class, for example mine.py:Mine")
    try:
        module = _module(match["where"])
        found = getattr(module, match["name"])
    except FileNotFoundError:
        raise ValueError(f"{said}: there is no file {match['where']}") from None
    except AttributeError:
        raise ValueError(f"{said}: {match['where']} has no {match['name']}") from None
    except Exception as error:  # whatever somebody's file does
        raise ValueError(f"{said} cannot be imported: {type(error).__name__}: {_line(error)}") from None
    if not inspect.isclass(found):
        raise ValueError(f"{said}: {match['name']} is no class")
    missing = [part for part in ("space", "setup", "step") if not hasattr(found, part)]
    if missing:
        raise ValueError(f"{said}: {match['name']} has no {missing[0]}; a trainable has space, setup and step")
    if hasattr(found, "save") != hasattr(found, "restore"):
        lone, other = ("save", "restore") if hasattr(found, "save") else ("restore", "save")
        raise ValueError(f"{said}: {match['name']} has {lone}, but no {other}")
    return found


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).expanduser().resolve()
    if not path.is_file():
        raise FileNotFoundError(where)
    name = f"routefront_trainable_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    text = path.read_bytes()
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__digest__", None) == hashlib.sha256(text).hexdigest():
        return known
    module = ModuleType(name)
    module.__file__ = str(path)
    module.__dict__["__digest__"] = hashlib.sha256(text).hexdigest()
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # what lies beside the file can be imported, but hides nothing
    sys.modules[name] = module
    try:
        exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102 - loaders may take a stale compiled file
    except BaseException:
        del sys.modules[name]
        raise
    return module


def reference_of(trainable: type[Any] | str) -> str:
    """The ``file.py:Class`` or ``module:Class`` under which workers can import a class.

    Raises ValueError for a class of a notebook or of another class or function.
    """
    if isinstance(trainable, str):
        return trainable
    name, module = trainable.__qualname__, trainable.__module__
    if not name.isidentifier():
        raise ValueError(f"trainable {name}: workers import it by name; define it at the top of a module")
    if module != "__main__" and not module.startswith("routefront_trainable_"):
        with contextlib.suppress(ImportError, ValueError):
            found = importlib.util.find_spec(module)
            if found is not None and found.origin and found.origin.endswith(".py"):
                package = module.partition(".")[0]
                installed = "site-packages" in found.origin
                return f"{module}:{name}" if installed or package != module else f"{found.origin}:{name}"
    try:
        path = inspect.getsourcefile(trainable)
    except (TypeError, OSError):
        path = None
    if path is None or not Path(path).is_file() or not path.endswith(".py"):
        raise ValueError(
            f"trainable {name} is in no file that workers could import: write it into one, for example mine.py,"
            f" and name it mine.py:{name}"
        )
    return f"{Path(path).resolve()}:{name}"


def source_of(reference: str) -> Path | None:
    """The file of a reference; None for a module of an installed package."""
    where = reference.rpartition(":")[0]
    return Path(where).expanduser().resolve() if where.endswith(".py") else None


def space_of(trainable: type[Any], name: str) -> Space:
    """The search space of a trainable. Raises ValueError where it is none."""
    written = trainable.space
    if isinstance(written, Space):
        space = written
    elif isinstance(written, Mapping):
        space = Space({str(key): _parameter(str(key), value) for key, value in written.items()})
    else:
        raise ValueError(f"{name}.space is a {type(written).__name__}: it must be a Space, or a mapping by name")
    for key, parameter in space.parameters.items():
        if key == "method":
            raise ValueError(f"{name}.space has a parameter 'method', which names the trainable itself: rename it")
        if parameter.stage != 1:
            raise ValueError(f"{name}.space: {key} is of stage {parameter.stage}; a trainable has one stage")
        if isinstance(parameter, Choice) and len(parameter.options) > _MOST_OPTIONS:
            raise ValueError(
                f"{name}.space: {key} has {len(parameter.options):,} options, of which nothing can be learnt one by"
                f' one (at most {_MOST_OPTIONS:,}); where they are in order, write a range: {{"low": 1, "high":'
                f' {len(parameter.options)}, "integer": True}}'
            )
    return space


def _parameter(name: str, value: Any) -> Parameter:
    return value if isinstance(value, Range | Choice | Fixed) else parameter_from(name, value)


def first_of(trainable: type[Any], name: str) -> dict[str, Any]:
    """The configuration that runs first, as far as the class names one."""
    first = getattr(trainable, "first", {})
    if not isinstance(first, Mapping):
        raise ValueError(f"{name}.first is a {type(first).__name__}: it must be a mapping of parameters to values")
    return dict(first)


# -- what it is measured on ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Measured:
    """What stands in the place of images where a study has none: what its trainables are measured on.

    `hash`: the same for studies whose figures compare. `folders`: the files that workers import.
    """

    name: str
    hash: str
    folders: tuple[str, ...]

    def sample(self) -> list[tuple[str, int]]:
        """Files whose lengths are compared on every node: a class that is another one there is found."""
        return [(path, Path(path).stat().st_size) for path in self.folders if Path(path).is_file()]

    def summary(self) -> str:
        """In words, for people."""
        return "trainables bring their own data"


def measured(references: Mapping[str, str], objective: Objective) -> Measured:
    """What the trainables of a study are measured on. Raises ValueError where one cannot be imported."""
    words = {name: str(getattr(load(reference, name), "data", name)) for name, reference in references.items()}
    content = json.dumps([objective.record(), sorted(set(words.values()))], sort_keys=True)
    files = [str(path) for path in map(source_of, references.values()) if path is not None]
    return Measured(", ".join(sorted(set(words.values()))), hashlib.sha256(content.encode()).hexdigest(), tuple(files))


def digests_of(references: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """By name the reference and the SHA-256 of its file (empty for a module), as a study records them."""
    found = {}
    for name, reference in references.items():
        path = source_of(reference)
        digest = "" if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
        found[name] = {"path": reference, "digest": digest}
    return found


# -- points ------------------------------------------------------------------------------------------


def points_of(shown: Any, objective: Objective) -> list[dict[str, Any]]:
    """What a step returned, as the points of a curve: {accuracy, macs, setting, knobs, correct, count, ...}.

    `accuracy` and `macs` are what stands for the two axes (`Objective`). Raises ValueError with one line that names the
    point and what is wrong with it.
    """
    if isinstance(shown, Mapping):
        shown = [shown]
    if not isinstance(shown, Sequence) or isinstance(shown, str | bytes):
        raise ValueError(f"step returned {_short(shown)}: it must return points, a list of mappings")
    if not shown:
        raise ValueError("step returned no operating point at a rung")
    if len(shown) > _MOST_POINTS:
        raise ValueError(f"step returned {len(shown):,} operating points; a curve has at most {_MOST_POINTS:,}")
    return [_point(point, index, objective) for index, point in enumerate(shown)]


def _point(point: Any, index: int, objective: Objective) -> dict[str, Any]:
    merit, cost = objective.merit.name, objective.cost.name
    said = f"point {index} of step"
    if not isinstance(point, Mapping):
        raise ValueError(f"{said} is {_short(point)}: it must be a mapping with {merit} and {cost}")
    for name in (merit, cost):
        if name not in point:
            raise ValueError(f"{said} has no {name!r}, an axis of the study; it has {', '.join(map(str, point))}")
    for name in point:
        if name not in (merit, cost, *_POINT_KEYS):
            raise ValueError(
                f"{said} has {name!r}, which nobody asked for: points have {merit}, {cost}, {', '.join(_POINT_KEYS)}"
            )
    try:
        accuracy, macs = objective.accuracy_of(_number(point[merit])), objective.macs_of(_number(point[cost]))
    except ValueError as error:
        raise ValueError(f"{said}: {error}") from None
    knobs = point.get("knobs", {})
    try:
        assert isinstance(knobs, Mapping)
        knobs = json.loads(json.dumps(dict(knobs), allow_nan=False, default=_plain))
    except (AssertionError, TypeError, ValueError):
        raise ValueError(f"{said}: knobs = {_short(knobs)} must be a mapping of names to plain values") from None
    count = point.get("count")
    if count is not None and not (isinstance(count, numbers.Integral) and 1 <= int(count) <= 10**15):
        raise ValueError(f"{said}: count = {_short(count)}: it is the number of examples that were asked")
    share = {objective.merit.best, objective.merit.worst} == {0.0, 1.0}  # of examples: right ones can be counted
    correct = round(accuracy * int(count)) if count is not None and share else None
    found = {
        "setting": knobs, "knobs": knobs, "accuracy": accuracy, "macs": macs, "macs_std": 0.0,
        "correct": correct, "count": int(count) if correct is not None and count is not None else None,
        "merit": _number(point[merit]), "cost": _number(point[cost]),
    }  # fmt: skip
    if "latency_ms" in point:
        found["latency_ms"] = _number(point["latency_ms"])
        if not isinstance(found["latency_ms"], float) or not 0 <= found["latency_ms"] < math.inf:
            raise ValueError(f"{said}: latency_ms = {_short(point['latency_ms'])} must be a time in milliseconds")
    return found


def _number(value: Any) -> Any:
    """A number of numpy or torch as Python's."""
    item = getattr(value, "item", None)
    if callable(item) and not isinstance(value, int | float):
        with contextlib.suppress(ValueError, RuntimeError, TypeError):
            value = item()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _plain(value: Any) -> Any:
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise TypeError(value)


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else text[:57] + "..."


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:240] if lines else "no reason given"


def cannot_be_served(trainable: type[Any], name: str) -> str:
    """Why a trainable cannot be promoted, in one line; empty where it can."""
    missing = [part for part in ("predict", "save", "restore") if not hasattr(trainable, part)]
    if not missing:
        return ""
    lines = {"predict": "predict(inputs, knobs)", "save": "save(folder)", "restore": "restore(folder)"}
    return f"trainable {name!r} has no {lines[missing[0]]}, so that nothing of it can be served"


def restored(reference: str, name: str, record: Mapping[str, Any], folder: Path) -> Any:
    """The trainable of a checkpoint whose record this is. Raises `CheckpointError` where it cannot be restored."""
    trainable = load(reference, name)()
    trainable.setup(dict(record["config"]), record["seed"])
    restore_own(trainable, name, folder)
    return trainable


def restore_own(trainable: Any, name: str, folder: Path) -> None:
    """Have a trainable restore itself from a copy of a checkpoint: what is stored stays as its digests say."""
    own = folder.with_name(f".{folder.name}.restored")
    shutil.rmtree(own, ignore_errors=True)
    shutil.copytree(folder, own, ignore=shutil.ignore_patterns(checkpoints.STATE))
    try:
        trainable.restore(own)
    except Exception as error:
        raise checkpoints.CheckpointError(
            f"{name}.restore failed on {folder}: {type(error).__name__}: {_line(error)}"
        ) from error
    finally:
        shutil.rmtree(own, ignore_errors=True)


# -- training ----------------------------------------------------------------------------------------


class ExternalTraining:
    """A trial of a trainable for a worker: what `trainables.training.training.Training` is for networks.

    `epochs` steps in all, points are taken in after those in `evaluate_at`.
    """

    partial: None = None
    size = (0, 0)

    def __init__(
        self,
        reference: str,
        config: Mapping[str, Any],
        *,
        name: str,
        objective: Objective,
        epochs: int,
        seed: int,
        evaluate_at: Sequence[int],
    ) -> None:
        self.reference, self.name, self.config = reference, name, dict(config)
        self.objective, self.epochs, self.seed, self.evaluate_at = objective, epochs, seed, tuple(evaluate_at)
        self.epoch = 0
        self.seconds = 0.0
        self.last_report: dict[str, Any] | None = None
        self.leaving: Callable[[], bool] = lambda: False  # steps are not left in their middle
        self._trainable = self._begun()

    def _begun(self) -> Any:
        found = load(self.reference, self.name)()
        found.setup(dict(self.config), self.seed)
        return found

    @property
    def trainable(self) -> Any:
        """The user's own object."""
        return self._trainable

    @property
    def done(self) -> bool:
        """Whether all steps are done."""
        return self.epoch >= self.epochs

    def step(self) -> dict[str, Any]:
        """One step; the report of it. Raises ValueError where its points are none."""
        started = time.perf_counter()
        shown = self._trainable.step()
        self.epoch += 1
        report: dict[str, Any] = {
            "epoch": self.epoch, "phase": "train", "comparable": True, "losses": {}, "cost_epochs": float(self.epoch),
        }  # fmt: skip
        if self.epoch in self.evaluate_at:
            points = points_of([] if shown is None else shown, self.objective)
            report["curve"] = {"points": points, "diagnostics": {}, "seconds": 0.0}
        seconds = time.perf_counter() - started
        self.seconds += seconds
        report["seconds"] = seconds
        self.last_report = report
        return report

    def save(self, folder: Path, extra: dict[str, Any] | None = None) -> None:
        """Write a checkpoint: the trainable's files, and a record with their digests."""
        record = {
            "trainable": self.name,
            "config": self.config,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "seed": self.seed,
            "seconds": self.seconds,
            "cost_epochs": float(self.epoch),
            "report": self.last_report,
            **(extra or {}),
        }
        save = getattr(self._trainable, "save", None)

        def write(part: Path) -> None:
            if save is None:
                return
            save(part)
            for path in part.iterdir():
                if not path.is_file() or path.name == checkpoints.STATE:
                    raise ValueError(
                        f"{self.name}.save wrote {path.name!r}: it may write files, but no folders and no"
                        f" {checkpoints.STATE}"
                    )

        checkpoints.write_files(folder, record, write)

    def restore(self, folder: Path) -> None:
        """Go on from a checkpoint of the same trial; without `save` the steps until there are done again.

        Raises `CheckpointError` where it is damaged or was written for another trial, or the trainable's own `restore`
        fails.
        """
        record = checkpoints.read_record(folder)
        expected = {"trainable": self.name, "config": self.config, "epochs": self.epochs, "seed": self.seed}
        for key, value in expected.items():
            if record.get(key) != value:
                raise checkpoints.CheckpointError(
                    f"checkpoint {folder} is of another trial: {key} is {record.get(key)!r}, expected {value!r}"
                )
        if hasattr(self._trainable, "restore"):
            restore_own(self._trainable, self.name, folder)
        else:
            for _ in range(record["epoch"]):
                self._trainable.step()
        self.epoch, self.seconds, self.last_report = record["epoch"], record["seconds"], record["report"]
