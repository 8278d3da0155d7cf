"""Configurations that earlier code wrote down: defaults of today do not enter them, fields come and go."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spaces.recorded import space_from
from trainables import checkpoints, registry
from trainables.checkpoints import CheckpointError
from trainables.contracts import earlier
from trainables.contracts.earlier import completed, defaults_of, implied, unrecorded
from trainables.contracts.method import Method, config_dict
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.methods import decide, multipath
from trainables.registry import METHODS, get_method
from trainables.serving import load_network
from trainables.training.training import Training

OLD = Path(__file__).parents[2] / "fixtures" / "study-7022e79" / "old" / "checkpoints" / "t0002" / "epoch-0002"

THEN = [name for name in METHODS if name not in ("exits", "blocks")]
"""The methods that were there at 7022e79."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Newer(multipath.Config):
    """As later code may have it: another default, a new field whose default is not what there was."""

    warmup: float = 0.25
    inner: str = "new"
    outer: int = 3


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> Method:
    """The method `multipath` with that `Config`; a table says what its field `inner` used to be."""
    method = dataclasses.replace(get_method("multipath"), Config=Newer)
    monkeypatch.setitem(registry.all_methods(), "multipath", method)
    contents = {**earlier._contents(), "implied": {"*": {"outer": 1, "nowhere": 2}, "multipath": {"inner": "old"}}}
    monkeypatch.setattr(earlier, "_contents", lambda: contents)
    return method


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", root=default_root(), image_size=16, limit=200)


@pytest.mark.parametrize("name", THEN)
def test_what_old_studies_did_not_record_is_known_of_every_method(name: str) -> None:
    method, found = METHODS[name], unrecorded(name)
    assert found is not None
    config = config_dict(method.configure(completed(method, found["defaults"])))
    for values in map(space_from(found["space"]).sample, map(random.Random, range(5))):
        made = config_dict(method.configure(completed(method, {**found["defaults"], **values})))
        assert {key: made[key] for key in values} == json.loads(json.dumps(values)) and made.keys() == config.keys()
    assert unrecorded("someone's plug-in") is None


@pytest.mark.parametrize("name", THEN)
def test_an_old_configuration_says_every_field_of_today(name: str) -> None:
    """Who adds a field to a `Config` says in earlier.json what it meant that there was none."""
    found = unrecorded(name)
    assert found is not None
    known = {**implied(name), **found["defaults"]}
    assert {each.name for each in dataclasses.fields(METHODS[name].Config)} - known.keys() == set()
    config = config_dict(METHODS[name].configure(completed(METHODS[name], found["defaults"])))
    said = [key for key in config if known[key] not in (None, "", "auto", 0)]  # those may be worked out from others
    assert {key: config[key] for key in said} == {key: known[key] for key in said}


def test_today_an_old_configuration_means_what_it_meant() -> None:
    """What was written down was kept, and what was not is what 7022e79 did."""

    def then(name: str, **values: Any) -> dict[str, Any]:
        found = unrecorded(name)
        assert found is not None
        return config_dict(METHODS[name].configure(completed(METHODS[name], {**found["defaults"], **values})))

    for name in THEN:
        config = then(name)
        assert config["schedule"] == ("exponential" if name == "decide" else "step")
        assert config["warmup"] == (0.05 if name in ("multipath", "ensemble", "decide") else 0.0)
        assert (config["decayed"], config["label_smoothing"], config["warmup_lr"]) == ("all", 0.0, 0.0)
        assert (config["normalise"], config["crop"], config["precision"]) == ("data", -1, "float32")
        assert config.get("donor", "") == ""
    assert then("act")["inner_slope"] == then("sact")["inner_slope"] == 0.1
    made = METHODS["decide"].configure(then("decide"))
    for steps in (10, 80_000):
        assert decide.lr_half_life(made).share(steps) == decide.tau_half_life(made).share(steps) == 1 / 8


def test_what_is_implied_names_fields_that_there_are() -> None:
    """A misspelt entry would silently mean nothing."""
    for name, table in earlier._contents()["implied"].items():
        methods = METHODS.values() if name == "*" else [METHODS[name]]
        known = {each.name for method in methods for each in dataclasses.fields(method.Config)}
        assert table.keys() <= known, name
        for method in methods:
            method.configure(completed(method, {}))


def test_a_missing_field_has_what_it_implies_and_a_lost_one_is_left_out(newer: Method) -> None:
    values = {**defaults_of(get_method("multipath")), "gone": 7}
    del values["inner"], values["outer"]
    config = newer.configure(completed(newer, {**values, "warmup": 0.05, "lr_decay_at": [0.5]}))
    assert (config.inner, config.outer, config.warmup, config.lr_decay_at) == ("old", 1, 0.05, (0.5,))
    assert newer.configure(completed(newer, {"inner": "new", "outer": 2})).inner == "new"
    assert implied("multipath")["inner"] == "old" and "inner" not in implied("static")
    static = METHODS["static"]
    assert completed(static, {"width": 0.5}) == {"width": 0.5}  # it has none of these fields: its defaults stand


def test_a_checkpoint_of_earlier_code_is_the_network_that_it_was(newer: Method) -> None:
    _, network, record = load_network(OLD)
    assert "inner" not in record["config"] and record["config"]["warmup"] == 0.05
    assert (network.config.inner, network.config.outer, network.config.warmup) == ("old", 1, 0.05)


def test_a_trial_goes_on_from_a_checkpoint_of_earlier_code(newer: Method, digits: Data, tmp_path: Path) -> None:
    record = checkpoints.read_record(OLD)
    words: dict[str, Any] = {"epochs": record["epochs"], "seed": record["seed"], "evaluate_at": [2]}
    config = newer.configure(completed(newer, record["config"]))
    training = Training(newer, config, digits, **words)
    training.restore(OLD)
    assert training.epoch == 2 and training.last_report == record["report"]
    training.step()
    training.save(tmp_path / "epoch-0003")
    again = Training(newer, config, digits, **words)
    again.restore(tmp_path / "epoch-0003")
    assert again.epoch == 3 and checkpoints.read_record(tmp_path / "epoch-0003")["config"]["inner"] == "old"
    others = (
        ({"warmup": 0.25}, "warmup = 0.05, expected 0.25"),
        ({"inner": "new"}, "inner = 'old', expected 'new'"),
        ({"outer": 3}, "outer = 1, expected 3"),
        ({"lr": 0.2}, "lr = "),
    )
    for changes, says in others:
        other = Training(newer, dataclasses.replace(config, **changes), digits, **words)
        with pytest.raises(CheckpointError, match=f"is of another trial: its config has {says}"):
            other.restore(OLD)


def test_a_field_that_no_longer_exists_makes_no_other_trial(digits: Data, tmp_path: Path) -> None:
    folder = tmp_path / OLD.name
    shutil.copytree(OLD, folder)
    record = json.loads((folder / checkpoints.STATE).read_text())
    record["config"]["gone"] = [1, 2]
    (folder / checkpoints.STATE).write_text(json.dumps(record))
    method, network, _ = load_network(folder)
    training = Training(method, network.config, digits, epochs=record["epochs"], seed=record["seed"])
    training.restore(folder)
    assert training.epoch == 2
    for config in ("none", None, {**record["config"], "width": [1] * 99}):
        (folder / checkpoints.STATE).write_text(json.dumps({**record, "config": config}))
        with pytest.raises(CheckpointError, match="is of another trial: its config") as caught:
            training.restore(folder)
        assert len(str(caught.value)) < len(str(folder)) + 200
