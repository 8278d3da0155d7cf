"""Deciding how to decide: throughput-adjusted rates, prices, what a curve asks for, bad input."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.deciders import SMALL, batch_of, build, terms_of
from trainables.contracts.method import config_dict
from trainables.contracts.network import Task
from trainables.contracts.recipe import Optimiser
from trainables.data.splits import Augment, Data, Split
from trainables.diagnostics.measure import diagnose
from trainables.inference.evaluation import curve
from trainables.methods.decide import CRITICS, K_CPTS, METHOD, REFERENCE_MACS, Config, k_cpts, prices_of
from trainables.networks.columns.costs import throughput
from trainables.networks.columns.network import ColumnNetwork

torch.set_num_threads(1)


def test_talr_divides_by_the_root_mean_square() -> None:
    for shares, factor in (([1.0, 1, 1, 1], 1.0), ([1, 0.5, 0.5, 0], 1.63299)):
        network = build(alpha_rtr=1.0)
        for p in network.parameters():
            p.grad = torch.ones_like(p)
        network.throughput = throughput(torch.tensor(shares)[:, None].expand(4, len(network.units)))
        adjust(network)
        assert all(torch.allclose(p.grad, torch.full_like(p, factor), rtol=1e-5) for p in network.parameters())  # pyright: ignore


def adjust(network: ColumnNetwork) -> None:
    assert METHOD.adjust_gradients is not None
    METHOD.adjust_gradients(network, batch_of())


def adjusted(**values: Any) -> tuple[ColumnNetwork, dict[str, Tensor]]:
    """A network after the step of its gradient, and gradient before over gradient after."""
    network = build(**values)
    torch.stack(list(terms_of(network, batch_of()).values())).sum().backward()
    before = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    adjust(network)
    return network, {n: network.get_parameter(n).grad / g for n, g in before.items() if g.abs().min() > 0}  # pyright: ignore


def test_talr_acts_on_the_whole_gradient_layer_by_layer() -> None:
    network, factors = adjusted(network="pyramid-tree-3")
    path = network(batch_of().images).aux["path"]
    rms = path.square().mean(dim=0).sqrt()
    names = {id(p): n for n, p in network.named_parameters()}
    seen = 0
    for part, share in zip(network.parts(), rms.detach(), strict=True):
        for p in part.parameters():
            if (factor := factors.get(names[id(p)])) is not None:
                assert torch.allclose(factor, torch.ones_like(p) / share, rtol=1e-3)
                seen += 1
    assert seen > 20 and rms.min() < 0.9
    _, plain = adjusted(talr=False)
    assert all(torch.equal(f, torch.ones_like(f)) for f in plain.values())
    static, factors = adjusted(network="pyramid-static-3")
    assert all(torch.equal(f, torch.ones_like(f)) for f in factors.values())
    assert static.throughput is not None and static.throughput.tolist() == [1] * 4


def test_the_routers_rate_is_that_of_an_optimiser_group() -> None:
    alpha, steps = 3.0, 3
    ours, theirs = build(talr=False, alpha_rtr=alpha), build(talr=False)
    optimiser = Optimiser(lr=0.05, momentum=0.9).over(list(ours.parameters()))
    groups = [
        {"params": [p for n, p in theirs.named_parameters() if n.startswith("routers") is routed], "lr": rate}
        for routed, rate in ((True, 0.05 * alpha), (False, 0.05))
    ]
    reference = torch.optim.SGD(groups, momentum=0.9)
    for _ in range(steps):
        for network, each in ((ours, optimiser), (theirs, reference)):
            each.zero_grad()
            torch.stack(list(terms_of(network, batch_of()).values())).sum().backward()
            adjust(network)
            each.step()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), name


def test_prices_are_drawn_for_every_example() -> None:
    network, batch = build(dynamic_k_cpt=True), batch_of(400)
    prices = prices_of(network, batch)
    drawn = sorted(set((prices / REFERENCE_MACS).tolist()))
    assert drawn == pytest.approx(list(K_CPTS), rel=1e-5, abs=1e-15)
    again = prices_of(network, batch_of(400))
    assert torch.equal(prices, again) and not torch.equal(prices, prices_of(network, batch))
    constant = prices_of(build(k_cpt=2e-9), batch_of())
    assert constant.tolist() == pytest.approx([2e-9 * REFERENCE_MACS] * 6)
    # a price per MAC of this network
    literal = build(k_cpt=2e-9, k_cpt_per="mac")
    assert prices_of(literal, batch_of()).tolist() == pytest.approx([2e-9 * literal.macs_full] * 6)
    assert k_cpts(Config(width=2.0, k_cpt_per="mac"))[-1] == pytest.approx(1.6e-8)
    assert k_cpts(Config(width=2.0)) == K_CPTS


@pytest.mark.parametrize("k_cpt_per", ["macs_full", "mac"])
def test_routers_read_the_price_times_its_scale(k_cpt_per: str) -> None:
    network = build(dynamic_k_cpt=True, k_cpt_scale=3e8, k_cpt_per=k_cpt_per).eval()
    read: list[float] = []
    for router in network.routers.values():
        router.price.register_forward_hook(lambda *hook: read.extend(hook[1][0][:, 0].tolist()))  # pyright: ignore
    images = batch_of(2).images
    with torch.no_grad():
        network(images, price=torch.tensor([0.0, 6.4e-8]) * network.reference)
        assert read == pytest.approx([0.0, 19.2] * len(network.routers))
        read.clear()
        network.infer(images, {"k_cpt": 6.4e-8})
    assert read and read == pytest.approx([19.2] * len(read))


def test_what_a_curve_asks_for() -> None:
    margins = METHOD.settings(Config())
    assert len(margins) >= 9 and margins[len(margins) // 2] == {"margin": 0.0}
    prices = [s["k_cpt"] for s in METHOD.settings(Config(dynamic_k_cpt=True))]
    assert len(prices) >= 9 and set(K_CPTS) <= set(prices) and prices == sorted(prices)
    assert METHOD.settings(Config(network="pyramid-static-3")) == ({},)


def test_curves_of_margins_run_from_the_first_exit_to_the_last() -> None:
    network, images = build(network="pyramid").eval(), batch_of(30).images
    points = curve(METHOD, network, images, torch.arange(30) % 3).points
    macs = [point["macs"] for point in points]
    assert macs == sorted(macs, reverse=True) and (macs[0], macs[-1]) == (network.macs_full, network.macs_min)
    assert all(sum(p["exit_fractions"]) == pytest.approx(1, abs=1e-5) for p in points)


def test_static_networks_are_trained_by_cross_entropy_and_decay_alone() -> None:
    network, batch = build(network="pyramid-static-3"), batch_of()
    terms = terms_of(network, batch)
    assert list(terms) == ["cross_entropy", "l2"]
    assert float(terms["cross_entropy"].detach()) == pytest.approx(
        float(F.cross_entropy(network(batch.images).output, batch.labels).detach()), rel=1e-4
    )
    torch.stack(list(terms.values())).sum().backward()
    adjust(network)
    assert all(p.grad is not None for p in network.parameters())
    (point,) = curve(METHOD, network, batch.images, batch.labels).points
    assert point["macs"] == network.macs_full and point["distinct_paths"] == 1


def data_of(count: int = 40) -> Data:
    drawn = np.random.default_rng(0)
    split = Split(drawn.integers(0, 256, (count, 1, 8, 8), dtype=np.uint8), np.arange(count, dtype=np.int64) % 3)
    constants: dict[str, Any] = {"mean": (0.5,), "std": (0.3,), "augment": Augment(pad=1)}
    splits = {"train": split, "validation": split, "test": split}
    return Data(name="noise", task=SMALL, classes=("a", "b", "c"), hash="", **splits, **constants)


def test_diagnostics_know_the_classifiers() -> None:
    data = data_of()
    network = build(data.task, network="pyramid-tree-3")
    found = diagnose(METHOD, network, data).record
    assert found["blocks"] == ["column-0", "column-1-0", "column-1-1"] + [f"column-2-{k}" for k in range(4)]
    exits = len(network.exits)
    assert len(found["exit_frac"]) == len(found["exit_acc"]) == exits and found["groups"] == [0, 0, 0, 1, 1, 1, 1]
    # p_cor and p_inc of every classifier
    correct = [f * (a or 0) for f, a in zip(found["exit_frac"], found["exit_acc_given_exit"], strict=True)]
    assert sum(correct) == pytest.approx(found["acc"], abs=1e-4)
    images = found["images"]
    assert sum(map(sum, found["class_by_exit"])) == images
    assert sum(map(sum, found["right_by_exit"])) == pytest.approx(found["acc"] * images)
    assert found["setting"] == {"margin": 0.0}
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"k_cpt": -1e-9}, "k_cpt = -1e-09: must be a number of at least 0"),
        ({"k_cpt_scale": 0.0}, r"k_cpt_scale = 0\.0: must be a positive number"),
        ({"k_dec": -1.0}, r"k_dec = -1\.0"),
        ({"k_cre": -1.0}, r"k_cre = -1\.0"),
        ({"tau": -1.0}, r"tau = -1\.0"),
        ({"alpha_rtr": 0.0}, r"alpha_rtr = 0\.0"),
        ({"epsilon": 0.0}, r"epsilon = 0\.0: must be a small share"),
        ({"router_width": 0}, "router_width = 0"),
        ({"forks": -1}, "forks = -1"),
        ({"pyramid": "laplace"}, "pyramid = 'laplace': decide takes one of subsample, bilinear"),
        ({"init": "zeros"}, "init = 'zeros'"),
        ({"k_cpt_per": "flop"}, "k_cpt_per = 'flop'"),
        ({"variant": "reinforce"}, "variant = 'reinforce'"),
        ({"variant": "static"}, "variant = 'static': decide takes one of actor"),
        ({"network": "pyramid-static-3", "variant": "actor"}, "variant = 'actor': pyramid-static-3 decides nothing"),
        ({"network": "pyramid-static-3", "dynamic_k_cpt": True}, "dynamic_k_cpt = True: a static network reads no"),
        ({"network": "pyramid-static"}, "network = 'pyramid-static': must be pyramid-static-N"),
        ({"network": "pyramid-tree-9"}, "network = 'pyramid-tree-9': must be"),
        ({"network": "pyramid-1"}, "network = 'pyramid-1': must be"),
        ({"network": "columns-8"}, "network = 'columns-8'"),
        ({"schedule": "linear"}, "schedule = 'linear': must be step, cosine or exponential"),
    ],
)
def test_bad_configurations_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        METHOD.configure(values)
    assert "\n" not in str(caught.value)


def test_a_tree_deeper_than_the_pyramid_is_refused() -> None:
    with pytest.raises(
        ValueError, match="images of 16 pixels have a pyramid of 3 scales, which holds 6 columns"
    ) as error:
        METHOD.build(METHOD.configure({"network": "pyramid-tree-7"}), Task(size=16))
    assert str(error.value).endswith("take pyramid-tree-6 or images of at least 32 pixels")


def test_defaults_are_the_papers() -> None:
    config = Config()
    assert (config.network, config.variant, config.lr, config.momentum, config.batch_size) == (
        "pyramid",
        "actor",
        0.1,
        0.9,
        128,
    )
    assert (config.k_dec, config.k_cre, config.weight_decay, config.epsilon) == (0.01, 0.001, 2e-4, 1e-6)
    optimiser = METHOD.phases(config)[0].optimiser
    assert optimiser.weight_decay == 0 and optimiser.lr_at(0) < 0.01  # the warm-up is ours
    assert [optimiser.lr_at(k / 8, 80_000) for k in (1, 2, 8)] == pytest.approx([0.05, 0.025, 0.1 / 256])
    published = METHOD.configure(METHOD.published)
    assert METHOD.configure(config_dict(published)) == published
    assert Config(network="pyramid-static-3").variant == ""
    plain = METHOD.phases(Config(schedule="step"))[0].optimiser
    assert [plain.lr_at(s) for s in (0.4, 0.6)] == pytest.approx([0.1, 0.01])


def test_every_configuration_of_the_space_is_possible() -> None:
    rng = random.Random(0)
    for _ in range(300):
        values = METHOD.space.sample(rng)
        config = METHOD.configure(values)
        assert ("k_dec" in values) == (config.variant == "actor")
        assert ("k_cre" in values) == (config.variant in CRITICS)
        assert ("k_cpt" in values) == (config.variant != "" and not config.dynamic_k_cpt)
        METHOD.build(
            METHOD.configure({**values, "width": 0.1, "router_width": 2}), Task(size=8)
        ) if rng.random() < 0.05 else None
