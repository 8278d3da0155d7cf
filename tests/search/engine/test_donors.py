"""Donors of a study: files and registered models that it begins with, and its own static networks."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from search.errors import InputError
from search.planning.donors import named, store
from search.planning.repeats import plan_repeats
from search.points.rows import config_id
from search.promotion.promotion import promote_study
from search.sampling.first_stages import stage_key
from search.spec.study import StudySpec
from search.state.donors import Donors, takers
from search.state.retention import kept_checkpoints
from search.state.state import StudyState
from search.state.trial import Donor
from search.status.story import trial_story
from search.studies.folder import StudyFolder
from search.studies.roots import cache_of
from search.studies.stored import load_data
from search.study import Study
from search.tracking.server import default_uri
from tests.support import promoting
from tests.support.killing import drive, faults
from trainables import checkpoints
from trainables.contracts.network import Task
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.training import donors
from trainables.training.training import Training
from trainables.worker.shelf import Shelf

BODY = {"network": "resnet-8", "width": 0.5, "batch_size": 32}
TASK = Task(classes=10, size=8, channels=1)


def _spec(name: str, **changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "name": name,
        "data": {"name": "digits", "image_size": 8, "limit": 64},
        "budget": {"trials": 4, "epochs": 2},
        "rungs": {"enabled": False},
        "sampler": {"ahead": 0},
        "stages": {"enabled": False},
        "resources": {"workers": 1},
        "diagnostics": False,
        "methods": {"static": BODY, "aig": {**BODY, "donor": "study"}},
    }
    return StudySpec.parse({**values, **changes})


@pytest.fixture(scope="module")
def images() -> Data:
    return load_data(_spec("any"))


@pytest.fixture(scope="module")
def donor(images: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a static network that was trained for an epoch."""
    method = get_method("static")
    training = Training(method, method.configure(BODY), images, epochs=1, seed=5)
    training.step()
    folder = tmp_path_factory.mktemp("donor") / "resnet"
    training.save(folder)
    return folder


# -- which network of the study it is --------------------------------------------------------------


def _told(story: Callable[..., Any], **aig: Any) -> Any:
    s = story(("static", "aig"))
    s.events[0].payload["spec"]["methods"] = {"static": {}, "aig": {"donor": ["", "study"], **aig}}
    return s


def _static(s: Any, number: int, accuracies: dict[int, float], end: str = "", **config: Any) -> str:
    name = s.ask(number, "static", **config)
    for epoch, accuracy in accuracies.items():
        s.report(name, epoch, [(accuracy, 1e7)])
    if end:
        s.decide(name, max(accuracies), end)
    return name


def _best(s: Any, **config: Any) -> Donor | None:
    return Donors(s.state).best({"method": "aig", "network": "resnet-8", "donor": "study", **config})


def test_the_best_static_network_of_the_same_body(story: Callable[..., Any]) -> None:
    s = _told(story)
    assert _best(s) is None
    _static(s, 0, {1: 0.9})  # still running
    _static(s, 1, {1: 0.9}, "finish", network="resnet-14")
    _static(s, 2, {1: 0.9}, "finish", width=0.5)
    assert _best(s) is None
    _static(s, 3, {1: 0.8}, "stop")
    assert _best(s) == Donor("t0003", 1, "t0003/epoch-0001")
    _static(s, 4, {1: 0.3, 3: 0.6, 9: 0.5}, "finish")  # trained in full, before one that was stopped
    assert _best(s) == Donor("t0004", 3, "t0004/epoch-0003")
    _static(s, 5, {9: 0.6}, "finish")  # no better
    assert _best(s).trial == "t0004"  # type: ignore[union-attr]
    _static(s, 6, {9: 0.7}, "finish", shortcut="B")
    assert _best(s).trial == "t0006"  # type: ignore[union-attr]
    assert _best(s, shortcut="A").trial == "t0004"  # type: ignore[union-attr]  # which has no projections
    assert _best(s, width=0.5).trial == "t0002"  # type: ignore[union-attr]
    _static(s, 7, {9: 0.99}, "finish", donor="study")
    assert _best(s).trial == "t0006"  # type: ignore[union-attr]
    kept = {"t0001/epoch-0001", "t0002/epoch-0001", "t0004/epoch-0003", "t0006/epoch-0009"}
    assert Donors(s.state).kept() == kept and kept <= kept_checkpoints(s.state)
    s.add("donor", {"checkpoint": "t0006/epoch-0009", "action": "lost", "why": "gone"}, "t0006")
    assert _best(s).trial == "t0004"  # type: ignore[union-attr]


