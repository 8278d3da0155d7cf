"""A candidate for promotion that is a trainable: its checkpoint, the file of its class, and gates of its own.

What is stored is what the trial saved, the file that holds the class, and the knobs of the point. It is tried before it
leaves: restored by the registry's own serving code in another process, out of the stored files alone, where it must
answer as it does here.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.pareto.confidence import wilson
from search.promotion.candidate import Candidate
from search.promotion.choice import Target
from search.promotion.gates import Gate, inside, seeds
from search.promotion.signatures import TRUSTED_KEYS
from search.promotion.versions import Evidence, model_code, written
from search.state.state import StudyState
from search.studies.stored import StoredStudy
from search.units import AxesText
from trainables import checkpoints
from trainables.checkpoints import CheckpointError
from trainables.contracts.objective import Objective
from trainables.data.splits import Data
from trainables.external import Measured, cannot_be_served, load, points_of, restored, source_of
from trainables.version import code_version

_NEAR = 0.005
"""How far a figure of merit may be off, as a share of its axis, where no number of examples is known."""
_COST = 0.25
"""How far a cost may be off, as a share: it may be measured, such as milliseconds."""
_TIMED = 7


@dataclass(slots=True, kw_only=True)
class ExternalEvidence(Evidence):
    """What a version of a trainable is made of: see `Evidence`. `method`, `network` and `data` are None.

    `path`: the class as the study names it; `trainable`: restored; `staged`: what is stored (`store`); `subject`: what
    the study is measured on.
    """

    path: str
    trainable: Any
    staged: Path
    subject: Data | Measured
    record: dict[str, Any]

    @property
    def axes(self) -> AxesText:
        """The two axes of the study."""
        return AxesText.of(self.created)

    @property
    def objective(self) -> Objective:
        """The same, to compute with."""
        return self.axes.objective

    def measured(self, data: Any, split: str) -> dict[str, Any] | None:
        """The point at these knobs on a split, by the trainable's own `measure`; None where it has none."""
        return measured(self.trainable, self.objective, self.knobs, split)

    def store(self, folder: Path) -> None:
        """See `Evidence.store`: the trial's files, and the file of its class."""
        shutil.copytree(self.staged, folder, dirs_exist_ok=True)

    def tags(self) -> dict[str, str]:
        """See `Evidence.tags`; the figures are the study's own, beside what stands for them."""
        point, test = self.point, self.test or {}
        merit, cost = self.objective.merit.name, self.objective.cost.name
        own = {
            "kind": "trainable",
            "objective": self.objective.record(),
            f"figure.{merit}": point.merit,
            f"figure.{cost}": point.cost,
            f"test_figure.{merit}": test.get("merit"),
            f"test_figure.{cost}": test.get("cost"),
        }
        return written(self.told(self.subject.name, self.subject.hash) | own)

    def figures(self) -> dict[str, float]:
        """See `Evidence.figures`: under the names of the axes."""
        merit, cost = self.objective.merit.name, self.objective.cost.name
        found = {f"validation_{merit}": self.validation["merit"], cost: self.validation["cost"]}
        return found if self.test is None else {**found, f"test_{merit}": self.test["merit"]}

    def requirements(self) -> list[str]:
        """See `Evidence.requirements`: what the class says that it imports (`packages`)."""
        return ["mlflow", "numpy", "pandas", *packages(self.trainable)]

    def signature(self) -> Any:
        """See `Evidence.signature`: inputs and answers are the trainable's own affair."""
        from mlflow.models import ModelSignature
        from mlflow.types import ParamSchema, ParamSpec

        return ModelSignature(params=ParamSchema([ParamSpec("knobs", "string", ""), ParamSpec("cost", "double", 0.0)]))

    def serving(self) -> dict[str, Any]:
        """See `Evidence.serving`."""
        source, cost = source_of(self.path), self.objective.cost
        return {
            "study": self.study,
            "point_id": self.point.point_id,
            "method": self.point.method,
            "knobs": self.knobs,
            "curve": self.curve,
            "trainable": {
                "path": self.path if source is None else f"{source.name}:{self.path.rpartition(':')[2]}",
                "file": "" if source is None else source.name,
                "config": self.record["config"],
                "seed": self.record["seed"],
                "epoch": self.record["epoch"],
                "cost": cost.name,
                "cost_maximised": cost.maximise,
            },
            "objective": self.objective.record(),
            "data": {"name": self.subject.name, "hash": self.subject.hash},
            "validation": self.validation,
            "test": self.test,
            "code_version": code_version(),
        }


