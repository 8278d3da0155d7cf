"""What changes studies beside searching: earlier studies that teach, repeats, export, delete, gc."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from search.engine.engine import Engine
from search.errors import InputError
from search.journal.events import Event
from search.planning.repeats import plan_repeats, spreads
from search.sampling.optuna_export import to_optuna
from search.sampling.proposals import Proposer, papers_of
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.studies.summary import NAME
from search.study import Study
from tests.support.command import Run
from tests.support.story import Story
from tests.support.tracked import until

SPEC: dict[str, Any] = {
    "name": "old",
    "data": {"name": "digits", "image_size": 8, "limit": 64},
    "budget": {"trials": 4, "epochs": 9},
    "rungs": {"epochs": [1, 3]},
    "methods": {"static": {"network": "resnet-8"}, "skipnet": {"network": ["resnet-8", "resnet-14"]}},
}


def _told(root: Path, **changes: Any) -> Study:
    """A study whose journal was written by hand: t0000 finished, t0001 stopped at 1, t0002 failed, t0003 waits."""
    study = Study.create(StudySpec.parse({**SPEC, **changes}), root=root)
    tale = Story(("static", "skipnet"))
    tale.events = []
    good = tale.ask(0, "skipnet", variant="sp", gate="linear", relaxation="gumbel", alpha=0.1)
    for epoch in (1, 3, 9):
        tale.report(good, epoch, [(0.5 + epoch / 30, 4e5), (0.6 + epoch / 30, 8e5)])
    tale.decide(good, 9, "finish")
    bad = tale.ask(1)
    tale.report(bad, 1, [(0.3, 9e5)])
    tale.decide(bad, 1, "stop")
    tale.add("failed", {"reason": "loss term cost became nan"}, tale.ask(2))
    tale.ask(3)
    with study.driving() as driver:
        for event in tale.events:
            driver.record(event.kind, event.payload, event.trial)
        for epoch in (1, 3, 9):
            folder = study.folder.checkpoints / good / f"epoch-{epoch:04d}"
            folder.mkdir(parents=True)
            (folder / "state.json").write_text("{}")
    return study


def test_a_fork_begins_with_the_front_and_knows_what_was_seen(tmp_path: Path) -> None:
    _told(tmp_path)
    new = {**SPEC, "name": "new", "methods": {"skipnet": {"network": ["resnet-8", "resnet-20"], "lr": [0.05, 0.2]}}}
    study = Study.create(StudySpec.parse({**new, "warm_start": {"studies": ["old"]}}), root=tmp_path)
    state = study.state()
    assert [trial.id for trial in state.known] == ["old/t0000"]  # static is not searched, failed ones teach nothing
    assert sorted(state.known[0].comparable) == [1, 3, 9]
    (plan,) = state.planned
    assert plan["why"] == "on the front of old (t0000)" and plan["config"]["gate"] == "linear"
    assert not state.front() and state.proposed == 0
    with study.driving() as driver:
        driver.workers = 1
        trial = driver.ask()
        assert trial is not None and trial.config == plan["config"] and driver.state.proposed == 1
    view = Proposer(study.spec, study.spec.spaces()).view(study.state())
    assert [[t.id for t in view.rungs[epoch]] for epoch in (1, 3, 9)] == [["old/t0000"]] * 3


@pytest.mark.parametrize("words", [("list",), ("status", "old"), ("gc", "--dry-run"), ("gc",)])
def test_a_command_folds_a_study_once(
    tmp_path: Path, cli: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    study = _told(tmp_path)
    (study.folder.path / NAME).unlink(missing_ok=True)  # else `list` folds nothing
    folded, apply = [], StudyState.apply

    def counted(self: StudyState, event: Event) -> None:
        folded.append(event.seq)
        apply(self, event)

    monkeypatch.setattr(StudyState, "apply", counted)
    assert study.status() == "interrupted" and not folded  # the lease and one event say that
    code, _, error = cli(*words, "--studies", str(tmp_path))
    assert code == 0, error
    assert folded == list(range(1, study.journal().last() + 1))


def test_limits_are_extended_while_a_driver_is_at_work(tmp_path: Path, cli: Run) -> None:
    study = _told(tmp_path, budget={"trials": 4, "epochs": 9})
    with study.driving() as driver:
        driver.record("failed", {"reason": "worn out"}, "t0003")
        driver.take_budget()
        assert driver.exhausted and driver.spec.budget == study.spec.budget
        code, said, _ = cli("extend", "old", "--trials", "5", "--time", "2h", "--studies", str(tmp_path))
        assert code == 0 and "at most 5 trials, 2h 00m; the search that runs takes it up within seconds" in said
        driver.take_budget()
        assert not driver.exhausted and driver.spec.budget.time == 7200
        driver.take_budget()
        study.folder.spec.write_text("trials = ")
        driver.take_budget()  # an editor that has not finished
        assert driver.spec.budget.trials == 5 and driver.state.seq == driver.journal.last()
    assert [e.payload for e in study.journal().events() if e.kind == "budget"] == [
        {"trials": 5, "time": 7200.0, "cost": None}
    ]
    study.write()
    with study.changed({"budget.trials": 5}, "resume").driving():  # `resume --trials`
        assert Study.load("old", root=tmp_path).spec.budget.trials == 5
    assert study.extend(trials=7).spec.budget.trials == 7
    with study.driving() as driver:  # opened before it was extended, and with no limits of its own: the others stand
        driver.take_budget()
        assert driver.spec.budget.trials == 7
    for words, says in (((), "say which limit"), (("--trials", "0"), "budget.trials"), (("--time", "soon"), "soon")):
        code, _, error = cli("extend", "old", *words, "--studies", str(tmp_path))
        assert code == 2 and says in error and len(error.splitlines()) == 1


def test_another_length_of_training_only_lends_its_front(tmp_path: Path) -> None:
    _told(tmp_path)
    changed = {**SPEC, "name": "new", "budget": {"trials": 4, "epochs": 5}, "warm_start": {"studies": ["old"]}}
    state = Study.create(StudySpec.parse(changed), root=tmp_path).state()
    assert not state.known and len(state.planned) == 1


def test_earlier_studies_that_are_not_there_or_teach_nothing_are_refused(tmp_path: Path) -> None:
    _told(tmp_path)
    for given, said in (("odl", "did you mean 'old'"), ("old", "teach nothing")):
        spec = {**SPEC, "name": "new", "methods": {"sdv": {}}, "warm_start": {"studies": [given]}}
        with pytest.raises(InputError, match=said):
            Study.create(StudySpec.parse(spec), root=tmp_path)
        assert not (tmp_path / "new").exists()


def test_repeats_have_seeds_of_their_own_and_are_counted_together(story: Callable[..., Any]) -> None:
    s = story()
    first, other = s.ask(0), s.ask(1, "skipnet")
    s.report(first, 9, [(0.8, 5e6)])
    s.report(other, 9, [(0.7, 1e6), (0.9, 6e6)])
    plans = plan_repeats(s.state, s.spec, seeds=2)
    assert [plan["repeats"] for plan in plans] == [other, other, first, first]
    assert len({plan["seed"] for plan in plans}) == 4
    assert [plan["repeats"] for plan in plan_repeats(s.state, s.spec, seeds=1, top=1)] == [other]
    s.add("plan", {"trials": plans[:2]})
    later = plan_repeats(s.state, s.spec, points=[f"{other}-9-1"], seeds=2)
    assert {plan["seed"] for plan in later}.isdisjoint(plan["seed"] for plan in plans)
    for number, (plan, accuracy) in enumerate(zip(plans[:2], (0.84, 0.87), strict=True), start=2):
        name = f"t{number:04d}"
        s.add("ask", {"number": number, **plan, "planned": True, "seen": 0}, name)
        s.report(name, 9, [(accuracy - 0.2, 1e6), (accuracy, 6e6)])
        s.decide(name, 9, "finish")
    cheap, dear = spreads(s.state, 9)
    assert cheap.accuracies == pytest.approx([0.7, 0.64, 0.67]) and dear.mean == pytest.approx(0.87)
    assert dear.deviation == pytest.approx(0.03) and dear.on_front and dear.trial == other
    assert s.state.proposed == 2 and not s.state.planned
    again = plan_repeats(s.state, s.spec, points=["t0002"], seeds=1)  # a repeat stands for what it repeats
    assert again[0]["repeats"] == other


@pytest.mark.parametrize(("points", "seeds", "said"), [(["t9999-1-1"], 1, "no trial of point"), ([], 0, "--seeds 0")])
def test_what_cannot_be_confirmed_is_refused(
    story: Callable[..., Any], points: list[str], seeds: int, said: str
) -> None:
    s = story()
    s.report(s.ask(0), 9, [(0.8, 5e6)])
    with pytest.raises(InputError, match=said):
        plan_repeats(s.state, s.spec, points=points, seeds=seeds)


def test_nothing_to_confirm_is_said(story: Callable[..., Any]) -> None:
    s = story()
    with pytest.raises(InputError, match="nothing to confirm"):
        plan_repeats(s.state, s.spec)


def test_the_exported_study_has_no_stopped_trial_as_finished(tmp_path: Path) -> None:
    study = _told(tmp_path)
    counts = to_optuna(study.state(), study.spec, tmp_path / "optuna.db")
    assert counts == {"old": 4, "old (points)": 2}
    storage = f"sqlite:///{tmp_path / 'optuna.db'}"
    trials = optuna.load_study(study_name="old", storage=storage).trials
    assert [t.state for t in trials] == [
        TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.WAITING
    ]  # fmt: skip
    assert trials[1].intermediate_values.keys() == {1} and trials[1].user_attrs["state"] == "stopped"
    assert sorted(trials[0].intermediate_values) == [1, 3, 9]
    assert trials[0].value == trials[0].intermediate_values[9]
    points = optuna.load_study(study_name="old (points)", storage=storage)
    assert len(points.best_trials) == 2 and points.best_trials[0].user_attrs["epoch"] == 9
    from optuna.importance import get_param_importances

    found = get_param_importances(optuna.load_study(study_name="old", storage=storage))
    assert {"method", "skipnet.network"} <= found.keys()


def test_an_export_follows_a_study_while_it_runs(tmp_path: Path) -> None:
    study, tale, file = _told(tmp_path), Story(("static", "skipnet")), tmp_path / "live.db"
    storage = f"sqlite:///{file}"

    def trials(name: str = "old") -> list[Any]:
        assert process.poll() in (None, 0)
        return optuna.load_study(study_name=name, storage=storage).trials if file.exists() else []

    with study.driving() as driver:
        command = [sys.executable, "-m", "search", "export", "old", "--optuna", str(file), "--follow", "--json"]
        process = subprocess.Popen([*command, "--studies", str(tmp_path)], stdout=subprocess.PIPE, text=True)
        until(lambda: len(trials()) == 4 and len(trials("old (points)")) == 2)
        assert trials()[3].state is TrialState.RUNNING
        tale.events = []
        tale.report("t0003", 1, [(0.4, 9e5)])
        driver.record("report", tale.events[-1].payload, "t0003")
        until(lambda: trials()[3].intermediate_values.keys() == {1})
        for epoch in (3, 9):
            tale.report("t0003", epoch, [(0.5, 9e5), (0.3, 1e5)])
        tale.decide("t0003", 9, "finish")
        for event in tale.events[1:]:
            driver.record(event.kind, event.payload, event.trial)
        until(lambda: trials()[3].state is TrialState.COMPLETE)
        assert process.poll() is None
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and json.loads(out)["studies"] == {"old": 4, "old (points)": 4}
    last = trials()[3]
    assert last.intermediate_values.keys() == {1, 3, 9} and last.value == last.intermediate_values[9]
    assert last.user_attrs["state"] == "finished" and last.user_attrs["epoch"] == 9
    to_optuna(study.state(), study.spec, tmp_path / "once.db")  # what was followed is what is written at once
    once = optuna.load_study(study_name="old", storage=f"sqlite:///{tmp_path / 'once.db'}").trials
    told = [(t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in trials()]
    assert told == [(t.state, t.values, t.params, t.intermediate_values, t.user_attrs) for t in once]


@contextlib.contextmanager
def _running(study: Study) -> Iterator[Engine]:
    with study.driving() as driver:
        yield driver


def test_gc_and_delete(cli: Run, tmp_path: Path) -> None:
    study = _told(tmp_path)
    scratch = study.folder.ray / "session-1"
    scratch.mkdir()
    (scratch / "file").write_text("x" * 1000)
    code, out, _ = cli("gc", "--studies", tmp_path, "--dry-run", "--json")
    (record,) = json.loads(out)
    # epochs 3 and 9 are in the first two fronts
    assert code == 0 and record["folders"] == 2 and record["bytes"] == 1002 and scratch.exists()
    code, out, _ = cli("gc", "old", "--studies", tmp_path)
    assert code == 0 and "old: 2 folders, 1 kB removed" in out and not scratch.exists()
    left = sorted(path.name for path in (study.folder.checkpoints / "t0000").iterdir())
    assert left == ["epoch-0003", "epoch-0009"]
    with _running(study):
        import os

        code, _, err = cli("delete", "old", "--studies", tmp_path, "--yes")
        assert code == 2 and "is running; stop it first" in err and str(os.getpid())
    code, out, _ = cli("delete", "old", "--studies", tmp_path, "--yes", "--json")
    assert code == 0 and json.loads(out)["study"] == "old" and not study.folder.path.exists()
    code, _, err = cli("delete", "old", "--studies", tmp_path, "--yes")
    assert code == 2 and "no study 'old'" in err


def test_export_does_not_overwrite_and_dry_run_says_what_would_run(cli: Run, tmp_path: Path) -> None:
    _told(tmp_path)
    target = tmp_path / "optuna.db"
    code, out, _ = cli("export", "old", "--optuna", target, "--studies", tmp_path)
    assert code == 0 and "wrote 4 trials of study 'old'" in out
    code, _, err = cli("export", "old", "--optuna", target, "--studies", tmp_path)
    assert code == 2 and "exists; choose another file" in err
    from search.spec.toml import to_toml

    file = tmp_path / "new.toml"
    file.write_text(to_toml({**SPEC, "name": "new", "constraints": {"max_macs": "1M"}}))
    code, out, _ = cli("search", file, "--dry-run", "--json", "--studies", tmp_path, "--seed", 3)
    record = json.loads(out)
    assert (
        code == 0
        and record["spec"]["seed"] == 3
        and record["likely_epochs"] == pytest.approx(4 * (1 + 2 / 4 + 6 / 16), 0.01)
    )
    assert record["seconds"] == pytest.approx(record["likely_epochs"] * 1.0) and "study old" in record["seconds_from"]
    assert [first["config"]["method"] for first in record["first"]] == ["static", "skipnet"]
    assert papers_of(["skipnet"])["skipnet"]["variant"] == record["first"][1]["config"]["variant"]
    code, out, _ = cli("search", file, "--dry-run", "--studies", tmp_path)
    assert code == 0 and "points count with at most 1M MACs" in out and "one of 4 goes on" in out
    assert not (tmp_path / "new").exists()