def test_a_best_one_only_gives_way_to_a_better_one(story: Callable[..., Any]) -> None:
    s = _told(story)
    accuracies = [0.5, 0.4, 0.7, 0.6, 0.7, 0.3]
    ends = ["stop", "finish", "stop", "finish", "finish", "stop"]
    found: list[str] = []
    for number, (accuracy, end) in enumerate(zip(accuracies, ends, strict=True)):
        before = kept_checkpoints(s.state)
        _static(s, number, {9: accuracy}, end)
        best = _best(s)
        assert best is not None and (best.checkpoint in before or best.trial == f"t{number:04d}")
        found.append(best.trial)
    assert found == ["t0000", "t0001", "t0001", "t0003", "t0004", "t0004"]


def test_each_method_has_its_kind_of_donor(story: Callable[..., Any]) -> None:
    s = story(("act", "imta", "decide"))
    methods = {"act": {"donor": "study"}, "imta": {"donor": "study"}, "decide": {"donor": ["", "study"]}}
    s.events[0].payload["spec"]["methods"] = methods
    assert takers(methods) == ["act", "imta", "decide"]
    for number, (method, config) in enumerate(
        [
            ("act", {"network": "preact-resnet-14", "variant": "vanilla"}),
            ("act", {"network": "preact-resnet-14"}),
            ("imta", {"network": "msdnet-3", "variant": "ge"}),
            ("imta", {"network": "msdnet-3", "variant": "all"}),
            ("decide", {"network": "pyramid-static-3"}),
        ]
    ):
        name = s.ask(number, method, **config)
        s.report(name, 9, [(0.5 + number / 10, 1e7)])
        s.decide(name, 9, "finish")
    found = Donors(s.state)
    wanted = {"act": "preact-resnet-14", "imta": "msdnet-3", "decide": "pyramid-3"}
    best = {m: found.best({"method": m, "network": n, "donor": "study"}) for m, n in wanted.items()}
    assert {m: d and d.trial for m, d in best.items()} == {"act": "t0000", "imta": "t0002", "decide": "t0004"}
    assert {"t0000/epoch-0009", "t0002/epoch-0009", "t0004/epoch-0009"} == found.kept()
    assert found.best({"method": "decide", "network": "pyramid-tree", "donor": "study"}) is None


# -- what the driver makes of it -------------------------------------------------------------------


@contextlib.contextmanager
def _driven(spec: StudySpec, root: Path, data: Data) -> Iterator[Any]:
    with Study.create(spec, root=root, data=data).driving() as driver:
        driver.workers = 4
        driver.record("session", {"host": "here", "pid": 1, "workers": 4})
        yield driver


def _finish(driver: Any, trial: Any, accuracy: float) -> None:
    """What a worker would report of a whole training, and the checkpoint that it would write."""
    for epoch in (1, 2):
        name = f"{trial.id}/epoch-{epoch:04d}"
        method = get_method(trial.method)
        network = method.build(method.configure({k: v for k, v in trial.config.items() if k != "method"}), TASK)
        checkpoints.save(driver.folder.checkpoints / name, {"epoch": epoch}, network)
        point = {
            "setting": {},
            "knobs": {},
            "accuracy": accuracy,
            "correct": 1,
            "count": 2,
            "macs": 1e4,
            "macs_std": 0.0,
        }
        result: dict[str, Any] = {
            "epoch": epoch, "phase": "train", "comparable": True, "losses": {"cross_entropy": 1.0}, "seconds": 5.0,
            "cost_epochs": float(epoch), "checkpoint": name,
        }  # fmt: skip
        if epoch == 2:
            result["curve"] = {"points": [point], "diagnostics": {}, "seconds": 0.1}
        driver.report(trial.id, result)


