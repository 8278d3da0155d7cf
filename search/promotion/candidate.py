"""A candidate for promotion: an operating point with its network, the gates it passed, and their evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from search.frontier.point import in_macs
from search.pareto.confidence import wilson
from search.points.canonical import canonical
from search.promotion.calibration import OwnImages, best_setting, calibrated_curve
from search.promotion.choice import Target
from search.promotion.gates import Gate, both_passes, latency, open_checkpoint, reference_of, repeats, seeds
from search.promotion.versions import Evidence, measure
from search.state.state import StudyState
from search.studies.folder import StudyFolder
from search.units import knobs_text, show_count, show_share
from trainables.data.augment import normalise
from trainables.data.splits import Data

_TIMED = 64  # images that latency is measured on; the first half of them also by `both_passes`


NO_TEST = (
    "there is no test split: the validation figures, by which this point was chosen, stand alone;"
    " routefront predict --model NAME@ALIAS --images FOLDER measures it on class folders of other images"
)


@dataclass(slots=True)
class Candidate:
    """What would become a version: its evidence and the gates that need no registry."""

    evidence: Evidence
    gates: list[Gate]

    def test_gate(self) -> Gate:
        """The gate `test`: figures that annotate, measured once; they rank and refuse nothing."""
        test = self.evidence.test
        if not len(self.evidence.data.test):
            return Gate("test", None, NO_TEST, {})
        if test is None:
            return Gate("test", None, "measured once, when the other gates have passed", {})
        of = f"{test['correct']} of {test['count']}"
        if "plain_accuracy" in test:
            of = f"balanced over classes, {show_share(test['plain_accuracy'])} of {test['images']} images"
        says = (
            f"{show_share(test['accuracy'])} ({of}, 95 % interval"
            f" {show_share(test['low'])} to {show_share(test['high'])}) at {show_count(test['macs'])} MACs"
        )
        return Gate("test", True, says, dict(test))

    def record(self) -> dict[str, Any]:
        """The part of a promotion's record that is about the point; plain values."""
        evidence = self.evidence
        point = evidence.point
        return {
            "study": evidence.study,
            "point": {"trial": point.trial, "epoch": point.epoch, "index": point.index},
            "point_id": point.point_id,
            "checkpoint": point.checkpoint,
            "checkpoint_sha256": evidence.checkpoint_sha256,
            "method": point.method,
            "variant": point.variant,
            "network": point.network,
            "knobs": evidence.knobs,
            "knobs_text": knobs_text(evidence.knobs),
            "calibration": evidence.calibration,
            "validation": evidence.validation,
            "test": evidence.test,
            "macs_full": point.macs_full,
        }


def candidate_of(
    folder: StudyFolder,
    state: StudyState,
    identity: str,
    data: Data,
    target: Target,
    own: OwnImages | None,
    max_latency: float | None,
) -> Candidate:
    """Open the checkpoint of a target and measure what its gates ask, on `data` and, calibrating, on `own`.

    Raises `InputError` where the checkpoint is no such network or no setting fits the budget.
    """
    point = in_macs(target.point)
    method, network, opened = open_checkpoint(folder, state, point)
    data = data.for_config(network.config)
    measured = measure(network, data, "validation", point.knobs)
    gates = [opened, repeats(point, measured, method.calibrate is not None)]
    curve = [
        {**each, "macs": each.get("counted_macs", each["macs"])}
        for each in state.trials[point.trial].curves[point.epoch]
    ]
    knobs, figures, calibration = point.knobs, {"accuracy": point.accuracy, "macs": point.macs}, None
    if own is not None:
        curve = calibrated_curve(method, network, own, data, curve)
        setting = best_setting(curve, target.budget.max_macs or point.macs)
        knobs = setting["knobs"]
        measured = measure(network, data, "validation", knobs)
        figures = {"accuracy": measured["accuracy"], "macs": measured["macs"]}
        calibration = {**own.record(), "macs": setting["macs"]}
        if own.labels is not None:
            calibration["accuracy"] = setting["accuracy"]
    few = data.validation.take(np.arange(min(_TIMED, len(data.validation)))).decoded()
    images = normalise(torch.from_numpy(few), data)
    gates += [
        *both_passes(network, images[: _TIMED // 2], knobs),
        latency(network, images, knobs, max_latency),
        seeds(state, point, measured["count"]),
    ]
    validation = {**figures, **{f"measured_{k}": measured[k] for k in ("accuracy", "macs")}, "count": measured["count"]}
    if point.expected is not None and own is None:
        told = {"expected": point.expected, "expected_low": point.expected_low, "expected_high": point.expected_high}
        validation |= told
    if point.counted_macs is not None:  # a study against latency: what was measured, and where
        validation |= {"latency_ms": point.cost, "machine": point.machine}
    evidence = Evidence(
        created=state.created,
        identity=identity,
        point=point,
        method=method,
        network=network,
        data=data,
        knobs=dict(knobs),
        curve=[{name: each[name] for name in ("setting", "knobs", "accuracy", "macs")} for each in curve],
        validation=validation,
        checkpoint_sha256=opened.evidence["sha256"],
        calibration=calibration,
        reference=reference_of(network, data, knobs),
    )
    return Candidate(evidence, gates)


def figures_on_test(state: StudyState, candidate: Candidate, data: Data) -> dict[str, Any] | None:
    """Test accuracy with its 95 % interval and MACs; from the journal where the point has been there.

    None where the data set has no test split, and for a trainable that measures nothing.
    """
    evidence = candidate.evidence
    if evidence.data is not None and not len(data.test):  # a trainable has data of its own
        return None
    if evidence.test is not None:
        return evidence.test
    knobs = canonical(evidence.knobs)
    for line in [*state.promotions, *state.promoting.values()]:
        same = line.get("point_id") == evidence.point.point_id and canonical(line.get("knobs")) == knobs
        if same and line.get("test") is not None:
            return line["test"]
    measured = evidence.measured(data, "test")
    if measured is None or measured.get("correct") is None:
        return measured
    low, high = wilson(measured["correct"], measured["count"])
    return {**measured, "low": low, "high": high}
