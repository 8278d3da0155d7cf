from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trainables import checkpoints
from trainables.checkpoints import CheckpointError
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Optimiser, Phase, plan
from trainables.data.datasets import default_root, load
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.serving import load_network
from trainables.training.partial import Interrupted
from trainables.training.precision import computes_bfloat16
from trainables.training.training import Training, fit

CONFIGS: dict[str, dict[str, Any]] = {
    "static": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
    "skipnet": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
    "codinet": {"network": "resnet-8", "width": 0.25, "batch_size": 64, "views": 2, "stage2_share": 0.34},
    "aig": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
    "sdv": {"network": "resnet-8", "width": 0.25, "batch_size": 64},
    "blockdrop": {"network": "resnet-8", "width": 0.25, "policy_width": 0.25, "batch_size": 64},
    "imta": {"network": "msdnet-2", "width": 0.25, "batch_size": 64},
    "decide": {"network": "pyramid-3", "width": 0.25, "batch_size": 64, "dynamic_k_cpt": True},
    "sact": {"network": "preact-resnet-14", "width": 0.25, "batch_size": 64},
}


@pytest.fixture(scope="module")
def digits() -> Data:
    torch.set_num_threads(1)
    return load("digits", root=default_root(), image_size=8, limit=160)


def _training(name: str, data: Data, epochs: int = 3, **changes: Any) -> Training:
    method = get_method(name)
    return Training(
        method, method.configure({**CONFIGS[name], **changes}), data, epochs=epochs, evaluate_at=[1], seed=3
    )


def _without_seconds(report: dict[str, Any]) -> dict[str, Any]:
    clean = {k: v for k, v in report.items() if k != "seconds"}
    if "curve" in clean:
        clean["curve"] = {k: v for k, v in clean["curve"].items() if k != "seconds"}
    return clean


@pytest.mark.parametrize("name", CONFIGS)
def test_a_restored_training_goes_on_as_if_nothing_had_happened(name: str, digits: Data, tmp_path: Path) -> None:
    straight = _training(name, digits)
    reports = [straight.step() for _ in range(3)]
    for cut in (1, 2):  # codinet's second phase begins after epoch 2, every epoch of blockdrop is a phase
        first = _training(name, digits)
        for _ in range(cut):
            first.step()
        first.save(tmp_path / f"epoch-{cut:04d}")
        second = _training(name, digits)
        second.restore(tmp_path / f"epoch-{cut:04d}")
        assert second.last_report == json.loads(json.dumps(first.last_report))
        rest = [second.step() for _ in range(3 - cut)]
        assert [_without_seconds(r) for r in rest] == [_without_seconds(r) for r in reports[cut:]]
    _same(straight, second)


def _same(one: Training, other: Training) -> None:
    for a, b in zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", [*CONFIGS, "imta, cached"])
def test_an_epoch_that_is_interrupted_ends_as_if_it_had_not_been(name: str, digits: Data, tmp_path: Path) -> None:
    name, cached = name.partition(",")[::2]
    changes = {"cached_views": 2} if cached else {}
    straight = _training(name, digits, **changes)
    reports = [straight.step() for _ in range(3)]
    for cut in (0, 2):
        first, asked = _training(name, digits, **changes), itertools.count(1)
        for _ in range(cut):
            first.step()
        first.leaving = lambda asked=asked: next(asked) == 2
        with pytest.raises(Interrupted, match=rf"^2 of . steps of epoch {cut + 1} are done"):
            first.step()
        assert first.epoch == cut
        folder = checkpoints.partial_folder(tmp_path, cut, 2)
        first.save(folder)
        assert checkpoints.newest(tmp_path) == folder
        second = _training(name, digits, **changes)
        second.restore(folder)
        rest = [second.step() for _ in range(3 - cut)]
        assert [_without_seconds(r) for r in rest] == [_without_seconds(r) for r in reports[cut:]]
        _same(straight, second)


