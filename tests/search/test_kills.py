"""Drivers that are really killed, on a real Ray, at some kinds of events; all: tests/benchmarks/check_kills.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from search.spec import StudySpec
from search.study import Study
from tests.search.killing import drive, faults

SPEC: dict[str, Any] = {
    "name": "killed",
    "data": {"name": "digits", "image_size": 8, "limit": 96},
    "budget": {"trials": 5, "epochs": 3},
    "rungs": {"epochs": [1], "grace": 0, "pause": True},
    "sampler": {"startup": 2},
    "stages": {"enabled": False},
    "resources": {"workers": 2},
    "diagnostics": False,
    "methods": {"static": {"network": "resnet-8", "width": 0.25, "batch_size": 64}},
}

# in a report whose decision nobody heard, in a flush: one life each
LIVES = (("decision", 1, "after"), ("flush", 1, "after"))


@pytest.mark.timeout(300)
def test_a_driver_that_is_killed_again_and_again_loses_and_doubles_nothing(ray_address: str, tmp_path: Path) -> None:
    study = Study.create(StudySpec.parse(SPEC), root=tmp_path)
    killed = [drive(tmp_path, "killed", ray_address, *life)[0] for life in LIVES]
    assert all(killed)
    alive, digest = drive(tmp_path, "killed", ray_address, "any", 1_000_000, "before")
    assert not alive and faults(study, digest) == []
