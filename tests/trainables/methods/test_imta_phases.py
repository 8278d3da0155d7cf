"""IMTA's second phase: knowledge paths, distillation, a trunk that stays, what is stored and served."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from trainables import checkpoints
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch, Phase
from trainables.data.augment import to_device
from trainables.data.datasets import default_root, load
from trainables.data.encoded import LazyImages
from trainables.data.splits import Data
from trainables.execution.macs import counted
from trainables.inference.evaluation import evaluate
from trainables.inference.prepare import prepared
from trainables.methods.imta import METHOD
from trainables.networks.msdnet.collaboration import CollaborativeMSDNet, Head
from trainables.networks.msdnet.losses import distillation, distilled_losses, weighted_losses
from trainables.serving import load_network
from trainables.training import features as cached
from trainables.training.training import Training

torch.set_num_threads(1)

TASK = Task(classes=5, size=16, channels=1)
TINY = {"network": "msdnet-3", "growth": 4, "channels": 8, "width": 0.5, "batch_size": 32}
# C100 and C10: parameters with and without the last layers of phase I, MACs with the knowledge paths
PUBLISHED = {
    (100, 4): (1_549_068, 1_497_468),
    (100, 5): (2_247_360, 2_182_860),
    (100, 6): (3_059_712, 2_982_312),
    (100, 7): (4_212_868, 4_122_568),
    (100, 8): (5_595_652, 5_492_452),
    (10, 6): (2_805_192, 2_797_452),
    (10, 8): (5_248_612, 5_238_292),
}
MACS = {(100, 5): 58_190_336, (100, 7): 136_718_848}


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", root=default_root(), image_size=8, limit=64)


def build(task: Task = TASK, seed: int = 0, **values: Any) -> CollaborativeMSDNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = METHOD.build(METHOD.configure({"variant": "all", **TINY, **values}), task)
    assert isinstance(network, CollaborativeMSDNet)
    return network


def batch(count: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(3)
    return Batch(torch.randn(count, 1, 16, 16, generator=draw), torch.randint(5, (count,), generator=draw))


def phase_of(network: CollaborativeMSDNet, number: int) -> Phase:
    """A phase, entered as `fit` enters it."""
    phase = METHOD.phases(network.config)[number - 1]
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(phase.trains(name))
    network.train()
    for name, module in network.named_modules():
        if phase.eval_mode and name.startswith(phase.eval_mode):
            module.eval()
    assert METHOD.begin is not None
    METHOD.begin(network, phase)
    return phase


@pytest.mark.parametrize(("classes", "exits"), PUBLISHED)
def test_parameters_and_macs_are_the_public_codes(classes: int, exits: int) -> None:
    network = METHOD.build(METHOD.configure({"network": f"msdnet-{exits}", "variant": "all"}), Task(classes=classes))
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(network)
    assert (sum(p.numel() for p in network.parameters()), cost["params"][-1]) == PUBLISHED[classes, exits]
    assert cost["params_with_teacher"] == PUBLISHED[classes, exits][0]
    plain = METHOD.build(METHOD.configure({"network": f"msdnet-{exits}"}), Task(classes=classes))
    path = 2 * classes * 128  # the transfer, and the wider last layer
    assert [e.macs - p.macs for e, p in zip(network.exits, plain.exits, strict=True)] == [
        i * path for i in range(exits)
    ]
    assert network.macs_full == MACS.get((classes, exits), network.macs_full)
    assert METHOD.paper_cost(plain)["ops"] == cost["ops"]  # the public counter leaves the paths out
    network.strip()
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[classes, exits][1]


def test_identity_paths_cost_nothing_and_add_up() -> None:
    network, plain = build(isc="identity"), METHOD.build(METHOD.configure({**TINY, "variant": "ge"}), TASK)
    assert network.macs_full == plain.macs_full
    for head in network.heads[1:]:
        torch.nn.init.zeros_(head.fc.weight)  # type: ignore[union-attr, arg-type]
        torch.nn.init.zeros_(head.fc.bias)  # type: ignore[union-attr, arg-type]
    first, *later = network.eval()(batch().images).logits
    assert all(torch.equal(each, first) for each in later)


@pytest.mark.parametrize("isc", ["fc", "identity"])
@pytest.mark.parametrize("detach", [True, False])
def test_the_gradient_ends_along_the_path_where_it_is_to(isc: str, detach: bool) -> None:
    network = build(isc=isc, detach=detach)
    phase_of(network, 2)
    logits = network.collaborate(cached.trunk_features(network, batch().images))
    logits[1].square().sum().backward()
    reached = [any(p.grad is not None and p.grad.any() for p in head.parameters()) for head in network.heads]
    assert reached == [not detach, True, False]


def test_the_path_of_the_code_is_a_small_network() -> None:
    head, draw = Head(6, 3, "fc", True).eval(), torch.Generator().manual_seed(0)
    features, before = torch.randn(4, 6, generator=draw), torch.randn(4, 3, generator=draw)
    hidden = torch.relu(head.norm(before @ head.transfer.weight.T + head.transfer.bias))
    expected = torch.cat([features, hidden], dim=1) @ head.fc.weight.T + head.fc.bias
    torch.testing.assert_close(head(features, before), expected)
    alone = head.train()(features[:1], before[:1])  # of one image there is no variance
    torch.testing.assert_close(alone, expected[:1])


def divergence(p: Tensor, q: Tensor) -> float:
    return (p * (p / q).log()).sum(dim=1).mean().item()


@pytest.mark.parametrize("heat", [1.0, 3.0])
def test_distillation_is_the_divergence_of_softened_predictions(heat: float) -> None:
    draw = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(6, 4, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(2))
    expected = divergence((teacher / heat).softmax(1), (student / heat).softmax(1))
    found = distillation(student, teacher, temperature=heat)
    assert found.item() == pytest.approx(heat**2 * expected)
    assert distillation(student, teacher, temperature=heat, squared=False).item() == pytest.approx(expected)
    element = distillation(student, teacher, temperature=heat, reduction="elementmean")
    assert found.item() / element.item() == pytest.approx(4)  # the classes
    assert distillation(student, student, temperature=heat).item() == pytest.approx(0, abs=1e-12)
    found.backward()
    assert teacher.grad is None and student.grad is not None and student.grad.any()


def test_alpha_one_is_plain_cross_entropy_and_the_last_exit_has_no_teacher() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = list(torch.randn(3, 6, 4, generator=draw)), torch.randint(4, (6,), generator=draw)
    weights = [0.5, 2.0, 1.0]
    plain = weighted_losses(logits, labels, weights)
    taught = distilled_losses(logits, labels, logits[-1], weights, alpha=0.25, temperature=2.0)
    assert list(taught) == ["exit_1", "exit_2", "exit_3", "distil_1", "distil_2"]
    assert taught["exit_3"] == plain["exit_3"] == F.cross_entropy(logits[2], labels)
    assert taught["exit_2"].item() == pytest.approx(0.25 * plain["exit_2"].item())
    expected = 0.75 * 2.0 * distillation(logits[1], logits[2], temperature=2.0).item()
    assert taught["distil_2"].item() == pytest.approx(expected)
    sole = distilled_losses(logits, labels, logits[-1], weights, alpha=1.0, temperature=2.0)
    assert sum(sole.values()) == sum(plain.values())


def test_the_teacher_is_frozen_or_the_new_last_exit() -> None:
    network = build(variant="ofa", temperature=2.0, alpha=0.5)
    phase, data = phase_of(network, 2), batch()
    with torch.no_grad():
        read = network.trunk(data.images)
        old, new = network.teacher(read), network.collaborate(read)
        network.become(second=False)
        torch.testing.assert_close(old, network(data.images).logits[-1])
    for teacher, target in (("frozen", old), ("live", new[-1])):
        object.__setattr__(network.config, "teacher", teacher)
        found = METHOD.objective(network, data, phase)["distil_1"].item()
        assert found == pytest.approx(0.5 * distillation(new[0], target, temperature=2.0).item(), rel=1e-4)


@pytest.mark.parametrize("variant", ["isc", "ofa", "all"])
@pytest.mark.parametrize("statistics", ["eval", "train"])
def test_phase_two_changes_heads_alone(variant: str, statistics: str) -> None:
    network = build(variant=variant, phase2_bn=statistics)
    phase = phase_of(network, 2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for _ in range(2):
        terms = METHOD.objective(network, batch(), phase)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    kinds = ("running_mean", "running_var", "num_batches_tracked")
    drifting = {n for n in before if not n.startswith("heads.") and n.endswith(kinds)}
    assert {n for n in changed if n.startswith("heads.")} == {n for n in before if n.startswith("heads.")}
    assert {n for n in changed if not n.startswith("heads.")} == (drifting if statistics == "train" else set())


def test_the_prepared_trunk_reads_what_the_trunk_reads_and_follows_its_weights() -> None:
    network = build()
    phase_of(network, 2)
    images = batch().images
    for _ in range(2):
        with torch.no_grad():
            expected = network.trunk(images)
        torch.testing.assert_close(cached.trunk_features(network, images), expected, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            next(network.stages.parameters()).mul_(3.0)


def test_tuned_heads_begin_as_those_of_phase_one() -> None:
    data = batch()
    for values in ({"variant": "ofa"}, {"variant": "isc", "isc": "fc"}):
        network = build(heads="tuned", **values)
        phase_of(network, 1)
        network.eval()
        first = network(data.images).logits
        phase_of(network, 2)
        for one, other in zip(first, network.eval()(data.images).logits, strict=True):
            torch.testing.assert_close(one, other)


def test_both_forms_are_executed_counted_and_prepared() -> None:
    images = batch(9).images
    for second in (False, True):
        network = build().eval()
        network.become(second=second)
        logits = torch.stack(network(images).logits)
        for fast in (network, prepared(network)):
            for setting in ({"q": 1.0}, {"exit": 2}, {"exit": 3}):
                knobs = METHOD.calibrate(setting, logits)  # type: ignore[misc]
                with counted(fast) as tally:
                    result = fast.infer(images, knobs)
                assert sum(tally.values()) == float(result.macs.sum())
                replayed = network.replay(logits, knobs)
                assert torch.equal(replayed.path, result.path)
                torch.testing.assert_close(replayed.logits, result.logits, rtol=1e-4, atol=1e-5)


def test_training_goes_through_both_phases_and_on_from_every_checkpoint(digits: Data, tmp_path: Path) -> None:
    values = {**TINY, "variant": "all", "phase2_share": 0.5, "cached_views": 2}
    config = METHOD.configure(values)

    def fresh() -> Training:
        return Training(METHOD, config, digits, epochs=4, seed=1, evaluate_at=[2])

    straight = fresh()
    reports = []
    for epoch in range(1, 5):
        reports.append(straight.step())
        straight.save(tmp_path / f"epoch-{epoch:04d}")
    assert [r["phase"] for r in reports] == ["phase1", "phase1", "phase2", "phase2"]
    assert {"exit_1", "distil_1"} <= set(reports[-1]["losses"])
    stored = [checkpoints.read_tensors(tmp_path / f"epoch-{epoch:04d}", checkpoints.NETWORK) for epoch in (2, 4)]
    assert not any(name.startswith("heads.") for name in stored[0])
    for name, tensor in stored[0].items():  # the frozen trunk, statistics included
        assert torch.equal(stored[1][name], tensor), name
    for epoch in (1, 2, 3):
        resumed = fresh()
        resumed.restore(tmp_path / f"epoch-{epoch:04d}")
        again = [resumed.step() for _ in range(4 - epoch)]
        assert [r["losses"] for r in again] == [r["losses"] for r in reports[epoch:]]
        assert resumed.last_curve is not None and straight.last_curve is not None
        assert (resumed.last_curve.correct == straight.last_curve.correct).all()
    # a point of each phase is served as it was measured
    for epoch, report in ((2, reports[1]), (4, reports[3])):
        _, network, _ = load_network(tmp_path / f"epoch-{epoch:04d}")
        assert isinstance(network, CollaborativeMSDNet) and network.second is (epoch == 4)
        point = next(p for p in report["curve"]["points"] if p["setting"] == {"exit": 3})
        served = evaluate(network, straight.validation, straight.validation_labels, point["knobs"]).points[0]
        assert (served["correct"], served["macs"]) == (point["correct"], point["macs"])


def test_what_is_promoted_has_no_teacher(digits: Data, tmp_path: Path) -> None:
    network, images = build().eval(), batch().images
    before = network(images).output
    network.strip()
    checkpoints.save(tmp_path / "model", {**checkpoints.network_record(METHOD, network), "epoch": 1}, network)
    _, served, _ = load_network(tmp_path / "model")
    torch.testing.assert_close(served(images).output, before)
    assert sum(p.numel() for p in served.parameters()) == sum(p.numel() for p in network.parameters())
    assert isinstance(served, CollaborativeMSDNet)
    with pytest.raises(ValueError, match=r"teacher.*is missing"):
        served.teacher(served.trunk(images))
    refusing = build(phase1=str(tmp_path / "model"))
    with pytest.raises(ValueError, match=r"phase1 = .*lacks classifiers.*teacher"):
        phase_of(refusing, 1)  # its only phase


def test_phase_two_begins_behind_a_checkpoint_of_the_same_network(tmp_path: Path) -> None:
    donor = METHOD.build(METHOD.configure({**TINY, "variant": "ge"}), TASK)
    for name, values in (("same", {}), ("other", {"growth": 6})):
        given = donor if not values else METHOD.build(METHOD.configure({**TINY, **values}), TASK)
        checkpoints.save(tmp_path / name, {**checkpoints.network_record(METHOD, given), "epoch": 1}, given)
    network = build(phase1=str(tmp_path / "same"))
    (phase,) = METHOD.phases(network.config)
    assert phase.name == "phase2" and phase.share == 1
    phase_of(network, 1)
    for name, tensor in donor.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)
    for folder, reason in (("other", "is of another network .imta on msdnet-3"), ("none", "no checkpoint")):
        with pytest.raises(ValueError, match=rf"phase1 = .*{reason}") as error:
            phase_of(build(phase1=str(tmp_path / folder)), 1)
        assert "\n" not in str(error.value)


def test_cached_views_are_fixed_copies_and_every_image_comes_once(digits: Data) -> None:
    network = build(digits.task).eval()
    images, labels = torch.from_numpy(digits.train.images), torch.from_numpy(digits.train.labels)
    one, other = (cached.cache_of(network, images, labels, digits, views=2, seed=seed) for seed in (4, 4))
    assert torch.equal(one.features, other.features) and one.features.shape[:2] == (2, len(labels))
    assert not torch.equal(one.features[0], one.features[1])
    seen = torch.cat([b.labels for b in one.batches(16, torch.Generator().manual_seed(0))])
    assert torch.equal(seen.sort().values, labels.sort().values)
    epochs = [torch.cat([b.images for b in one.batches(64, torch.Generator().manual_seed(s))]) for s in (0, 0, 1)]
    assert torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[0], epochs[2])
    rows = {tuple(row.tolist()) for row in one.features.flatten(0, 1)}
    assert {tuple(row.tolist()) for row in epochs[0]} <= rows


def test_cached_views_of_images_in_files_and_drawn_with_replacement(digits: Data, tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        for split, count in (("train", 8), ("val", 2)):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(count):
                noise = torch.randint(256, (20, 24, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
                Image.fromarray(noise).save(tmp_path / split / name / f"{i}.png")
    data = load(f"imagenet:{tmp_path}", root=tmp_path, image_size=16)
    network = build(data.task).eval()
    images, labels = to_device(data.train, "cpu")
    assert isinstance(images, LazyImages)
    one, other = (cached.cache_of(network, images, labels, data, views=2, seed=4) for _ in range(2))
    assert torch.equal(one.features, other.features) and not torch.equal(one.features[0], one.features[1])
    drawn = dataclasses.replace(digits, replacement=True)
    images, labels = to_device(drawn.train, "cpu")
    cache = cached.cache_of(build(drawn.task).eval(), images, labels, drawn, views=1, seed=4)
    rows = torch.cat([b.images for b in cache.batches(len(labels), torch.Generator().manual_seed(0))])
    assert len(rows) == len(labels) and len({tuple(row.tolist()) for row in rows}) < len(rows)


def test_the_public_codes_choices() -> None:
    config = METHOD.configure({"variant": "all", "impl": "official"})
    assert (config.divergence, config.alpha, config.temperature) == ("elementmean", 0.1, 3.0)
    assert (config.ge_scales, config.detach, config.phase2_bn, config.nesterov) == ("coarsest", False, "train", False)
    assert METHOD.configure(json.loads(json.dumps({"variant": "all", "impl": "official"}))) == config
    phase = METHOD.phases(config)[1]
    assert phase.eval_mode == () and not phase.optimiser.nesterov
    shares = [p.share for p in METHOD.phases(METHOD.configure(METHOD.published))]
    assert shares == [pytest.approx(300 / 480), pytest.approx(180 / 480)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, r"temperature = 0\.0: must be positive"),
        ({"temperature": -1.0}, r"temperature = -1\.0"),
        ({"alpha": 1.1}, r"alpha = 1\.1: .*\[0, 1\]"),
        ({"alpha": -0.1}, r"alpha = -0\.1"),
        ({"teacher": "first"}, r"teacher = 'first': imta takes one of frozen, live"),
        ({"isc": "linear"}, r"isc = 'linear'"),
        ({"heads": "old"}, r"heads = 'old'"),
        ({"divergence": "sum"}, r"divergence = 'sum'"),
        ({"phase2_share": 0.0}, r"phase2_share = 0\.0"),
        ({"phase2_lr": 0.0}, r"phase2_lr = 0\.0"),
        ({"exit_weights": (1.0, 1.0)}, r"exit_weights = \(1\.0, 1\.0\): must be 3 numbers"),
        ({"exit_weights": (1.0, -1.0, 1.0)}, r"exit_weights = .*must not be negative"),
        ({"cached_views": -1}, r"cached_views = -1"),
        ({"cached_views": 2, "phase2_bn": "train"}, r"cached_views = 2: .*drifts"),
        ({"network": "msdnet-1"}, r"network = 'msdnet-1': variant all .*at least 2"),
        ({"variant": "ge", "phase1": "x"}, r"phase1 = 'x': variant ge has no second phase"),
        ({"impl": "theirs"}, r"impl = 'theirs'"),
        ({"factors": "1-3"}, r"factors = '1-3'"),
    ],
)
def test_bad_input_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        METHOD.configure({**TINY, "variant": "all", **values})
    assert "\n" not in str(error.value)


def test_weights_of_exits_may_be_given_one_by_one() -> None:
    network = build(exit_weights=(0.5, 0.0, 2.0), variant="ge_isc")
    phase, data = phase_of(network, 1), batch()
    twin = copy.deepcopy(network)
    logits = twin(data.images).logits
    terms = METHOD.objective(network, data, phase)
    expected = [w * F.cross_entropy(x, data.labels).item() for w, x in zip((0.5, 0.0, 2.0), logits, strict=True)]
    assert [t.item() for t in terms.values()] == pytest.approx(expected, rel=1e-5)
