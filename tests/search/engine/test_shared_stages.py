"""First stages that trials share: proposed again, told to workers, lost and trained again; on a real Ray at the end."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.points import files as points
from search.sampling.first_stages import candidates, propose_again, stage_key
from search.sampling.proposals import Proposer
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.status.story import trial_story
from search.status.table import summary
from search.studies.stored import load_data
from search.studies.summary import record_of
from search.study import Study
from trainables import checkpoints
from trainables.contracts.network import Task
from trainables.registry import get_method
from trainables.training import stages
from trainables.training.training import Training

SMALL = {"network": "resnet-8", "width": 0.25, "batch_size": 32, "views": 2, "stage2_share": 0.5, "variant": "vanilla"}


def proposed(spec: StudySpec, spaces: Any, state: StudyState, number: int) -> Any:
    proposer = Proposer(spec, spaces)
    return proposer.propose(proposer.view(state), number)


def shared_again(spec: StudySpec, spaces: Any, state: StudyState, number: int) -> Any:
    proposer = Proposer(spec, spaces)
    compute = propose_again(proposer, state, proposer.view(state), number)
    return compute() if compute else None


def _spec(name: str, **changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": name,
        "data": {"name": "digits", "image_size": 8, "limit": 64},
        "budget": {"trials": 4, "epochs": 4},
        "rungs": {"epochs": [1, 3], "reduction": 1.0001},  # nobody is stopped
        "sampler": {"startup": 2, "published": False, "ahead": 0},
        "stages": {"share": 1.0},
        "resources": {"workers": 2},
        "methods": {"codinet": SMALL},
    }
    return StudySpec.parse({**values, **changes})


class _Workers:
    """A study driven by hand: what workers would report, without training."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def report(self, trial: Any, first: int, last: int, **more: Any) -> str:
        """Reports of the epochs `first` to `last`; the one of epoch 2 stores the trial's first stage."""
        action = ""
        for epoch in range(first, last + 1):
            result: dict[str, Any] = {
                "epoch": epoch, "phase": "stage1" if epoch < 3 else "stage2", "comparable": True,
                "losses": {"cross_entropy": 1.0}, "seconds": 5.0, "cost_epochs": 2.0 * (epoch - first + 1),
                "checkpoint": f"{trial.id}/epoch-{epoch:04d}", **more,
            }  # fmt: skip
            if epoch in (1, 3, 4):
                accuracy, macs = 0.5 + trial.number / 50 + epoch / 100, 1e4
                point = {"setting": {}, "knobs": {}, "accuracy": accuracy, "correct": 1, "count": 2, "macs": macs}
                result["curve"] = {"points": [{**point, "macs_std": 0.0}], "diagnostics": {}, "seconds": 0.1}
            if epoch == 2:
                result["stage"] = self.store(trial)
            action = self.driver.report(trial.id, result)
        return action

    def store(self, trial: Any) -> str:
        """Put the first stage of a trial into the study's folder: a whole checkpoint of no network."""
        driver = self.driver
        key = stage_key(driver.spec, driver.state, trial.config, trial.seed)
        assert key is not None
        folder = driver.folder.stages / key
        if not folder.exists():
            method = get_method("codinet")
            config = method.configure({k: v for k, v in trial.config.items() if k != "method"})
            network = method.build(config, Task(classes=10, size=8, channels=1))
            checkpoints.save(folder, {"stage": key, "trial": trial.id}, network)
        return key


@contextlib.contextmanager
def _driven(spec: StudySpec, root: Path) -> Iterator[tuple[Any, _Workers]]:
    with Study.create(spec, root=root).driving() as driver:
        driver.workers = 4
        driver.record("session", {"host": "here", "pid": 1, "workers": 4})
        yield driver, _Workers(driver)


def _damage(driver: Any, key: str) -> None:
    file = driver.folder.stages / key / "network.safetensors"
    file.write_bytes(file.read_bytes()[:-5])


# -- what is proposed ----------------------------------------------------------------------------


def _told(story: Callable[..., Any], **stages: Any) -> tuple[Any, dict[str, Any]]:
    """Three codinet trials: t0000 and t0001 have ended their first stage, t0002 has not."""

    s = story(("codinet", "static"))
    update = {"published": False, "startup": 2}
    s.spec = s.spec.model_copy(
        update={
            "sampler": s.spec.sampler.model_copy(update=update),
            "stages": s.spec.stages.model_copy(update={"share": 1.0, **stages}),
        }
    )
    spaces = s.spec.spaces()
    number = 0
    for ask in range(100):
        config = proposed(s.spec, spaces, s.state, ask).config
        if config["method"] != "codinet" or number == 3:
            continue
        values = {k: v for k, v in config.items() if k != "method"}
        name = s.ask(number, "codinet", **values)
        s.report(name, 1, [(0.5 + number / 10, 1e7)])
        if number < 2:
            s.report(name, 8, stage=stage_key(s.spec, s.state, config, number))
            s.report(name, 9, [(0.6 + number / 10, 9e6)])
            s.decide(name, 9, "finish")
        number += 1
    return s, spaces


