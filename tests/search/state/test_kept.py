"""What a study keeps from its creation; and a study that was begun by code that recorded none of it.

The latter lies in `tests/fixtures/study-7022e79`: an interrupted study, as its README says. Beside it lies a model that
was promoted from it then.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.trial import FixedTrial

from search.errors import InputError
from search.planning.creation import record_of
from search.sampling.first_stages import stage_key
from search.sampling.optuna_export import to_optuna
from search.sampling.optuna_space import record, suggest
from search.spec.study import StudySpec, corners
from search.state.kept import Kept
from search.study import Study
from spaces.space import Range, Space
from trainables import checkpoints, registry
from trainables.contracts.earlier import unrecorded
from trainables.contracts.method import config_dict
from trainables.registry import METHODS, get_method
from trainables.training import stages

FIXTURE = Path(__file__).parents[2] / "fixtures" / "study-7022e79"
MODEL = FIXTURE.with_name("model-7022e79")


def _change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process have code with other ranges, another default and no published settings."""
    for name, method in METHODS.items():
        moved = {
            key: dataclasses.replace(each, low=each.high + 1, high=each.high + 2) if isinstance(each, Range) else each
            for key, each in method.space.parameters.items()
        }
        made = dataclasses.make_dataclass(
            "Changed", [("momentum", float, 0.5)], bases=(method.Config,), frozen=True, kw_only=True, slots=True
        )
        changed = dataclasses.replace(method, space=Space(moved), Config=made, published={})
        monkeypatch.setitem(registry.all_methods(), name, changed)


def _spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": "kept",
        "data": {"name": "digits", "image_size": 8, "limit": 64},
        "budget": {"trials": 4, "epochs": 4},
        "methods": {
            "static": {"network": "resnet-8", "width": 0.25},
            "codinet": {"network": "resnet-8", "width": 0.25, "views": 2, "variant": "vanilla"},
        },
    }
    return StudySpec.parse({**values, **changes})


# -- what is recorded -----------------------------------------------------------------------------


def test_every_method_is_recorded_and_configured_as_without_a_record() -> None:
    spec = _spec(methods={name: {} for name in METHODS})
    record = json.loads(json.dumps(record_of(spec)))
    kept = Kept.of({"spec": spec.model_dump(mode="json"), "methods": record})
    assert kept.spaces == spec.spaces() and not kept.before
    for name, space in kept.spaces.items():
        for values in [*corners(space), {}]:
            plain = get_method(name).configure(values)
            assert config_dict(kept.configure({"method": name, **values})) == config_dict(plain)
    # what a Config works out from its other values is not taken for a default
    pair = {"method": "ensemble", "network": "basecnn+basecnn"}
    assert kept.configure(pair).members == 2 and kept.defaults["ensemble"]["members"] == 0


def test_a_study_from_before_has_the_spaces_of_then(monkeypatch: pytest.MonkeyPatch) -> None:
    written: dict[str, Any] = {name: {} for name in METHODS if unrecorded(name) is not None}  # later ones had none
    written["act"] = {"lr": {"low": 0.05, "high": 0.2}, "width": 0.5}
    _change(monkeypatch)
    kept = Kept.of({"spec": {"name": "old", "methods": written}})
    assert kept.before
    for name, space in kept.spaces.items():
        assert [entry["name"] for entry in (unrecorded(name) or {})["space"]] == list(space)[
            : len(space.parameters) - (name == "act")
        ]
    assert kept.spaces["static"]["lr"] == Range(0.02, 0.3, log=True)
    assert kept.spaces["act"]["lr"] == Range(0.05, 0.2) and kept.values({"method": "act", "tau": 0.02})["width"] == 1.0
    assert kept.configure({"method": "multipath", "lr": 0.1}).warmup == 0.05
    assert kept.configure({"method": "static"}).momentum == 0.9  # today's would be 0.5


def test_what_only_later_code_understands_is_one_line() -> None:
    later = {"spec": {"name": "later"}, "methods": {"static": {"space": [{"name": "lr", "normal": [0, 1]}]}}}
    with pytest.raises(InputError, match=r"^study 'later': parameter 'lr' was recorded with normal by later code$"):
        Kept.of(later)


