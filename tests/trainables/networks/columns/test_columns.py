"""Columns, chains and trees: the paper's integers, what a pyramid holds, relaxed and hard passes leaf by leaf."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.inference.prepare import prepared
from trainables.methods.decide import METHOD, REFERENCE_MACS
from trainables.networks.columns.layers import BatchNorm1d, Column, FusedColumn, Router
from trainables.networks.columns.network import ColumnNetwork
from trainables.networks.columns.tree import NETWORKS, Pyramid, nodes_of, scales_of, sinks_at

torch.set_num_threads(1)

SMALL = Task(classes=4, size=16, channels=2)

# McGill and Perona: operations of an image that is classified behind column 0 ... 7; of static networks; parameters
CHAIN = [1_368_608, 5_280_576, 7_577_184, 11_419_520, 13_505_696, 17_061_312, 18_284_256, 20_643_552]
TREE = [1_368_624, 5_280_608, 7_577_232, 11_419_568, 13_505_744, 17_061_360, 18_284_304, 20_643_600]
COLUMNS = [1_361_664, 3_907_584, 2_285_568, 3_833_856, 2_064_384, 3_538_944, 1_179_648, 2_359_296]
STATIC = [1_364_224, 5_271_808, 7_559_936, 11_393_792, 13_463_296, 17_002_240, 18_192_128, 20_551_424]
STATIC_PARAMS = [11_402, 27_722, 62_826, 109_194, 188_426, 299_402, 383_754, 531_594]


def build(task: Task = SMALL, **values: Any) -> ColumnNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure(values), task)
    assert isinstance(network, ColumnNetwork)
    return network


def lived_in(network: ColumnNetwork, spread: float = 1.0, seed: int = 1) -> ColumnNetwork:
    """As training leaves a network: statistics that are no 0 and 1, routers that disagree about images."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)  # pyright: ignore
                module.running_var.uniform_(0.5, 1.5)  # pyright: ignore
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias, 0, 0.2)
            elif isinstance(module, Router):
                nn.init.normal_(module.scores.weight, 0, spread)
                nn.init.normal_(module.scores.bias, 0, spread)
    return network.eval()


def images_of(count: int, task: Task = SMALL) -> Tensor:
    noise = torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(1))
    return noise * torch.logspace(-1, 1, count)[:, None, None, None]


def params(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


def test_the_chain_has_the_papers_integers() -> None:
    chain = build(Task())
    assert [e.macs for e in chain.exits] == CHAIN
    assert params(chain) == 680_798
    assert chain.macs_full == REFERENCE_MACS == CHAIN[-1] and chain.macs_min == CHAIN[0] and chain.fixed_macs == 0
    assert [u.macs for u in chain.units if u.kind == "column"] == COLUMNS
    assert [u.macs for u in chain.units if u.kind == "router"] == [4384, 4384, 8480, 8480, 16_672, 16_672, 33_056]
    assert [u.macs for u in chain.units if u.kind == "exit"] == [2560] * 2 + [5120] * 2 + [10_240] * 2 + [20_480] * 2
    priced = build(Task(), dynamic_k_cpt=True)
    assert params(priced) == 680_910
    assert [e.macs for e in priced.exits] == [macs + 16 * min(k + 1, 7) for k, macs in enumerate(CHAIN)]
    assert [params(build(Task(classes=c))) for c in (2, 5)] == [619_294, 642_358]
    assert METHOD.paper_cost is not None and METHOD.paper_cost(chain)["ops"] == CHAIN


def test_trees_and_static_networks_have_the_papers_integers() -> None:
    tree = build(Task(), network="pyramid-tree")
    assert len(tree.nodes) == len(tree.exits) == 47 and params(tree) == 5_010_075
    assert sorted(e.macs for e in tree.exits) == sorted(TREE[n.depth] for n in tree.nodes)
    sinks = [n.sinks for n in tree.nodes]
    assert (sinks.count(3), sinks.count(2), sinks.count(1)) == (7, 32, 8)
    for n in range(1, 9):
        network = build(Task(), network=f"pyramid-static-{n}")
        assert (network.macs_full, params(network)) == (STATIC[n - 1], STATIC_PARAMS[n - 1])
        assert network.macs_min == network.macs_full and len(network.exits) == 1


@pytest.mark.parametrize(("width", "count", "macs"), [(2.0, 2_372_574, 80_989_696), (3.0, 5_078_110, 181_314_816)])
def test_wider_networks_have_the_papers_integers(width: float, count: int, macs: int) -> None:
    assert params(build(Task(), width=width)) == count
    assert build(Task(), width=width, network="pyramid-static-8").macs_full == macs


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(NETWORKS), st.integers(4, 40), st.integers(0, 4), st.sampled_from(("subsample", "bilinear")))
def test_any_size_holds_two_columns_a_scale(name: str, size: int, forks: int, pyramid: str) -> None:
    held = 2 * len(scales_of(size))
    last = name.rpartition("-")[2]
    asked = int(last) if last.isdigit() else held
    values = {"network": name, "width": 0.25, "forks": forks, "pyramid": pyramid, "router_width": 4}
    task = Task(classes=3, size=size, channels=1)
    if "tree" in name and asked > 5:
        asked, values["network"] = 5, "pyramid-tree-5"  # all the rest are the same chains
    if asked > held:
        with pytest.raises(
            ValueError, match=rf"holds {held} columns; take pyramid(-\w+)?-{held} or .* at least \d+ pixels"
        ):
            build(task, **values)
        return
    network = build(task, **values)
    assert max(n.depth for n in network.nodes) + 1 == asked
    lived_in(network)
    images = images_of(5, task)
    with counted(network) as tally:
        result = network.infer(images, {})
    assert sum(tally.values()) == float(result.macs.sum())
    with torch.no_grad():
        routed = network(images, decisions=result.decisions)
    assert close(routed.output, result.logits) and torch.equal(routed.macs, result.macs)


