"""Studies whose cost is the latency that workers measure: the study file, the front in milliseconds, promotion."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from search.engine.driver import Driver
from search.errors import InputError
from search.frontier.answer import ask
from search.points import files as points
from search.promotion.promotion import promote_study
from search.report.build import write_report
from search.spec.study import StudySpec
from search.studies.stored import load_data
from search.study import Study
from search.tune.searcher import constants
from tests.support.command import Run
from tests.support.once import registry_in
from tests.support.promoting import METHODS, client, spec, train
from trainables.data.splits import Data
from trainables.inference.latency import machine_of
from trainables.worker.order import Order

LATENCY: dict[str, Any] = {"cost": "latency", "latency": {"batch": 1, "threads": 1, "repeats": 2}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"cost": "seconds"}}, "objective.cost: 'seconds' needs a worst value"),
        ({"objective": {"cost": {"name": "seconds", "worst": 9}}}, 'or say cost = "latency"'),
        ({"objective": {**LATENCY, "latency": {"batch": 0}}}, "objective.latency.batch = 0: input should be greater"),
        ({"objective": {**LATENCY, "latency": {"threads": 0}}}, "objective.latency.threads = 0: input should be"),
        ({"objective": {**LATENCY, "latency": {"batsch": 1}}}, "key 'objective.latency.batsch'; did you mean 'batch'"),
        ({"objective": {"latency": {"batch": 1}}}, 'but the cost is macs: write cost = "latency"'),
        ({"objective": {**LATENCY, "merit": "error"}}, "methods have accuracy against a latency, not error"),
        ({"objective": {"cost": {"name": "latency", "unit": "s"}}}, "unit of a measured latency is known"),
        ({"objective": {**LATENCY, "cost": {"name": "latency", "worst": -1}}}, "a latency is above 0 milliseconds"),
        ({"objective": LATENCY, "constraints": {"max_latency": 3}}, "constraints.cost limits it"),
        ({"objective": LATENCY, "constraints": {"cost": -3}}, "constraints: latency = -3: a cost is above 0"),
        ({"objective": LATENCY, "compose": True}, "compose: cascades are composed of counted MACs"),
        ({"objective": LATENCY, "trainables": {"mine": {"path": "mine.py:Mine"}}}, "workers measure methods"),
    ],
)  # fmt: skip
def test_a_study_file_that_is_wrong_is_one_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        spec(**changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_workers_are_told_how_to_measure() -> None:
    told = constants(spec(objective=LATENCY))
    assert told["timing"] == {"batch": 1, "threads": 1, "repeats": 2}
    assert constants(spec())["timing"] is None
    order = {"trial": "t0000", "method": "static", "config": {}, "seed": 0, "checkpoints": "", **told}
    order = {name: value for name, value in order.items() if name in Order.__dataclass_fields__}
    assert Order.of(order).record()["timing"] == told["timing"]


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data(spec())


@pytest.fixture(scope="module")
def study(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Study]:
    """A skipnet and an imta that were searched for against milliseconds, and interrupted once."""
    root = tmp_path_factory.mktemp("latency")
    methods = {name: METHODS[name] for name in ("skipnet", "imta")}
    wanted = spec(
        "ms", objective=LATENCY, methods=methods, constraints={"cost": 1000}, budget={"trials": 2, "epochs": 3}
    )
    study = Study.create(wanted, root=root, data=data)
    train(study, data, track=False)
    yield Study.load("ms", root=root)


def test_points_have_milliseconds_as_their_cost_and_their_macs_beside(study: Study) -> None:
    table = points.read(study.folder.points).to_pylist()
    machine = machine_of(torch.device("cpu"))
    assert {row["machine"] for row in table} == {machine}
    assert study.state().machines == {machine: len(table)}
    for row in table:
        assert row["macs"] == row["cost"] < 1000 < row["counted_macs"] <= row["macs_full"]
        assert row["merit"] == row["accuracy"]
    curve = next(iter(next(iter(study.state().trials.values())).curves.values()))
    assert all(point["macs_std"] >= 0 for point in curve)


def test_the_journal_replays_what_was_measured(study: Study) -> None:
    """Latencies repeat nowhere but in the journal: whoever reads it sees the same front."""
    again = Study.load("ms", root=study.folder.path.parent)
    assert again.state().front() == study.state().front()
    assert again.frontier() == study.frontier()
    with again.driving() as driver:
        assert driver.ask() is None  # nothing finished is run again


def test_the_front_is_in_milliseconds_and_is_asked_in_both_costs(study: Study, cli: Run) -> None:
    root = str(study.folder.path.parent)
    front = ask([study])
    costs = [point.cost for point in front.points if point.cost is not None]
    assert costs == sorted(costs)
    assert len(costs) == len(front.points)
    assert front.machines
    assert front.published == ()
    most = sorted(p.counted_macs or 0 for p in front.points)[0]
    assert all((p.counted_macs or 0) <= most for p in ask([study], max_macs=most).points)
    assert all(p.cost <= costs[0] for p in ask([study], cost=costs[0]).points if p.cost is not None)
    assert ask([study], min_accuracy=front.points[-1].accuracy).points[-1].accuracy == front.points[-1].accuracy
    with pytest.raises(InputError, match="no operating point costs at most 1 MACs; the cheapest costs"):
        ask([study], max_macs=1)
    assert ask([study], cost=1e-6).empty.startswith("no operating point has at most 1e-06 latency (ms)")
    code, out, _ = cli("frontier", "ms", "--studies", root)
    assert code == 0
    assert "measured milliseconds per image (one image at a time, 1 thread, median of 2 repeats)" in " ".join(
        out.split()
    )
    assert "latency was measured on" in out
    code, _, err = cli("compose", "ms", "--studies", root)
    assert (code, "cascades are composed of counted MACs" in " ".join(err.split())) == (2, True)
    code, out, _ = cli("status", "ms", "--studies", root)
    assert (code, "latency was measured on" in out) == (0, True)


def test_the_report_draws_milliseconds(study: Study, tmp_path: Path) -> None:
    files = write_report(study, tmp_path / "report")
    page = Path(files["html"]).read_text()
    assert "latency (ms)" in page
    assert "as the workers measured it (one image at a time, 1 thread, median of 2 repeats)" in page


def test_promotion_compares_counted_macs_and_keeps_the_latency(study: Study, data: Data, cli: Run) -> None:
    uri, root = registry_in(study.folder.path.parent), study.folder.path.parent
    front = study.frontier()
    with pytest.raises(InputError, match="no operating point has at most 1e-06 latency"):
        promote_study(study, model="ms", uri=uri, cost=1e-6, data=data)
    most = front[-1].cost
    assert most is not None
    record = promote_study(study, model="ms", uri=uri, cost=most, data=data)
    assert record["promoted"]
    assert record["budget"] == {"max_macs": None, "min_accuracy": None, "max_cost": most}
    gates = {gate["name"]: gate for gate in record["gates"]}
    assert gates["macs"]["passed"]
    assert gates["validation"]["passed"]
    point = study.state().trials[record["point"]["trial"]].curves[record["point"]["epoch"]][record["point"]["index"]]
    assert record["validation"]["macs"] == point["counted_macs"]
    assert record["validation"]["latency_ms"] == point["cost"] <= most
    tags = client(uri).get_model_version_by_alias("ms", "champion").tags
    assert float(json.loads(tags["latency_ms"])) == point["cost"]
    code, _, err = cli("promote", "ms", "--model", "ms", "--cost", "0", "--studies", str(root))
    assert (code, "latency = 0: a cost is above 0" in " ".join(err.split())) == (2, True)


def test_machines_that_are_unlike_are_told_apart(
    study: Study, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A report of another machine, as its worker would send it, is warned about in one line wherever it is shown."""
    reports = [e for e in study.journal().events() if e.kind == "report" and "curve" in e.payload]
    wanted = spec("two", objective=LATENCY, methods={"imta": METHODS["imta"]}, budget={"trials": 2, "epochs": 3})
    two = Study.create(wanted, root=tmp_path, data=load_data(spec()))
    with two.driving() as driver, caplog.at_level(logging.WARNING, "routefront.search"):
        for machine in ("one processor", "another"):
            trial = driver.ask()
            assert trial is not None
            driver.started(trial.id)
            payload = json.loads(json.dumps(reports[-1].payload))
            payload["curve"]["timing"]["machine"] = machine
            for point in payload["curve"]["points"]:
                point["machine"] = machine
            driver.report(trial.id, payload)
        driver.end("finished")
    said = "latencies of unlike machines are on one axis, which compares nothing: "
    assert [said in record.getMessage() for record in caplog.records] == [True]
    assert set(ask([two]).machines) == {"one processor", "another"}


