"""Studies of anything that trains step by step: the study file, the search, what is shown of it, what may run."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from search.engine.driver import Driver
from search.errors import InputError
from search.frontier.answer import ask
from search.points import files as points
from search.spec.study import StudySpec
from search.studies.trust import UntrustedError
from search.study import Study
from tests.support.command import Run
from trainables.contracts.objective import Objective
from trainables.external import ExternalTraining

DOCS = Path(__file__).parents[2] / "docs"
FILE = Path(__file__).parents[1] / "fixtures" / "trainable.py"
SPEC: dict[str, Any] = {
    "name": "own",
    "budget": {"trials": 12, "epochs": 9},
    "objective": {"merit": "error", "cost": {"name": "ms", "worst": 100}},
    "trainables": {"curve": {"path": f"{FILE}:Curve"}},
}


def _study(root: Path, **changes: Any) -> Study:
    return Study.create(StudySpec.parse({**SPEC, **changes}), root=root)


def _work(driver: Driver, count: int = 10**6) -> None:
    """Run trials in this process, as a worker would, one after the other."""
    epochs = driver.spec.budget.epochs
    while count and (trial := driver.ask()) is not None:
        count -= 1
        driver.started(trial.id)
        told = driver.orders(trial, [])
        try:
            training = ExternalTraining(
                told["trainable"], driver.values(trial), name=trial.method, objective=Objective.of(told["objective"]),
                epochs=epochs, seed=trial.seed, evaluate_at=[*driver.spec.rung_epochs, epochs],
            )  # fmt: skip
            action = "continue"
            while action == "continue":
                action = driver.report(trial.id, {**training.step(), "checkpoint": ""})
        except Exception as error:
            driver.failed(trial.id, f"{type(error).__name__}: {error}")


def _driven(root: Path, **changes: Any) -> Study:
    return _drive(_study(root, **changes))


def _drive(study: Study) -> Study:
    with study.driving() as driver:
        driver.workers = 1
        driver.record("session", {"host": "here", "pid": 1, "workers": 1})
        _work(driver)
        driver.end("finished")
    return study


# -- the study file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trainables": {"curve": {}}}, 'trainables.curve: path is missing; name its class, for example path = "mine'),
        ({"trainables": {"a b": {"path": "x.py:X"}}}, "trainables.a b: a name has at most 40 letters"),
        ({"trainables": {"static": {"path": f"{FILE}:Curve"}}, "methods": {"static": {}}, "objective": {}},
         "trainables.static: a method has this name"),
        ({"methods": {"static": {}}},
         "objective: methods have accuracy (or balanced_accuracy) and MACs, not error and ms"),
        ({"trainables": {"curve": {"path": f"{FILE}:Curve", "dept": 3}}}, "unknown parameter 'dept'; did you mean"),
        ({"trainables": {"curve": {"path": "gone.py:Curve"}}}, "path = 'gone.py:Curve': there is no file gone.py"),
        ({"objective": {"merit": "error", "cost": "ms"}}, "objective.cost: 'ms' needs a worst value"),
        ({"objective": {"merit": "error", "cost": "error"}}, "merit and cost are both 'error'"),
        ({"objective": {"merit": {"name": "rmse", "best": 1, "worst": 0, "direction": "minimize"}}},
         "rmse: best = 1.0, worst = 0.0: the best must lie below the worst of an axis that is minimized"),
        ({"objective": {"cost": {"name": "rate", "worst": 1, "direction": "maximize", "scale": "linear"}}},
         "'rate' is maximized on a linear scale: give its best value"),
        ({"constraints": {"max_macs": 3}}, "constraints.max_macs: the axes of this study are error and ms"),
        ({"constraints": {"cost": -3}}, "constraints: ms = -3: a cost is above 0"),
        ({"trainables": {}, "methods": {}}, "methods is empty"),
    ],
)  # fmt: skip
def test_a_study_file_that_is_wrong_is_one_line(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as error:
        _study(tmp_path, **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_space_is_narrowed_as_a_method_s_is(tmp_path: Path) -> None:
    study = _study(tmp_path, trainables={"curve": {"path": f"{FILE}:Curve", "depth": [2, 3], "kind": "wide"}})
    space = study.state().kept.spaces["curve"]
    assert space["depth"].describe() == "2, 3"
    assert space["kind"].describe() == "= wide"


def test_a_study_is_read_and_described_without_its_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    shutil.copy(FILE, path)
    study = _driven(tmp_path / "studies", trainables={"curve": {"path": f"{path}:Curve"}}, budget={"trials": 3})
    path.unlink()
    again = Study.load("own", root=tmp_path / "studies")
    assert again.state().count()["finished"] >= 1
    assert again.frontier() == study.frontier()


def test_from_python_a_class_stands_for_its_file(tmp_path: Path) -> None:
    from trainables.external import load

    spec = StudySpec.parse({**SPEC, "trainables": {"curve": load(f"{FILE}:Curve")}})
    assert spec.references == {"curve": f"{FILE.resolve()}:Curve"}
    assert Study.create(spec, root=tmp_path).state().kept.papers["curve"] == {"depth": 2, "rate": 0.1, "kind": "plain"}


# -- the search ---------------------------------------------------------------------------------------


def test_the_search_finds_the_front_of_its_own_axes(tmp_path: Path) -> None:
    study = _driven(tmp_path, budget={"trials": 40, "epochs": 9})
    state = study.state()
    assert state.count()["failed"] == 0
    assert state.count()["stopped"] > 10
    first = state.trials["t0000"]
    assert (first.config["depth"], first.why[:9]) == (2, "its class")
    front = study.frontier()
    assert [p.cost for p in front] == sorted(p.cost for p in front if p.cost is not None)
    assert [p.merit for p in front] == sorted((p.merit for p in front if p.merit is not None), reverse=True)
    best = front[-1]
    assert best.merit is not None
    assert best.merit == pytest.approx(1 - best.accuracy)
    assert best.merit < 0.16  # 0.1 + 0.4 / 36 is the least there is
    assert best.config["depth"] == 3


def test_the_same_seed_gives_the_same_trials_also_behind_a_pause(tmp_path: Path) -> None:
    whole = _driven(tmp_path / "whole")
    parted = _study(tmp_path / "parted")
    for count in (5, 10**6):
        with parted.driving() as driver:
            driver.workers = 1
            driver.record("session", {"host": "here", "pid": 1, "workers": 1})
            _work(driver, count)
            driver.end("stopped")
    one, other = whole.state(), parted.state()
    assert [(t.config, t.seed, t.state) for t in one.trials.values()] == [
        (t.config, t.seed, t.state) for t in other.trials.values()
    ]


def test_points_are_kept_in_figures_of_both_kinds(tmp_path: Path) -> None:
    study = _driven(tmp_path, budget={"trials": 3, "epochs": 9})
    table = points.read(study.folder.points)
    assert table["merit"].null_count == table["cost"].null_count == 0
    for merit, accuracy, cost, macs in zip(
        *(table[n].to_pylist() for n in ("merit", "accuracy", "cost", "macs")), strict=True
    ):
        assert (accuracy, macs) == (pytest.approx(1 - merit), cost)


def test_constraints_limit_merit_and_cost(tmp_path: Path) -> None:
    study = _driven(tmp_path, constraints={"merit": 0.3, "cost": 12})
    assert str(study.state().constraints) == "error of at most 0.3 and at most 12 ms"
    front = study.frontier()
    assert front
    assert all(p.merit <= 0.3 and p.cost <= 12 for p in front if p.merit is not None and p.cost is not None)


def test_questions_are_asked_in_the_study_s_own_figures(tmp_path: Path) -> None:
    study = _driven(tmp_path)
    cheap = ask([study], cost=8).points
    assert cheap
    assert all(p.cost <= 8 for p in cheap if p.cost is not None)
    assert ask([study], merit=0.2).points[0].merit <= 0.2  # type: ignore[operator]
    with pytest.raises(InputError, match="max_macs: the axes of this study are error and ms"):
        ask([study], max_macs=8)
    assert ask([study], cost=0.5).empty.startswith("no operating point has at most 0.5 ms; the cheapest has error 0.")


def test_studies_with_other_axes_share_no_front(tmp_path: Path) -> None:
    one = _driven(tmp_path, budget={"trials": 2})
    other = _driven(tmp_path, name="other", objective={"merit": "error", "cost": {"name": "ms", "worst": 50}},
                    budget={"trials": 2})  # fmt: skip
    with pytest.raises(InputError, match=r"'own' \(error and ms\) and 'other' \(error and ms\) have different axes"):
        ask([one, other])


def test_maximized_and_linear_axes(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "class Mine:\n    space = {'a': {'low': 0.0, 'high': 1.0}}\n"
        "    def setup(self, config, seed): self.a = config['a']\n"
        "    def step(self): return [{'r2': self.a * w - 0.2, 'used': 100 * w * w * self.a} for w in (0.0, 0.5, 1.0)]\n"
    )
    axes = {
        "merit": {"name": "r2", "best": 1, "worst": -1},
        "cost": {"name": "used", "unit": "%", "worst": 100, "scale": "linear"},
    }
    study = _driven(tmp_path / "s", objective=axes, trainables={"m": {"path": f"{path}:Mine"}})
    front = study.frontier()
    assert front[0].cost == 0.0
    assert front[0].merit == pytest.approx(-0.2)
    assert max(p.merit for p in front if p.merit is not None) > 0.4


# -- at fault ----------------------------------------------------------------------------------------


def test_a_trial_at_fault_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "import math\nclass Mine:\n    space = {'kind': ['good', 'nan', 'silent', 'other', 'raises']}\n"
        "    def setup(self, config, seed): self.kind = config['kind']\n"
        "    def step(self):\n"
        "        if self.kind == 'raises': raise RuntimeError('no luck')\n"
        "        if self.kind == 'silent': return None\n"
        "        if self.kind == 'other': return [{'loss': 1.0, 'ms': 1.0}]\n"
        "        return [{'error': math.nan if self.kind == 'nan' else 0.3, 'ms': 2.0}]\n"
    )
    study = _driven(tmp_path / "s", trainables={"m": {"path": f"{path}:Mine"}}, budget={"trials": 30, "epochs": 3})
    reasons = {t.config["kind"]: t.reason for t in study.state().trials.values() if t.state == "failed"}
    assert reasons == {
        "nan": "ValueError: point 0 of step: error = nan is no finite number",
        "silent": "ValueError: step returned no operating point at a rung",
        "other": "ValueError: point 0 of step has no 'error', an axis of the study; it has loss, ms",
        "raises": "RuntimeError: no luck",
    }
    assert {t.config["kind"] for t in study.state().trials.values() if t.state != "failed"} == {"good"}


@pytest.mark.parametrize("space", ["{}", "{'a': 3}", "{'a': ['x']}"])
def test_a_space_of_one_point_that_shows_one_figure(
    tmp_path: Path, space: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"class Mine:\n    space = {space}\n    def setup(self, config, seed): ...\n"
        "    def step(self): return [{'error': 0.25, 'ms': 2.0}]\n"
    )
    with caplog.at_level(logging.WARNING, "routefront.search"):
        study = _driven(tmp_path / "s", trainables={"m": {"path": f"{path}:Mine"}}, budget={"trials": 24, "epochs": 9})
    assert study.state().count()["failed"] == 0
    assert len({t.seed for t in study.state().trials.values()}) == 24
    said = [record.getMessage() for record in caplog.records if "whatever their configuration" in record.getMessage()]
    assert said == [
        "trainables.m: all of its first 8 trials show error 0.25, whatever their configuration: nothing can be learnt"
        " from that"
    ]


# -- whose code runs ---------------------------------------------------------------------------------


def test_code_that_a_stranger_s_study_names_runs_only_after_consent(tmp_path: Path, cli: Run) -> None:
    path = tmp_path / "mine.py"
    rest = FILE.read_text().replace("from __future__ import annotations", f"open({str(tmp_path / 'ran')!r}, 'w')")
    path.write_text(rest)
    study = _study(tmp_path / "here", trainables={"curve": {"path": f"{path}:Curve"}})
    (tmp_path / "ran").unlink()
    text = study.folder.spec.read_text().replace('name = "own"', 'name = "strange"', 1)
    shutil.copytree(study.folder.path, tmp_path / "there" / "strange")
    (tmp_path / "there" / "strange" / "study.toml").write_text(text)
    strange = Study.load("strange", root=tmp_path / "there")
    with pytest.raises(UntrustedError, match=r"names code = .*mine.py:Curve"):
        strange.launch()
    code, _, err = cli("resume", "strange", "--studies", str(tmp_path / "there"))
    assert (code, "names code = " in err) == (2, True)
    code, _, err = cli("search", str(tmp_path / "there" / "strange" / "study.toml"), "--studies", str(tmp_path))
    assert (code, "names code = " in err) == (2, True)
    assert not (tmp_path / "ran").exists()


def test_a_class_that_only_the_journal_names_is_not_run(tmp_path: Path) -> None:
    study = _study(tmp_path)
    text = study.folder.spec.read_text()
    cut = re.sub(r"\[trainables.curve\]\npath = .*\n", "[methods.static]\n", text)
    assert cut != text
    study.folder.spec.write_text(cut)
    with Study.load("own", root=tmp_path).driving() as driver:
        driver.workers = 1
        trial = driver.ask()
        assert trial is not None
        with pytest.raises(InputError, match="a trainable 'curve' that its study file does not name"):
            driver.orders(trial, [])


# -- on Ray -------------------------------------------------------------------------------------------


def test_a_study_of_a_trainable_on_ray(tmp_path: Path, ray_address: str, uri: str, cli: Run) -> None:
    study = _study(tmp_path, budget={"trials": 5, "epochs": 3}, tracking={"uri": uri})
    assert study.launch(address=ray_address, tracking=uri) == "finished"
    state = study.state()
    assert state.count()["failed"] == 0
    assert (study.folder.checkpoints / "t0000").is_dir()
    code, out, _ = cli("frontier", "own", "--studies", str(tmp_path), "--plot", str(tmp_path / "front.png"))
    assert (code, out.splitlines()[0]) == (0, "frontier on made up: error against ms")
    code, out, _ = cli("frontier", "own", "--studies", str(tmp_path), "--json")
    record = json.loads(out)
    assert record["objective"]["cost"]["name"] == "ms"
    assert {"merit", "cost"} <= record["points"][0].keys()
    code, out, _ = cli("status", "own", "--studies", str(tmp_path))
    assert "error and ms of its curve" in out
    code, out, _ = cli("report", "own", "--studies", str(tmp_path), "--out", str(tmp_path / "report"))
    page = (tmp_path / "report" / "report.html").read_text()
    assert "own: error for every budget of ms" in page
    from search.tracking.server import quiet

    client = quiet().MlflowClient(tracking_uri=uri)
    (experiment,) = client.search_experiments(filter_string="name = 'routefront'")
    runs = client.search_runs([experiment.experiment_id], filter_string="tags.`routefront.trial` = 't0000'")
    assert {"error", "ms"} <= runs[0].data.metrics.keys()
    assert "accuracy" not in runs[0].data.metrics


# -- the documentation -----------------------------------------------------------------------------------


def test_the_twenty_lines_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```(python|toml)\n# (\S+)\n(.*?)```", (DOCS / "trainables.md").read_text(), re.S)
    for _, name, text in blocks:
        (tmp_path / name).write_text(text)
    assert [name for _, name, _ in blocks] == ["mine.py", "study.toml"]
    assert len([line for line in blocks[0][2].splitlines() if line.strip()]) <= 20
    monkeypatch.chdir(tmp_path)
    spec = StudySpec.read(tmp_path / "study.toml", {"budget.trials": 4, "budget.epochs": 3})
    study = Study.create(spec, root=tmp_path / "studies")
    _drive(study)
    assert study.state().count()["failed"] == 0
    assert study.frontier(cost=50)[-1].merit < 0.1  # type: ignore[operator]