@pytest.mark.parametrize("name", ["tpe", "evolution"])
def test_a_finished_first_stage_is_proposed_again_with_later_stages_drawn_anew(
    story: Callable[..., Any], name: str
) -> None:
    s, spaces = _told(story)
    sampler = s.spec.sampler.model_copy(update={"name": name})
    s.spec = s.spec.model_copy(update={"sampler": sampler})
    state = s.state
    for number in range(3, 9):
        proposal = shared_again(s.spec, spaces, state, number)
        assert proposal is not None and proposal == shared_again(s.spec, spaces, state, number)
        (config, why, *_), stage = proposal
        trainer = state.trials[stage.trial].config
        assert stage.trial in ("t0000", "t0001") and stage.epoch == 8 and stage.trial in why
        assert {k for k in config if config[k] != trainer[k]} == {"stage2_lr"} and config.keys() == trainer.keys()
        spaces["codinet"].check({k: v for k, v in config.items() if k != "method"})
        assert stage_key(s.spec, state, config, state.trials[stage.trial].seed) == stage.key
    assert [stage.trial for stage in candidates(Proposer(s.spec, spaces), state)] == [
        "t0001",
        "t0000",
    ]  # the better one first


def test_sharing_has_a_probability_and_a_switch(story: Callable[..., Any]) -> None:
    s, spaces = _told(story, share=0.25)
    shared = sum(shared_again(s.spec, spaces, s.state, number) is not None for number in range(80))
    assert 10 <= shared <= 32
    for off in ({"share": 0.0}, {"enabled": False}):
        s, spaces = _told(story, **off)
        assert all(shared_again(s.spec, spaces, s.state, number) is None for number in range(10))


def test_papers_settings_come_first_and_nothing_is_shared_before_a_stage_is_finished(story: Callable[..., Any]) -> None:
    s, spaces = _told(story)
    published = s.spec.model_copy(update={"sampler": s.spec.sampler.model_copy(update={"published": True})})
    assert shared_again(published, spaces, s.state, 1) is None
    assert shared_again(published, spaces, s.state, 2) is not None
    for event in s.events:
        event.payload.pop("stage", None)
    assert shared_again(s.spec, spaces, s.state, 3) is None


def test_a_configuration_is_never_trained_twice_on_one_seed(story: Callable[..., Any]) -> None:
    s, _ = _told(story)
    methods = {"codinet": {"stage2_lr": [0.001, 0.01]}, "static": {}}
    spec = StudySpec.parse({**s.spec.model_dump(), "methods": methods})
    spaces = spec.spaces()
    state = s.state
    for trial in state.trials.values():
        trial.config["stage2_lr"] = 0.001
    seen = set()
    for number in range(3, 20):
        proposal = shared_again(spec, spaces, state, number)
        if proposal is None:  # four draws gave what was trained
            continue
        (config, why, *_), stage = proposal
        assert config["stage2_lr"] == 0.01
        seen.add(stage.trial)
        seed = state.trials[stage.trial].seed
        s.add("ask", {"number": number, "config": config, "seed": seed, "why": why}, f"t{number:04d}")
        state.apply(s.events[-1])
    assert seen == {"t0000", "t0001"}
    assert all(shared_again(spec, spaces, state, number) is None for number in range(20, 30))


