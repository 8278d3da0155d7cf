"""What a study is called in MLflow: one run for the study, one under it for every trial.

The points of its front are logged models without files: weights stay in the study's folder until a point is promoted.
`*` stands for any text: the name of a loss, a key of the study file, a number. A test folds a study and
compares; the reference of the documentation is made of it.
"""

from __future__ import annotations

_TRIAL_TAGS = {
    "routefront.trial": "the trial, as t0003",
    "routefront.method": "its method",
    "routefront.why": "why it was proposed",
    "routefront.first_stage_of": "the trial whose finished first stage it begins with",
    "routefront.donor": "the checkpoint whose weights it begins with",
    "routefront.checkpoint": "its latest checkpoint in the study's folder",
}
_BOTH_TAGS = {
    "mlflow.runName": "the study, or the trial",
    "routefront.kind": "`study` or `trial`",
    "routefront.code_version": "the version of the code that created the study",
    "routefront.reason": "why it is not running",
    "routefront.promoted": "model and version that a point was promoted to",
}

NAMES: dict[str, dict[str, dict[str, str]]] = {
    "The study's run": {
        "Parameters": {
            "methods": "what is searched, divided by commas",
            "*": "the study file's keys, as `budget.epochs`; not those of methods and resources",
        },
        "Metrics": {
            "epochs": "epochs of training that the study has cost so far; also the step of its metrics",
            "seconds": "seconds of training so far, over all trials",
            "system/cpu_seconds": "processor seconds so far, over all trials",
            "hypervolume": "the area under the study's front, within its reference",
            "front_points": "operating points on the front",
            "trials_over": "trials that finished, were stopped or failed",
        },
        "Tags": {
            **_BOTH_TAGS,
            "routefront.study": "the study's name",
            "routefront.study_id": "a hash of its name and time of creation",
            "routefront.dataset": "the images",
            "routefront.data_hash": "SHA-256 of the images",
        },
        "Files": {"frontier.json": "the front as it stands: points with accuracy, MACs, trial, epoch, knobs"},
    },
    "A trial's run": {
        "Parameters": {
            "seed": "of weights, order and noise",
            "*": "the trial's configuration, as `method`, `network`, `lr`",
        },
        "Metrics": {
            "accuracy": "of the most accurate point of the epoch's curve, on the validation split (a trainable's own"
            " axes by their own names)",
            "macs": "of that point: mean multiply-accumulates an image",
            "macs_min": "of the cheapest point of the curve",
            "hypervolume": "the area under the epoch's curve",
            "loss/*": "the epoch's mean of each term of the loss",
            "lr": "learning rate",
            "seconds": "of the epoch's training",
            "cost_epochs": "epochs paid for so far, restarts included",
            "params": "parameters of the network",
            "macs_full": "multiply-accumulates where every unit is executed",
            "system/*": "what the worker measured of itself: processor seconds, resident memory, the GPU's peak",
            "diagnostics/*": "what is measured at the end: skip ratios, exits, paths",
        },
        "Tags": {
            **_BOTH_TAGS,
            **_TRIAL_TAGS,
            "routefront.study": "the study's name",
            "routefront.study_id": "as the study's",
            "mlflow.parentRunId": "the study's run",
        },
        "Files": {
            "curve/epoch-*.json": "every point of an epoch's curve",
            "diagnostics.json": "what is measured at the end, in full",
        },
    },
    "A logged model: a point of the front": {
        "Parameters": {
            "trial": "the trial that was trained",
            "epoch": "after which epoch",
            "knobs.*": "its setting at inference",
            "*": "the trial's configuration",
        },
        "Metrics": {
            "accuracy": "on the validation split, linked to the images (a trainable's own axes by their own names)",
            "macs": "mean multiply-accumulates an image",
        },
        "Tags": {
            "routefront.study": "the study's name",
            "routefront.study_id": "as the study's",
            "routefront.point": "the point's id, as t0003-9-2",
            "routefront.promote": "the command that registers it with its weights",
        },
    },
}
"""By run and kind: name, or pattern, and what it means."""