def test_a_trial_begins_with_the_networks_of_the_study(tmp_path: Path, images: Data) -> None:
    with _driven(_spec("driven", budget={"trials": 9, "epochs": 2}), tmp_path, images) as driver:
        first, early = driver.ask(), driver.ask()
        assert (first.method, early.method) == ("static", "aig")
        # nothing was trained when it was asked for: from scratch, at a rate of its own
        assert early.donor is None and early.config["donor"] == "" and "donor_lr" not in early.config
        assert early.config["lr"] and "from scratch, for no network of its body is trained yet" in early.why
        assert driver.orders(early, [2])["donor"] is None
        _finish(driver, first, 0.5)
        later = next(trial for trial in iter(driver.ask, None) if trial.method == "aig")
        assert later.donor == Donor(first.id, 2, f"{first.id}/epoch-0002") and later.config["donor"] == "study"
        assert "lr" not in later.config and driver.orders(later, [2])["donor"] == f"{first.id}/epoch-0002"
        _finish(driver, later, 0.6)
        assert later.cost_epochs == 2.0  # the donor's epochs were the donor's
        driver.prune()
        assert (driver.folder.checkpoints / first.id / "epoch-0002").exists()
        study, state = Study(driver.spec, driver.folder), driver.state
        assert f"begins from {first.id}'s epoch 2" in trial_story(study, later.id)["events"][0]["says"]
        assert study.state().digest() == state.digest() == StudyState.of(driver.journal.events()).digest()
        # once more on other seeds: behind the same donor, not the best of then
        plans = plan_repeats(state, driver.spec, points=[later.id], seeds=1)
        assert plans[0]["donor"] == asdict(later.donor)
        driver.record("plan", {"trials": plans})
        again = next(trial for trial in iter(driver.ask, None) if trial.repeats)
        assert again.donor == later.donor and again.identity == later.identity
        assert config_id(later.identity) != config_id(later.config)


def test_a_lost_donor_is_wanted_no_more(tmp_path: Path, images: Data, caplog: pytest.LogCaptureFixture) -> None:
    spec = _spec("lost", budget={"trials": 9, "epochs": 2}, sampler={"ahead": 1})
    with _driven(spec, tmp_path, images) as driver:
        first = driver.ask()
        _finish(driver, first, 0.5)
        file = driver.folder.checkpoints / first.id / "epoch-0002" / checkpoints.NETWORK
        file.write_bytes(file.read_bytes()[:-5])
        with caplog.at_level(logging.WARNING, "routefront.search"):
            trial = driver.ask()
        assert trial.method == "aig" and trial.donor is None and trial.config["donor"] == ""
        assert "cut off or changed; no trial begins with it any more" in caplog.text
        event = next(e for e in driver.journal.events() if e.kind == "donor")
        assert event.trial == first.id and event.payload["checkpoint"] == f"{first.id}/epoch-0002"
        assert driver.state.lost_donors == {f"{first.id}/epoch-0002"}
        assert StudyState.of(driver.journal.events()).digest() == driver.state.digest()


def test_first_stages_behind_other_donors_are_others(story: Callable[..., Any]) -> None:
    s = story(("static", "codinet"))
    config = {"method": "codinet", "network": "resnet-8", "donor": "study", "stage2_share": 0.5}
    keys = {stage_key(s.spec, s.state, config, 1, name) for name in ("", "t0000/epoch-0009", "t0001/epoch-0009")}
    assert len(keys) == 3 and None not in keys


# -- files and registered models -------------------------------------------------------------------


