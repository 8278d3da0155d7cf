"""What actors and critics minimise: shares of images, costs of the ways, losses and their gradients."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.deciders import batch_of, build, terms_of
from trainables.contracts.recipe import Batch
from trainables.methods.decide import CRITICS, REFERENCE_MACS, Config, temperature
from trainables.networks.columns.costs import classification_costs, sink_costs, squared_weights, targets
from trainables.networks.columns.network import ColumnNetwork
from trainables.networks.columns.tree import nodes_of, sinks_at

torch.set_num_threads(1)


def gradients(network: ColumnNetwork, term: Tensor, prefix: str = "") -> dict[str, Tensor]:
    """The gradient of a term, of the parameters that it reaches."""
    chosen = {name: p for name, p in network.named_parameters() if name.startswith(prefix)}
    found = torch.autograd.grad(term, list(chosen.values()), allow_unused=True, retain_graph=True)
    return {name: g for name, g in zip(chosen, found, strict=True) if g is not None and g.any()}


@pytest.mark.parametrize("name", ["pyramid", "pyramid-tree-4"])
@pytest.mark.parametrize("decided", [0.0, 1.0, 1e4])
def test_shares_sum_to_one_and_keep_a_floor(name: str, decided: float) -> None:
    network = build(network=name, decided=decided)
    routed = network(batch_of().images)
    answered, reached = routed.aux["answered"], routed.aux["reached"]
    assert torch.allclose(answered.sum(dim=1), torch.ones(6), atol=1e-5)
    assert (answered >= 0.999 * network.epsilon / len(network.exits)).all() and (reached[:, 0] == 1).all()
    for sinks in network.sinks_at:
        if sinks.stop > sinks.start:
            assert torch.allclose(routed.decisions[:, sinks].sum(dim=1), torch.ones(6), atol=1e-4)
    # a column's share is what its classifier and its children take
    for n, node in enumerate(network.nodes):
        taken = answered[:, network.exits_at[n]] + sum(reached[:, child] for child in node.children)
        assert torch.allclose(taken, reached[:, n], atol=1e-6)


def test_routers_begin_undecided() -> None:
    network = build(decided=0.0, network="pyramid-tree-3")
    decisions = network(batch_of().images).decisions
    for n, sinks in enumerate(network.sinks_at):
        if sinks.stop > sinks.start:
            assert torch.allclose(decisions[:, sinks], torch.full((6, 1), 1 / network.nodes[n].sinks), atol=1e-5)


def test_temperature_sharpens_and_decays() -> None:
    network = build().eval()
    images = batch_of().images
    network.temperature = 1.0
    warm = network(images)
    network.temperature = 1e-5
    cold = network(images)
    hard = network.infer(images, {})
    assert torch.allclose(cold.aux["answered"], F.one_hot(hard.exits, 3).float(), atol=1e-4)  # pyright: ignore
    assert not torch.allclose(warm.aux["answered"], cold.aux["answered"], atol=0.05)
    assert [temperature(Config(), share, 80_000) for share in (0, 1 / 8, 1)] == pytest.approx([1.0, 0.5, 1 / 256])
    critic = Config(variant="pragmatic", tau_half_life=0.5)
    assert [temperature(critic, share, 80_000) for share in (0, 0.5)] == pytest.approx([0.1, 0.05])
    assert temperature(Config(tau=2.0, tau_half_life=0.25), 0.25, 100) == pytest.approx(1.0)
    terms_of(network, batch_of(share=0.25, steps=80_000))
    assert network.temperature == pytest.approx(0.25)
    terms_of(network, batch_of(share=0.25, steps=8_000))
    assert network.temperature == pytest.approx(0.5**0.5)


def test_the_toy_of_the_specification() -> None:
    nodes = nodes_of("chain", 3)
    errors, columns = torch.tensor([[0.9, 0.5, 0.1]]), torch.tensor([[0.1, 0.2, 0.3]])
    scores = torch.tensor([[0.0, 0.0, 1.0, 0.0]])  # the last router classifies
    pragmatic = sink_costs(nodes, errors, columns, torch.zeros(1, 3), scores)
    optimistic = sink_costs(nodes, errors, columns, torch.zeros(1, 3))
    assert pragmatic[0].tolist() == pytest.approx([0.9, 0.7, 0.5, 0.4])
    assert optimistic[0].tolist() == pytest.approx([0.9, 0.6, 0.5, 0.4])


def followed(network: ColumnNetwork, image: int, n: int, errors: Tensor, price: Tensor, scores: Tensor | None) -> float:
    """The cost of what lies behind column n for one image, walked by hand; the best way without scores."""
    unit, node = network.unit_of[n], network.nodes[n]
    rate = float(price[image]) / network.macs_full
    own = rate * sum(network.units[unit[kind]].macs for kind in ("column", "router") if kind in unit)
    ways = [float(errors[image, network.exits_at[n]]) + rate * network.units[unit["exit"]].macs]
    ways += [followed(network, image, child, errors, price, scores) for child in node.children]
    if len(ways) == 1 or scores is None:
        return own + min(ways)
    return own + ways[int(scores[image, network.sinks_at[n]].argmax())]


@pytest.mark.parametrize("variant", CRITICS)
def test_critics_regress_the_cost_of_each_childs_subnetwork(variant: str) -> None:
    network = build(network="pyramid-tree-4", variant=variant)
    draw = torch.Generator().manual_seed(0)
    errors, price = torch.rand(5, len(network.exits), generator=draw) * 3, torch.rand(5, generator=draw) * 4
    scores = torch.randn(5, network.sinks_at[-1].stop, generator=draw)
    wanted = targets(network, errors, price, None if variant == "optimistic" else scores)
    for image in range(5):
        for n, sinks in enumerate(network.sinks_at):
            if sinks.stop == sinks.start:
                continue
            leaf = float(errors[image, network.exits_at[n]])
            leaf += float(price[image]) * network.units[network.unit_of[n]["exit"]].macs / network.macs_full
            ruled = None if variant == "optimistic" else scores
            children = [followed(network, image, c, errors, price, ruled) for c in network.nodes[n].children]
            assert wanted[image, sinks].tolist() == pytest.approx([-leaf, *(-c for c in children)], rel=1e-4)
    best = targets(network, errors, price)
    assert (best >= targets(network, errors, price, scores) - 1e-6).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31), st.integers(2, 6), st.integers(0, 2))
def test_the_best_way_is_never_dearer(seed: int, length: int, forks: int) -> None:
    nodes, draw = nodes_of("tree", length, forks), torch.Generator().manual_seed(seed)
    count = len(nodes)
    errors, columns, exits = (torch.rand(4, count, generator=draw) for _ in range(3))
    scores = torch.randn(4, sinks_at(nodes)[-1].stop, generator=draw)
    assert (sink_costs(nodes, errors, columns, exits) <= sink_costs(nodes, errors, columns, exits, scores)).all()


def test_dear_computation_is_never_worth_it() -> None:
    network = build(network="pyramid-tree-4", variant="optimistic")
    errors = torch.rand(5, len(network.exits), generator=torch.Generator().manual_seed(0)) * 5
    wanted = targets(network, errors, torch.full((5,), 1e4))
    for sinks in network.sinks_at:
        if sinks.stop > sinks.start:
            assert wanted[:, sinks].argmax(dim=1).tolist() == [0] * 5


def test_cross_entropy_has_a_floor() -> None:
    logits, labels = torch.tensor([[50.0, 0.0, 0.0], [0.0, 1.0, 2.0]]), torch.tensor([1, 2])
    costs = classification_costs(logits, labels, 1e-6)
    assert float(costs[0]) == pytest.approx(-math.log(1e-6 / 3), rel=1e-5)
    assert float(costs[1]) == pytest.approx(float(F.cross_entropy(logits[1:], labels[1:])), rel=1e-5)


def by_hand(network: ColumnNetwork, batch: Batch) -> dict[str, float]:
    """The terms of the objective from their equations, image by image."""
    config: Config = network.config
    network.temperature = temperature(config, batch.share, batch.steps)
    with torch.no_grad():
        routed = network(batch.images)
    price = config.k_cpt * REFERENCE_MACS / network.macs_full
    units = [
        sum(float(p.detach().square().sum()) for name, p in part.named_parameters() if is_weight(name))
        for part in network.parts()
    ]
    totals = {"cross_entropy": 0.0, "computation": 0.0, "l2": 0.0, "decisiveness": 0.0}
    for b in range(len(batch.labels)):
        for e, logits in enumerate(routed.logits):
            share = float(routed.aux["answered"][b, e])
            totals["cross_entropy"] += share * float(F.cross_entropy(logits[b : b + 1], batch.labels[b : b + 1]))
            totals["computation"] += share * price * network.exits[e].macs
        for u, squares in enumerate(units):
            totals["l2"] += float(routed.aux["path"][b, u]) * config.weight_decay / 2 * squares
        for n, sinks in enumerate(network.sinks_at):
            squares = float(routed.aux["scores"][b, sinks].square().sum())
            totals["decisiveness"] += float(routed.aux["reached"][b, n]) * config.k_dec * squares
    return {name: total / len(batch.labels) for name, total in totals.items()}


def is_weight(name: str) -> bool:
    return name.endswith("weight") and "norms" not in name


def test_the_actors_loss_is_the_equation() -> None:
    network, batch = build(network="pyramid-tree-3", k_cpt=3e-8), batch_of(share=0.1)
    expected = by_hand(network, batch)
    terms = terms_of(network, batch)
    assert {name: float(term.detach()) for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_critics_loss_is_the_equation() -> None:
    for variant in CRITICS:
        network, batch = build(variant=variant, k_cpt=3e-8), batch_of()
        expected = by_hand(network, batch)
        terms = terms_of(network, batch)
        assert list(terms) == ["cross_entropy", "l2", "computation", "regression"]
        assert {n: float(terms[n].detach()) for n in list(terms)[:3]} == pytest.approx(
            {n: expected[n] for n in list(terms)[:3]}
        )
        with torch.no_grad():
            routed = network(batch.images)
        errors = torch.stack([F.cross_entropy(z, batch.labels, reduction="none") for z in routed.logits], dim=1)
        if variant == "classification_error":
            errors = torch.stack([z.argmax(dim=1) != batch.labels for z in routed.logits], dim=1).float()
        scores = routed.aux["scores"]
        price = torch.full((6,), 3e-8 * REFERENCE_MACS)
        missed = (scores - targets(network, errors, price, None if variant == "optimistic" else scores)).square()
        reached = routed.aux["reached"][:, [0, 0, 1, 1]]
        assert float(terms["regression"].detach()) == pytest.approx(
            0.001 * float((reached * missed).sum()) / 6, rel=1e-4
        )


@pytest.mark.parametrize(
    "values",
    [
        {"k_dec": 0.0, "weight_decay": 0.0, "k_cpt": 3e-8},
        {"k_dec": 0.1, "weight_decay": 0.05, "reg_policy": True, "k_cpt": 3e-8, "network": "pyramid-tree-3"},
    ],
)
def test_the_actors_gradient_is_that_of_finite_differences(values: dict[str, Any]) -> None:
    network, batch = build(**values, router_width=4).double(), batch_of(share=0.05)
    batch.images = batch.images.double()
    total = torch.stack(list(terms_of(network, batch).values())).sum()
    network.zero_grad()
    total.backward()
    draw = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        if parameter.grad is None:
            continue  # batch norms of scales that nobody reads
        way = torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
        way /= way.norm()
        values_at = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * way
                values_at.append(float(torch.stack(list(terms_of(network, batch).values())).sum()))
                parameter -= step * way
        measured = (values_at[0] - values_at[1]) / 2e-6
        assert float((parameter.grad * way).sum()) == pytest.approx(measured, rel=1e-4, abs=1e-7), name


def test_routers_of_critics_learn_from_their_regression_alone() -> None:
    network, batch = build(variant="pragmatic"), batch_of()
    terms = terms_of(network, batch)
    assert not gradients(network, terms["cross_entropy"], "routers")
    assert gradients(network, terms["cross_entropy"], "columns.2")
    assert not terms["computation"].requires_grad
    assert "routers.0.scores.bias" in gradients(network, terms["regression"], "routers")
    assert not gradients(network, terms["regression"], "classifiers")  # targets are constants
    assert gradients(network, terms["regression"], "columns")  # router inputs are not detached


def test_routers_of_actors_learn_from_error_and_price() -> None:
    terms = terms_of(network := build(), batch_of())
    for term in ("cross_entropy", "computation"):
        assert gradients(network, terms[term], "routers.0.scores")
    # what classifying costs more than going on is what its score is pushed by
    dear = gradients(network, terms["computation"], "routers.0.scores.bias")["routers.0.scores.bias"]
    assert dear[0] < 0 < dear[1]


def test_regularisation_leaves_the_policy_alone_unless_asked() -> None:
    batch = batch_of()
    network = build(k_dec=0.5)
    terms = terms_of(network, batch)
    assert "routers.0.scores.bias" not in gradients(network, terms["l2"], "routers")
    found = gradients(network, terms["decisiveness"], "routers.0.scores.bias")["routers.0.scores.bias"]
    scores = network(batch.images).aux["scores"][:, :2]
    assert torch.allclose(found, 2 * 0.5 * scores.mean(dim=0), rtol=1e-4, atol=1e-6)
    network = build(k_dec=0.5, reg_policy=True)
    terms = terms_of(network, batch)
    assert "routers.0.scores.bias" in gradients(network, terms["l2"], "routers")
    changed = gradients(network, terms["decisiveness"], "routers.0.scores.bias")["routers.0.scores.bias"]
    assert not torch.allclose(changed, found, rtol=1e-3)
    assert float(terms_of(build(k_dec=0.0), batch)["decisiveness"].detach()) == 0


def test_decay_is_that_of_an_optimiser_weighed_by_the_shares() -> None:
    network, batch = build(weight_decay=0.3), batch_of()
    found = gradients(network, terms_of(network, batch)["l2"])
    mean = network(batch.images).aux["path"].detach().mean(dim=0)
    for unit, part, share in zip(network.units, network.parts(), mean, strict=True):
        for name, p in part.named_parameters():
            if is_weight(name):
                prefix = next(n for n, other in network.named_parameters() if other is p)
                assert torch.allclose(found.pop(prefix), 0.3 * share * p, rtol=1e-4, atol=1e-8), (unit.name, name)
    assert not found  # neither biases nor batch norm
    assert squared_weights(network).shape == (len(network.units),)
