"""From a search to a served model, on this disk and in object storage: predictions are kept, composed, promoted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from search.cascades.front import cascade_points
from search.spec.study import StudySpec
from search.studies.roots import cache_of
from search.studies.stored import load_data
from search.study import Study
from tests.support.in_process import search
from tests.support.once import registry_in
from tests.support.postgres import INSTALLED, postgresql
from tests.support.stored import bucket
from trainables.inference.predictions import PREDICTIONS

Place = tuple[Path, str | None]


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Place]:
    """Where studies lie, and their journals."""
    if request.param == "disk":
        yield tmp_path, None
        return
    if not INSTALLED:
        pytest.skip("PostgreSQL is not installed (no /usr/lib/postgresql/*/bin/initdb)")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with bucket() as address, postgresql() as journal:
        yield cache_of(address), journal


def test_a_network_at_several_sizes_is_composed_with_itself_and_served(place: Place) -> None:
    """Sizes are knobs of one checkpoint, so that two of them make a cascade."""
    root, journal = place
    spec = StudySpec.parse(
        {
            "name": "sized",
            "journal": journal,
            "data": {"name": "digits", "limit": 400, "image_size": 16},
            "budget": {"trials": 2, "epochs": 3},
            "rungs": {"epochs": [1], "reduction": 1.01},
            "sampler": {"published": False},
            "objective": {"front": "cascades"},
            "resources": {"workers": 1},
            "diagnostics": False,
            "methods": {
                "static": {
                    "network": "resnet-8", "width": 0.25, "batch_size": 32, "lr": 0.1, "smallest_size": 0.5,
                    "schedule": "cosine", "weight_decay": 1e-4,
                }
            },
        }
    )  # fmt: skip
    data = load_data(spec)
    study = Study.create(spec, root=root, data=data)
    search(study, data)
    remote, state = study.folder.remote, study.state()
    assert (remote is None) == bool(list(study.folder.checkpoints.rglob("epoch-*")))
    assert [len(t.curves[3]) for t in state.trials.values()] == [3, 3] and state.partners[3]
    for trial in state.partners[3]:
        name = f"checkpoints/{trial.checkpoints[3]}/{PREDICTIONS}"
        assert (study.folder.path / name).exists() if remote is None else remote.exists(name)
    assert any(t.together for t in state.trials.values())

    points = [f"t0000-3-{i}" for i in range(3)]
    record = study.compose(points=points, splits=1, most_members=2)
    assert record["points"] and (study.folder.path / "cascades" / "0001.parquet").exists()
    for told in record["points"]:
        assert {m["checkpoint"] for m in told["members"]} == {"t0000/epoch-0003"}
        assert len({m["knobs"]["size"] for m in told["members"]}) == 2
    if remote is not None:  # what lies here is a cache
        assert remote.names("cascades") == ["0001.parquet"]
        shutil.rmtree(study.folder.checkpoints)
    uri = registry_in(study.folder.path.parent)
    chosen = cascade_points(study.state())[-1]
    promoted = study.promote(model="sized", uri=uri, point=chosen.point_id, data=data)
    gates = {gate["name"]: gate for gate in promoted["gates"]}
    assert all(gate["passed"] is not False for gate in gates.values())
    assert np.isclose(gates["macs"]["evidence"]["counted"], gates["macs"]["evidence"]["charged"])

    from search.promotion.models import load, predict

    rows = list(predict(load("sized@champion", uri), data.validation.images))
    costs = {m["knobs"]["size"]: m["macs"] for m in record["points"][chosen.index]["members"]}
    first = costs[record["points"][chosen.index]["members"][0]["knobs"]["size"]]
    assert {round(row["macs"]) for row in rows} <= {round(first), round(sum(costs.values()))}
    assert np.isclose(np.mean([row["macs"] for row in rows]), promoted["validation"]["measured_macs"])