def test_a_donors_file_is_copied_when_the_study_is_created(donor: Path, images: Data, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    shutil.copyfile(donor / checkpoints.NETWORK, file)
    methods = {"aig": {**BODY, "donor": str(donor)}, "skipnet": {**BODY, "donor": ["", str(file), str(donor)]}}
    spec = _spec("files", methods=methods)
    study = Study.create(spec, root=tmp_path / "studies", data=images)
    found = study.state().created["donors"]
    digest = donors.read(donor).digest
    assert found[str(donor)] == {"checkpoint": f"donors/{digest}", "digest": digest, "from": "static resnet-8, epoch 1"}
    assert found[str(file)]["digest"] == digest
    kept = donors.read(study.folder.checkpoints / "donors" / digest)
    assert kept.digest == digest and kept.words in ("a file of weights", "static resnet-8, epoch 1")
    with study.driving() as driver:
        driver.workers = 9
        driver.record("session", {"host": "here", "pid": 1, "workers": 9})
        for trial in iter(driver.ask, None):
            name = driver.orders(trial, [2])["donor"]
            assert name == (f"donors/{digest}" if trial.config.get("donor") else None) and trial.donor is None
            assert trial.config["donor"] or trial.method == "skipnet"
    assert not any(name.startswith("checkpoints/donors") for name in study.reclaimable(study.state()))


def test_a_registered_model_is_a_donor(images: Data, tmp_path: Path) -> None:
    root = tmp_path / "studies"
    static = promoting.spec("static", methods={"static": {**BODY, "lr": 0.1}}, budget={"trials": 1, "epochs": 2})
    study = Study.create(static, root=root, data=images)
    promoting.train(study, images)
    uri = default_uri(root)
    promote_study(study, point=promoting.point_of(study, "static"), model="resnet", uri=uri, data=images)
    for number, word in enumerate(("models:/resnet@champion", "resnet@champion", "models:/resnet/1")):
        spec = _spec(f"registered-{number}", data=static.data.model_dump(), methods={"aig": {**BODY, "donor": word}})
        made = Study.create(spec, root=root, data=images)
        said = made.state().created["donors"][word]
        assert said["from"] == "static resnet-8, epoch 2"
        kept = donors.read(made.folder.checkpoints / said["checkpoint"])
        name = f"t0000/epoch-{2:04d}"
        theirs = checkpoints.read_tensors(study.folder.checkpoints / name, checkpoints.NETWORK)
        assert kept.tensors.keys() == theirs.keys() and all(kept.tensors[k].equal(theirs[k]) for k in theirs)
    for word, message in {
        "models:/resnat@champion": "no registered model 'resnat'; did you mean 'resnet'",
        "resnet@best": "model 'resnet' has no alias 'best'",
        "models:/resnet": "model 'resnet': write NAME@ALIAS or NAME/VERSION",
    }.items():
        with pytest.raises(InputError, match=message) as error:
            Study.create(_spec("none", methods={"aig": {**BODY, "donor": word}}), root=root, data=images)
        assert "\n" not in str(error.value) and not (root / "none").exists()
    with pytest.raises(InputError, match=r"tracking\.uri, which is off"):
        off = _spec("none", methods={"aig": {**BODY, "donor": "resnet@champion"}}, tracking={"uri": "off"})
        Study.create(off, root=root, data=images)


def test_what_cannot_be_a_donor_is_said_before_anything_is_written(donor: Path, images: Data, tmp_path: Path) -> None:
    save_file(dict(donors.read(donor).tensors), tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:900])
    (tmp_path / "weights.pth").write_bytes(b"x")
    here = str(donor)
    for methods, message in (
        ({"aig": {**BODY, "donor": "nowhere"}}, "methods.aig: donor = 'nowhere': there is no such"),
        ({"aig": {**BODY, "donor": str(tmp_path / "cut.safetensors")}}, "no weights could be read"),
        ({"aig": {**BODY, "donor": str(tmp_path / "weights.pth")}}, "must be a checkpoint folder or a .safetensors"),
        ({"aig": {**BODY, "network": ["resnet-8", "resnet-14"], "donor": here}}, "its network is 'resnet-8' and must"),
        ({"aig": {**BODY, "width": [0.5, 1.0], "donor": ["", here]}}, "its width is 0.5 and must be 1.0"),
        ({"skipnet": {**BODY, "shortcut": "pool", "donor": here}}, "its shortcut is 'auto' and must be 'pool'"),
        ({"act": {"network": "preact-resnet-14", "width": 0.5, "donor": here}}, "its method is 'static' and must"),
        ({"aig": {**BODY, "donor": "study"}}, "no trial of this study is one; add [methods.static] with network"),
        ({"aig": {**BODY, "donor": "study"}, "static": {"network": "resnet-14"}}, "no trial of this study is one"),
        ({"act": {"donor": "study"}}, "add [methods.act] with variant = 'vanilla'"),
        ({"static": {"donor": here}}, "unknown parameter 'donor'"),
    ):
        with pytest.raises(InputError) as error:
            Study.create(_spec("bad", methods=methods), root=tmp_path / "studies", data=images)
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "studies" / "bad").exists()
    other = load_data(_spec("bad", data={"name": "digits", "image_size": 16, "limit": 64}))
    with pytest.raises(InputError, match="its size is 8 and must be 16"):
        Study.create(_spec("bad", methods={"aig": {**BODY, "donor": here}}), root=tmp_path, data=other)


