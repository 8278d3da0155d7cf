"""Making a model version out of an operating point: what is stored, and what is said of it."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import spaces
import trainables
from search.chronicle import STUDY
from search.folder import StudyFolder
from search.front import FrontPoint
from search.mlflow_client import using
from search.mlflow_runs import StudyRuns
from trainables import checkpoints
from trainables.data import Data
from trainables.method import Method
from trainables.network import RoutedNetwork
from trainables.version import code_version

_REQUIREMENTS = ("mlflow", "torch", "numpy", "pandas", "safetensors")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a version is made of: the study as it was created, the point, its network, its figures."""

    created: dict[str, Any]
    identity: str
    point: FrontPoint
    method: Method
    network: RoutedNetwork
    data: Data
    validation: dict[str, Any]
    test: dict[str, Any]

    @property
    def study(self) -> str:
        """The study's name."""
        return self.created["spec"]["name"]

    def tags(self) -> dict[str, str]:
        """The tags of the model version."""
        point, test = self.point, self.test
        values = {
            "study": self.study,
            "study_id": self.identity,
            "trial": point.trial,
            "epoch": point.epoch,
            "point_id": point.point_id,
            "method": point.method,
            "variant": point.variant,
            "network": point.network,
            "knobs": point.knobs,
            "validation_accuracy": self.validation["accuracy"],
            "test_accuracy": test["accuracy"],
            "test_accuracy_low": test["low"],
            "test_accuracy_high": test["high"],
            "test_images": test["count"],
            "macs": self.validation["macs"],
            "test_macs": test["macs"],
            "macs_full": point.macs_full,
            "share": point.macs / point.macs_full,
            "dataset": self.data.name,
            "data_hash": self.data.hash,
            "code_version": self.created["code_version"],
        }
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}

    def serving(self) -> dict[str, Any]:
        """``serving.json``: what the model needs to serve, and what it says of itself."""
        task = self.network.task
        return {
            "study": self.study,
            "point_id": self.point.point_id,
            "method": self.point.method,
            "network": self.point.network,
            "knobs": self.point.knobs,
            "classes": list(self.data.classes),
            "task": {"classes": task.classes, "size": task.size, "channels": task.channels},
            "normalisation": {"mean": [float(v) for v in self.data.mean], "std": [float(v) for v in self.data.std]},
            "data": {
                "name": self.data.name,
                "hash": self.data.hash,
                "limit": self.created["spec"].get("data", {}).get("limit"),
            },
            "exits": [exit.name for exit in self.network.exits],
            "macs_full": self.network.macs_full,
            "macs_min": self.network.macs_min,
            "validation": self.validation,
            "test": self.test,
            "code_version": code_version(),
        }


def existing_version(client: Any, model: str, evidence: Evidence) -> str | None:
    """The version that this model has of this very point, or None."""
    query = f"name='{model}' and tags.study_id='{evidence.identity}' and tags.point_id='{evidence.point.point_id}'"
    versions = [v for v in client.search_model_versions(query) if v.status == "READY"]
    return str(max(int(v.version) for v in versions)) if versions else None


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
    run = client.create_run(runs.experiment_id, tags=tags)  # by the client: MLFLOW_RUN_ID may name another
    with using(uri) as mlflow, tempfile.TemporaryDirectory(prefix="routefront-") as scratch:
        with mlflow.start_run(run_id=run.info.run_id):
            figures = {
                "validation_accuracy": evidence.validation["accuracy"],
                "test_accuracy": evidence.test["accuracy"],
                "macs": evidence.validation["macs"],
            }
            mlflow.log_metrics(figures)
            info = _log_model(mlflow, Path(scratch), evidence, code)
        with contextlib.suppress(MlflowException):  # it exists; else the next call says what is wrong
            client.create_registered_model(model)
        # Inside `using`: MLflow looks the model up at the global address, whatever the client's is.
        version = client.create_model_version(
            model, info.model_uri, run_id=run.info.run_id, tags=evidence.tags(), model_id=info.model_id
        )
    return str(version.version)


def _log_model(mlflow: Any, scratch: Path, evidence: Evidence, code: Path) -> Any:
    """Stage checkpoint and code under a neutral folder (MLflow stores where they came from) and log them."""
    artifact = scratch / "model"
    record = {
        **checkpoints.network_record(evidence.method, evidence.network),
        "trial": evidence.point.trial,
        "epoch": evidence.point.epoch,
    }
    evidence.network.strip()
    checkpoints.save(artifact, record, evidence.network)
    serving = evidence.serving()
    (artifact / "serving.json").write_text(json.dumps(serving, indent=1))
    packages = [Path(str(module.__file__)).parent for module in (trainables, spaces)]
    with warnings.catch_warnings(record=True):  # MLflow wants type hints and an example; the signature is exact
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=shutil.copy(code, scratch / code.name),
            code_paths=[str(package) for package in packages],
            artifacts={"model": str(artifact)},
            signature=_signature(evidence),
            pip_requirements=[f"{name}=={_release(name)}" for name in _REQUIREMENTS],
            metadata=serving,
        )


def _signature(evidence: Evidence) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec

    task = evidence.network.task
    columns = [("long", "label"), ("string", "class"), ("double", "confidence"), ("double", "macs")]
    if evidence.network.exits:
        columns.append(("long", "exit"))
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, task.channels, task.size, task.size))]),
        outputs=Schema([ColSpec(kind, name) for kind, name in columns]),
        params=ParamSchema([ParamSpec("knobs", "string", "")]),
    )


def _release(name: str) -> str:
    return importlib.metadata.version(name).partition("+")[0]  # an index has no local builds
