"""Makes a model version of an operating point: the stored files, and the tags that describe it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import shutil
import sysconfig
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spaces
import trainables
from search.errors import InputError, RunError
from search.frontier.point import FrontPoint
from search.promotion.signatures import SIGNATURE, sign
from search.studies.folder import StudyFolder
from search.tracking.chronicle import STUDY
from search.tracking.runs import StudyRuns
from search.tracking.server import using
from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.contracts.objective import ACCURACY
from trainables.data.augment import normalise, to_device
from trainables.data.splits import Data
from trainables.inference.evaluation import evaluate
from trainables.version import code_version

DIGEST = "model_sha256"  # a version's tag: what its files must be (`folder_digest`)
PROMOTION = "routefront.promotion."  # tags of a version: its last promotion under an alias, with the gates
_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "safetensors")


@dataclass(slots=True, kw_only=True)
class Evidence:
    """What a version is made of: the study as it was created, the point, its network, its figures.

    `knobs` are the point's, or those found for one's own images (`calibration` then says which).
    `curve`: setting, knobs, accuracy and macs of every setting of the checkpoint. `test` is filled in
    once the other gates have passed. `reference`: counts of what it answers on the validation images, which
    `search.promotion.drift` compares with those in use.
    """

    created: dict[str, Any]
    identity: str
    point: FrontPoint
    method: Method
    network: RoutedNetwork
    data: Data
    knobs: dict[str, Any]
    curve: list[dict[str, Any]]
    validation: dict[str, Any]
    checkpoint_sha256: str
    calibration: dict[str, Any] | None = None
    test: dict[str, Any] | None = None
    reference: dict[str, Any] | None = None

    @property
    def study(self) -> str:
        """The study's name."""
        return self.created["spec"]["name"]

    def told(self, name: str, digest: str) -> dict[str, Any]:
        """What the tags of any version say; `name` and `digest` are of the data that its figures were measured on."""
        point, test = self.point, self.test or {}
        return {
            "study": self.study,
            "study_id": self.identity,
            "trial": point.trial,
            "epoch": point.epoch,
            "point_id": point.point_id,
            "method": point.method,
            "knobs": self.knobs,
            "calibrated_on": (self.calibration or {}).get("digest", ""),
            "checkpoint_sha256": self.checkpoint_sha256,
            "validation_accuracy": self.validation["accuracy"],
            "test_accuracy": test.get("accuracy"),
            "test_accuracy_low": test.get("low"),
            "test_accuracy_high": test.get("high"),
            "macs": self.validation["macs"],
            "test_macs": test.get("macs"),
            "dataset": name,
            "data_hash": digest,
            "code_version": self.created["code_version"],
        }

    def tags(self) -> dict[str, str]:
        """The tags of the model version."""
        point = self.point
        own = {
            "variant": point.variant,
            "network": point.network,
            "merit": self.data.merit if self.data.merit != ACCURACY else None,
            "test_images": (self.test or {}).get("count"),
            "latency_ms": self.validation.get("latency_ms"),
            "machine": self.validation.get("machine"),
            "macs_full": point.macs_full,
            "share": self.validation["macs"] / point.macs_full,
        }
        return written(self.told(self.data.name, self.data.hash) | own)

    @property
    def leaves(self) -> bool:
        """Whether images leave somewhere, so that answers say where."""
        return bool(self.network.exits)

    def measured(self, data: Data, split: str) -> dict[str, Any] | None:
        """What `measure` tells of it; None where it cannot be measured."""
        return measure(self.network, data, split, self.knobs)

    def figures(self) -> dict[str, float]:
        """What the run of the promotion logs as metrics."""
        found = {"validation_accuracy": self.validation["accuracy"], "macs": self.validation["macs"]}
        return found if self.test is None else {**found, "test_accuracy": self.test["accuracy"]}

    def requirements(self) -> list[str]:
        """The distributions that serving needs, by name."""
        return [*_REQUIREMENTS, *getattr(self.network, "packages", ())]

    def signature(self) -> Any:
        """The model's MLflow signature: the columns of its answers, and its parameters."""
        return _signature(self.leaves)

    def store(self, folder: Path) -> None:
        """Write what is served into a new folder, but for ``serving.json``."""
        record = {
            **checkpoints.network_record(self.method, self.network),
            "trial": self.point.trial,
            "epoch": self.point.epoch,
        }
        self.network.strip()
        checkpoints.save(folder, record, self.network)

    def serving(self) -> dict[str, Any]:
        """``serving.json``: what the model needs to serve, and what it says of itself."""
        task = self.network.task
        normalisation = self.data.for_config(self.network.config).normalisation
        assert normalisation is not None
        return {
            "study": self.study,
            "point_id": self.point.point_id,
            "method": self.point.method,
            "network": self.point.network,
            "knobs": self.knobs,
            "curve": self.curve,
            "calibration": self.calibration,
            "units": [unit.name for unit in self.network.units],
            "classes": list(self.data.classes),
            "task": {"classes": task.classes, "size": task.size, "channels": task.channels},
            "normalisation": normalisation.record(),
            "data": {
                "name": self.data.name,
                "hash": self.data.hash,
                "limit": self.created["spec"].get("data", {}).get("limit"),
                **({"scale": self.data.scale.record()} if self.data.scale is not None else {}),
                **({"resize": self.data.resize} if self.data.resize else {}),
            },
            "exits": [exit.name for exit in self.network.exits],
            "macs_full": self.network.macs_full,
            "macs_min": self.network.macs_min,
            "validation": self.validation,
            "test": self.test,
            "reference": self.reference,
            "code_version": code_version(),
        }