def test_code_that_changes_changes_no_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = _spec()
    study, spaces = Study.create(spec, root=tmp_path), spec.spaces()
    with study.driving() as driver:
        driver.workers = 1
        first = driver.ask()
        assert first is not None
        straight = [driver.proposer.propose(driver.proposer.view(driver.state), number) for number in range(4)]
        key = stage_key(spec, driver.state, straight[1][0], 5)
        driver.take_back("t0000")
    _change(monkeypatch)
    assert get_method("static").space["lr"] == Range(1.3, 2.3, log=True)
    again = Study.create(Study.spec_of(spec.model_dump(), "again", root=tmp_path), root=tmp_path)
    assert not again.kept().before
    with again.driving() as driver:
        driver.workers = 1
        trial = driver.ask()
        assert trial is not None and driver.spaces == spaces and (trial.id, trial.config) == (first.id, first.config)
        assert [driver.proposer.propose(driver.proposer.view(driver.state), n) for n in range(4)] == straight
        values = driver.values(driver.state.trials["t0000"])
        assert (values["momentum"], values["width"]) == (0.9, 0.25)
        assert get_method("static").configure({}).momentum == 0.5
        assert stage_key(spec, driver.state, straight[1][0], 5) == key is not None
    to_optuna(again.state(), again.spec, tmp_path / "optuna.db")
    import optuna

    (told,) = optuna.load_study(study_name="kept", storage=f"sqlite:///{tmp_path / 'optuna.db'}").trials
    assert (told.distributions["lr"].low, told.distributions["lr"].high) == (0.02, 0.3)  # type: ignore[attr-defined]


def test_the_file_of_a_study_whose_method_is_gone_still_means_that_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = _spec(methods={"static": {"network": "resnet-8", "width": 0.25}}).model_dump()
    Study.create(StudySpec.parse(values), root=tmp_path)
    monkeypatch.delitem(registry.all_methods(), "static")
    with pytest.raises(InputError, match="unknown method 'static'"):
        StudySpec.parse(values)
    spec = Study.spec_of(values, "again", root=tmp_path)
    assert Study.create(spec, root=tmp_path).extend(trials=7).spec.budget.trials == 7
    with pytest.raises(InputError, match="unknown method 'static'"):
        Study.spec_of({**values, "name": "another"}, "another", root=tmp_path)


# -- a study that earlier code began -----------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Study:
    """The fixture in a folder of its own."""
    shutil.copytree(FIXTURE / "old", tmp_path / "old")
    return Study.load("old", root=tmp_path)


def test_an_old_study_is_opened_and_queried(old: Study, cli: Callable[..., Any], tmp_path: Path) -> None:
    where = "--studies", str(tmp_path)
    code, said, _ = cli("list", "--json", *where)
    (record,) = json.loads(said)
    assert code == 0 and (record["study"], record["state"]) == ("old", "interrupted")
    code, said, _ = cli("status", "old", "--json", *where)
    assert code == 0 and json.loads(said)["trials"] == {
        "running": 0, "stopped": 0, "finished": 2, "failed": 0, "waiting": 2, "paused": 0, "total": 4,
    }  # fmt: skip
    code, said, _ = cli("frontier", "old", "--json", *where)
    points = json.loads(said)["points"]
    assert code == 0 and {point["trial"] for point in points} <= {"t0000", "t0001", "t0002"} and points
    code, _, error = cli("report", "old", "--out", str(tmp_path / "report"), *where)
    assert code == 0, error
    assert "multipath" in (tmp_path / "report" / "report.html").read_text()
    code, said, error = cli("extend", "old", "--trials", "7", *where)
    assert code == 0 and "at most 7 trials" in said
    assert error.count("\n") == 1 and "trials that begin from now on are initialised otherwise" in error
    assert "--name NEW --fork old" in error


def test_trials_from_before_are_told_to_the_sampler_as_they_were(old: Study) -> None:
    state, spaces = old.state(), old.kept().spaces
    assert len(state.trials) == 4
    for trial in state.trials.values():
        params, distributions = record(trial.config, spaces)
        assert params.keys() == distributions.keys() and not any("schedule" in name for name in params)
        assert suggest(FixedTrial(params), spaces) == trial.config  # type: ignore[arg-type]


def test_a_new_study_learns_from_an_old_one(old: Study, tmp_path: Path) -> None:
    methods = {"act": {"network": "preact-resnet-14", "width": 0.125, "momentum": {"low": 0.1, "high": 0.95}}}
    spec = old.spec.model_dump() | {"name": "new", "methods": methods, "warm_start": {"studies": ["old"]}}
    new = Study.create(StudySpec.parse(spec), root=tmp_path)
    state = new.state()
    trained = old.state().trials["t0001"].config
    assert [trial.config for trial in state.known] == [{**trained, "schedule": "step", "momentum": 0.9}]
    (plan,) = state.planned
    assert (plan["config"]["momentum"], plan["config"]["schedule"]) == (0.9, "step")  # today's space has both
    assert plan["config"]["tau"] == trained["tau"] and not state.kept.before


