"""Diagnostics against brute force: image by image, loop by loop, on tiny networks."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task, Unit
from trainables.contracts.recipe import TrainingConfig
from trainables.data.augment import normalise
from trainables.data.splits import Augment, Data, Split
from trainables.diagnostics.copies import (
    AUGMENTATIONS,
    COPIES,
    KL_BINS,
    KL_HIGH,
    KL_LOW,
    copy_of,
    divergence,
    kl_histogram,
    rotate,
)
from trainables.diagnostics.measure import Diagnostics, diagnose, routed_blocks, unpacked, usual_setting
from trainables.diagnostics.samples import log_odds
from trainables.registry import METHODS, get_method
from trainables.training.training import Training

torch.set_num_threads(1)

TINY: dict[str, dict[str, Any]] = {
    "imta": {"network": "msdnet-3", "growth": 4},
    "decide": {"network": "pyramid-4", "width": 0.5},
    "act": {"network": "preact-resnet-14"},
    "sact": {"network": "preact-resnet-14"},
    "exits": {"network": "resnet-8", "exits": 3},
}
CLASSES, SIZE, IMAGES = 4, 8, 40
KEYS = {
    "setting", "knobs", "images", "params", "decisions", "blocks", "groups", "acc", "err", "macs", "K", "n_paths",
    "compute_pct", "skip_ratio", "skip_by_class", "consistency", "kl_aug", "kl_bins", "kl_histogram", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    """Images of different contrast, so that routers can tell them apart; no validation image has class 3."""
    random = np.random.RandomState(0)

    def split(count: int, classes: int) -> Split:
        span = random.uniform(0.05, 1, (count, 1, 1, 1))
        images = (random.uniform(0, 255, (count, 1, SIZE, SIZE)) * span).astype(np.uint8)
        return Split(images, (np.arange(count) % classes).astype(np.int64))

    return Data(
        name="noise",
        task=Task(classes=CLASSES, size=SIZE, channels=1),
        classes=tuple("abcd"),
        train=split(16, CLASSES),
        validation=split(IMAGES, 3),
        test=split(4, CLASSES),
        mean=(0.3,),
        std=(0.3,),
        augment=Augment(pad=1),
        hash="0" * 64,
    ).for_config(TrainingConfig())


CASES = {
    **{name: (name, {}) for name in METHODS},
    "skipnet with a gate behind the last block": ("skipnet", {"impl": "official"}),
    "codinet with drawn decisions": ("codinet", {"relaxation": "bernoulli"}),
}


def undecided(method: Method, data: Data, **config: Any) -> RoutedNetwork:
    """A network whose routers disagree about images, as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        network = method.build(
            method.configure({**TINY.get(method.name, {"network": "resnet-8"}), **config}), data.task
        )
        for name, parameter in network.named_parameters():
            if name.startswith("router"):
                nn.init.normal_(parameter, std=3.0)
    return network.eval()


@pytest.fixture(scope="module", params=list(CASES))
def found(request: pytest.FixtureRequest, data: Data) -> tuple[RoutedNetwork, Diagnostics]:
    name, config = CASES[request.param]
    method = get_method(name)
    network = undecided(method, data, **config)
    return network, diagnose(method, network, data, seed=5, batch_size=16)


def one_by_one(network: RoutedNetwork, data: Data, knobs: Any) -> list[Any]:
    """The hard pass, image by image."""
    images = normalise(torch.tensor(data.validation.images), data)
    return [network.infer(image[None], knobs, generator=torch.Generator().manual_seed(5)) for image in images]


def ran(network: RoutedNetwork, path: Tensor) -> list[float]:
    return [float(path[0, i]) for i, unit in enumerate(network.units) if unit.kind in ("block", "column", "path")]


def test_every_method_has_every_key(found: tuple[RoutedNetwork, Diagnostics]) -> None:
    network, diagnostics = found
    record = diagnostics.record
    assert set(record) >= KEYS
    assert ("exit_acc" in record) == bool(network.exits)
    assert json.loads(json.dumps(record, allow_nan=False)) == record and len(json.dumps(record)) < 5_000
    assert record["K"] == pytest.approx(sum(1 - ratio for ratio in record["skip_ratio"]), abs=1e-4)
    assert 1 <= record["n_paths"] <= IMAGES and record["images"] == IMAGES