def test_scales_and_nodes() -> None:
    sizes = {4: [4], 7: [7], 8: [8, 4], 11: [11, 6], 16: [16, 8, 4], 28: [28, 14, 7], 32: [32, 16, 8, 4]}
    assert {size: scales_of(size) for size in sizes} == sizes
    assert scales_of(64) == [64, 32, 16, 8]  # never more than four
    tree = nodes_of("tree", 4, 2)
    assert [n.name for n in tree] == ["0", "1-0", "1-1", "2-0", "2-1", "2-2", "2-3", "3-0", "3-1", "3-2", "3-3"]
    assert [n.children for n in tree] == [(1, 2), (3, 4), (5, 6), (7,), (8,), (9,), (10,), (), (), (), ()]
    assert [n.parent for n in tree] == [-1, 0, 0, 1, 1, 2, 2, 3, 4, 5, 6]
    assert sinks_at(tree)[3] == slice(9, 11) and sinks_at(tree)[-1] == slice(17, 17)
    assert [n.sinks for n in nodes_of("static", 3)] == [1, 1, 1]
    assert nodes_of("tree", 3, 0) == nodes_of("chain", 3)


def test_pyramids() -> None:
    image = torch.arange(64.0).view(1, 1, 8, 8)
    subsampled, means = (Pyramid(8, how, 2)(image) for how in ("subsample", "bilinear"))
    assert torch.equal(subsampled[1], image[..., ::2, ::2])
    assert torch.allclose(means[1], F.avg_pool2d(image, 2))
    assert torch.equal(subsampled[0], image) and torch.equal(means[0], image)


def test_a_column_is_the_equation() -> None:
    column = Column(3, 5, 2, 2)
    fine, coarse = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 4, 4)
    outputs = column(fine, coarse)
    (h0, h1), (v1,), (n0, n1) = column.across, column.down, column.norms
    y0 = h0(fine)
    y1 = h1(coarse) + v1(F.max_pool2d(y0, 2))  # before the batch norm
    assert torch.allclose(outputs[0], n0(y0).relu(), atol=1e-6) and torch.allclose(outputs[1], n1(y1).relu(), atol=1e-6)
    assert v1.bias is None and column.norms[0].eps == 1e-6 and column.norms[0].momentum == 0.1
    idle = Column(3, 5, 2, 1)
    idle.load_state_dict(column.state_dict())
    (only,) = idle(torch.zeros(1, 3, 16, 16), fine, coarse)  # a scale that nobody reads is left out
    assert torch.allclose(only, outputs[1], atol=1e-6)