def test_other_code_and_fixed_later_stages_share_nothing(
    story: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    s, spaces = _told(story)
    assert shared_again(s.spec, spaces, s.state, 3) is not None
    fixed = StudySpec.parse({**s.spec.model_dump(), "methods": {"codinet": {"stage2_lr": 0.01}, "static": {}}})
    assert shared_again(fixed, fixed.spaces(), s.state, 3) is None
    monkeypatch.setattr(stages, "code_version", lambda: "0.1.0+000000000000")
    assert candidates(Proposer(s.spec, spaces), s.state) == [] and shared_again(s.spec, spaces, s.state, 3) is None


@pytest.mark.parametrize("share", [-0.1, 1.5, "often"])
def test_a_probability_outside_0_to_1_is_refused(share: Any) -> None:
    from search.errors import InputError

    with pytest.raises(InputError, match=r"stages\.share = .*: input should be"):
        _spec("bad", stages={"share": share})


# -- what the fold and the driver make of it ------------------------------------------------------


def test_shared_epochs_are_fidelity_and_not_cost(tmp_path: Path) -> None:
    with _driven(_spec("cost"), tmp_path) as (driver, workers):
        first = driver.ask()
        orders = driver.stages.orders(first, [1, 3, 4])
        assert orders == {"stage": None, "publish": True, "evaluate_at": [1, 3, 4]}
        assert workers.report(first, 1, 4) == "finish"
        second = driver.ask()
        assert second.seed == first.seed and second.behind.trial == first.id
        assert driver.stages.orders(second, [1, 3, 4]) == {
            "stage": second.behind.key, "publish": True, "evaluate_at": [3, 4],
        }  # fmt: skip
        driver.started(second.id)
        assert workers.report(second, 3, 4) == "finish"
        state = driver.state
        assert (second.epoch, second.cost_epochs, second.seconds, second.shared) == (4, 4.0, 10.0, True)
        assert list(second.curves) == [3, 4] and [t.id for t in state.rung(1)] == [first.id]
        assert state.rung(3) == [first, second]  # compared by epoch
        assert state.cost_epochs == 8.0 + 4.0
        saved = {"finished": 1, "shared": 1, "epochs_saved": 4.0, "seconds_saved": 10.0, "trained_again": 0}
        assert state.saved() == saved
        driver.flush()
        told = points.read(driver.folder.points, columns=["trial", "epoch", "cost_epochs", "repeat"]).to_pylist()
        assert [(r["epoch"], r["cost_epochs"]) for r in told if r["trial"] == second.id] == [(3, 2.0), (4, 4.0)]
        study = Study(driver.spec, driver.folder)
        assert record_of(study, study.state())["stages"] == saved
        assert "first stages shared by 1: 4 epochs and 10s saved" in summary(driver.spec, state)
        assert "to begin behind epoch 2 of t0000" in trial_story(study, second.id)["events"][0]["says"]
        assert study.state().digest() == state.digest()
        assert {point.trial for point in study.frontier()} <= {first.id, second.id}


def test_a_damaged_stage_is_trained_again_by_one_and_said_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _driven(_spec("damaged", budget={"trials": 9, "epochs": 4}), tmp_path) as (driver, workers):
        first = driver.ask()
        workers.report(first, 1, 4)
        key = next(iter(driver.state.stages))
        _damage(driver, key)
        with caplog.at_level(logging.WARNING, "routefront.search"):
            second = driver.ask()
        assert len(caplog.records) == 1 and "cut off or changed; t0001 trains it again" in caplog.text
        assert second.behind.key == key and second.stage_lost and key not in driver.state.stages
        # the rungs and the points have the curves of those epochs already
        assert driver.stages.orders(second, [1, 3, 4]) == {"stage": None, "publish": True, "evaluate_at": [3, 4]}
        assert driver.ask().behind is None  # another one wants a device: it gets another proposal
        stage = next(e for e in driver.journal.events() if e.kind == "stage")
        assert stage.trial == second.id and stage.payload["action"] == "lost" and "cut off" in stage.payload["why"]
        shutil.rmtree(driver.folder.stages / key)
        workers.report(second, 1, 4)
        assert driver.state.stages[key].trial == second.id and second.cost_epochs == 8.0 and not second.shared
        assert driver.state.saved()["trained_again"] == 1 and driver.state.saved()["epochs_saved"] == 0


def test_two_that_want_a_lost_stage_do_not_train_it_twice_and_no_device_waits(tmp_path: Path) -> None:
    spec = _spec("both", budget={"trials": 5, "epochs": 4})
    with _driven(spec, tmp_path) as (driver, workers):
        workers.report(driver.ask(), 1, 4)
        second, third = driver.ask(), driver.ask()
        assert second.behind == third.behind
    # the driver dies before either has begun, and the stage is damaged meanwhile
    study = Study.load("both", root=tmp_path)
    with study.driving() as driver:
        driver.workers = 4
        driver.record("session", {"host": "here", "pid": 2, "workers": 4})
        workers = _Workers(driver)
        key = second.behind.key
        _damage(driver, key)
        again = driver.ask()
        assert again.id == second.id and again.stage_lost
        other = driver.ask()
        assert other.id == "t0003" and other.behind is None  # not t0002: its stage is being trained
        assert driver.ask().id == "t0004"
        assert driver.ask() is None and not driver.exhausted  # nothing new is left; t0002 is still to come
        assert sum(e.kind == "stage" for e in driver.journal.events()) == 1
        driver.failed(again.id, "its worker died too often")
        heir = driver.ask()  # who is left trains it
        assert heir.id == third.id and heir.stage_lost
        shutil.rmtree(driver.folder.stages / key)
        workers.report(heir, 1, 4)
        assert driver.state.stages[key].trial == heir.id
        assert StudyState.of(driver.journal.events()).digest() == driver.state.digest()


def test_who_waited_begins_behind_the_stage_that_another_trained_again(tmp_path: Path) -> None:
    with _driven(_spec("waited", budget={"trials": 3, "epochs": 4}), tmp_path) as (driver, workers):
        workers.report(driver.ask(), 1, 4)
        driver.workers = 2
        second, third = driver.ask(), driver.ask()
        driver._handed.clear()  # as in a new session
        shutil.rmtree(driver.folder.stages / second.behind.key)
        assert driver.ask() is second and driver.ask() is None
        workers.report(second, 1, 2)
        assert driver.ask() is third and not third.stage_lost
        assert driver.stages.orders(third, [1, 3, 4])["stage"] == second.behind.key
        workers.report(third, 3, 4)
        assert third.shared and third.cost_epochs == 4.0


def test_a_worker_that_finds_its_stage_damaged_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with _driven(_spec("late"), tmp_path) as (driver, workers):
        workers.report(driver.ask(), 1, 4)
        second = driver.ask()
        with caplog.at_level(logging.WARNING, "routefront.search"):
            workers.report(second, 1, 1, stage_lost="checkpoint x is damaged: network.safetensors was cut off")
            workers.report(second, 2, 4)
        assert caplog.text.count("trains it again") == 1
        assert second.stage_lost and not second.shared and second.epoch == 4
        assert driver.state.saved()["trained_again"] == 1


def test_only_the_best_stages_are_kept(tmp_path: Path) -> None:
    spec = _spec("kept", budget={"trials": 9, "epochs": 4}, stages={"share": 0.0, "keep": 2})
    with _driven(spec, tmp_path) as (driver, workers):
        for _ in range(4):
            workers.report(driver.ask(), 1, 4)  # each better than those before
        assert [stage.trial for stage in driver.state.stages.values()] == ["t0002", "t0003"]
        assert {path.name for path in driver.folder.stages.iterdir()} == set(driver.state.stages)
        assert Counter(e.kind for e in driver.journal.events())["stage"] == 2
        (driver.folder.stages / ".half").mkdir()
        driver.stages.tidy()
        assert {path.name for path in driver.folder.stages.iterdir()} == set(driver.state.stages)


# -- on a real Ray --------------------------------------------------------------------------------


def _straight(spec: StudySpec, trial: Any) -> list[dict[str, Any]]:
    """The reports of a trial that trains everything itself, in this process."""
    import torch

    torch.set_num_threads(1)
    method = get_method(trial.method)
    training = Training(
        method,
        method.configure({k: v for k, v in trial.config.items() if k != "method"}),
        load_data(spec),
        epochs=spec.budget.epochs,
        seed=trial.seed,
        evaluate_at=spec.rung_epochs,
    )
    return [training.step() for _ in range(spec.budget.epochs)]


def test_a_study_shares_stages_through_a_killed_trainer_a_resume_and_damage(ray_address: str, tmp_path: Path) -> None:
    spec = _spec("real", resources={"workers": 1}, budget={"trials": 3, "epochs": 4})
    study = Study.create(spec, root=tmp_path)

    def killer(driver: Any) -> Any:
        def listener(event: Any, state: Any) -> None:
            if event.kind == "report" and event.payload["epoch"] == 1:
                os.kill(event.payload["worker"], signal.SIGKILL)  # in the middle of the first stage
                driver.stopping = "stopped"

        driver.listeners.append(listener)
        return contextlib.nullcontext()

    assert study.launch(address=ray_address, watch=killer) == "stopped"
    assert study.state().trials["t0000"].epoch == 1 and not study.state().stages

    def damager(driver: Any) -> Any:
        def listener(event: Any, state: Any) -> None:
            if event.kind == "decision" and event.trial == "t0001" and event.payload["action"] == "finish":
                _damage(driver, next(iter(state.stages)))

        driver.listeners.append(listener)
        return contextlib.nullcontext()

    assert study.launch(address=ray_address, watch=damager) == "finished"
    state = study.state()
    first, shared, again = state.trials.values()
    assert [t.shared for t in (first, shared, again)] == [False, True, False] and again.stage_lost
    assert len({t.seed for t in (first, shared, again)}) == 1
    assert len({t.config["stage2_lr"] for t in (first, shared, again)}) == 3
    assert [t.cost_epochs for t in (first, shared, again)] == [8.0, 4.0, 8.0]
    assert state.saved()["epochs_saved"] == 4.0 and state.saved()["trained_again"] == 1
    for trial in (first, shared, again):
        straight = _straight(spec, trial)
        for epoch in (3, 4):
            assert trial.losses[epoch] == straight[epoch - 1]["losses"]
            assert trial.curves.get(epoch) == straight[epoch - 1].get("curve", {}).get("points")
    stored = next(iter(state.stages))
    assert stages.check(study.folder.stages / stored)["trial"] == again.id
    assert [path.name for path in study.folder.stages.iterdir()] == [stored]
