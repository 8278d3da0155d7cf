"""Promotion of a trainable: its gates, the registered version in the study's own figures, what is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import routefront
from search.errors import InputError, RunError
from search.promotion.history import history, rollback
from search.spec.study import StudySpec
from search.study import Study
from tests.support.command import Run
from trainables.contracts.objective import Objective
from trainables.external import ExternalTraining

FILE = Path(__file__).parents[2] / "fixtures" / "trainable.py"
GATES = ["checkpoint", "code", "alone", "validation", "latency", "seeds", "champion", "test"]


def _trained(root: Path, name: str = "Served", file: Path = FILE) -> Study:
    """A study of three trials that were run here, with every checkpoint."""
    spec = {
        "name": "own",
        "budget": {"trials": 3, "epochs": 3},
        "rungs": {"enabled": False},
        "objective": {"merit": "error", "cost": {"name": "ms", "worst": 100}},
        "trainables": {"curve": {"path": f"{file}:{name}"}},
    }
    study = Study.create(StudySpec.parse(spec), root=root)
    with study.driving() as driver:
        driver.prune = lambda: None
        while (trial := driver.ask()) is not None:
            driver.started(trial.id)
            told = driver.orders(trial, [])
            training = ExternalTraining(
                told["trainable"], driver.values(trial), name=trial.method, objective=Objective.of(told["objective"]),
                epochs=3, seed=trial.seed, evaluate_at=[3],
            )  # fmt: skip
            while not training.done:
                report = training.step()
                folder = f"{trial.id}/epoch-{report['epoch']:04d}"
                training.save(study.folder.checkpoints / folder, {"trial": trial.id, "evaluate_at": [3]})
                driver.report(trial.id, {**report, "checkpoint": folder})
        driver.end("finished")
    return study


def _gates(record: dict[str, Any]) -> dict[str, Any]:
    return {gate["name"]: gate for gate in record["gates"]}


def test_the_best_under_a_cost_is_registered_and_answers(tmp_path: Path, uri: str, cli: Run) -> None:
    study = _trained(tmp_path)
    front = study.frontier()
    assert len(front) > 1
    best = front[0]
    assert best.cost is not None and best.merit is not None
    record = study.promote(model="own", uri=uri, cost=best.cost)
    gates = _gates(record)
    assert list(gates) == GATES
    assert (record["promoted"], record["point_id"], record["version"]) == (True, best.point_id, "1")
    assert {name: gate["passed"] for name, gate in gates.items()} == {
        "checkpoint": True, "code": True, "alone": True, "validation": True, "latency": True, "seeds": None,
        "champion": None, "test": True,
    }  # fmt: skip
    assert gates["alone"]["says"] == "another process restores it and answers the example as here"
    assert record["test"]["merit"] == pytest.approx(best.merit + 0.01)
    assert gates["test"]["says"].startswith("error 0.")

    model = routefront.load_trainable("own@champion", uri=uri)
    width = best.knobs["width"]
    assert model.predict([1.0, 3.0]) == [width, 3.0 * width]
    assert model.predict([1.0], knobs={"width": 4}) == [4.0]
    dearest = max(model.curve, key=lambda each: each["cost"])
    assert model.predict([1.0], cost=dearest["cost"]) == [float(dearest["knobs"]["width"])]
    with pytest.raises(InputError, match=r"cost 0\.001: the cheapest setting has ms "):
        model.predict([1.0], cost=0.001)
    with pytest.raises(InputError, match="unknown knob 'widht'; this model takes: width"):
        model.predict([1.0], knobs={"widht": 2})
    with pytest.raises(InputError, match=r"is a trainable and takes no images: load it with routefront\.load_trainabl"):
        routefront.load("own@champion", uri=uri)

    # a better one for more replaces it, and goes back
    better = study.promote(model="own", uri=uri, cost=front[-1].cost)
    assert better["version"] == "2" and " against error 0." in _gates(better)["champion"]["says"]
    assert rollback("own", "champion", uri)["version"] == "1"
    code, out, err = cli("history", "--model", "own", "--tracking", uri)
    assert code == 0, err
    assert "test error" in out and "ms" in out and f"{best.cost:g}" in out
    assert [entry["kind"] for entry in history("own", uri)] == ["trainable", "trainable"]
    code, out, err = cli(
        "promote", "own", "--studies", str(tmp_path), "--tracking", uri, "--model", "own", "--merit", "0.9", "--dry-run"
    )
    assert "error 0." in out and "nothing was written" in out, err


def test_a_champion_for_every_cost(tmp_path: Path, uri: str) -> None:
    study = _trained(tmp_path)
    front = study.frontier()
    costs = [front[0].cost, front[-1].cost]
    records = study.promote_family(model="own", uri=uri, budgets=[str(cost) for cost in costs])
    assert [record["alias"] for record in records] == [f"champion-{cost:g}".replace(".", "_") for cost in costs]
    assert [record["point_id"] for record in records] == [front[0].point_id, front[-1].point_id]


def test_it_runs_where_only_mlflow_is(tmp_path: Path, uri: str) -> None:
    study = _trained(tmp_path)
    study.promote(model="own", uri=uri)
    code = (
        "import sys, mlflow\nmlflow.set_tracking_uri(sys.argv[1])\n"
        "model = mlflow.pyfunc.load_model('models:/own@champion')\n"
        "print(model.predict([2.0], params={'cost': 1e9}))\n"
        "print([name for name in ('torch', 'ray', 'optuna', 'search') if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, uri], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    answer, imported = ran.stdout.splitlines()[-2:]
    assert (answer, imported) == ("[8.0]", "[]")


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("Curve", {"max_macs": 5.0}, "the axes of this study are error and ms; ask for merit and cost"),
        ("Curve", {"cost": -1.0}, "ms = -1: a cost is above 0"),
        ("Curve", {"cost": 0.5}, "no operating point"),
        ("Curve", {"calibrate_on": Path("images")}, "--calibrate-on takes images, and curve is a trainable"),
        ("Curve", {"max_latency": 1.0}, "--max-latency: the trainable has no example to be timed on"),
        ("Again", {}, "trainable 'curve' has no predict(inputs, knobs), so that nothing of it can be served"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, uri: str, name: str, options: dict[str, Any], said: str) -> None:
    study = _trained(tmp_path, name)
    with pytest.raises(InputError) as error:
        study.promote(model="own", uri=uri, **options)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert study.state().promotions == []


def test_without_an_example_and_without_measure_gates_say_so(tmp_path: Path, uri: str) -> None:
    study = _trained(tmp_path, "Curve")
    gates = _gates(study.promote(model="own", uri=uri))
    assert {name for name, gate in gates.items() if gate["passed"] is None} == {
        "validation", "latency", "seeds", "champion", "test",
    }  # fmt: skip


def test_another_file_and_a_file_that_needs_another_are_not_promoted(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "mine.py"
    shutil.copy(FILE, path)
    study = _trained(tmp_path / "studies", file=path)
    path.write_text(path.read_text() + "\n# changed\n")
    with pytest.raises(RunError, match=r"gate code: mine\.py, SHA-256 .*; the study began with "):
        study.promote(model="own", uri=uri)

    (tmp_path / "beside.py").write_text("FACTOR = 1.0\n")
    path.write_text(FILE.read_text().replace("import json\n", "import json\n\nimport beside\n", 1))
    study = _trained(tmp_path / "others", file=path)
    with pytest.raises(RunError, match=r"gate alone: another process cannot restore it.*No module named 'beside'"):
        study.promote(model="own", uri=uri)
    assert study.state().promotions == []


def test_damage_and_another_study_s_checkpoint_are_found(tmp_path: Path, uri: str) -> None:
    study = _trained(tmp_path)
    best = study.frontier()[-1]
    folder = study.folder.checkpoints / best.checkpoint
    (folder / "steps.json").write_text("2")
    with pytest.raises(InputError, match=r"cannot be promoted: checkpoint .* is damaged: steps\.json was cut off or"):
        study.promote(model="own", uri=uri, point=best.point_id)
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("epoch-0002"), folder)
    with pytest.raises(InputError, match="is another one: its epoch is 2, not 3"):
        study.promote(model="own", uri=uri, point=best.point_id)