@pytest.mark.parametrize("name", CONFIGS)
def test_reports_carry_curves_where_they_are_asked_for(name: str, digits: Data) -> None:
    reports: list[dict[str, Any]] = []
    training = fit(
        get_method(name),
        get_method(name).configure(CONFIGS[name]),
        digits,
        reports.append,
        epochs=3,
        evaluate_at=[2],
    )
    assert ["curve" in r for r in reports] == [False, True, True]
    points = reports[-1]["curve"]["points"]
    assert len(points) >= (1 if name == "static" else 9)
    for point in points:
        assert 0 <= point["accuracy"] <= 1 and point["count"] == len(digits.validation.labels)
        network = training.network
        assert network.macs_min <= point["macs"] * (1 + 1e-9) and point["macs"] <= network.macs_full * (1 + 1e-9)
    json.dumps(reports)  # what is reported is plain
    assert reports[0]["cost_epochs"] == CONFIGS[name].get("views", 1)


def test_a_report_that_says_no_stops_the_training(digits: Data) -> None:
    method = get_method("static")
    training = fit(method, method.configure(CONFIGS["static"]), digits, lambda report: False, epochs=3)
    assert training.epoch == 1 and not training.done
    training.step()
    training.step()
    with pytest.raises(RuntimeError, match="all 3 epochs are trained"):
        training.step()


def test_a_loss_that_is_not_finite_names_step_and_term(digits: Data) -> None:
    training = _training("static", digits, lr=99.0, weight_decay=99.0)
    with pytest.raises(FloatingPointError, match=r"cross_entropy became \w+ in step \d+ of epoch \d"):
        for _ in range(3):
            training.step()


def test_damaged_and_foreign_checkpoints_are_refused(digits: Data, tmp_path: Path) -> None:
    training = _training("static", digits)
    training.step()
    folder = tmp_path / "epoch-0001"
    training.save(folder)
    with pytest.raises(CheckpointError, match="of another trial: method is 'static'"):
        _training("skipnet", digits).restore(folder)
    with pytest.raises(CheckpointError, match="epochs is 3, expected 4"):
        _training("static", digits, epochs=4).restore(folder)
    method, network, record = load_network(folder)
    assert method.name == "static" and record["epoch"] == 1 and not network.training
    whole = (folder / checkpoints.NETWORK).read_bytes()
    (folder / checkpoints.NETWORK).write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=r"network\.safetensors was cut off or changed"):
        load_network(folder)
    assert checkpoints.newest(tmp_path) is None
    (folder / checkpoints.STATE).write_text("{")
    with pytest.raises(CheckpointError, match=r"state\.json is not whole JSON"):
        checkpoints.read_record(folder)
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        checkpoints.read_record(tmp_path / "nowhere")


def test_the_newest_whole_checkpoint_is_found(digits: Data, tmp_path: Path) -> None:
    training = _training("static", digits)
    for epoch in (1, 2):
        training.step()
        training.save(checkpoints.epoch_folder(tmp_path, epoch))
    assert checkpoints.newest(tmp_path) == tmp_path / "epoch-0002"
    (tmp_path / "epoch-0002" / checkpoints.TRAINING).unlink()
    assert checkpoints.newest(tmp_path) == tmp_path / "epoch-0001"


def _phases(*shares: float) -> tuple[Phase, ...]:
    return tuple(Phase(name=f"p{i}", optimiser=Optimiser(lr=0.1), share=s) for i, s in enumerate(shares))


@pytest.mark.parametrize(
    ("shares", "epochs", "ends"),
    [((1.0,), 5, [5]), ((0.9, 0.1), 10, [9, 10]), ((0.9, 0.1), 3, [2, 3]), ((0.5, 0.25, 0.25), 3, [1, 2, 3])],
)
def test_phases_share_the_epochs_and_each_gets_one(shares: tuple[float, ...], epochs: int, ends: list[int]) -> None:
    planned = plan(_phases(*shares), epochs)
    assert [last for _, _, last in planned] == ends
    assert planned[0][1] == 1 and all(b[1] == a[2] + 1 for a, b in itertools.pairwise(planned))


def test_fewer_epochs_than_phases_are_refused() -> None:
    with pytest.raises(ValueError, match=r"epochs = 1: 2 phases \(p0, p1\)"):
        plan(_phases(0.5, 0.5), 1)


