"""Every family from its checkpoint through the gates into the registry and out again as a served model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search.promotion.models import load, predict
from search.promotion.promotion import promote_study
from search.study import Study
from search.tracking.server import default_uri
from tests.support.promoting import copied, point_of, spec, train
from trainables.data.splits import Data

TINY = {"width": 0.25, "batch_size": 32, "lr": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "codinet": {**TINY, "network": "resnet-8", "variant": "full", "views": 2},
    "blockdrop": {**TINY, "network": "resnet-8", "normalise": "none"},
    "imta": {**TINY, "network": "msdnet-2", "variant": "all"},
    "decide": {**TINY, "network": "pyramid", "variant": "pragmatic"},
    "act": {**TINY, "network": "preact-resnet-14", "normalise": "image"},
    "sact": {**TINY, "network": "preact-resnet-14", "normalise": "image", "crop": 2},
    "multipath": {**TINY, "network": "resnet-8-2"},
    "ensemble": {**TINY, "network": "basecnn", "members": 2},
}


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory, digits_small: Data) -> Path:
    """A root with a study of one trial a family."""
    root = tmp_path_factory.mktemp("families")
    budget = {"trials": len(FAMILIES), "epochs": 3}
    train(Study.create(spec("families", methods=FAMILIES, budget=budget), root=root, data=digits_small), digits_small)
    return root


@pytest.mark.parametrize("method", FAMILIES)
def test_a_family_is_promoted_and_served(families: Path, tmp_path: Path, method: str, digits_small: Data) -> None:
    copied(families, tmp_path)
    study, uri = Study.load("families", root=tmp_path), default_uri(tmp_path)
    record = promote_study(study, point=point_of(study, method), model="digits", uri=uri, data=digits_small)
    assert {gate["name"]: gate["passed"] for gate in record["gates"] if gate["passed"] is False} == {}
    assert record["test"]["count"] == len(digits_small.test)

    served = load("digits@champion", uri)
    assert served.serving["method"] == method
    images = digits_small.test.images
    rows = list(predict(served, images))
    right = sum(row["label"] == label for row, label in zip(rows, digits_small.test.labels.tolist(), strict=True))
    assert right == record["test"]["correct"]
    assert np.mean([row["macs"] for row in rows]) == pytest.approx(record["test"]["macs"], rel=1e-6)
    assert all(sum(row["probabilities"]) == pytest.approx(1, abs=1e-5) for row in rows)
    # also settings that hold other knobs than the promoted one: a multi-path network's threshold, or its keep-count
    images, curve = digits_small.validation.images, served.serving["curve"]
    for setting in {tuple(setting["knobs"]): setting for setting in curve}.values():
        best = max((s for s in curve if s["macs"] <= setting["macs"]), key=lambda s: (s["accuracy"], -s["macs"]))
        rows = list(predict(served, images, max_macs=setting["macs"]))
        assert rows == list(predict(served, images, knobs=best["knobs"]))
        exact = 0.25 if served.serving["exits"] else 1e-3  # thresholds were costed across halves
        assert np.mean([row["macs"] for row in rows]) == pytest.approx(best["macs"], rel=exact)