def test_studies_that_measure_otherwise_share_no_front(study: Study, data: Data, tmp_path: Path) -> None:
    other = {**LATENCY, "latency": {"batch": 64, "threads": 1, "repeats": 2}}
    methods = {"imta": METHODS["imta"]}
    Study.create(spec("b64", objective=other, methods=methods), root=tmp_path, data=data)
    Study.create(spec("macs", methods=methods), root=tmp_path, data=data)
    for name in ("b64", "macs"):
        with pytest.raises(InputError, match="have different axes"):
            ask([study, Study.load(name, root=tmp_path)])
    with pytest.raises(InputError, match="study 'macs' has other axes"):
        Study.create(
            spec("warm", objective=LATENCY, methods=methods, warm_start={"studies": ["macs"]}), root=tmp_path, data=data
        )


def _limits(driver: Driver) -> str:
    return str(driver.state.constraints)


def test_constraints_limit_milliseconds_and_macs(data: Data, tmp_path: Path) -> None:
    limits = {"cost": 5, "max_macs": "2M", "min_accuracy": 0.3}
    wanted = StudySpec.parse(spec("lim", objective=LATENCY, constraints=limits).model_dump(mode="json"))
    study = Study.create(wanted, root=tmp_path, data=data)
    with study.driving() as driver:
        assert _limits(driver) == "accuracy of at least 30.0 % and at most 5 latency (ms) and at most 2M MACs"
    with pytest.raises(InputError, match="no network of static, skipnet, imta can have at most 1 MACs"):
        Study.create(spec("no", objective=LATENCY, constraints={"max_macs": 1}), root=tmp_path, data=data)
