"""What the model registry serves: one operating point, its network or trainable and its knobs.

MLflow runs this file itself (models from code), so nothing is ever unpickled here. The model brings the
code it was promoted with (`trainables`, `spaces`); it needs torch, numpy, pandas, safetensors and
mlflow, and neither routefront, ray nor optuna. Its artifact `model` is a checkpoint folder plus
``serving.json``: knobs, the curve of all settings, class names, normalisation, and the figures it was
promoted on. Of a cascade it has a checkpoint folder for every network, and ``serving.json`` says the rule. Of a
trainable (`trainables.external`) it has the checkpoint and the file of its class, and needs what that class imports
in place of torch.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib
import importlib.machinery
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

if TYPE_CHECKING:
    import torch

_BATCH = 128  # as in `trainables.inference.evaluation.evaluate`, so that noise falls alike; it bounds memory too
_BUNDLED = ("trainables", "spaces")


class Promoted(mlflow.pyfunc.PythonModel):
    """The model of a version: a routed classifier, or a trainable."""

    def load_context(self, context) -> None:
        """Read the artifact and build what it holds; damage raises, nothing is guessed."""
        folder = Path(context.artifacts["model"])
        check_signature(folder.parents[1])
        read_sources_only(folder.parents[1])
        serving = json.loads((folder / "serving.json").read_text())
        self.served = (ServedTrainable if "trainable" in serving else RoutedClassifier)(folder, serving)

    def predict(self, context, model_input, params=None):  # pyright: ignore[reportIncompatibleMethodOverride]
        """See `RoutedClassifier.predict` and `ServedTrainable.predict`."""
        return self.served.predict(model_input, params or {})

    @property
    def network(self) -> Any:
        """The network of a routed classifier, as it is served."""
        return self.served.network  # pyright: ignore[reportAttributeAccessIssue]


class ServedTrainable:
    """The answers of a trainable's own `predict`, at the knobs that were promoted or at others of the curve."""

    def __init__(self, folder: Path, serving: Mapping[str, Any]) -> None:
        self.serving, told = serving, serving["trainable"]
        self.trainable = _class_of(folder, told)()
        self.trainable.setup(dict(told["config"]), told["seed"])
        with tempfile.TemporaryDirectory(prefix="routefront-") as scratch:  # what is stored stays as it was promoted
            own = Path(scratch) / "checkpoint"
            shutil.copytree(folder / "checkpoint", own, ignore=shutil.ignore_patterns("state.json"))
            self.trainable.restore(own)

    def predict(self, model_input: Any, params: Mapping[str, Any]) -> Any:
        """What the trainable answers for `model_input`, which reaches it as MLflow brings it.

        ``params["knobs"]``: as for a classifier; ``params["cost"]``: the knobs of the best setting on the curve that
        costs so much at most (at least, where the cost is maximised), in the study's own figure; 0 for none. Raises
        `MlflowException` for a knob or a cost that it does not have.
        """
        return self.trainable.predict(model_input, self._knobs(params))

    def _knobs(self, params: Mapping[str, Any]) -> dict[str, Any]:
        bound, curve = params.get("cost") or 0, self.serving["curve"]
        if not bound:
            return checked_knobs(params.get("knobs") or "{}", self.serving["knobs"], curve)
        if params.get("knobs"):
            raise Refused("give cost or knobs, not both")
        name, most = self.serving["trainable"]["cost"], self.serving["trainable"]["cost_maximised"]
        fitting = [each for each in curve if (each["cost"] >= bound if most else each["cost"] <= bound)]
        if not fitting:
            cheapest = min(curve, key=lambda each: each["macs"])["cost"]
            raise Refused(f"cost {bound:g}: the cheapest setting has {name} {cheapest:g}")
        return dict(max(fitting, key=lambda each: (each["accuracy"], -each["macs"]))["knobs"])


