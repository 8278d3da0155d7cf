"""Multi-path networks: the paper's sizes, equalities between its networks, pruned passes, what is refused."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spaces.multipath import PAPER
from trainables.contracts.network import RoutedNetwork, Task
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve
from trainables.inference.prepare import prepared
from trainables.methods.multipath import METHOD, Config, layout_of
from trainables.networks.multipath import layers as multipath_choice
from trainables.networks.multipath.bodies import body_of, chosen_places, parse, places_of
from trainables.networks.multipath.network import MultiPathNetwork, Pruning
from trainables.networks.multipath.routing import CrossStitch

torch.set_num_threads(1)
TINY = Task(classes=5, size=8, channels=1)
QUARTER = {"network": "basecnn-2", "width": 0.125}


def build(task: Task = TINY, **values: Any) -> MultiPathNetwork:
    """A network in eval mode, its statistics as after training and its gates undecided."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({**QUARTER, **values}), task)
        for name, parameter in network.named_parameters():
            if ".gates." in name:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore
    assert isinstance(network, MultiPathNetwork)
    return network.eval()


def images_of(count: int = 8, task: Task = TINY) -> Tensor:
    noise = torch.randn(count, *task.image, generator=torch.Generator().manual_seed(1))
    return noise * torch.logspace(-1, 1, count)[:, None, None, None]


def close(one: Tensor, other: Tensor, share: float = 1e-5) -> bool:
    return bool((one - other).detach().abs().max() <= share * other.detach().abs().max())


def params(network: RoutedNetwork) -> int:
    return sum(p.numel() for p in network.parameters())


def weights_of(values: dict[str, Any], task: Task | None = None) -> int:
    """Parameters of a network that is not given memory."""
    with torch.device("meta"):
        body = body_of(layout_of(METHOD.configure(values)), task or Task())
    return sum(p.numel() for s in body.segments for m in (s.router, s.stage) for p in m.parameters()) + sum(
        p.numel() for p in body.trunk.parameters()
    )


# network, routing, parameters without batch norm, with it, MACs
SIZES = [
    ("basecnn", "none", 550_570, 551_466, 38_896_960),
    ("widecnn", "none", 1_671_114, 1_672_906, 153_290_048),
    ("deepcnn", "none", 2_042_410, 2_045_098, 71_796_032),
    ("basecnn-2", "cp", 1_292_450, 1_294_242, 96_674_704),
    ("basecnn-3", "cp", 2_219_020, 2_221_708, 173_326_800),
    ("basecnn-4", "cp", 3_332_508, 3_336_092, 268_855_408),
    ("basecnn-2", "cc", 1_109_830, 1_111_622, 77_802_448),
    ("basecnn-3", "cc", 1_664_917, 1_667_605, 116_703_840),
    ("basecnn-4", "cc", 2_220_140, 2_223_724, 155_605_360),
    ("resnet-20-2", "cc", None, 548_674, 81_188_064),
    ("resnet-20-3", "cc", None, 822_796, 121_560_928),
    ("resnet-20-4", "cc", None, 1_097_020, 161_933_888),
    ("resnet-20-2", "cp", None, 593_278, 100_502_480),
    ("resnet-20-3", "cp", None, 924_691, 164_909_568),
    ("resnet-20-4", "cp", None, 1_279_308, 238_753_904),
]


@pytest.mark.parametrize("name,routing,bare,normed,macs", SIZES, ids=[f"{s[0]}-{s[1]}" for s in SIZES])
def test_published_sizes(name: str, routing: str, bare: int | None, normed: int, macs: int) -> None:
    network = METHOD.build(METHOD.configure({"network": f"{name}-{routing}"}), Task())
    assert params(network) == normed and network.macs_full == macs
    assert network.fixed_macs + sum(unit.macs for unit in network.units) == macs
    if bare is not None:
        assert weights_of({"network": name, "variant": routing, "batch_norm": False}) == bare