class ExternalCandidate(Candidate):
    """What would become a version of a trainable."""

    scratch: tempfile.TemporaryDirectory[str]

    def test_gate(self) -> Gate:
        """The gate `test`: measured once by the trainable's own `measure`."""
        evidence = self.evidence
        assert isinstance(evidence, ExternalEvidence)
        if not hasattr(evidence.trainable, "measure"):
            return Gate("test", None, "the trainable has no measure(knobs, split): nothing is known of other data", {})
        if evidence.test is None:
            return Gate("test", None, "measured once, when the other gates have passed", {})
        return Gate("test", True, evidence.axes.point(evidence.test["accuracy"], evidence.test["macs"]), evidence.test)

    def record(self) -> dict[str, Any]:
        """See `Candidate.record`; ``objective`` says what its figures are."""
        evidence = self.evidence
        assert isinstance(evidence, ExternalEvidence)
        return Candidate.record(self) | {"objective": evidence.objective.record()}


def external_candidate(
    study: StoredStudy,
    state: StudyState,
    identity: str,
    subject: Data | Measured,
    target: Target,
    max_latency: float | None,
) -> ExternalCandidate:
    """Restore a trainable's checkpoint and measure what its gates ask.

    Raises `InputError` where it cannot be served, its checkpoint is gone or another one, or it cannot be restored.
    """
    point, name = target.point, target.point.method
    told = state.created["trainables"][name]
    said = f"point {point.point_id} cannot be promoted"
    path = study.spec.references.get(name)  # a class that stands in the journal alone is never run
    if path is None:
        raise InputError(f"{said}: the study file names no class of the trainable {name!r}")
    scratch = tempfile.TemporaryDirectory(prefix="routefront-", ignore_cleanup_errors=True)
    staged = Path(scratch.name) / "artifacts" / "model"
    try:
        found = load(path, name)
        if why := cannot_be_served(found, name):
            raise InputError(f"{said}: {why}")
        folder = inside(study.folder, point)
        record = _record(folder, state, point)
        staged.mkdir(parents=True)
        shutil.copytree(folder, staged / "checkpoint")
        if (source := source_of(path)) is not None:
            (staged / "source").mkdir()
            shutil.copy(source, staged / "source" / source.name)
        trainable = restored(path, name, record, staged / "checkpoint")
    except (CheckpointError, ValueError, OSError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{said}: {error}") from None
    objective = AxesText.of(state.created).objective
    again = measured(trainable, objective, point.knobs, "validation")
    curve = [
        {each: line.get(each) for each in ("setting", "knobs", "accuracy", "macs", "merit", "cost")}
        for line in state.trials[point.trial].curves[point.epoch]
    ]
    digest = checkpoints.read_record(staged / "checkpoint")["files"]
    evidence = ExternalEvidence(
        created=state.created, identity=identity, point=point, method=cast(Any, None),
        network=cast(Any, None), data=cast(Any, None),
        knobs=dict(point.knobs), curve=curve,
        validation={
            "accuracy": point.accuracy, "macs": point.macs, "merit": point.merit, "cost": point.cost,
            "count": point.count,
            **({f"measured_{key}": again[key] for key in ("merit", "cost")} if again else {}),
        },
        checkpoint_sha256=_joint(digest), path=path, trainable=trainable, staged=staged, subject=subject,
        record=record,
    )  # fmt: skip
    candidate = ExternalCandidate(
        evidence,
        [
            Gate("checkpoint", True, f"{len(digest)} file(s), SHA-256 {evidence.checkpoint_sha256[:12]}", digest),
            _code(path, source, told["digest"]),
            _alone(evidence),
            _repeats(evidence, again),
            _latency(evidence, max_latency),
            _seeds(state, point),
        ],
    )
    candidate.scratch = scratch
    return candidate


def measured(trainable: Any, objective: Objective, knobs: Mapping[str, Any], split: str) -> dict[str, Any] | None:
    """What `measure` of a trainable shows: accuracy, macs, merit, cost, and where they are known correct and count.

    None where there is no `measure`. Raises `InputError` where it fails or shows no point.
    """
    if not hasattr(trainable, "measure"):
        return None
    try:
        (point,) = points_of([trainable.measure(dict(knobs), split)], objective)
    except Exception as error:  # whatever somebody's code does
        raise InputError(f"measure({dict(knobs)!r}, {split!r}) failed: {type(error).__name__}: {error}") from None
    found = {name: point[name] for name in ("accuracy", "macs", "merit", "cost", "correct", "count")}
    if point["correct"] is not None:
        found["low"], found["high"] = wilson(point["correct"], point["count"])
    return found


def packages(trainable: Any) -> list[str]:
    """The distributions that a class says it imports. Raises `InputError` where one is not installed here."""
    found = [str(name) for name in getattr(trainable, "packages", ())]
    for name in found:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            raise InputError(f"packages names {name!r}, which is not installed here under that name") from None
    return found


def _record(folder: Path, state: StudyState, point: FrontPoint) -> dict[str, Any]:
    """The record of a point's checkpoint. Raises `CheckpointError` where it is of another trial or epoch."""
    record, trial = checkpoints.read_record(folder), state.trials[point.trial]
    config = {key: value for key, value in trial.config.items() if key != "method"}
    expected = {"trainable": point.method, "config": config, "epoch": point.epoch, "seed": trial.seed}
    for key, value in expected.items():
        if record.get(key) != value:
            raise CheckpointError(
                f"checkpoint {folder} is another one: its {key} is {record.get(key)!r}, not {value!r}"
            )
    return record


def _joint(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(dict(files), sort_keys=True).encode()).hexdigest()


def _code(path: str, source: Path | None, began: str) -> Gate:
    """Gate `code`: the class comes from the file that the study was created with (`began`: its digest)."""
    if source is None:
        return Gate("code", None, f"{path} is of an installed package, which the model asks for", {})
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    says = f"{source.name}, SHA-256 {digest[:12]}"
    if digest != began:
        says += f"; the study began with {began[:12]}"
    return Gate("code", digest == began, says, {"sha256": digest, "began": began})


_ALONE = """
import importlib.util, json, sys
from pathlib import Path
from types import SimpleNamespace

spec = importlib.util.spec_from_file_location("promoted", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
model = module.Promoted()
model.load_context(SimpleNamespace(artifacts={"model": sys.argv[2]}))
trainable = model.served.trainable
answer = None
if hasattr(trainable, "example"):
    answer = trainable.predict(trainable.example, model.served.serving["knobs"])
print("answer " + json.dumps(answer, default=lambda value: value.tolist() if hasattr(value, "tolist") else repr(value)))
"""


def _alone(evidence: ExternalEvidence) -> Gate:
    """Gate `alone`: the stored files are enough for another process, which answers the example as this one does."""
    serving = evidence.staged / "serving.json"
    serving.write_text(json.dumps(evidence.serving()))
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", TRUSTED_KEYS)
    }  # nothing is signed yet
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _ALONE, str(model_code()), str(evidence.staged)],
            cwd=evidence.staged, env=environment, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return Gate("alone", False, "another process did not restore it within ten minutes", {})
    finally:
        serving.unlink()
    lines = [line.removeprefix("answer ") for line in ran.stdout.splitlines() if line.startswith("answer ")]
    if ran.returncode or not lines:
        reason = next((line for line in reversed(ran.stderr.strip().splitlines()) if line.strip()), "no reason given")
        return Gate("alone", False, f"another process cannot restore it from what is stored: {reason.strip()}", {})
    if not hasattr(evidence.trainable, "example"):
        return Gate("alone", True, "another process restores it; with `example` its answers would be compared", {})
    here = evidence.trainable.predict(evidence.trainable.example, dict(evidence.knobs))
    same = _same(_plain(here), json.loads(lines[-1]))
    says = "another process restores it and answers the example " + ("as here" if same else "otherwise")
    return Gate("alone", same, says, {})