def _class_of(folder: Path, told: Mapping[str, Any]) -> Any:
    """The trainable's class: out of the file that was promoted with it, or of an installed module."""
    where, _, name = told["path"].rpartition(":")
    if not told["file"]:
        return getattr(importlib.import_module(where), name)
    path = folder / "source" / Path(told["file"]).name
    text = path.read_bytes()
    module = ModuleType(f"routefront_promoted_{hashlib.sha256(text).hexdigest()[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    exec(compile(text, str(path), "exec"), module.__dict__)  # noqa: S102 - the model's own code, as this file is
    return getattr(module, name)


class RoutedClassifier:
    """Images in, one row per image out.

    label, class, confidence, probabilities (of all classes), macs, path (the executed share of every
    unit, in [0, 1], named by ``units`` of the metadata) and, with exits, exit. The exits of a cascade are its members:
    exit is the last one that was executed, macs and path are of all that were.
    """

    def __init__(self, folder: Path, serving: Mapping[str, Any]) -> None:
        import torch

        self.serving = serving
        self.device = torch.device(os.environ.get("ROUTEFRONT_DEVICE", "cpu"))
        code, version = folder.parents[1] / "code", self.serving["code_version"]
        self.network, self.normalise, runner = _load(folder, code, version, self.device, self.serving)
        self.watch = _watch(runner, len(self.serving["exits"]))
        self.classes = np.array(self.serving["classes"], dtype=object)

    def predict(self, model_input: Any, params: Mapping[str, Any]) -> pd.DataFrame:
        """Classify `model_input` (n, channels, size, size), uint8 or as `_checked_images` takes it.

        ``params["knobs"]``: a JSON object that replaces some of the promoted knobs, or all where it holds
        another kind of those on the curve; ``params["max_macs"]``: a budget per image (0: none), for which
        the knobs of the most accurate setting on the curve are taken. Raises `MlflowException` (a server
        answers 400) for a wrong shape, type, knob or budget. With ROUTEFRONT_LOG, a folder, what is answered is counted
        there by windows of images, without an image (`trainables.export.routefront_runner.Watch`).
        """
        import torch

        started = time.perf_counter()
        images = _checked_images(model_input, self.serving["task"])
        knobs = self._knobs(params)
        generator = torch.Generator(self.device).manual_seed(int(knobs.get("seed", 0)))
        parts = [self._classify(images[i : i + _BATCH], knobs, generator) for i in range(0, len(images), _BATCH)]
        if self.watch is not None:
            counted = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None
            own = not (params.get("knobs") or params.get("max_macs"))
            self.watch.add(counted or self._nothing(), time.perf_counter() - started, promoted=own)
        return self._table(parts or [self._nothing()])

    def _knobs(self, params: Mapping[str, Any]) -> dict[str, Any]:
        budget = params.get("max_macs") or 0
        if not budget:
            return checked_knobs(params.get("knobs") or "{}", self.serving["knobs"], self.serving["curve"])
        if params.get("knobs"):
            raise Refused("give max_macs or knobs, not both")
        return dict(setting_within(self.serving["curve"], budget)["knobs"])

    def _classify(self, images: np.ndarray, knobs: Mapping[str, Any], generator: torch.Generator) -> dict[str, Any]:
        import torch

        pixels = torch.from_numpy(np.array(images)).to(self.device)
        with torch.inference_mode():
            if "cascade" in self.serving:
                answered = self.network.infer(pixels, knobs["thresholds"])
                names = ("probabilities", "macs", "path")
                return {name: getattr(answered, name) for name in names} | {"exit": answered.member}
            result = self.network.infer(self.normalise(pixels), knobs, generator=generator)
        found = {
            "probabilities": result.logits.double().softmax(dim=1).cpu().numpy(),
            "macs": result.macs.double().cpu().numpy(),
            "path": result.path.double().cpu().numpy(),
        }
        return found if result.exits is None else {**found, "exit": result.exits.cpu().numpy()}

    def _nothing(self) -> dict[str, np.ndarray]:
        """What `_classify` finds in no images."""
        empty = np.empty((0, 1))
        return {"probabilities": empty, "macs": empty[:, 0], "path": empty, "exit": empty[:, 0]}

    def _table(self, parts: list[dict[str, np.ndarray]]) -> pd.DataFrame:
        """One row an image. Columns are made of whole arrays: for small networks a table costs as much as they do."""
        found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        probabilities = found["probabilities"]
        label = probabilities.argmax(axis=1)
        columns = {
            "label": label.astype(np.int64, copy=False),
            "class": self.classes[label],
            "confidence": probabilities.max(axis=1),
            "probabilities": _lists(probabilities),
            "macs": found["macs"],
            "path": _lists(found["path"]),
        }
        if self.serving["exits"]:
            columns["exit"] = found["exit"].astype(np.int64)
        return pd.DataFrame(columns, copy=False)


def _watch(runner: Any, exits: int) -> Any:
    """What counts into the folder ROUTEFRONT_LOG, or None; raises for a window that is no whole number from 1."""
    log, window = os.environ.get("ROUTEFRONT_LOG"), os.environ.get("ROUTEFRONT_LOG_WINDOW", str(runner.WINDOW))
    if not log:
        return None
    if not (window.isascii() and window.isdigit() and int(window)):
        raise MlflowException(f"ROUTEFRONT_LOG_WINDOW {window!r}: a window has a whole number of images, at least 1")
    return runner.Watch(exits, folder=log, window=int(window))


def check_signature(model: Path) -> None:
    """Raise where ROUTEFRONT_TRUSTED_KEYS is set and the model's files are not signed by one of its keys.

    The same as in `search.promotion.signatures`, without routefront: nothing of the model but this file has run yet.
    """
    names = [name for name in os.environ.get("ROUTEFRONT_TRUSTED_KEYS", "").split(os.pathsep) if name]
    if not names:
        return
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        signature = base64.b64decode(json.loads((model / "signature.json").read_text())["signature"], validate=True)
        said = f"routefront model\n{model_digest(model)}\n".encode()
        for name in names:
            with contextlib.suppress(InvalidSignature):
                load_pem_public_key(Path(name).read_bytes()).verify(signature, said)  # type: ignore[call-arg]
                return
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise MlflowException(f"the signature of the model cannot be checked: {error}") from None
    raise MlflowException("the model is not signed by a key of ROUTEFRONT_TRUSTED_KEYS")


def model_digest(model: Path) -> str:
    """SHA-256 over names and contents of the model's files; bytecode, which is not read, is left out."""
    whole = hashlib.sha256()
    for path in sorted(p for p in model.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = path.relative_to(model).as_posix()
        if "__pycache__" in path.parts or name in ("registered_model_meta", "signature.json"):
            continue
        if path.is_symlink() or not path.is_file():
            raise ValueError(f"{name} is a link or no file")
        with path.open("rb") as file:
            whole.update(f"{len(name)} {name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


class _Source(importlib.machinery.SourceFileLoader):
    """Compiles what is written, and nothing else: bytecode beside it may be somebody else's."""

    def get_code(self, fullname):
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def read_sources_only(model: Path) -> None:
    """Let everything below the model's folder be imported from its sources; bytecode is neither read nor written."""
    root = str(model.resolve())

    def finder(path: str) -> importlib.machinery.FileFinder:
        if not Path(path).resolve().is_relative_to(root) or not Path(path).is_dir():
            raise ImportError(f"{path} is no folder of this model")
        return importlib.machinery.FileFinder(path, (_Source, importlib.machinery.SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, finder)
    for path in [path for path in sys.path_importer_cache if Path(path).resolve().is_relative_to(root)]:
        del sys.path_importer_cache[path]


def _lists(rows: np.ndarray) -> np.ndarray:
    """A column (n,) of lists from an array (n, m)."""
    return np.fromiter(rows.tolist(), dtype=object, count=len(rows))


class Refused(MlflowException):
    """What was asked for cannot be, in one line; a server answers 400 with it.

    MLflow's server writes the images that came in front of a message; these are not taken into it.
    """

    def __init__(self, line: str) -> None:
        self._line = line
        super().__init__(line, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The line."""
        return self._line

    @message.setter
    def message(self, _: str) -> None:
        return


def _checked_images(images: Any, task: Mapping[str, Any]) -> np.ndarray:
    """uint8 (n, channels, size, size) of uint8, of whole numbers in [0, 255], or of floats in [0, 1], 1 being white.

    Floats of which all are whole numbers in [0, 255] and some above 1 are pixels, too. Rows of a table, or of an array
    (n, channels * size * size), are images as well.
    """
    size = task["size"]
    shape = (task["channels"], *((size, size) if isinstance(size, int) else size))
    array = np.asarray(images)
    if array.ndim == 2 and array.shape[1] == math.prod(shape):
        array = array.reshape(-1, *shape)
    if array.ndim != 4 or array.shape[1:] != shape:
        raise Refused(f"images of shape {array.shape}; this model takes (n, {str(shape)[1:]}")
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8, copy=False)
    takes = "this model takes whole numbers from 0 to 255, or floats from 0 to 1"
    if array.dtype.kind not in "iuf":
        raise Refused(f"images of type {array.dtype}; {takes}")
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # not a number is neither
        raise Refused(f"pixels from {low:g} to {high:g}; {takes}")
    if array.dtype.kind == "f":
        if high <= 1:
            return np.rint(array * 255).astype(np.uint8)
        if not (array == np.rint(array)).all():
            raise Refused(f"floats from {low:g} to {high:g}; {takes}")
    return array.astype(np.uint8)


def setting_within(curve: list[dict[str, Any]], max_macs: float) -> dict[str, Any]:
    """The setting of a curve with at most `max_macs` that is the most accurate on validation, of equals the cheapest.

    Raises `MlflowException` naming the cheapest setting where none is.
    """
    fitting = [setting for setting in curve if setting["macs"] <= max_macs]
    if not fitting:
        cheapest = min(setting["macs"] for setting in curve)
        raise Refused(f"max_macs {max_macs:g}: the cheapest setting costs {cheapest:.0f} MACs per image on average")
    return max(fitting, key=lambda setting: (setting["accuracy"], -setting["macs"]))


def checked_knobs(text: str, promoted: Mapping[str, Any], curve: list[dict[str, Any]]) -> dict[str, Any]:
    """The promoted knobs with those of a JSON object in their place, or the latter alone where it has other names.

    Each must be of the kind that the promoted ones, or those of some setting of the curve, are of.
    """
    examples = {name: value for setting in curve for name, value in setting["knobs"].items()} | dict(promoted)
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        raise Refused(f"knobs {text!r} are not JSON: {error}") from None
    if not isinstance(given, dict):
        raise Refused(f"knobs {text!r}: write a JSON object")
    for name, value in given.items():
        if name not in examples:
            known = ", ".join(sorted(examples)) or "none"
            raise Refused(f"unknown knob {name!r}; this model takes: {known}")
        if not _alike(value, examples[name]):
            raise Refused(f"knob {name} = {value!r}; it takes values such as {examples[name]!r}")
    return {**promoted, **given} if given.keys() <= promoted.keys() else given


def _alike(value: Any, example: Any) -> bool:
    """Whether a value is of the example's kind: a number, a list of as many, a word, a truth value."""
    if isinstance(example, list):
        return (
            isinstance(value, list)
            and len(value) == len(example)
            and all(_alike(v, e) for v, e in zip(value, example, strict=True))
        )
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, int | float):
        return isinstance(value, int | float) and not math.isnan(value)
    return isinstance(value, type(example))


def _load(
    folder: Path, code: Path, version: str, device: torch.device, serving: Mapping[str, Any]
) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor], Any]:
    """The network prepared for inference, what normalises its images, and what counts, by the model's own code.

    A process that has imported `trainables` already (routefront itself, or another model) keeps
    its own; where that is another version, the bundled one is imported beside it.
    """
    if "trainables" not in sys.modules or _version() == version or not code.is_dir():
        return _prepared(folder, device, serving), _normalise(serving["normalisation"]), _runner()
    kept = _take_out()
    sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    try:
        return _prepared(folder, device, serving), _normalise(serving["normalisation"]), _runner()
    finally:
        sys.path.remove(str(code))
        _take_out()
        sys.modules.update(kept)


def _prepared(folder: Path, device: torch.device, serving: Mapping[str, Any]) -> Any:
    # this file and the code beside it are promoted together: a module that is missing is an error, never skipped
    code = importlib.import_module("trainables.serving")
    for record in sorted(folder.rglob("state.json")):
        code.trust_source(record.parent)  # a network's own file is code of the model like the rest, and signed with it
    if "cascade" in serving:
        return code.load_cascade(folder, serving["cascade"], device)
    return code.load_prepared(folder, device)


def _normalise(record: Mapping[str, Any]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The formula of training and evaluation, to the last bit: drawn decisions are hashes of its results."""
    return importlib.import_module("trainables.normalisation").Normalisation.of(record).apply


def _runner() -> Any:
    return importlib.import_module("trainables.export.routefront_runner")


def _version() -> str:
    return importlib.import_module("trainables.version").code_version()


def _take_out() -> dict[str, Any]:
    names = [name for name in sys.modules if name.partition(".")[0] in _BUNDLED]
    return {name: sys.modules.pop(name) for name in names}


mlflow.models.set_model(Promoted())