FIGURES = ("accuracy", "correct", "count", "macs", "plain_accuracy", "images")


def written(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags of these values: words as they are, the rest as JSON; what is None is left out."""
    told = {name: value for name, value in values.items() if value is not None}
    return {n: value if isinstance(value, str) else json.dumps(value, sort_keys=True) for n, value in told.items()}


def measure(network: RoutedNetwork, data: Data, split: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """accuracy, correct, count and macs (mean per image) of one operating point on a split, by the hard pass.

    Where accuracy is balanced also `plain_accuracy` and `images` (`trainables.inference.balanced`).
    """
    images, labels = to_device(getattr(data, split), "cpu")
    inputs = normalise(images, data.for_config(network.config))
    point = evaluate(network, inputs, labels, knobs, merit=data.merit).points[0]
    return {name: point[name] for name in FIGURES if name in point}


def existing_version(client: Any, model: str, evidence: Evidence) -> str | None:
    """The version that this model has of this very point with these knobs, or None."""
    query = f"name='{model}' and tags.study_id='{evidence.identity}' and tags.point_id='{evidence.point.point_id}'"
    mine = evidence.tags()
    versions = [
        int(found.version)
        for found in client.search_model_versions(query)
        if found.status == "READY"
        and DIGEST in found.tags
        and all(found.tags.get(name) == mine[name] for name in ("knobs", "calibrated_on", "checkpoint_sha256"))
    ]
    return str(max(versions)) if versions else None


def note_promotion(client: Any, model: str, version: str, alias: str, record: dict[str, Any]) -> None:
    """Write into a version's tags what an alias's promotion rests on: its id, study, budget and gates."""
    gates = [{"name": gate["name"], "passed": gate["passed"], "says": gate["says"]} for gate in record["gates"]]
    said = {name: record[name] for name in ("id", "study", "point_id", "budget", "knobs")}
    client.set_model_version_tag(model, version, PROMOTION + alias, json.dumps({**said, "gates": gates}))


def register(
    client: Any, uri: str, experiment: str, model: str, evidence: Evidence, folder: StudyFolder, code: Path
) -> str:
    """Log the model under the study's run and make a version of it; the version's number."""
    from mlflow.exceptions import MlflowException

    runs = StudyRuns(uri, experiment, evidence.study, evidence.identity, folder.path.parent)
    parent = runs.run_id(STUDY)
    tags = {
        "mlflow.runName": f"{model} {evidence.point.point_id}",
        "routefront.kind": "promotion",
        "routefront.study": evidence.study,
        "routefront.study_id": evidence.identity,
        "routefront.point_id": evidence.point.point_id,
        **({"mlflow.parentRunId": parent} if parent else {}),
    }
    _close_abandoned(client, runs.experiment_id, tags)
    run = client.create_run(runs.experiment_id, tags=tags)  # by the client: MLFLOW_RUN_ID may name another
    with using(uri) as mlflow, tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        with mlflow.start_run(run_id=run.info.run_id):
            mlflow.log_metrics(evidence.figures())
            info = _log_model(mlflow, Path(scratch), evidence, code)
            stored = fetched(mlflow, info.model_uri, Path(scratch) / "stored")
            digest = folder_digest(stored)
            sign(client, info, stored, digest)
        with contextlib.suppress(MlflowException):  # it exists; else the next call says what is wrong
            client.create_registered_model(model)
        # Inside `using`: MLflow looks the model up at the global address, whatever the client's is.
        version = client.create_model_version(
            model,
            info.model_uri,
            run_id=run.info.run_id,
            tags={**evidence.tags(), DIGEST: digest},
            model_id=info.model_id,
        )
    return str(version.version)


def _close_abandoned(client: Any, experiment: str, tags: dict[str, str]) -> None:
    """End the runs that a killed promotion of the same point left running."""
    names = ("routefront.kind", "routefront.study_id", "routefront.point_id")
    query = " and ".join(f"tags.`{name}` = '{tags[name]}'" for name in names)
    for run in client.search_runs([experiment], filter_string=f"{query} and attributes.status = 'RUNNING'"):
        client.set_terminated(run.info.run_id, "KILLED")


def fetched(mlflow: Any, source: str, folder: Path) -> Path:
    """A model's files in a folder of our own, without bytecode.

    A process that served the model out of a registry on this machine may have left bytecode there, and so may have
    somebody else: Python would run it in place of the code that the digest covers.
    """
    folder.mkdir()
    found = Path(mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=str(folder)))
    if not found.resolve().is_relative_to(folder.resolve()):
        raise InputError(f"MLflow did not copy {source}")  # nothing of the registry itself is removed
    for cache in [path for path in found.rglob("__pycache__") if path.is_dir() and not path.is_symlink()]:
        shutil.rmtree(cache, ignore_errors=True)
    return found


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all of a model's files.

    Left out are the note that MLflow adds when it fetches them (``registered_model_meta``, no code) and the signature,
    which is of this digest. Raises `InputError` for what is neither a file nor a folder.
    """
    whole = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise InputError(f"{name} is a link or no file; a registered model holds files only")
        if name in ("registered_model_meta", SIGNATURE):
            continue
        with path.open("rb") as file:
            whole.update(f"{len(name)} {name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def _log_model(mlflow: Any, scratch: Path, evidence: Evidence, code: Path) -> Any:
    """Stage checkpoint and code under a neutral folder (MLflow stores where they came from) and log them."""
    artifact = scratch / "model"
    evidence.store(artifact)
    serving = evidence.serving()
    (artifact / "serving.json").write_text(json.dumps(serving, indent=1))
    needed = evidence.requirements()
    packages = [Path(str(module.__file__)).parent for module in (trainables, spaces)]
    with warnings.catch_warnings(record=True):  # MLflow wants type hints and an example; the signature is exact
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=shutil.copy(code, scratch / code.name),
            code_paths=[str(package) for package in packages],
            artifacts={"model": str(artifact)},
            signature=evidence.signature(),
            pip_requirements=[f"{name}=={_release(name)}" for name in needed],
            metadata=serving,
        )


def _signature(leaves: bool) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array

    columns: list[tuple[Any, str]] = [
        ("long", "label"),
        ("string", "class"),
        ("double", "confidence"),
        (Array("double"), "probabilities"),
        ("double", "macs"),
        (Array("double"), "path"),
    ]
    if leaves:
        columns.append(("long", "exit"))
    # Without inputs: MLflow would cast floats to uint8, 0.98 to 0, before the model sees and refuses or takes them.
    return ModelSignature(
        outputs=Schema([ColSpec(kind, name) for kind, name in columns]),
        params=ParamSchema([ParamSpec("knobs", "string", ""), ParamSpec("max_macs", "double", 0.0)]),
    )


def _release(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]  # an index has no local builds


def model_code() -> Path:
    """The file that the registry runs: beside the packages in a checkout, else as installed data."""
    name = "routed_classifier.py"
    checkout = Path(__file__).resolve().parents[2] / "mlflow" / name
    installed = Path(sysconfig.get_path("data")) / "share" / "routefront" / "mlflow" / name
    for path in (checkout, installed, installed.parent.parent / name):
        if path.exists():
            return path
    raise RunError(f"{name} is missing: neither {checkout} nor {installed} exists; install routefront again")