def _plain(answer: Any) -> Any:
    return json.loads(json.dumps(answer, default=lambda v: v.tolist() if hasattr(v, "tolist") else repr(v)))


def _same(one: Any, other: Any) -> bool:
    """Whether two answers are the same, numbers but for rounding."""
    try:
        a, b = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    except (TypeError, ValueError):
        return one == other
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=1e-6, atol=1e-12, equal_nan=True))


def _repeats(evidence: ExternalEvidence, again: Mapping[str, Any] | None) -> Gate:
    """Gate `validation`: the restored trainable shows what the trial had shown."""
    point, axes = evidence.point, evidence.axes
    if again is None:
        says = "the trainable has no measure(knobs, split): its figures are those of the trial"
        return Gate("validation", None, says, {})
    allowed = max(2.5 / point.count, 0.002) if point.count else _NEAR
    off = abs(again["cost"] - (point.cost or 0.0))
    good = abs(again["accuracy"] - point.accuracy) <= allowed and off <= _COST * abs(point.cost or 0.0)
    says = (
        f"measured again {axes.point(again['accuracy'], again['macs'])}, recorded"
        f" {axes.point(point.accuracy, point.macs)}"
    )
    return Gate("validation", good, says, {"merit": point.merit, "cost": point.cost, "measured": dict(again)})


def _latency(evidence: ExternalEvidence, most: float | None) -> Gate:
    """Gate `latency`: the median time of `predict` on the example. `most`: seconds that it may take."""
    trainable = evidence.trainable
    if not hasattr(trainable, "example"):
        if most is not None:
            raise InputError("--max-latency: the trainable has no example to be timed on")
        return Gate("latency", None, "the trainable has no example to be timed on", {})
    taken = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        trainable.predict(trainable.example, dict(evidence.knobs))
        taken.append(1000 * (time.perf_counter() - began))
    median = float(np.median(taken))
    says = f"{median:.3g} ms for the example" + ("" if most is None else f" (at most {1000 * most:.3g} ms)")
    here = {"machine": platform.machine(), "cpus": os.cpu_count()}
    told = {"example_ms": round(median, 4), **here, "limit_ms": None if most is None else 1000 * most}
    return Gate("latency", most is None or median <= 1000 * most, says, told)


def _seeds(state: StudyState, point: FrontPoint) -> Gate:
    if point.count:
        return seeds(state, point, point.count)
    return Gate("seeds", None, "points have no count of examples, without which luck cannot be told", {})
