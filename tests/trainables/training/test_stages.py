from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from spaces.space import Fixed
from trainables import checkpoints
from trainables.checkpoints import CheckpointError
from trainables.contracts.method import config_dict
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.registry import all_methods, get_method
from trainables.training import stages
from trainables.training.training import Training
from trainables.worker.shelf import Shelf, own_folder

EPOCHS = 4
SMALL = {"network": "resnet-8", "width": 0.25, "batch_size": 32, "views": 2, "stage2_share": 0.5}


@pytest.fixture(scope="module")
def digits() -> Data:
    torch.set_num_threads(1)
    return load("digits", root=default_root(), image_size=8, limit=64)


def _training(data: Data, *, method: str = "codinet", seed: int = 3, **values: Any) -> Training:
    found = get_method(method)
    config = found.configure({**(SMALL if method == "codinet" else {}), **values})
    return Training(found, config, data, epochs=EPOCHS, seed=seed, evaluate_at=[1, 3])


@pytest.fixture(scope="module")
def stored(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder of stages with the one of stage2_lr = 0.01 in it, and its key."""
    root = tmp_path_factory.mktemp("stages")
    training = _training(digits, stage2_lr=0.01)
    while not stages.ends(training):
        training.step()
    return root, stages.publish(training, root, "t0000")


def _key(seed: int = 3, epochs: int = EPOCHS, data_hash: str = "d", device: str = "cpu", **values: Any) -> str | None:
    method = get_method("codinet")
    config = method.configure({**SMALL, **values})
    return stages.key(method, config, epochs=epochs, seed=seed, data_hash=data_hash, device=device)


def _told(report: dict[str, Any]) -> dict[str, Any]:
    """A report without what may differ: durations and what the trial itself paid."""
    clean = {k: v for k, v in report.items() if k not in ("seconds", "cost_epochs")}
    if "curve" in clean:
        clean["curve"] = {k: v for k, v in clean["curve"].items() if k != "seconds"}
    return clean


def test_going_on_behind_a_stage_is_bit_equal_to_training_it_oneself(digits: Data, stored: tuple[Path, str]) -> None:
    root, key = stored
    straight = _training(digits, stage2_lr=0.03)
    reports = [straight.step() for _ in range(EPOCHS)]
    shared = _training(digits, stage2_lr=0.03)
    stages.restore(shared, root / key)
    assert (shared.epoch, shared.cost_epochs, shared.seconds, shared.last_report) == (2, 0.0, 0.0, None)
    rest = [shared.step() for _ in range(EPOCHS - 2)]
    assert [_told(r) for r in rest] == [_told(r) for r in reports[2:]]
    assert [r["cost_epochs"] for r in rest] == [2.0, 4.0]  # two views an epoch, its own epochs only
    for a, b in zip(straight.network.state_dict().values(), shared.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(straight.generator.get_state(), shared.generator.get_state())
    other = _training(digits, stage2_lr=0.01)
    stages.restore(other, root / key)
    assert _told(other.step()) != _told(rest[0])  # the second stage is the trial's own


def _with_stages() -> Iterator[tuple[str, str]]:
    """(method, variant) of everything registered that has a second stage with parameters of its own."""
    for name, method in all_methods().items():
        for variant in method.variants:
            config = _tiny(name, variant)
            if stages.last_epoch(method, config, EPOCHS) is not None and _later(name, config):
                yield name, variant


def _tiny(name: str, variant: str, **values: Any) -> Any:
    method = get_method(name)
    small = {"network": "resnet-8", "width": 0.25, "batch_size": 32, "views": 2}
    fields = {field.name for field in dataclasses.fields(method.Config)}
    known = {k: v for k, v in small.items() if k in fields and (k != "network" or v in method.networks)}
    return method.configure({**known, **({"variant": variant} if variant else {}), **values})


def _later(name: str, config: Any) -> list[str]:
    space, values = get_method(name).space, config_dict(config)
    return [n for n in space.active(values) if space[n].stage > 1 and not isinstance(space[n], Fixed)]


@pytest.mark.parametrize(("name", "variant"), list(_with_stages()))
def test_every_method_with_stages_can_share_its_first(name: str, variant: str, digits: Data, tmp_path: Path) -> None:
    method, rng = get_method(name), random.Random(1)
    drawn = [{n: method.space[n].sample(rng) for n in _later(name, _tiny(name, variant))} for _ in range(2)]
    one, other = (Training(method, _tiny(name, variant, **values), digits, epochs=EPOCHS, seed=5) for values in drawn)
    while not stages.ends(one):
        one.step()
    key = stages.publish(one, tmp_path, "t0000")
    straight = [other.step() for _ in range(EPOCHS)]
    shared = Training(method, other.config, digits, epochs=EPOCHS, seed=5)
    stages.restore(shared, tmp_path / key)
    rest = [shared.step() for _ in range(EPOCHS - shared.epoch)]
    assert rest and [_told(r) for r in rest] == [_told(r) for r in straight[-len(rest) :]]


def test_the_stage_does_not_depend_on_when_curves_are_made(digits: Data, stored: tuple[Path, str]) -> None:
    root, key = stored
    quiet = _training(digits, stage2_lr=0.01)
    quiet.evaluate_at = {EPOCHS}
    for _ in range(2):
        quiet.step()
    loud = _training(digits, stage2_lr=0.01)
    stages.restore(loud, root / key)
    for a, b in zip(quiet.network.state_dict().values(), loud.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(quiet.generator.get_state(), loud.generator.get_state())


def test_a_key_is_of_everything_that_shapes_the_first_stage() -> None:
    keys = [
        _key(),
        _key(seed=4),
        _key(epochs=6),
        _key(data_hash="e"),
        _key(device="cuda"),
        _key(lr=0.05),
        _key(variant="vanilla"),
        _key(stage2_share=0.25),
        _key(stage2_losses=True),  # no space says that it is of a later stage
        _key(margin_diversity=0.6),
    ]
    assert len(set(keys)) == len(keys) and None not in keys
    assert _key(stage2_lr=0.001) == _key() == _key(network="resnet-8")
    assert _key(stage2_share=0.0) is None and _key(epochs=1) is None
    static = get_method("static")
    assert stages.key(static, static.configure({}), epochs=9, seed=0, data_hash="d") is None


def test_the_code_is_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _key()
    monkeypatch.setattr(stages, "code_version", lambda: "0.1.0+000000000000")
    assert _key() != before


@pytest.mark.parametrize("name", sorted(all_methods()))
def test_parameters_of_later_stages_leave_the_first_phase_alone(name: str) -> None:
    method, rng = get_method(name), random.Random(0)
    later = [n for n, p in method.space.parameters.items() if p.stage > 1 and not isinstance(p, Fixed)]
    for _ in range(20 if later else 0):
        values = {n: v for n, v in method.space.sample(rng).items()}
        other = {**values, **{n: method.space[n].sample(rng) for n in later if n in values}}
        a, b = (method.configure(v) for v in (values, other))
        assert method.phases(a)[0] == method.phases(b)[0]
        assert method.views(a) == method.views(b)
        assert stages.last_epoch(method, a, 12) == stages.last_epoch(method, b, 12)
        keys = {stages.key(method, c, epochs=12, seed=0, data_hash="d") for c in (a, b)}
        assert len(keys) == 1


def test_a_damaged_stage_is_refused_and_replaced(digits: Data, stored: tuple[Path, str], tmp_path: Path) -> None:
    root, key = stored
    source = root / key
    whole = {path.name: path.read_bytes() for path in source.iterdir()}
    cut = {**whole, checkpoints.NETWORK: whole[checkpoints.NETWORK][:-7]}
    changed = {**whole, checkpoints.TRAINING: whole[checkpoints.TRAINING][:-1] + b"\x55"}
    torn = {**whole, checkpoints.STATE: whole[checkpoints.STATE][:50]}
    gone = {name: data for name, data in whole.items() if name != checkpoints.NETWORK}
    again = _training(digits, stage2_lr=0.02)
    while not stages.ends(again):
        again.step()
    for number, (files, words) in enumerate(
        [(cut, "cut off"), (changed, "changed"), (torn, "not whole JSON"), (gone, "missing"), ({}, "no checkpoint")]
    ):
        folder = tmp_path / str(number) / key
        folder.mkdir(parents=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=words):
            stages.restore(_training(digits), folder)
        assert stages.publish(again, folder.parent, "t0001") == key
        assert stages.check(folder)["trial"] == "t0001"
        assert [path.name for path in folder.parent.iterdir()] == [key]  # nothing half-written stays
        stages.restore(_training(digits), folder)
    before = source.stat().st_mtime_ns
    stages.publish(again, root, "t0001")
    assert source.stat().st_mtime_ns == before and stages.check(source)["trial"] == "t0000"


def test_a_stage_of_another_trial_is_refused(digits: Data, stored: tuple[Path, str], tmp_path: Path) -> None:
    root, key = stored
    for other in (_training(digits, seed=4), _training(digits, lr=0.02)):
        with pytest.raises(CheckpointError, match="other code or for another trial"):
            stages.restore(other, root / key)
    renamed = tmp_path / ("0" * 64)
    renamed.mkdir()
    for path in (root / key).iterdir():
        (renamed / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match="says that it is stage"):
        stages.restore(_training(digits), renamed)


def test_two_that_store_one_stage_at_once_leave_one_whole_stage(stored: tuple[Path, str], tmp_path: Path) -> None:
    root, key = stored
    copies = []
    for number in range(3):
        copies.append(tmp_path / f".{key}.{number}")
        copies[-1].mkdir()
        for path in (root / key).iterdir():
            (copies[-1] / path.name).write_bytes(path.read_bytes())
    for copy in copies:  # all were written before any was put in place
        stages._place(copy, tmp_path / key)
    assert [path.name for path in tmp_path.iterdir()] == [key] and stages.check(tmp_path / key)["stage"] == key


def test_only_the_last_epoch_of_a_first_stage_is_stored(digits: Data, tmp_path: Path) -> None:
    training = _training(digits)
    ends = []
    for _ in range(EPOCHS):
        training.step()
        ends.append(stages.ends(training))
        if not ends[-1]:
            with pytest.raises(RuntimeError, match="does not end the first of several stages"):
                stages.publish(training, tmp_path, "t0000")
    assert ends == [False, True, False, False] and not list(tmp_path.iterdir())


def test_a_stage_in_a_storage_is_shared_by_workers_of_different_machines(digits: Data, tmp_path: Path) -> None:
    first, second = (Shelf("/nowhere", trial, tmp_path.as_uri()) for trial in ("t0000", "t0001"))
    training = _training(digits, stage2_lr=0.01)
    while not stages.ends(training):
        training.step()
    key = first.publish(training)
    assert stages.check(tmp_path / "stages" / key)["trial"] == "t0000"
    assert not list(own_folder().glob("**/*.safetensors"))
    other = _training(digits, stage2_lr=0.03)
    second.behind(other, key)
    assert other.epoch == 2 and _told(other.step()) != {}
    (tmp_path / "stages" / key / "network.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match=r"network.safetensors was cut off or changed"):
        second.behind(_training(digits), key)
    with pytest.raises(CheckpointError, match="is missing"):
        second.behind(_training(digits), "0" * 64)