def test_schedules_are_shares_of_the_phase() -> None:
    step = Optimiser(lr=1.0, decay_at=(0.5, 0.75), decay=0.1)
    assert [step.lr_at(s) for s in (0.0, 0.49, 0.5, 0.8)] == pytest.approx([1.0, 1.0, 0.1, 0.01])
    assert Optimiser(lr=1.0, schedule="cosine").lr_at(0.5) == pytest.approx(0.5)
    warm = Optimiser(lr=1.0, warmup=0.1)
    assert warm.lr_at(0.0) < warm.lr_at(0.05) < warm.lr_at(0.1) == 1.0


@pytest.mark.parametrize("name", ["skipnet", "codinet", "aig", "sdv", "imta", "decide", "sact"])
def test_bfloat16_trains_float32_weights(name: str, digits: Data) -> None:
    training = _training(name, digits, precision="bfloat16")
    single = _training(name, digits)
    one, other = training.step(), single.step()
    assert one["losses"] != other["losses"]
    for term, value in one["losses"].items():
        assert value == pytest.approx(other["losses"][term], rel=0.1, abs=0.02)
    assert all(p.dtype == torch.float32 for p in training.network.parameters())
    assert all(0 <= point["accuracy"] <= 1 for point in one["curve"]["points"])


def test_automatic_precision_is_what_the_processor_computes_itself(digits: Data) -> None:
    wanted = "bfloat16" if computes_bfloat16("cpu") else "float32"
    auto, said = (
        _training("static", digits, precision="auto").step(),
        _training("static", digits, precision=wanted).step(),
    )
    assert auto["precision"] == said["precision"] == wanted and auto["losses"] == said["losses"]


def test_compiled_regions_train_the_same(digits: Data, tmp_path: Path) -> None:
    if shutil.which("c++") is None and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler here, which torch.compile needs on a CPU")
    from torch._inductor import config as inductor

    method = get_method("static")

    def build(config: Any, task: Task) -> RoutedNetwork:
        network = method.build(config, task)
        blocks = network.regions()
        network.regions = lambda: blocks[:1]  # type: ignore[method-assign]  # a compilation takes seconds a block
        return network

    compiled, plain = (
        Training(
            dataclasses.replace(method, build=build),
            method.configure({**CONFIGS["static"], "batch_size": 32, "compiled": on}),  # all batches are whole
            digits,
            epochs=2,
        )
        for on in (True, False)
    )
    with inductor.patch(compile_threads=1):  # no pool of processes that import torch anew
        for _ in range(2):
            one, other = compiled.step(), plain.step()
            assert one["losses"]["cross_entropy"] == pytest.approx(other["losses"]["cross_entropy"], rel=1e-3)
    assert list(compiled.network.state_dict()) == list(plain.network.state_dict())
    compiled.save(tmp_path / "epoch-0002")
    assert load_network(tmp_path / "epoch-0002")[0].name == "static"


def test_what_cannot_be_compiled_is_said(digits: Data) -> None:
    with pytest.raises(ValueError, match="compiled = True: msdnet-2 of imta has no regions to compile"):
        _training("imta", digits, compiled=True)
    with pytest.raises(ValueError, match="precision = 'half': must be float32, bfloat16 or auto"):
        _training("static", digits, precision="half")


def test_pretrained_weights_are_read_once_and_never_again(digits: Data, tmp_path: Path) -> None:
    import torchvision

    task = dataclasses.replace(digits.task, size=32)
    larger = load("digits", root=default_root(), image_size=32, limit=40)
    assert larger.task == task
    values = {"network": "resnet-18-imagenet", "width": 1.0, "batch_size": 40, "lr": 1e-6}
    weights = torchvision.models.resnet18(weights=None).state_dict()
    weights["conv1.weight"] = weights["conv1.weight"][:, :1]
    file = tmp_path / "weights.pth"
    torch.save(weights, file)
    training = _training("static", larger, epochs=2, **values, pretrained=str(file))
    training.step()
    assert torch.allclose(training.network.get_parameter("stem.0.weight"), weights["conv1.weight"], atol=1e-3)
    training.save(tmp_path / "epoch-0001")
    file.unlink()
    resumed = _training("static", larger, epochs=2, **values, pretrained=str(file))
    resumed.restore(tmp_path / "epoch-0001")
    resumed.step()
    assert load_network(tmp_path / "epoch-0001")[0].name == "static"
    with pytest.raises(ValueError, match="no such file"):
        _training("static", larger, epochs=2, **values, pretrained=str(file)).step()