@pytest.mark.parametrize(
    "name,classes,size,count",
    [("resnet-18-2-imagenet", 1000, 224, 23_401_682), ("resnet-50-2-imagenet", 100, 224, 47_540_682)],
)
def test_imagenet_sizes(name: str, classes: int, size: int, count: int) -> None:
    assert weights_of({"network": name}, Task(classes=classes, size=size)) == count


def by_hand(paths: int, size: int, routing: str) -> tuple[int, int]:
    """Parameters without batch norm and MACs of BaseCNN-X, layer by layer."""
    widths, sizes = (3, 32, 32, 64, 64, 128, 128), (size, size, size // 2, size // 2, size // 4, size // 4)
    conv = [a * b * 9 for a, b in itertools.pairwise(widths)]
    flat = (size // 4) ** 2 * 128
    dense = [flat * 32, 32 * 32, 32 * 10]
    biases = [32, 32, 64, 64, 128, 128, 32, 32, 10]
    weights = [*conv, *dense]
    area = [*(s * s for s in sizes), 1, 1, 1]
    predicted = {0: (1, 3), 2: (paths, 32), 4: (paths, 64), 7: (paths, 32)} if routing == "cp" else {}
    count = macs = 0
    for k, (weight, bias, at) in enumerate(zip(weights, biases, area, strict=True)):
        times = paths * (predicted[k][0] if k in predicted else 1)
        count += times * (weight + bias)
        macs += times * weight * at
    gates = list(predicted.values()) or [(1, 3), (paths, 32), (paths, 64), (paths, 128), (paths, 32)]
    count += sum(m * (width * 16 + 16 + 16 * paths + paths) for m, width in gates)
    macs += sum(m * (width * 16 + 16 * paths) for m, width in gates)
    return count, macs


@pytest.mark.parametrize("routing", ["cc", "cp"])
@pytest.mark.parametrize("paths,size", [(2, 32), (5, 32), (3, 16), (7, 48)])
def test_sizes_that_no_table_lists(routing: str, paths: int, size: int) -> None:
    values = {"network": f"basecnn-{paths}", "variant": routing, "batch_norm": False}
    network = METHOD.build(METHOD.configure(values), Task(size=size))
    assert (params(network), network.macs_full) == by_hand(paths, size, routing)


def test_squeeze_and_excitation_adds_two_layers_a_convolution() -> None:
    plain = METHOD.build(METHOD.configure({"network": "basecnn"}), Task())
    excited = METHOD.build(METHOD.configure({"network": "sebasecnn"}), Task())
    other = METHOD.build(METHOD.configure({"network": "basecnn", "se_ratio": 4}), Task())
    for network, ratio in ((excited, 16), (other, 4)):
        more = [(c * (c // ratio), c // ratio + c) for c in (32, 32, 64, 64, 128, 128)]
        assert params(network) - params(plain) == sum(2 * weights + biases for weights, biases in more)
        assert network.macs_full - plain.macs_full == sum(2 * weights for weights, _ in more)


def test_where_the_paper_routes() -> None:
    def places(**values: Any) -> tuple[str, ...]:
        return chosen_places(layout_of(METHOD.configure(values)))

    assert places(network="basecnn-2-cc") == ("input", "conv2", "conv4", "conv6", "dense1")
    assert places(network="basecnn-2-cp") == ("conv1", "conv3", "conv5", "dense2")
    assert places(network="vgg-13-2") == ("input", "conv2", "conv4", "conv6", "conv8", "conv10", "dense1")
    assert places(network="resnet-20-2-cc") == ("stem", "stack1", "stack2", "stack3")
    assert places(network="resnet-20-2-cp") == ("stem", "stack1", "stack2")
    assert places(network="resnet-18-2-imagenet") == ("stem", "stack1", "stack2", "stack3", "stack4")
    assert places(network="basecnn-2-none") == ()
    assert METHOD.configure(METHOD.published) == Config(**{**PAPER, "lr_decay_at": (0.4, 0.75)})


def test_one_path_is_the_plain_network() -> None:
    images = images_of()
    one, plain = build(network="basecnn-1", variant="cc"), build(network="basecnn")
    state = plain.state_dict()  # cross-connections of one path cut the layers into more stages
    layers = [s for s in one.stages if len(list(s.parameters()))]
    ours = [tensor for stage in layers for tensor in stage.state_dict().values()]
    assert [t.shape for t in ours] == [t.shape for t in state.values()]
    for mine, theirs in zip(ours, state.values(), strict=True):
        mine.copy_(theirs)
    assert torch.equal(one(images).output, plain(images).output)
    assert one(images).decisions.eq(1).all()


@pytest.mark.parametrize("body", ["basecnn-3", "resnet-8-3"])
def test_stitching_by_the_identity_is_no_routing(body: str) -> None:
    stitched, plain = build(network=body, variant="stitch"), build(network=body, variant="none")
    for router in stitched.routers:
        assert isinstance(router, CrossStitch)
        with torch.no_grad():
            router.coefficients.copy_(torch.eye(3) if router.inputs > 1 else torch.ones(1, 3))
    ours = [t for key, t in stitched.state_dict().items() if not key.startswith("routers")]
    theirs = list(plain.state_dict().values())
    assert [t.shape for t in ours] == [t.shape for t in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        mine.copy_(other)
    images = images_of()
    assert close(stitched(images).output, plain(images).output)
    assert close(plain(images).output, plain(images).aux["path_logits"].mean(dim=1))


@pytest.mark.parametrize("name", ["basecnn-3-cc", "basecnn-3-cp", "resnet-8-3-cc", "resnet-8-3-cp", "basecnn-3-none"])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_grouped_is_the_loop(name: str, training: bool) -> None:
    images, runs = images_of().double(), []
    for computation in ("grouped", "loop"):
        network = build(network=name, computation=computation, batch_norm="resnet" in name).double().train(training)
        routed = network(images)
        routed.output.square().sum().backward()
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        runs.append([routed.output, routed.decisions, *gradients, *network.buffers()])
    assert len(runs[0]) == len(runs[1])
    for one, other in zip(*runs, strict=True):
        assert torch.allclose(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["basecnn-3-cc", "basecnn-3-cp"])
def test_grouped_is_the_loop_in_single_precision(name: str) -> None:
    one, other = (build(network=name, computation=c)(images_of()).output for c in ("grouped", "loop"))
    assert close(one, other)


def test_the_choice_is_made_once_a_shape_where_no_rule_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = build(network="basecnn-3-cp"), images_of()
    asked = []
    real = multipath_choice.grouped_pays

    def as_elsewhere(run: Any, inputs: Tensor, *rest: Any) -> bool:
        before = {name: b.clone() for name, b in network.named_buffers()}
        for grouped in (True, False):
            run(grouped)
        assert all(torch.equal(b, before[name]) for name, b in network.named_buffers())
        asked.append(rest[0])
        return real(run, inputs, *rest)

    monkeypatch.setattr("trainables.networks.multipath.network.grouped_pays", as_elsewhere)
    expected = build(network="basecnn-3-cp", computation="loop")(images).output
    assert close(network(images).output, expected) and asked == [3] * 4
    network.train()
    network(images).output.sum().backward()
    monkeypatch.setattr(multipath_choice, "_seconds", lambda call, device: float(call() is None))
    away = torch.zeros(2, 3, device="meta")
    for _ in range(2):
        assert real(lambda grouped: asked.append(grouped), away, 2, 10, ("x",), False)
    assert asked[-2:] == [True, False] and asked[-3] == 3  # tried once


def test_rules_of_cpus_go_by_the_work_of_a_path() -> None:
    def pays(images: int, macs: int) -> bool:
        return multipath_choice.grouped_pays(lambda grouped: None, torch.zeros(images, 3), 2, macs, (), False)

    assert pays(1, 14_000_000) and pays(64, 200_000)
    assert not pays(64, 14_000_000)
    assert multipath_choice.grouped_pays(lambda grouped: None, torch.zeros(999, 3), 1, 10**9, (), True)


@pytest.mark.parametrize("name", ["basecnn-3-cc", "basecnn-3-cp", "resnet-8-3-cc", "resnet-8-3-cp"])
def test_permuting_all_paths_changes_nothing(name: str) -> None:
    network = build(network=name).double()
    images, order = images_of().double(), torch.tensor([2, 0, 1])
    expected = network(images)
    with torch.no_grad():
        for router, stage in zip(network.routers, network.stages, strict=True):
            for tensor in [*stage.parameters(), *stage.buffers()]:
                if tensor.dim():
                    tensor.copy_(torch.cat([tensor.chunk(3)[j] for j in order]))
            m = router.inputs
            inputs = order if m == 3 else [0]
            for key, tensor in router.state_dict().items():
                if not tensor.dim():
                    continue
                per_output = key.startswith("norm")
                parts = [tensor] if per_output else list(tensor.chunk(m))
                if "hidden" not in key:
                    parts = [torch.cat([part.chunk(3)[j] for j in order]) for part in parts]
                tensor.copy_(parts[0] if per_output else torch.cat([parts[int(i)] for i in inputs]))
    found = network(images)
    assert torch.allclose(found.output, expected.output)
    assert torch.allclose(found.aux["path_logits"], expected.aux["path_logits"][:, order])


@pytest.mark.parametrize("name", ["basecnn-3-cc", "resnet-8-2-cp"])
def test_nothing_pruned_is_the_papers_forward(name: str) -> None:
    network, images = build(network=name).double(), images_of().double()
    paper = network(images)
    for knobs in ({}, {"threshold": 0.0}, {"threshold": 0}, {"keep": network.paths}):
        result = network.infer(images, knobs)
        assert close(result.logits, paper.output, 1e-6)
        assert result.macs.eq(network.macs_full).all() and result.path.eq(1).all()
    kept = network.sweep(images, [{"threshold": 0.0}, {"keep": 1}])[0]  # by the pruned pass
    assert close(kept.logits, paper.output, 1e-6) and kept.path.eq(1).all()


def test_pruning_keeps_the_strong_and_at_least_one() -> None:
    gates = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.45, 0.45], [1 / 3, 1 / 3, 1 / 3]])
    assert Pruning(threshold=0.25).kept(gates).tolist() == [[True, True, False], [False, True, True], [True] * 3]
    assert Pruning(threshold=0.9).kept(gates).tolist() == [
        [True, False, False],
        [False, True, False],
        [True, False, False],
    ]
    assert Pruning(keep=2).kept(gates).tolist() == [[True, True, False], [False, True, True], [True, True, False]]
    assert Pruning(threshold=0.4, keep=2).kept(gates)[0].tolist() == [True, False, False]
    for pruning in (Pruning(threshold=0.25), Pruning(threshold=0.45), Pruning(keep=2), Pruning(threshold=0.3, keep=1)):
        for row, stays in zip(gates, pruning.kept(gates), strict=True):
            assert pruning.chosen(row.tolist()) == stays.nonzero().squeeze(1).tolist()
    assert not Pruning().prunes and Pruning.of({"keep": 3}, 3) == Pruning()


@pytest.mark.parametrize("name", ["basecnn-3-cc", "basecnn-3-cp", "sebasecnn-3-cp", "resnet-8-3-cc", "resnet-8-3-cp"])
@pytest.mark.parametrize("places", ["published", "all", "last"])
def test_what_is_pruned_is_not_computed(name: str, places: str) -> None:
    network, images = build(network=name, places=places), images_of()
    knobs = [{"threshold": 0.25}, {"threshold": 0.4}, {"keep": 2}, {"keep": 1}, {"threshold": 0.3, "keep": 2}]
    swept = network.sweep(images, knobs)
    for each, together in zip(knobs, swept, strict=True):
        with counted(network) as tally:
            result = network.infer(images, each)
        assert sum(tally.values()) == float(result.macs.sum())
        assert torch.equal(result.macs, network.fixed_macs + result.path.double() @ network.unit_macs)
        replayed = network(images, decisions=result.decisions)
        assert close(replayed.output, result.logits) and torch.equal(replayed.macs, result.macs)
        assert close(together.logits, result.logits) and torch.equal(together.path, result.path)
        for k in (0, 5):  # a single image goes a way of its own
            with counted(network) as tally:
                alone = network.infer(images[k : k + 1], each)
            assert sum(tally.values()) == float(alone.macs.sum()) and torch.equal(alone.path, result.path[k : k + 1])
            assert close(alone.logits, result.logits[k : k + 1])
            assert torch.allclose(alone.decisions, result.decisions[k : k + 1], atol=1e-6)
    least = swept[3]
    assert network.macs_min <= least.macs.min() and least.macs.max() < network.macs_full
    if places == "published":
        assert least.macs.eq(network.macs_min).all()


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_configurations_and_places(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(["basecnn", "deepcnn", "vgg-13", "resnet-8"]))
    paths = data.draw(st.integers(1, 3))
    routing = data.draw(st.sampled_from(["cc", "cp", "stitch", "none"]))
    values: dict[str, Any] = {"network": f"{body}-{paths}", "variant": routing, "width": 0.0625}
    values["gate_size"] = data.draw(st.integers(1, 5))
    values["batch_norm"] = data.draw(st.booleans())
    if body != "resnet-8":
        values["se_ratio"] = data.draw(st.sampled_from([0, 2]))
    if routing != "none":
        known, _ = places_of(layout_of(METHOD.configure(values)))
        chosen = data.draw(st.lists(st.sampled_from(known), min_size=1, unique=True))
        values["places"] = ",".join(chosen)
    task = Task(classes=3, size=32 if body == "vgg-13" else 8, channels=2)
    network, images = build(task, **values), images_of(3, task)
    assert {s.place for s in network.segments} >= set(chosen_places(layout_of(network.config)))
    asked = list(METHOD.settings(network.config))
    results = network.sweep(images, asked[::4])
    for each, result in zip(asked[::4], results, strict=True):
        with counted(network) as tally:
            alone = network.infer(images, each)
        assert result.logits.shape == (3, 3) and torch.equal(alone.path, result.path)
        assert sum(tally.values()) == float(result.macs.sum())
        assert close(network(images, decisions=alone.decisions).output, alone.logits, 1e-4)
    assert results[0].macs.eq(network.macs_full).all()


def test_a_curve_has_nine_points_where_there_are_gates() -> None:
    for paths in (2, 3, 4):
        assert len(METHOD.settings(METHOD.configure({"network": f"basecnn-{paths}"}))) >= 9
    network = build(network="basecnn-2")
    points = curve(METHOD, network, images_of(12), torch.arange(12) % 5).points
    macs = [p["macs"] for p in points]
    assert macs[0] == network.macs_full and len(set(macs)) >= 4 and min(macs) == network.macs_min == macs[-1]
    for values in ({"network": "basecnn-2-none"}, {"network": "basecnn-2-stitch"}, {"network": "basecnn"}):
        assert METHOD.settings(METHOD.configure(values)) == ({},)


def test_prepared_networks_answer_the_same() -> None:
    for name in ("basecnn-2-cc", "sebasecnn-3-cp", "resnet-8-2-cp", "resnet-8-2-cc"):
        network, images = build(network=name), images_of()
        before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
        fast = prepared(network)
        assert not [m for m in fast.modules() if isinstance(m, nn.BatchNorm2d)]
        assert all(torch.equal(tensor, before[key]) for key, tensor in network.state_dict().items())
        for knobs in ({}, {"keep": 1}):
            found, expected = fast.infer(images, knobs), network.infer(images, knobs)
            assert close(found.logits, expected.logits) and torch.equal(found.path, expected.path)
    again = copy.deepcopy(network)
    assert again.segments[0].stage is again.stages[0] and again.stages[0] is not network.stages[0]


@pytest.mark.parametrize(
    "values,message",
    [
        ({"network": "basecnn-0"}, "the number of paths X must be at least 1"),
        ({"network": "basecnm-2"}, "did you mean 'basecnn-2'"),
        ({"network": "resnet-21-2"}, "nearest is resnet-20"),
        ({"network": "resnet-19-2-imagenet"}, "ImageNet bodies have 10, 18, 34, 50, 101 layers, not 19"),
        ({"network": "basecnn-2-imagenet"}, "only resnet-N-X has an ImageNet form"),
        ({"network": "seresnet-20-2"}, "squeeze and excitation is for"),
        ({"network": "resnet-20-2", "se_ratio": 16}, "se_ratio = 16"),
        ({"se_ratio": -2}, "se_ratio = -2"),
        ({"variant": "cx"}, "variant = 'cx': must be one of cc, cp, stitch, none"),
        ({"network": "basecnn-2-cp", "variant": "cc"}, "said in two ways"),
        ({"routing": "cc", "variant": "cp"}, "said in two ways"),
        ({"gate_size": 0}, "gate_size = 0: must be a whole number of at least 1"),
        ({"places": "conv7"}, "no place 'conv7' for cc; .* input, conv1, conv2, .*dense2 with commas"),
        ({"network": "resnet-20-2", "places": "stack4"}, "no place 'stack4' .* stem, stack1, stack2, stack3"),
        ({"variant": "cp", "places": "input"}, "no place 'input' for cp"),
        ({"shortcut": "C"}, "shortcut = 'C'"),
        ({"computation": "fast"}, "computation = 'fast'"),
    ],
)
def test_configurations_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        METHOD.configure({"network": "basecnn-2", **values})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "network,size,message",
    [
        ("basecnn-2", 18, "size = 18: basecnn halves images 2 times; the size must be a multiple of 4"),
        ("vgg-13-2", 16, "multiple of 32"),
        ("resnet-20-2", 4, "takes at least 8 pixels"),
        ("resnet-18-2-imagenet", 16, "takes at least 32 pixels"),
        (
            "basecnn-100000-cp",
            32,
            r"100000: .* has at least 934,636,017,100,064 parameters, .* 13,927,162 GiB; this machine",
        ),
    ],
)
def test_networks_that_cannot_be_built(network: str, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METHOD.build(METHOD.configure({"network": network}), Task(size=size))


@pytest.mark.parametrize(
    "knobs,message",
    [
        ({"threshold": 1.5}, r"threshold = 1.5: must be a number in \[0, 1\]"),
        ({"threshold": -0.1}, "threshold = -0.1"),
        ({"threshold": float("nan")}, "threshold = nan"),
        ({"threshold": True}, "threshold = True"),
        ({"keep": 3}, "keep = 3: must be a whole number from 1 to 2"),
        ({"keep": 0}, "keep = 0"),
        ({"top": 1}, "unknown knob 'top'"),
    ],
)
def test_knobs_that_make_no_sense(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build().infer(images_of(1), knobs)


def test_networks_without_gates_cannot_be_pruned() -> None:
    with pytest.raises(ValueError, match="this network has none"):
        build(variant="none").infer(images_of(1), {"keep": 1})


def test_names_say_what_they_mean() -> None:
    assert (parse("basecnn").paths, parse("resnet-20-3").paths, parse("sedeepcnn").se_ratio) == (1, 3, 16)
    assert parse("resnet-18-2-imagenet-cc").imagenet and parse("resnet-18-2-imagenet-cc").routing == "cc"
    assert METHOD.configure({"network": "basecnn"}).variant == "none"
    assert METHOD.configure({"network": "basecnn-3"}).variant == METHOD.configure({}).routing == "cc"
    assert METHOD.configure({"network": "basecnn-3", "routing": "cp"}).variant == "cp"