def test_a_donor_of_the_study_may_be_any_of_its_static_networks() -> None:
    """Every option counts, also one that no corner of the space combines with the others that are wanted."""
    static = {**BODY, "network": ["resnet-8", "resnet-14"], "width": [0.25, 0.5, 1.0]}
    for aig in ({**BODY, "donor": "study"}, {**BODY, "network": "resnet-14", "width": 0.25, "donor": "study"}):
        assert named(_spec("wide", methods={"static": static, "aig": aig}), TASK, None) == []
    with pytest.raises(InputError, match="no trial of this study is one"):
        named(_spec("wide", methods={"static": static, "aig": {**BODY, "width": 0.75, "donor": "study"}}), TASK, None)


def test_rates_that_would_change_nothing_are_refused() -> None:
    for aig, message in (
        ({"donor": "study", "lr": 0.1}, "lr = 0.1 would"),
        ({"donor_lr": 0.1}, "donor_lr = 0.1 would"),
    ):
        with pytest.raises(InputError, match=message):
            _spec("bad", methods={"static": BODY, "aig": {**BODY, **aig}})


def test_donors_in_object_storage(donor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bucket").mkdir()
    address = f"file://{tmp_path / 'bucket'}"
    folder = StudyFolder(cache_of(address) / "far")
    found = named(_spec("far", methods={"aig": {**BODY, "donor": str(donor)}}), TASK, None)
    store(found, folder)
    assert not (folder.checkpoints / found[0].folder).exists()
    shelf = Shelf(str(folder.checkpoints), "t0000", folder.stored_checkpoints)
    shelf.bring(found[0].folder)
    assert donors.read(shelf.at(found[0].folder)).digest == found[0].donor.digest
    shelf.let_go(found[0].folder)
    assert not shelf.at(found[0].folder).exists()
    shelf.clear()


# -- on a real Ray, its driver killed ---------------------------------------------------------------


def _straight(study: Study, trial: Any, place: Path) -> list[dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    method = get_method(trial.method)
    values = {k: v for k, v in trial.config.items() if k != "method"}
    training = Training(
        method,
        method.configure(values),
        load_data(study.spec),
        epochs=study.spec.budget.epochs,
        seed=trial.seed,
        donor=place,
    )
    return [training.step() for _ in range(study.spec.budget.epochs)]


def test_a_study_begins_with_donors_through_a_killed_driver(
    ray_address: str, donor: Path, images: Data, tmp_path: Path
) -> None:
    file = tmp_path / "resnet"
    shutil.copytree(donor, file)
    methods = {"static": BODY, "aig": {**BODY, "donor": "study"}, "skipnet": {**BODY, "donor": str(file)}}
    spec = _spec("real", methods=methods, budget={"trials": 3, "epochs": 2})
    study = Study.create(spec, root=tmp_path, data=images)
    shutil.rmtree(file)  # workers read the study's own copy
    # behind the first epoch of the trial that began with a network of the study
    assert drive(tmp_path, "real", ray_address, "report", 3, "after")[0]
    assert study.state().trials["t0001"].donor == Donor("t0000", 2, "t0000/epoch-0002")
    killed, digest = drive(tmp_path, "real", ray_address, "any", 10_000, "after")
    assert not killed and faults(study, digest) == []
    state = study.state()
    first, begun, named_one = state.trials.values()
    assert begun.donor == Donor(first.id, 2, f"{first.id}/epoch-0002") and named_one.donor is None
    for trial in (begun, named_one):
        place = study.folder.checkpoints / state.donor_of(trial)
        straight = _straight(study, trial, place)
        assert [trial.losses[epoch] for epoch in (1, 2)] == [report["losses"] for report in straight]
        told = [event["says"] for event in trial_story(study, trial.id)["events"] if event["kind"] == "report"]
        assert f"began as static resnet-8, epoch {2 if trial is begun else 1}: 44 tensors" in told[0]
        assert trial.cost_epochs == 2.0
    last = study.folder.checkpoints / begun.id / "epoch-0002" / checkpoints.STATE
    if last.exists():
        assert json.loads(last.read_text())["donor"]["from"] == "static resnet-8, epoch 2"
