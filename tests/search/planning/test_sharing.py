"""The plan of a study: three networks of it really trained for a moment, alone and two at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.resources import Node
from search.__main__ import app
from search.errors import InputError
from search.planning.sharing import here, plan, sizes_of
from search.spec.study import StudySpec
from search.spec.toml import to_toml
from search.studies.stored import load_data

SPEC = {
    "name": "planned",
    "data": {"name": "digits", "image_size": 8, "limit": 256},
    "budget": {"trials": 20, "epochs": 9},
    "methods": {
        "static": {"network": ["resnet-8", "resnet-20"], "width": 0.25, "batch_size": 64},
        "codinet": {"network": "resnet-8", "width": 0.25, "batch_size": 64, "views": 2},
    },
}


def test_a_study_is_probed_and_planned_here(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(to_toml(SPEC))
    ran = CliRunner().invoke(
        app, ["cluster", "plan", str(tmp_path / "study.toml"), "--seconds", "0.2", "--json"], catch_exceptions=False
    )
    found = json.loads(ran.stdout)
    assert [size["name"] for size in found["sizes"]] == ["small", "middle", "large"]
    assert all(size["memory"] > 1e8 and size["throughput"]["1"] > 0 for size in found["sizes"])
    assert found["slots"] == here().cpus and found["limit"] == "cores"
    assert found["epochs_a_trial"] == pytest.approx(1 + 2 / 4 + 6 / 16, abs=0.01)  # rungs at 1 and 3
    alone = sum(size["epoch_seconds"] for size in found["sizes"]) / 3 * found["epochs_a_trial"]
    assert found["trials_an_hour"] == pytest.approx(3600 * found["slots"] * found["packing"]["rate"] / alone)
    assert found["resources"]["cpus_per_trial"] == 1 and found["resources"]["memory"].endswith("MB")
    assert found["gpu"] == {} or found["device"] != f"{here().cpus:g} CPU cores"
    StudySpec.parse({**SPEC, "resources": found["resources"]})


def test_sizes_rise() -> None:
    spec = StudySpec.parse(SPEC)
    costs = [size.macs_full * size.views for size in sizes_of(spec, load_data(spec))]
    assert costs == sorted(costs) and costs[0] < costs[-1]


def test_a_plan_that_no_node_can_satisfy_says_what_is_missing() -> None:
    spec = StudySpec.parse({**SPEC, "resources": {"cpus_per_trial": 64}})
    with pytest.raises(InputError, match="one needs 64 CPU and 0 GPU on one node; the nodes have 2 CPU and 0 GPU"):
        plan(spec, load_data(spec), [Node("a", "small", 2, 0, 8e9)], seconds=0.2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one study file or one --preset"),
        (["--preset", "digits", "--description", "c.toml", "--address", "a:1"], "--description or --address, not both"),
        (["--preset", "digits", "--description", "/nowhere/c.toml"], "no description of a cluster at /nowhere/c.toml"),
        (["--preset", "digits", "--address", "127.0.0.1:9"], "no Ray cluster answers at '127.0.0.1:9'"),
    ],
)
def test_bad_input(words: list[str], said: str) -> None:
    ran = CliRunner().invoke(app, ["cluster", "plan", *words])
    assert isinstance(ran.exception, InputError) and said in str(ran.exception)