def test_running_variances_are_biased() -> None:
    norm, values = BatchNorm1d(3), torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    plain = nn.BatchNorm1d(3, eps=1e-6)
    assert torch.equal(norm(values), plain(values))
    assert torch.allclose(norm.running_var, 0.9 + 0.1 * values.var(dim=0, unbiased=False))  # pyright: ignore
    assert torch.equal(norm.running_mean, plain.running_mean)  # pyright: ignore


def test_initial_weights() -> None:
    network = build(Task(), dynamic_k_cpt=True)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            assert float(module.weight.detach().std()) == pytest.approx(module.weight[0].numel() ** -0.5, rel=0.1)
    routers = [m for m in network.modules() if isinstance(m, Router)]
    assert len(routers) == 7
    for router in routers:
        assert not router.scores.weight.any() and router.hidden[0].weight.any()
        assert router.price is not None and router.price.weight.shape == (16, 1)  # one more input
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    glorot = build(Task(), init="xavier").columns[7].across[0].weight  # pyright: ignore
    assert float(glorot.detach().std()) == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("name", ["pyramid", "pyramid-tree-4", "pyramid-static-3"])
@pytest.mark.parametrize("fast", [False, True])
def test_injected_decisions_agree_with_inference_leaf_by_leaf(name: str, fast: bool) -> None:
    network = lived_in(build(network=name, width=0.5))
    network = prepared(network) if fast else network
    assert isinstance(network, ColumnNetwork)
    images = images_of(6)
    with torch.no_grad():
        every = network(images).logits
    for leaf, leaving in enumerate(network.exits):
        decisions = network.get_buffer("exit_decisions")[leaf].float().expand(6, -1)
        routed = network(images, decisions=decisions)
        assert torch.equal(routed.output, every[leaf]) or close(routed.output, every[leaf])
        assert routed.macs.unique().tolist() == [leaving.macs]
        wanted = network.get_buffer("exit_paths")[leaf].float()
        assert torch.equal(routed.aux["path"], wanted.expand(6, -1))
        # routers that say nothing but this way
        for n, sinks in enumerate(network.sinks_at):
            if sinks.stop > sinks.start:
                router = network.routers[str(n)]
                assert isinstance(router, Router)
                router.scores.weight.data.zero_()
                router.scores.bias.data.copy_(decisions[0, sinks])
        with counted(network) as tally:
            result = network.infer(images, {})
        assert torch.equal(result.decisions, decisions) and result.exits is not None
        assert result.exits.unique().tolist() == [leaf]
        assert close(result.logits, every[leaf]) and sum(tally.values()) == 6 * leaving.macs


def test_a_tree_divides_its_batch() -> None:
    network, images = lived_in(build(network="pyramid-tree-4"), seed=4), images_of(40)
    result = network.infer(images, {})
    assert result.exits is not None and len(result.exits.unique()) >= 5
    assert torch.equal(result.path.unique(dim=0).sum(dim=0).clamp(max=1), result.path.amax(dim=0))
    with torch.no_grad():
        routed = network(images, decisions=result.decisions)
        alone = torch.cat([network.infer(image[None], {}).logits for image in images])
    assert close(routed.output, result.logits) and torch.equal(routed.macs, result.macs)
    assert close(alone, result.logits)
    # one-hot where a junction was reached, zero where it was not
    column = network.get_buffer("column_of_sink")
    reached = torch.zeros(40, len(network.nodes)).index_add_(1, column, result.decisions)
    assert torch.equal(reached[:, column.unique()], routed.aux["reached"][:, column.unique()])


def test_all_exits_off_is_the_static_network() -> None:
    chain, static = lived_in(build(network="pyramid-4")), build(network="pyramid-static-4").eval()
    state = chain.state_dict()
    static.load_state_dict({name: state[name] for name in static.state_dict()})
    images = images_of(5)
    late, plain = chain.infer(images, {"margin": -1e6}), static.infer(images, {})
    assert close(late.logits, plain.logits)
    routers = sum(unit.macs for unit in chain.units if unit.kind == "router")
    assert float(late.macs[0]) == static.macs_full + routers == chain.macs_full
    assert chain.infer(images, {"margin": 1e6}).macs.unique().tolist() == [chain.macs_min]


