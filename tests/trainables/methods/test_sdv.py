"""Stochastic depth: masks at the right rates, dropped blocks not computed, the scaled network, equality with ResNet."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.sdv import ORIGINAL, PAPER
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve
from trainables.methods import static
from trainables.methods.sdv import DROPS, METHOD, StochasticDepthResNet

torch.set_num_threads(1)
TINY = Task(classes=5, size=8, channels=1)


def build(task: Task = TINY, **values: Any) -> StochasticDepthResNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "resnet-14", **values}), task)
    assert isinstance(network, StochasticDepthResNet)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


def images_of(count: int = 6) -> Tensor:
    return torch.randn(count, 1, 8, 8)


@pytest.mark.parametrize(
    "variant,count,conv,projections",
    [("sdv", 1_730_714, 253_149_184, 2 * 131_072), ("original", 1_727_962, 252_887_040, 0)],
)
def test_sizes_are_those_of_the_static_networks(variant: str, count: int, conv: int, projections: int) -> None:
    network = build(Task(), network="resnet-110", variant=variant)
    assert sum(network.params_by_part().values()) == count
    assert network.macs_full == conv + 640
    assert network.macs_min == network.fixed_macs == 442_368 + projections + 640
    assert [u.kind for u in network.units] == ["block"] * 54
    assert METHOD.paper_cost is not None and METHOD.paper_cost(network)["flops"] == conv


@pytest.mark.parametrize("variant,shortcut", [("sdv", "B"), ("original", "pool"), ("original", "A")])
def test_without_drops_it_is_the_static_network(variant: str, shortcut: str) -> None:
    network = build(variant=variant, shortcut=shortcut, drop=0.0)
    donor = static.build(static.METHOD.configure({"network": "resnet-14", "shortcut": shortcut}), TINY).eval()
    donor.load_state_dict(network.state_dict())
    images = images_of()
    expected = donor(images).output
    assert torch.equal(network(images).output, expected)
    assert torch.equal(network.infer(images, {}).logits, expected)
    assert torch.equal(network.train()(images).output, donor.train()(images).output)
    statistics = donor.state_dict()
    assert [n for n, value in network.state_dict().items() if not torch.equal(value, statistics[n])] == []


def test_rates_are_uniform_or_grow_linearly() -> None:
    def rates(**values: Any) -> tuple[float, ...]:
        return METHOD.configure(values).rates(4)

    assert rates(drop=0.4) == (0.4,) * 4
    assert rates(drop=0.4, mode="linear") == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert rates(drop=0.4, variant="original") == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert rates(drop=0.4, variant="original", mode="uniform") == (0.4,) * 4


@pytest.mark.parametrize("mode", ["uniform", "linear"])
def test_masks_of_training_are_fresh_for_every_image(mode: str) -> None:
    network = build(network="resnet-8", drop=0.6, mode=mode).train()
    network.relaxation = METHOD.phases(network.config)[0].relaxation
    generator = torch.Generator().manual_seed(0)
    images = images_of(1).expand(400, -1, -1, -1)
    first, second = (network(images, generator=generator) for _ in range(2))
    assert len(first.decisions.unique(dim=0)) == 8  # of three blocks
    assert not torch.equal(first.decisions, second.decisions)
    kept = 1 - torch.tensor(network.config.rates(3))
    shares = torch.cat([first.decisions, second.decisions]).mean(dim=0)
    assert float((shares - kept).abs().max()) < 4 * 0.5 / 800**0.5  # four standard errors
    assert torch.allclose(first.aux["probabilities"][0], kept)


def test_masks_of_inference_follow_from_image_seed_and_rate() -> None:
    network, images = build(network="resnet-8", drop=0.3), images_of(300)
    kept = {drop: network.infer(images, {"drop": drop, "seed": 0}).decisions for drop in DROPS}
    for drop, decisions in kept.items():
        assert float((decisions.mean(dim=0) - (1 - drop)).abs().max()) <= 4 * (drop * (1 - drop) / 300) ** 0.5
    for less, more in itertools.pairwise(DROPS):  # what a small rate drops, a greater one drops too
        assert (kept[more] <= kept[less]).all()
    assert torch.equal(network.infer(images, {}).decisions, kept[0.3])
    assert not torch.equal(network.infer(images, {"drop": 0.3, "seed": 1}).decisions, kept[0.3])
    assert torch.equal(network.infer(images[5:6], {"drop": 0.3}).decisions, kept[0.3][5:6])
    assert not network.infer(images, {"drop": 1.0}).decisions.any()
    assert torch.equal(network(images).decisions, kept[0.3])


def test_seeds_average_to_the_expected_cost() -> None:
    network, images = build(), images_of(200)
    settings = [{"drop": 0.5, "seed": seed} for seed in range(5)]
    points = curve(METHOD, network, images, torch.arange(200) % 5, settings=settings).points
    assert len({point["macs"] for point in points}) == 5
    expected = (network.macs_full + network.macs_min) / 2
    error = (sum(u.macs**2 for u in network.units) / 4 / 1000) ** 0.5
    assert abs(sum(point["macs"] for point in points) / 5 - expected) < 4 * error


def test_sdv_scales_nothing() -> None:
    network, images = build(network="resnet-8"), images_of()
    result = network.infer(images, {"drop": 0.5})
    assert 0 < result.decisions.mean() < 1
    features = network.stem(images)
    for k, kept in enumerate(result.decisions.unbind(1)):
        block = network.block(k)
        features = F.relu(block.shortcut(features) + kept[:, None, None, None] * block.branch(features))
    assert torch.allclose(result.logits, network.classifier(features), rtol=1e-4, atol=1e-5)


def draw(network: StochasticDepthResNet, images: Tensor, seed: int = 0) -> Tensor:
    """The mask of one training batch under the original."""
    with torch.no_grad():
        routed = network.train()(images, generator=torch.Generator().manual_seed(seed))
    assert (routed.decisions == routed.decisions[:1]).all()
    return routed.decisions[0]


def test_the_original_drops_blocks_for_a_whole_batch_at_linear_rates() -> None:
    network, images = build(network="resnet-8", variant="original", drop=0.9), images_of(2)
    masks = torch.stack([draw(network, images, seed) for seed in range(200)])
    assert len(masks.unique(dim=0)) == 8
    expected = torch.tensor([0.7, 0.4, 0.1])
    assert float((masks.mean(dim=0) - expected).abs().max()) < 4 * 0.5 / 200**0.5


def test_the_original_does_not_compute_what_it_drops() -> None:
    network, images = build(variant="original", drop=0.9), images_of()
    before = {name: value.clone() for name, value in network.named_buffers()}
    with counted(network) as counts:
        mask = draw(network, images, seed=1)
    assert 0 < mask.mean() < 1
    for k, runs in enumerate(mask.tolist()):
        macs = sum(n for name, n in counts.items() if name.startswith(f"blocks.{k}."))
        assert macs == runs * len(images) * network.block_macs[k]
        mean = f"blocks.{k}.bn2.running_mean"
        assert torch.equal(network.get_buffer(mean), before[mean]) is not bool(runs)


def test_the_original_trains_like_the_masked_mixture() -> None:
    batched = build(variant="original", drop=0.9).train().double()
    mixed = copy.deepcopy(batched)
    images, labels = images_of().double(), torch.arange(6) % 5
    routed = batched(images, generator=torch.Generator().manual_seed(1))
    masked = mixed(images, decisions=routed.decisions)
    assert torch.allclose(routed.output, masked.output, rtol=1e-12)
    assert torch.equal(routed.macs, masked.macs)
    for each in (routed, masked):
        F.cross_entropy(each.output, labels).backward()
    for (name, one), other in zip(batched.named_parameters(), mixed.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        assert torch.allclose(one.grad, other.grad, rtol=1e-9, atol=1e-12), name
        k = name.split(".")[1]
        dropped = name.startswith("blocks.") and not routed.decisions[0, int(k)]
        assert bool(one.grad.any()) is not dropped, name


def test_the_original_at_inference_is_the_whole_network_scaled_by_survival() -> None:
    network, images = build(network="resnet-8", variant="original", drop=0.6), images_of()
    result = network.infer(images, {})
    features = network.stem(images)
    for k, survival in enumerate((0.8, 0.6, 0.4)):
        block = network.block(k)
        inner = block.bn2(block.conv2(F.relu(block.bn1(block.conv1(features)))))  # type: ignore[operator]
        features = F.relu(block.shortcut(features) + survival * inner)
    assert torch.allclose(result.logits, network.classifier(features), rtol=1e-4, atol=1e-6)
    assert result.path.all() and result.macs.tolist() == [network.macs_full] * 6
    assert torch.equal(network(images, decisions=result.decisions).output, result.logits)
    assert torch.equal(network(images).output, result.logits)
    (point,) = curve(METHOD, network, images, torch.arange(6) % 5).points
    assert (point["knobs"], point["macs"]) == ({}, network.macs_full)


def test_the_curve_sweeps_the_rate_and_holds_that_of_training() -> None:
    settings = METHOD.settings(METHOD.configure({"drop": 0.37}))
    assert [s["drop"] for s in settings] == [0.0, 0.1, 0.2, 0.3, 0.37, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert len(METHOD.settings(METHOD.configure({"drop": 0.5}))) == len(DROPS)


@pytest.mark.parametrize("variant", ["sdv", "original"])
def test_the_certain_block_is_never_dropped_in_training(variant: str) -> None:
    network = build(network="resnet-8", variant=variant, drop=0.0).train()
    for parameter in network.router.buffers():
        assert torch.sigmoid(parameter).eq(1).all() and parameter.isfinite().all()
    batch = Batch(images_of(100), torch.arange(100) % 5, generator=torch.Generator().manual_seed(0))
    routed = network(batch.images, generator=batch.generator)
    assert routed.decisions.all()


def test_the_published_settings_are_configured() -> None:
    sdv, original = METHOD.configure(PAPER), METHOD.configure(ORIGINAL)
    assert (sdv.variant, sdv.mode, sdv.shortcut, sdv.nesterov) == ("sdv", "uniform", "B", False)
    assert (original.mode, original.shortcut, original.nesterov) == ("linear", "pool", True)
    (phase,) = METHOD.phases(original)
    assert phase.optimiser.nesterov
    assert [phase.optimiser.lr_at(epoch / 500) for epoch in (249, 251, 376)] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    "values,message",
    [
        ({"drop": 1.0}, r"drop = 1.0: the rate must be in \[0, 1\)"),
        ({"drop": -0.1}, r"drop = -0.1"),
        ({"mode": "cosine"}, r"mode = 'cosine': sdv takes one of uniform, linear"),
        ({"shortcut": "C"}, r"shortcut = 'C': sdv takes one of A, B, pool"),
        ({"variant": "batch"}, r"variant = 'batch': sdv takes one of sdv, original"),
        ({"network": "resnet-19"}, r"nearest is resnet-20"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.configure(values)


@pytest.mark.parametrize(
    "variant,knobs,message",
    [
        ("sdv", {"drop": 1.5}, r"drop = 1.5: must be a rate in \[0, 1\]"),
        ("sdv", {"drop": "half"}, r"drop = 'half'"),
        ("sdv", {"drop": float("nan")}, r"drop = nan"),
        ("sdv", {"seed": 0.5}, r"seed = 0.5: must be a whole number"),
        ("sdv", {"threshold": 0.5}, r"unknown knob 'threshold'; stochastic depth takes drop and seed"),
        ("original", {"drop": 0.5}, r"unknown knob 'drop': the original stochastic depth runs all blocks"),
    ],
)
def test_wrong_knobs_are_refused(variant: str, knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(network="resnet-8", variant=variant).infer(images_of(1), knobs)