def test_an_old_study_goes_on_and_its_points_are_promoted(
    old: Study, cli: Callable[..., Any], tmp_path: Path, uri: str, ray_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, (space, lost) = old.state(), (old.kept().spaces, next(iter(old.state().stages)))
    began = checkpoints.read_record(old.folder.checkpoints / "t0002" / "epoch-0002")
    _change(monkeypatch)  # in this process, which proposes
    words = "--address", ray_address, "--tracking", "off", "--studies", str(tmp_path)
    code, _, error = cli("resume", "old", *words)
    assert code == 0, error
    assert error.count("initialised otherwise") == 1 and "--fork old" in error
    journal = old.journal()
    events = list(journal.events())
    journal.close()
    state = old.state()
    assert old.status() == "finished" and len(state.trials) == old.spec.budget.trials and not state.failed

    # the trial that was killed goes on behind its second epoch, as the same configuration
    reports = Counter((e.trial, e.payload["epoch"]) for e in events if e.kind == "report")
    assert {epoch for name, epoch in reports if name == "t0002"} == {1, 2, 3, 4} and set(reports.values()) == {1}
    assert state.trials["t0002"].losses[2] == before.trials["t0002"].losses[2]
    ended = checkpoints.read_record(old.folder.checkpoints / (state.trials["t0002"].checkpoint or ""))
    assert {key: ended["config"][key] for key in began["config"] if key in ended["config"]} == began["config"]
    assert ended["config"]["warmup"] == 0.05

    # a first stage of other code is trained again
    again = state.trials["t0003"]
    assert again.behind is not None and again.behind.key == lost and again.stage_lost and again.epoch == 4
    (event,) = [e for e in events if e.kind == "stage" and e.trial == "t0003"]
    assert event.payload == {"key": lost, "action": "lost", "why": f"first stage {lost[:12]} was trained by other code"}
    assert lost not in state.stages and {stage.trial for stage in state.stages.values()} >= {"t0003"}
    for key in state.stages:
        assert stages.check(old.folder.stages / key)["stage"] == key

    # later trials are drawn from the space of then
    later = [trial for trial in state.trials.values() if trial.number > 3]
    assert len(later) == 2
    for trial in later:
        values = {key: value for key, value in trial.config.items() if key != "method"}
        space[trial.method].check(values)
        assert not get_method(trial.method).space["lr"].contains(values["lr"])

    # and what old code trained passes the gates
    point = max(
        (f"t0001-4-{index}" for index, _ in enumerate(state.trials["t0001"].curves[4])),
        key=lambda name: state.trials["t0001"].curves[4][int(name[-1])]["accuracy"],
    )
    outcome = old.promote(model="digits", uri=uri, point=point)
    assert outcome["promoted"] and outcome["version"] == "1"
    assert {gate["name"]: gate["passed"] for gate in outcome["gates"]} == {
        "checkpoint": True, "validation": True, "macs": True, "forward": True, "latency": True, "seeds": None,
        "champion": None, "test": True,
    }  # fmt: skip


_SERVE = """
import json, sys
import mlflow, numpy as np
import trainables.checkpoints
images = (np.add.outer(np.arange(6) * 41, np.arange(256) * 29) % 256).astype(np.uint8).reshape(6, 1, 16, 16)
loaded, answers = set(), []
for folder in sys.argv[1:]:
    model = mlflow.pyfunc.load_model(folder)
    network = model.unwrap_python_model().network
    loaded.add(sys.modules[trainables.checkpoints.__name__].__file__)
    slope = getattr(network.config, "inner_slope", None)  # 7022e79 had no such field
    tables = [model.predict(images), model.predict(images, params={"knobs": json.dumps({"threshold": 0.594})})]
    answers.append({"slope": slope, "answers": [table.to_dict("records") for table in tables]})
print(json.dumps({"loaded": sorted(loaded), "folders": answers}))
"""


def test_a_model_that_was_promoted_before_is_served(tmp_path: Path) -> None:
    """By today's code where it brought none, and by what it brought beside today's."""
    with tarfile.open(MODEL / "model.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    bare, whole = tmp_path / "bare", tmp_path / "model"
    shutil.copytree(whole, bare, ignore=shutil.ignore_patterns("code"))
    (bare / "MLmodel").write_text((bare / "MLmodel").read_text().replace("    code: code\n", ""))
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", _SERVE, str(bare), str(whole)],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["loaded"] == [str(root / "trainables" / "checkpoints.py")]
    assert [folder["slope"] for folder in said["folders"]] == [0.1, None]
    then = json.loads((MODEL / "answers.json").read_text())
    for folder in said["folders"]:
        for rows, expected in zip(folder["answers"], (then["promoted"], then["0.594"]), strict=True):
            assert [{**row, "probabilities": None, "confidence": None} for row in rows] == [
                {**row, "probabilities": None, "confidence": None} for row in expected
            ]
            for name in ("probabilities", "confidence"):
                assert np.array([row[name] for row in rows]) == pytest.approx(
                    np.array([row[name] for row in expected]), abs=1e-5
                )