def test_paths_are_those_of_single_images(found: tuple[RoutedNetwork, Diagnostics], data: Data) -> None:
    network, diagnostics = found
    record, labels = diagnostics.record, data.validation.labels
    if network.config.network.startswith("msdnet"):  # a calibrated threshold is some image's own confidence
        assert 0 < record["exit_frac"][0] < 1
    results = one_by_one(network, data, record["knobs"])
    paths = [ran(network, result.path) for result in results]
    right = [int(result.logits.argmax()) == label for result, label in zip(results, labels, strict=True)]
    assert record["acc"] == pytest.approx(sum(right) / IMAGES) and record["err"] == pytest.approx(1 - record["acc"])
    assert record["macs"] == pytest.approx(sum(float(result.macs) for result in results) / IMAGES)
    assert record["K"] == pytest.approx(sum(map(sum, paths)) / IMAGES)
    assert record["n_paths"] == len({tuple(result.path[0].tolist()) for result in results})
    blocks = len(record["blocks"])
    for block in range(blocks):
        skipping = sum(1 - path[block] for path in paths) / IMAGES
        assert record["skip_ratio"][block] == pytest.approx(skipping, abs=1e-6)
    assert record["compute_pct"] == pytest.approx(100 * (1 + record["K"]) / (blocks + 1))
    assert unpacked(diagnostics.arrays, blocks).tolist() == paths
    assert torch.allclose(diagnostics.arrays["macs"].double(), torch.cat([r.macs for r in results]))
    assert diagnostics.arrays["predicted"].tolist() == [int(result.logits.argmax()) for result in results]


def test_skipped_blocks_by_class(found: tuple[RoutedNetwork, Diagnostics], data: Data) -> None:
    network, diagnostics = found
    paths = unpacked(diagnostics.arrays, len(routed_blocks(network)))
    classes = diagnostics.record["skip_by_class"]
    assert classes[3] == {"images": 0}
    for label, entry in enumerate(classes[:3]):
        mine = [i for i in range(IMAGES) if data.validation.labels[i] == label]
        skipped = [float((1 - paths[i]).sum()) for i in mine]  # blocks may run in part
        counts = Counter(round(blocks) for blocks in skipped)
        assert entry["images"] == len(mine) and entry["median"] == pytest.approx(float(np.median(skipped)), abs=1e-4)
        assert {entry["least"] + i: n for i, n in enumerate(entry["histogram"]) if n} == dict(counts)
        right = [int(diagnostics.arrays["predicted"][i]) == label for i in mine]
        assert entry["acc"] == pytest.approx(sum(right) / len(mine), abs=1e-6)


def test_copies_are_compared_with_their_originals(found: tuple[RoutedNetwork, Diagnostics], data: Data) -> None:
    network, diagnostics = found
    record, arrays = diagnostics.record, diagnostics.arrays
    originals = one_by_one(network, data, record["knobs"])
    for row, how, axis in ((1, "hflip", 3), (2, "vflip", 2)):
        images = normalise(torch.tensor(data.validation.images).flip(axis), data)
        same = 0
        for i, (image, original) in enumerate(zip(images, originals, strict=True)):
            copy = network.infer(image[None], record["knobs"])
            same += bool(torch.equal(copy.path, original.path))
            p, q = original.logits[0].double().softmax(0), copy.logits[0].double().softmax(0)
            kl = sum(float(a) * (math.log(float(a)) - math.log(float(b))) for a, b in zip(p, q, strict=True))
            assert float(arrays["kl"][row, i]) == pytest.approx(max(0, kl), rel=1e-3, abs=1e-5)
        assert record["consistency"][how] == same == int(arrays["same"][row].sum())
        assert record["kl_aug"][how] == pytest.approx(float(arrays["kl"][row].double().mean()), rel=1e-5)
    assert list(record["consistency"]) == list(COPIES) and all(
        sum(h) == IMAGES for h in record["kl_histogram"].values()
    )
    # every image of the mixture drew one of the four
    assert bool((arrays["kl"][4] == arrays["kl"][:4]).any(dim=0).all())


def test_exits(data: Data) -> None:
    method = get_method("imta")
    network = undecided(method, data)
    diagnostics = diagnose(method, network, data, seed=5)
    record, labels = diagnostics.record, data.validation.labels
    with torch.no_grad():
        answers = [logits.argmax(1) for logits in network(normalise(torch.tensor(data.validation.images), data)).logits]
    taken = [int(result.exits) for result in one_by_one(network, data, record["knobs"])]
    for i, answer in enumerate(answers):
        right = [int(answer[n]) == labels[n] for n in range(IMAGES)]
        mine = [n for n in range(IMAGES) if taken[n] == i]
        assert record["exit_acc"][i] == pytest.approx(sum(right) / IMAGES, abs=1e-6)
        assert record["exit_frac"][i] == pytest.approx(len(mine) / IMAGES, abs=1e-6)
        given = sum(right[n] for n in mine) / len(mine) if mine else None
        assert record["exit_acc_given_exit"][i] == (pytest.approx(given, abs=1e-6) if mine else None)
    table = [[sum(taken[n] == i and labels[n] == c for n in range(IMAGES)) for i in range(3)] for c in range(CLASSES)]
    assert record["class_by_exit"] == table
    assert diagnostics.arrays["exit"].tolist() == taken
    assert record["exit_macs"] == [each.macs for each in network.exits] and record["exit_parents"] == [-1, 0, 1]
    assert record["exit_names"] == ["exit-1", "exit-2", "exit-3"]


