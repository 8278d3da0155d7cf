"""The gates of a promotion: what each refuses, what cannot be evaluated, and that hostile checkpoints stay outside."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from search.errors import InputError, RunError
from search.promotion.choice import Budget, family, find
from search.promotion.gates import Champion, beats, both_passes, latency, seeds
from search.promotion.history import history
from search.promotion.promotion import promote_family, promote_study
from search.study import Study
from search.tracking.server import default_uri
from tests.support.promoting import METHODS, client, point_of
from trainables.checkpoints import NETWORK, STATE
from trainables.contracts.network import RoutedNetwork, Task
from trainables.data.splits import Data
from trainables.registry import get_method


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def gate(record: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [gate for gate in record["gates"] if gate["name"] == name]
    return found


# -- what the record keeps -------------------------------------------------------------------------


def test_a_dry_run_shows_every_gate_and_writes_nothing(tiny: Study, registry: str, digits_small: Data) -> None:
    before, artifacts = tree(tiny.folder.path), tree(tiny.folder.path.parent / "mlflow-artifacts")
    plan = promote_study(tiny, model="digits", uri=registry, data=digits_small, method="skipnet", dry_run=True)
    assert not plan["promoted"] and plan["why"] == "" and plan["version"] is None
    names = ["checkpoint", "validation", "macs", "forward", "latency", "seeds", "champion", "test"]
    assert [gate["name"] for gate in plan["gates"]] == names
    opened = {gate["name"]: gate["says"] for gate in plan["gates"] if gate["passed"] is None}
    assert opened["champion"] == "no champion yet" and "one seed only" in opened["seeds"] and "once" in opened["test"]
    after = tree(tiny.folder.path)
    assert {n: d for n, d in after.items() if "control.db" not in n} == {
        n: d for n, d in before.items() if "control.db" not in n
    }
    assert len(list(tiny.journal().events())) == tiny.state().seq and tiny.state().promotions == []
    assert tree(tiny.folder.path.parent / "mlflow-artifacts") == artifacts
    assert client(registry).search_registered_models() == []
    nowhere = default_uri(tiny.folder.path.parent / "points")
    assert promote_study(tiny, model="d", uri=nowhere, data=digits_small, dry_run=True)["why"] == ""
    assert not (tiny.folder.path.parent / "points").exists()


def test_evidence_stands_in_the_journal_and_in_the_tags(tiny: Study, registry: str, digits_small: Data) -> None:
    record = promote_study(tiny, model="digits", uri=registry, data=digits_small, method="skipnet", max_macs=1e9)
    (line,) = tiny.state().promotions
    digest = gate(line, "checkpoint")["evidence"]["sha256"]
    point = find(tiny.state(), line["point_id"])
    assert json.loads((tiny.folder.checkpoints / point.checkpoint / STATE).read_text())["files"][NETWORK] == digest
    counted = gate(line, "macs")["evidence"]
    assert counted["counted"] == counted["charged"] > 0
    assert gate(line, "forward")["evidence"]["difference"] < 1e-5
    timed = gate(line, "latency")["evidence"]
    assert 0 < timed["batch_64_ms"] and 0 < timed["batch_1_ms"] and timed["threads"] >= 1
    assert gate(line, "test")["evidence"] == line["test"]
    found = client(registry).get_model_version("digits", "1")
    assert found.tags["checkpoint_sha256"] == digest and len(found.tags["model_sha256"]) == 64
    (entry,) = history("digits", registry)
    said = entry["promotions"]["champion"]
    assert said["id"] == record["id"] and said["budget"] == {"max_macs": 1e9, "min_accuracy": None}
    assert [g["name"] for g in said["gates"]] == [g["name"] for g in line["gates"]]
    assert [(m["alias"], m["version"], m["why"], m["id"]) for m in entry["moves"]] == [
        ("champion", "1", "promote", record["id"])
    ]


# -- single gates ----------------------------------------------------------------------------------


def networks() -> RoutedNetwork:
    method = get_method("skipnet")
    return method.build(method.configure(METHODS["skipnet"]), Task(classes=10, size=8, channels=1)).eval()


def test_work_that_is_not_charged_and_passes_that_differ_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = networks(), torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert [gate.passed for gate in both_passes(network, images, {"threshold": 0.5})] == [True, True]
    infer = network.infer

    def dishonest(*args: Any, **kwargs: Any) -> Any:
        result = infer(*args, **kwargs)
        result.macs, result.logits = result.macs * 0.9, result.logits + 0.01
        return result

    monkeypatch.setattr(network, "infer", dishonest)
    macs, forward = both_passes(network, images, {"threshold": 0.5})
    assert macs.passed is False and "charged" in macs.says
    assert forward.passed is False and forward.evidence["difference"] > 1e-5


def test_latency_fails_only_at_a_limit() -> None:
    network, images = networks(), torch.randn(8, 1, 8, 8)
    assert latency(network, images, {"threshold": 0.5}, None).passed
    assert latency(network, images, {"threshold": 0.5}, 60.0).passed
    slow = latency(network, images, {"threshold": 0.5}, 1e-9)
    assert slow.passed is False and slow.evidence["limit_ms"] == pytest.approx(1e-6)


def test_a_seed_that_its_repeats_do_not_reach_is_luck(story: type) -> None:
    told = story()
    for number, accuracy in enumerate((0.95, 0.80, 0.81, 0.79)):
        name = told.ask(number)
        told.report(name, 9, [(accuracy - 0.1, 1e6), (accuracy, 2e6)])
    other = told.ask(4, lr=0.2)
    told.report(other, 9, [(0.1, 1e6), (0.2, 2e6)])
    state = told.state
    lucky = seeds(state, find(state, "t0000-9-1"), 360)
    assert lucky.passed is False and lucky.evidence["seeds"] == 4 and lucky.evidence["deviations"] > 3
    assert sorted(lucky.evidence["accuracies"]) == [0.79, 0.80, 0.81, 0.95]
    assert seeds(state, find(state, "t0001-9-1"), 360).passed
    assert seeds(state, find(state, "t0004-9-1"), 360).passed is None


def version(accuracy: float, macs: float, **tags: Any) -> dict[str, str]:
    values = {"study_id": "s", "point_id": f"{accuracy}-{macs}", "data_hash": "d", "knobs": "{}", "calibrated_on": ""}
    return {**values, "validation_accuracy": str(accuracy), "macs": str(macs), **tags}


@pytest.mark.parametrize(
    ("old", "new", "asked", "passed", "says"),
    [
        (version(0.9, 5e6), version(0.91, 9e6), Budget(), True, "91.0 % at 9M MACs against 90.0 % at 5M of version 7"),
        (version(0.9, 5e6), version(0.9, 4e6), Budget(1e7), True, "against"),
        (version(0.9, 5e6), version(0.9, 5e6, point_id="x"), Budget(1e7), False, "not better"),
        (version(0.9, 5e6), version(0.89, 1e6), Budget(1e7), False, "not better"),
        (version(0.9, 5e6), version(0.8, 1e6), Budget(2e6), True, "outside at most 2M MACs"),
        (version(0.9, 5e6), version(0.9, 4e6), Budget(None, 0.85), True, "against"),
        (version(0.9, 5e6), version(0.95, 6e6), Budget(None, 0.85), False, "not cheaper"),
        (version(0.8, 5e6), version(0.95, 6e6), Budget(None, 0.85), True, "outside at least 85.0 %"),
        (version(0.9, 5e6), version(0.99, 1e6, data_hash="e"), Budget(), False, "measured on other images"),
        (version(0.9, 5e6), version(0.99, 1e6, calibrated_on="e"), Budget(), False, "calibrated on other images"),
        (version(0.9, 5e6), version(0.9, 5e6), Budget(), True, "is the champion already"),
        ({"by": "hand"}, version(0.9, 5e6), Budget(), False, "was not promoted by routefront"),
    ],
)
def test_a_champion_is_beaten_at_its_budget(old: Any, new: Any, asked: Budget, passed: bool, says: str) -> None:
    found = beats(Champion("7", "champion", old), new, asked)
    assert found.passed is passed and says in found.says


def test_a_champion_keeps_the_budget_that_it_was_promoted_for() -> None:
    said = json.dumps({"budget": {"max_macs": 5e6, "min_accuracy": None}})
    champion = Champion("7", "champion", {**version(0.9, 4e6), "routefront.promotion.champion": said})
    assert beats(champion, version(0.95, 6e6), Budget()).passed is False
    assert "promoted for at most 5M MACs" in beats(champion, version(0.95, 6e6), Budget()).says
    assert beats(champion, version(0.95, 4.5e6), Budget()).passed
    assert beats(None, version(0.1, 1), Budget()).passed is None


# -- families --------------------------------------------------------------------------------------


def test_a_family_has_an_alias_a_budget_and_a_version_a_point(tiny: Study, registry: str, digits_small: Data) -> None:
    points = tiny.frontier()
    cheap, dear = points[0].macs, points[-1].macs
    assert cheap < dear
    budgets = [dear * 2, cheap, dear * 3]
    plan = promote_family(tiny, model="digits", uri=registry, budgets=budgets, data=digits_small, dry_run=True)
    made = promote_family(tiny, model="digits", uri=registry, budgets=budgets, data=digits_small)
    names = list(family("champion", budgets))
    assert [r["alias"] for r in made] == [r["alias"] for r in plan] == names and len(set(names)) == 3
    assert all(record["promoted"] and not record["why"] for record in made)
    assert [record["point_id"] for record in made] == [points[0].point_id, *[points[-1].point_id] * 2]
    assert [record["version"] for record in made] == ["1", "2", "2"]
    aliases = client(registry).get_registered_model("digits").aliases
    assert {name: str(v) for name, v in aliases.items()} == dict(zip(names, ["1", "2", "2"], strict=True))
    assert [line["alias"] for line in tiny.state().promotions] == names
    again = promote_family(tiny, model="digits", uri=registry, budgets=budgets, data=digits_small)
    assert [record["version"] for record in again] == ["1", "2", "2"]
    assert len(tiny.state().promotions) == 3 and tiny.state().half_promoted() == []
    with pytest.raises(InputError, match=r"the cheapest costs"):
        promote_family(tiny, model="other", uri=registry, budgets=[cheap / 2, dear], data=digits_small)
    assert [m.name for m in client(registry).search_registered_models()] == ["digits"]


def test_budgets_are_spelt_as_aliases_can_be() -> None:
    assert list(family("champion", ["20M", "5M", "10M", "5000000"])) == ["champion-5M", "champion-10M", "champion-20M"]
    assert list(family("c", ["2.5M", "1.5G", 1234567])) == ["c-1234567", "c-2500k", "c-1500M"]
    for wrong in ([], ["0"], ["5M", "much"]):
        with pytest.raises(InputError, match=r"write|not a number"):
            family("champion", wrong)


def test_an_alias_whose_gates_fail_stays(tiny: Study, registry: str, digits_small: Data) -> None:
    promote_study(tiny, model="digits", uri=registry, data=digits_small)
    worse = tiny.frontier()[0].point_id
    for words, says in (({"max_latency": 1e-9}, "gate latency"), ({}, "gate champion: .*: not better")):
        plan = promote_study(tiny, model="digits", uri=registry, data=digits_small, point=worse, dry_run=True, **words)
        with pytest.raises(RunError, match=rf"point {worse} is not promoted: {says}") as caught:
            promote_study(tiny, model="digits", uri=registry, data=digits_small, point=worse, **words)
        assert "\n" not in str(caught.value) and plan["why"] and not plan["promoted"]
    assert len(tiny.state().promotions) == 1 and tiny.state().half_promoted() == []
    assert [v.version for v in client(registry).search_model_versions("name='digits'")] == [1]


# -- hostile checkpoints ---------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def forged(folder: Path, **changes: Any) -> None:
    """`state.json` with changes and the true digests, as somebody would write it who knows the format."""
    import hashlib

    record = json.loads((folder / STATE).read_text())
    record["files"] = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
    (folder / STATE).write_text(json.dumps({**record, **changes}))


def test_hostile_checkpoints_are_one_line_and_nothing_else(
    tiny: Study, registry: str, digits_small: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    point = find(tiny.state(), point_of(tiny, "skipnet", 0))
    path = tiny.folder.checkpoints / point.checkpoint
    whole = tmp_path / "whole"
    shutil.copytree(path, whole)

    def pickled() -> None:
        (path / NETWORK).write_bytes(pickle.dumps(Bomb()))
        forged(path)

    def torch_pickled() -> None:
        torch.save({"bomb": Bomb()}, path / NETWORK)
        forged(path)

    def enormous() -> None:
        with (path / NETWORK).open("wb") as file:
            file.truncate(1 << 40)  # a terabyte that takes no room

    def header() -> None:  # promises tensors that are not there
        said = b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        (path / NETWORK).write_bytes(len(said).to_bytes(8, "little") + said)
        forged(path)

    def wide() -> None:  # would be built before its weights are read
        config = json.loads((path / STATE).read_text())["config"]
        forged(path, config={**config, "width": 1e9})

    def task() -> None:
        forged(path, task={"classes": 10, "size": 10**9, "channels": 1})

    def method() -> None:
        forged(path, method="imta")

    def nested() -> None:
        (path / STATE).write_text("[" * 100_000)

    def climbing() -> None:
        forged(path)
        record = json.loads((path / STATE).read_text())
        (path / STATE).write_text(json.dumps({**record, "files": {"../../../study.toml": "0" * 64, **record["files"]}}))

    def without_digest() -> None:
        record = json.loads((path / STATE).read_text())
        (path / STATE).write_text(json.dumps({**record, "files": {}}))

    def linked() -> None:  # the folder itself leads elsewhere
        shutil.rmtree(path)
        path.symlink_to(whole)

    for attack, says in (
        (pickled, "safetensors"), (torch_pickled, "safetensors"), (enormous, "1.1T bytes"), (header, "safetensors"),
        (wide, "another one: its config"), (task, "another one: its task"), (method, "another one: its method"),
        (nested, "not whole JSON"), (climbing, "leads out of its folder"), (without_digest, "no digest"),
        (linked, "leads out of"),
    ):  # fmt: skip
        attack()
        with pytest.raises(InputError, match=says) as caught:
            promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point.point_id)
        assert "\n" not in str(caught.value), attack
        path.unlink() if path.is_symlink() else shutil.rmtree(path)
        shutil.copytree(whole, path)
    assert not (tmp_path / "exploded").exists()
    assert client(registry).search_registered_models() == [] and tiny.state().promoting == {}
    assert promote_study(tiny, model="digits", uri=registry, data=digits_small, point=point.point_id)["promoted"]
    with tiny.driving() as driver:
        trial = driver.state.trials[point.trial]
        payload = {"epoch": 50, "phase": "train", "comparable": True, "losses": {}, "cost_epochs": 50.0, "seconds": 1.0}
        payload |= {"curve": {"points": trial.curves[trial.epoch]}, "checkpoint": "../../../etc"}
        payload |= {"macs_full": trial.macs_full, "params": trial.params}
        with pytest.raises(InputError, match="the journal is damaged"):
            driver.record("report", payload, trial.id)
    with pytest.raises(InputError, match=r"the journal is damaged: event \d+ says checkpoint = '\.\./\.\./\.\./etc'"):
        promote_study(tiny, model="digits", uri=registry, data=digits_small, point=f"{point.trial}-50-0")
