"""From the frontier to the model registry: choose a point, measure it again, register it, move the alias.

What is promoted is an operating point: a checkpoint with its knobs. Thresholds and the choice see
the validation split only; the test split is evaluated once per point, and its figures annotate.
"""

from __future__ import annotations

import math
import sysconfig
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.chronicle import study_id
from search.errors import InputError, RunError
from search.folder import StudyFolder
from search.front import FrontPoint, front_point, front_points, unmet
from search.mlflow_client import answering, shown
from search.registered import check_names, client_at, load, move_alias, predict, rollback
from search.registration import Evidence, existing_version, register
from search.state import StudyState
from search.units import knobs_text, show_count, show_share, wilson
from spaces.space import nearest
from trainables.checkpoints import CheckpointError, load_network
from trainables.data import Data, normalise, to_device
from trainables.evaluation import evaluate
from trainables.method import Method
from trainables.network import RoutedNetwork

if TYPE_CHECKING:
    from search.study import Study

__all__ = ["Promotion", "choose", "load", "model_code", "predict", "promote", "promote_study", "rollback"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Promotion:
    """A line of the ledger: which version an alias points to, and on which evidence.

    `validation` and `test` hold accuracy and macs (per image); validation also what was measured
    again, test also correct, count and the 95 % interval low, high. `previous`: the alias's version before.
    """

    model: str
    version: str
    alias: str
    previous: str | None
    study: str
    point: dict[str, Any]
    point_id: str
    checkpoint: str
    method: str
    variant: str
    network: str
    knobs: dict[str, Any]
    knobs_text: str
    validation: dict[str, Any]
    test: dict[str, Any]
    macs_full: int
    tracking: str

    def record(self) -> dict[str, Any]:
        """Plain values: the payload of the event `promotion`."""
        return asdict(self)


# -- choosing --------------------------------------------------------------------------------------


def choose(
    state: StudyState,
    folder: StudyFolder,
    *,
    max_macs: float | None = None,
    min_accuracy: float | None = None,
    method: str | None = None,
) -> FrontPoint:
    """The most accurate point under the budget whose checkpoint exists; of equals the cheapest.

    With `min_accuracy` alone the cheapest point that has it. All operating points count, so that
    the second best stands in where the checkpoint of the best is gone. Raises `InputError` naming
    the cheapest and the most accurate there is where none fits.
    """
    best = front_points(state, max_macs=max_macs, min_accuracy=min_accuracy, method=method)
    if not best:
        raise InputError(unmet(state, max_macs, min_accuracy))
    fitting: list[FrontPoint] = []
    for trial in state.trials.values():
        for epoch, name in trial.checkpoints.items():
            if (method is None or trial.method == method) and (folder.checkpoints / name / "state.json").exists():
                points = [front_point(state, (trial.id, epoch, i)) for i in range(len(trial.curves[epoch]))]
                fitting += [p for p in points if _fits(p, max_macs, min_accuracy)]
    if not fitting:
        raise InputError(
            f"{len(best)} operating point(s) fit, such as {best[-1].point_id}, but none has its checkpoint in"
            f" {folder.checkpoints} (kept are those of the study's first two fronts)"
        )
    if max_macs is None and min_accuracy is not None:
        return min(fitting, key=lambda p: (p.macs, -p.accuracy))
    return max(fitting, key=lambda p: (p.accuracy, -p.macs))


def _fits(point: FrontPoint, max_macs: float | None, min_accuracy: float | None) -> bool:
    cheap = max_macs is None or point.macs <= max_macs
    return cheap and (min_accuracy is None or point.accuracy >= min_accuracy)


def find(state: StudyState, point_id: str) -> FrontPoint:
    """The point of an identity ``t0003-9-2`` (trial, epoch, index in the curve)."""
    trial, _, rest = point_id.partition("-")
    epoch, _, index = rest.partition("-")
    known = state.trials.get(trial)
    if known is None:
        raise InputError(f"no trial of point {point_id!r}{nearest(trial, list(state.trials))}")
    if not (epoch.isdigit() and index.isdigit() and int(index) < len(known.curves.get(int(epoch), []))):
        epochs = ", ".join(map(str, known.curves)) or "none"
        raise InputError(f"no point {point_id!r}: trial {trial} has curves at epochs {epochs}")
    return front_point(state, (trial, int(epoch), int(index)))


# -- gates -----------------------------------------------------------------------------------------


def verify(folder: StudyFolder, data: Data, point: FrontPoint) -> tuple[Method, RoutedNetwork, dict[str, Any]]:
    """The point's network, and its validation figures: recorded and measured again by the hard pass.

    Raises `InputError` where the checkpoint is missing, damaged or another one, `RunError` where the
    figures are not those that were recorded.
    """
    path = folder.checkpoints / point.checkpoint
    try:
        if not point.checkpoint:
            raise InputError(f"point {point.point_id} was recorded without a checkpoint")
        method, network, record = load_network(path)
    except (CheckpointError, ValueError) as error:
        raise InputError(f"point {point.point_id} cannot be promoted: {error}") from None
    if (record.get("trial", point.trial), record.get("epoch")) != (point.trial, point.epoch):
        raise InputError(f"checkpoint {path} is of trial {record.get('trial')} at epoch {record.get('epoch')}")
    measured = measure(network, data, "validation", point.knobs)
    accuracy, macs = _tolerances(point, measured["count"], method.calibrate is not None)
    off_accuracy, off_macs = abs(measured["accuracy"] - point.accuracy), abs(measured["macs"] - point.macs)
    if off_accuracy > accuracy or off_macs > macs:
        raise RunError(
            f"point {point.point_id} measured again has {show_share(measured['accuracy'])} at"
            f" {show_count(measured['macs'])} MACs, recorded were {show_share(point.accuracy)} at"
            f" {show_count(point.macs)}; it is not promoted"
        )
    figures = {
        "accuracy": point.accuracy,
        "macs": point.macs,
        "measured_accuracy": measured["accuracy"],
        "measured_macs": measured["macs"],
        "count": measured["count"],
    }
    return method, network, figures


def _tolerances(point: FrontPoint, count: int, calibrated: bool) -> tuple[float, float]:
    """How far accuracy and MACs may be off.

    Gates repeat but for rounding on another device, which may turn single images. Calibrated
    thresholds were recorded across halves and are measured with those of the whole.
    """
    if not calibrated:
        return max(2.5 / count, 0.002), 0.01 * point.macs
    error = math.sqrt(max(point.accuracy * (1 - point.accuracy), 1 / count) / count)
    return max(0.01, 3 * error), 0.1 * point.macs_full


def measure(network: RoutedNetwork, data: Data, split: str, knobs: Mapping[str, Any]) -> dict[str, Any]:
    """accuracy, correct, count and macs (mean per image) of one operating point on a split."""
    images, labels = to_device(getattr(data, split), "cpu")
    point = evaluate(network, normalise(images, data), labels, knobs).points[0]
    return {name: point[name] for name in ("accuracy", "correct", "count", "macs")}


def _test_figures(state: StudyState, point: FrontPoint, network: RoutedNetwork, data: Data) -> dict[str, Any]:
    """Test accuracy with its 95 % interval and MACs; from the ledger where the point has been there."""
    for promotion in state.promotions:
        if promotion["point_id"] == point.point_id:
            return promotion["test"]
    measured = measure(network, data, "test", point.knobs)
    low, high = wilson(measured["correct"], measured["count"])
    return {**measured, "low": low, "high": high}


# -- promoting -------------------------------------------------------------------------------------


def promote(
    folder: StudyFolder,
    state: StudyState,
    data: Data,
    point: FrontPoint,
    *,
    model: str,
    alias: str,
    uri: str,
    identity: str,
    experiment: str = "routefront",
) -> Promotion:
    """Pass the gates, register the point (once) and move the alias; the caller appends the record.

    `identity`: the study's in MLflow (`chronicle.study_id`). A point that this model has as a
    version already is not registered again. Raises `InputError` or `RunError`, one line each.
    """
    check_names(model, alias)
    client = client_at(uri, must_exist=False)
    method, network, validation = verify(folder, data, point)
    test = _test_figures(state, point, network, data)
    evidence = Evidence(state.created, identity, point, method, network, data, validation, test)
    with answering(uri):
        version = existing_version(client, model, evidence)
        if version is None:
            version = register(client, uri, experiment, model, evidence, folder, model_code())
        previous = move_alias(client, model, alias, version, "promote")
    return Promotion(
        model=model,
        version=version,
        alias=alias,
        previous=previous,
        study=state.created["spec"]["name"],
        point={"trial": point.trial, "epoch": point.epoch, "index": point.index},
        point_id=point.point_id,
        checkpoint=point.checkpoint,
        method=point.method,
        variant=point.variant,
        network=point.network,
        knobs=point.knobs,
        knobs_text=knobs_text(point.knobs),
        validation=validation,
        test=test,
        macs_full=point.macs_full,
        tracking=shown(uri),
    )


def promote_study(
    study: Study,
    *,
    model: str,
    uri: str,
    alias: str = "champion",
    max_macs: float | None = None,
    min_accuracy: float | None = None,
    method: str | None = None,
    point: str | None = None,
    data: Data | None = None,
) -> dict[str, Any]:
    """Promote from a study that nobody is writing: choose (or take `point`), promote, append to its ledger."""
    from search.study import load_data

    check_names(model, alias)
    with study.driving() as driver:
        if point is not None:
            chosen = find(driver.state, point)
        else:
            budget = {"max_macs": max_macs, "min_accuracy": min_accuracy, "method": method}
            chosen = choose(driver.state, driver.folder, **budget)
        data = data or load_data(study.spec)
        study.check_data(driver.state, data)
        identity = study_id(next(iter(driver.journal.events())))
        record = promote(
            driver.folder,
            driver.state,
            data,
            chosen,
            model=model,
            alias=alias,
            uri=uri,
            identity=identity,
            experiment=study.spec.tracking.experiment,
        ).record()
        driver.record("promotion", record)
    return record


def model_code() -> Path:
    """The file that the registry runs: beside the packages in a checkout, else as installed data."""
    name = "routed_classifier.py"
    checkout = Path(__file__).resolve().parent.parent / "mlflow" / name
    installed = Path(sysconfig.get_path("data")) / "share" / "routefront" / "mlflow" / name
    for path in (checkout, installed, installed.parent.parent / name):
        if path.exists():
            return path
    raise RunError(f"{name} is missing: neither {checkout} nor {installed} exists; install routefront again")