def test_confidences_of_exits_are_kept_of_some_images(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.diagnostics.samples.MOST_CONFIDENCES", 12)
    method = get_method("imta")
    network = undecided(method, data)
    arrays = diagnose(method, network, data, seed=5).arrays
    rows = arrays["confidence_rows"].tolist()
    assert len(rows) == 12 == len(set(rows)) and rows == sorted(rows) and rows != list(range(12))
    assert (arrays["confidence"].shape, arrays["confidence"].dtype) == ((3, 12), torch.half)
    with torch.no_grad():
        answers = network(normalise(torch.tensor(data.validation.images), data)).logits
    for i, logits in enumerate(answers):
        likely = logits.double().softmax(1).amax(1)[rows]
        assert arrays["confidence"][i].double() == pytest.approx((likely / (1 - likely)).log(), rel=2e-3, abs=2e-3)
        right = logits.argmax(1)[rows] == torch.tensor(data.validation.labels)[rows]
        assert arrays["exit_right"][i].tolist() == right.tolist()


def test_log_odds_tell_confidences_near_one_apart() -> None:
    odds = log_odds(torch.tensor([[40.0, 0.0, 0.0], [50.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert odds.tolist() == pytest.approx([40 - math.log(2), 50 - math.log(2), -math.log(2)])


def test_halting_maps_are_kept_of_some_images(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.diagnostics.samples.MOST_MAPS", 7)
    method = get_method("codinet")
    network = undecided(method, data)
    plain = network.forward

    def mapped(inputs: Tensor, **given: Any) -> Any:
        routed = plain(inputs, **given)
        routed.aux["ponder_map"] = inputs[:, 0]
        return routed

    monkeypatch.setattr(network, "forward", mapped)
    arrays = diagnose(method, network, data, batch_size=16).arrays
    rows = arrays["ponder_rows"].long()
    assert (
        arrays["ponder"].shape == (7, SIZE, SIZE)
        and "ponder" not in diagnose(method, undecided(method, data), data).arrays
    )
    expected = normalise(torch.tensor(data.validation.images), data)[rows, 0].half()
    assert torch.equal(arrays["ponder"], expected)


def test_the_knobs_given_are_used_and_an_exit_nobody_takes_has_no_accuracy(data: Data) -> None:
    method = get_method("imta")
    network = undecided(method, data)
    record = diagnose(method, network, data, setting={"exit": 1}, knobs={"thresholds": [0.0, 0.0]}).record
    assert record["setting"] == {"exit": 1} and record["exit_frac"] == [1, 0, 0]
    assert record["exit_acc_given_exit"][1:] == [None, None] and record["K"] == 1


@pytest.mark.parametrize(
    ("threshold", "length", "percent"), [(0.0, 3, 100.0), (2.0, 0, 25.0)], ids=["all open", "all closed"]
)
def test_the_ends_of_computation(data: Data, threshold: float, length: int, percent: float) -> None:
    """SkipNet's percentage is 100 with all gates open and 100 / (N + 1) with all closed."""
    method = get_method("codinet")
    found = diagnose(method, undecided(method, data), data, setting={}, knobs={"threshold": threshold}).record
    assert (found["K"], found["compute_pct"], found["n_paths"]) == (length, percent, 1)
    assert found["consistency"] == dict.fromkeys(COPIES, IMAGES)


def test_the_setting_is_the_papers_where_there_is_one() -> None:
    for name in ("skipnet", "codinet"):
        method = get_method(name)
        assert usual_setting(method, method.configure({})) == {"threshold": 0.5}
    drawn = usual_setting(method, method.configure({"relaxation": "bernoulli"}))
    assert drawn == {"threshold": 0.5, "sampling": "bernoulli", "seed": 0}
    imta = get_method("imta")
    settings = imta.settings(imta.configure({}))
    assert usual_setting(imta, imta.configure({})) == settings[len(settings) // 2]
    assert usual_setting(get_method("static"), get_method("static").configure({})) == {}


def test_groups_are_resolutions(data: Data) -> None:
    method = get_method("codinet")
    network = method.build(method.configure({"network": "resnet-14"}), data.task)
    groups = dict(zip([unit.name for unit in network.units], network.unit_groups(), strict=True))
    assert [groups[f"block-{k}"] for k in range(6)] == [0, 0, 1, 1, 2, 2]
    assert groups["skip-2"] == groups["router-3"] == 1
    network.units = (Unit("policy", "router", 1), Unit("router-6", "router", 1))  # one ahead, one behind all blocks
    assert network.unit_groups() == (0, 2)


def test_relaxed_decisions_are_what_gates_said(data: Data) -> None:
    method = get_method("skipnet")
    network = undecided(method, data)
    found = diagnose(method, network, data)
    relaxed, path = found.arrays["relaxed"].float(), unpacked(found.arrays, 2)
    assert ((relaxed >= 0.5).float() == path).all() and relaxed.unique().numel() > 2


def test_the_mode_of_the_network_stays(data: Data) -> None:
    method = get_method("skipnet")
    network = undecided(method, data).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    diagnose(method, network, data)
    assert network.training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_the_same_seed_gives_the_same_copies(data: Data) -> None:
    method = get_method("codinet")
    network = undecided(method, data)
    one, other, third = (diagnose(method, network, data, seed=seed).arrays["kl"] for seed in (1, 1, 2))
    assert torch.equal(one, other) and not torch.equal(one, third)


def test_copies(data: Data) -> None:
    images = torch.tensor(data.validation.images[:3])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(copy_of(images, "hflip", data, generator), images.flip(3))
    assert torch.equal(copy_of(images, "vflip", data, generator), images.flip(2))
    crops = copy_of(images, "crop", data, generator)
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    for image, crop in zip(padded, crops, strict=True):
        windows = [image[:, r : r + SIZE, c : c + SIZE] for r in range(3) for c in range(3)]
        assert any(torch.equal(crop, window) for window in windows)
    assert set(AUGMENTATIONS) < set(COPIES)
    with pytest.raises(ValueError, match="augmentation 'sheer': must be one of crop, hflip, vflip, rotation"):
        copy_of(images, "sheer", data, generator)


def test_rotation() -> None:
    images = torch.rand(2, 1, 6, 6)
    turned = rotate(images, torch.tensor([90.0, 0.0]))
    assert torch.allclose(turned[1], images[1], atol=1e-6)
    quarter = [torch.rot90(images[0], k, (1, 2)) for k in (1, -1)]
    assert any(torch.allclose(turned[0], each, atol=1e-5) for each in quarter)


def test_divergence_of_equal_predictions_is_nothing() -> None:
    logits = torch.randn(4, 5, dtype=torch.float64) * 50
    assert bool((divergence(logits, logits + 3) < 1e-9).all())
    p = torch.tensor([[0.0, math.log(3)]])
    assert float(divergence(p, torch.zeros(1, 2))) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5))


def test_the_histogram_of_divergences() -> None:
    counts = kl_histogram(torch.tensor([0.0, 1e-9, 1.05, 1e9]))
    at_one = round((0 - KL_LOW) / (KL_HIGH - KL_LOW) * KL_BINS)
    assert (counts[0], counts[at_one], counts[-1], sum(counts)) == (2, 1, 1, 4)


def test_of_large_splits_some_images_are_drawn(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainables.diagnostics.measure.MOST_IMAGES", 16)
    method = get_method("static")
    found = diagnose(method, undecided(method, data), data)
    index = found.arrays["index"].tolist()
    assert found.record["images"] == 16 == len(set(index)) and index == sorted(index) and index != list(range(16))
    assert found.arrays["label"].tolist() == data.validation.labels[index].tolist()


def test_a_training_reports_them_once_and_stores_their_arrays(data: Data, tmp_path: Path) -> None:
    method = get_method("skipnet")
    config = method.configure({"network": "resnet-8", "width": 0.25, "batch_size": 8})
    training = Training(method, config, data, epochs=2, evaluate_at=[1], seed=3, diagnostics=True)
    assert "diagnostics" not in training.step()
    training.save(tmp_path / "epoch-0001")
    assert not (tmp_path / "epoch-0001" / checkpoints.DIAGNOSTICS).exists()
    report = training.step()
    middle = next(p for p in report["curve"]["points"] if p["setting"] == {"threshold": 0.5})
    assert report["diagnostics"]["acc"] == pytest.approx(middle["accuracy"])
    assert report["diagnostics"]["K"] == pytest.approx(middle["path_length"])
    assert 0 < report["diagnostics"]["share_of_time"] < 1
    training.save(tmp_path / "epoch-0002")
    record = checkpoints.read_record(tmp_path / "epoch-0002")
    assert record["report"]["diagnostics"] == json.loads(json.dumps(report["diagnostics"]))
    arrays = checkpoints.read_tensors(tmp_path / "epoch-0002", checkpoints.DIAGNOSTICS)
    assert arrays["label"].tolist() == data.validation.labels.tolist()
    file = tmp_path / "epoch-0002" / checkpoints.DIAGNOSTICS
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(checkpoints.CheckpointError, match=r"diagnostics\.safetensors was cut off or changed"):
        checkpoints.read_record(tmp_path / "epoch-0002")
    plain = Training(method, config, data, epochs=1, seed=3)
    assert "diagnostics" not in plain.step()