@pytest.mark.parametrize("values", [{}, {"dynamic_k_cpt": True}, {"network": "pyramid-tree-3", "dynamic_k_cpt": True}])
def test_prepared_networks_answer_the_same(values: dict[str, Any]) -> None:
    network, images = lived_in(build(**values)), images_of(9)
    fast = prepared(network)
    assert sum(isinstance(m, FusedColumn) for m in fast.modules()) == len(network.nodes)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fast.modules())
    before = images.clone()
    settings = METHOD.settings(network.config)[::3]
    for knobs, swept in zip(settings, network.sweep(images, settings), strict=True):
        theirs, ours = network.infer(images, knobs), fast.infer(images, knobs)
        for each in (ours, swept):
            assert torch.equal(each.path, theirs.path) and torch.equal(each.macs, theirs.macs)
            assert torch.equal(each.exits, theirs.exits)  # type: ignore[arg-type]
            assert close(each.logits, theirs.logits)
    assert torch.equal(images, before)
    narrow = prepared(network, dtype=torch.bfloat16).infer(images, {})
    assert narrow.logits.isfinite().all()
    for empty in (network, fast):
        assert empty.infer(images[:0], {}).logits.shape == (0, 4)


def test_prices_change_decisions_where_routers_read_them() -> None:
    network, images = build(network="pyramid-4", dynamic_k_cpt=True).eval(), images_of(4)
    for router in network.routers.values():  # dear computation: classify
        assert isinstance(router, Router) and router.price is not None
        router.price.weight.data.fill_(10.0)
        router.hidden[0].weight.data.zero_()
        router.hidden[0].bias.data.fill_(1.0)
        router.hidden[1].weight.data.copy_(torch.eye(16))
        router.scores.weight.data[0].fill_(1.0)
        router.scores.bias.data.copy_(torch.tensor([0.0, 16 * 2.0]))  # 1 + 10 * price = 2 is the limit
    assert network.infer(images, {"k_cpt": 0.0}).exits.tolist() == [3] * 4  # pyright: ignore
    assert network.infer(images, {"k_cpt": 0.9e-8}).exits.tolist() == [3] * 4  # pyright: ignore
    assert network.infer(images, {"k_cpt": 1.1e-8}).exits.tolist() == [0] * 4  # pyright: ignore
    prices = torch.tensor([0.0, 0.9e-8, 1.1e-8, 6.4e-8]) * network.reference
    scores = network(images, price=prices).aux["scores"]
    assert (scores[:, 0] > scores[:, 1]).tolist() == [False, False, True, True]
    swept = network.sweep(images, [{"k_cpt": 0.0}, {"k_cpt": 2e-8}, {"k_cpt": 0.0, "margin": 1e3}])
    assert [r.exits.tolist() for r in swept] == [[3] * 4, [0] * 4, [0] * 4]  # pyright: ignore


@pytest.mark.parametrize(
    ("priced", "knobs", "message"),
    [
        (True, {"k_cpt": -1e-9}, "k_cpt = -1e-09: the price of computation must be a number of at least 0"),
        (True, {"k_cpt": "1"}, "k_cpt = '1'"),
        (True, {"k_cpt": True}, "k_cpt = True"),
        (True, {"k_cpt": float("nan")}, "k_cpt = nan"),
        (False, {"k_cpt": 1e-9}, "only routers trained with dynamic_k_cpt"),
        (False, {"margin": float("inf")}, "margin = inf: must be a number"),
        (False, {"margin": "0"}, "margin = '0'"),
        (False, {"threshold": 0.5}, "unknown knob 'threshold'; networks of columns take margin and k_cpt"),
    ],
)
def test_bad_knobs_are_refused(priced: bool, knobs: dict[str, Any], message: str) -> None:
    network = build(network="pyramid-2", dynamic_k_cpt=priced)
    with pytest.raises(ValueError, match=message):
        network.infer(images_of(2), knobs)
