"""Descriptions of clusters for the tests of this folder."""

from __future__ import annotations

import copy
from typing import Any

from cluster.manifests.description import Description
from cluster.manifests.inputs import StudyFile, Versions

FULL: dict[str, Any] = {
    "name": "night",
    "image": "registry.example.org/routefront:0.1.0",
    "preset": "digits",
    "idle_timeout": "5m",
    "head": {"cpus": 4, "memory": "16Gi", "instance": "m6i.xlarge", "selector": {"pool": "system"}},
    "workers": {
        "gpu": {
            "min": 0, "replicas": 2, "max": 16, "cpus": 8, "memory": "60Gi", "gpus": 1, "spot": True,
            "selector": {"accelerator": "a10g"}, "instance": "g5.2xlarge",
        },
        "cpu": {"max": 4, "cpus": 16, "memory": "64Gi", "instance": "m6i.4xlarge"},
    },
    "storage": {"path": "/mnt/routefront", "claim": "routefront", "nfs": "nfs.example.org:/export"},
    "journal": {"secret": "routefront-journal"},
    "tracking": {"secret": "routefront-mlflow"},
    "kubernetes": {
        "namespace": "research",
        "token_secret": "routefront-token",
        "pull_secret": "registry",
        "service_account": "routefront",
        "spot_selector": {"karpenter.sh/capacity-type": "spot"},
    },
    "cloud": {"provider": "aws", "region": "us-west-2"},
    "slurm": {"nodes": 3, "cpus": 16, "memory": "120Gi", "gpus": 4, "time": "36h", "partition": "gpu"},
}  # fmt: skip
STUDY = StudyFile("digits", 'name = "digits"\n\n[methods.static]\nnetwork = "resnet-8"\n', 1.0, 0.25)
VERSIONS = Versions("3.11.7", "2.60.0", "0.1.0")


def values(**changes: Any) -> dict[str, Any]:
    """`FULL` with dotted names (``workers__gpu__cpus=4``) changed, or left out where the value is `...`."""
    found = copy.deepcopy(FULL)
    for dotted, value in changes.items():
        *above, last = dotted.split("__")
        part = found
        for step in above:
            part = part.setdefault(step, {})
        if value is ...:
            part.pop(last, None)
        else:
            part[last] = value
    return found


def described(**changes: Any) -> Description:
    """A description from `values`."""
    return Description.parse(values(**changes))
