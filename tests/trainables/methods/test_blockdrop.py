"""BlockDrop: sizes to the digit, equivalence with the static network, passes that follow given decisions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from spaces.blockdrop import PAPER
from trainables.contracts.network import Task
from trainables.execution.macs import counted
from trainables.methods import static
from trainables.methods.blockdrop import METHOD, BlockDropNetwork

torch.set_num_threads(1)
TINY = Task(classes=5, size=16, channels=1)
ALL_ON, ALL_OFF = {"threshold": 0.0}, {"threshold": 1.01}


def build(task: Task = TINY, **values: Any) -> BlockDropNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "resnet-8", **values}), task)
    assert isinstance(network, BlockDropNetwork)
    return network.eval()


def params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("depth,classes,count,agent,heads,share", [
    (32, 10, 464_154, 75_680, 1_024, 0.178),
    (32, 100, 470_004, 75_680, 1_024, 0.178),
    (110, 10, 1_727_962, 78_215, 3_520, 0.048),
    (110, 100, 1_733_812, 78_215, 3_520, 0.048),
])  # fmt: skip
def test_the_published_networks_to_the_digit(
    depth: int, classes: int, count: int, agent: int, heads: int, share: float
) -> None:
    task = Task(classes=classes)
    network = build(task, network=f"resnet-{depth}", impl="official")
    assert (params(network) - params(network.router), params(network.router)) == (count, agent)
    assert (network.router_conv_macs, network.router_macs) == (12_238_848, 12_238_848 + heads)
    full = {32: 68_861_952, 110: 252_887_040}[depth] + 64 * classes
    assert network.router_macs / full == pytest.approx(share, abs=5e-4)
    assert network.macs_full == full + network.router_macs
    assert network.macs_min == 442_368 + 64 * classes + network.router_macs
    images = torch.zeros(1, 3, 32, 32)
    for knobs, expected in ((ALL_ON, network.macs_full), (ALL_OFF, network.macs_min)):
        with counted(network) as tally:
            network.infer(images, knobs)
        assert sum(tally.values()) == expected
    ours = build(task, network=f"resnet-{depth}")
    assert params(network) - params(ours) == 65 and network.macs_full - ours.macs_full == 64
    units = [(unit.name, unit.kind) for unit in ours.units]
    assert units == [*((f"block-{k}", "block") for k in range((depth - 2) // 2)), ("policy", "router")]
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(network)
    assert (cost["flops"], cost["flops_min"]) == (2 * network.macs_full, 2 * network.macs_min)


@pytest.mark.parametrize("shortcut", ["pool", "A", "B"])
def test_all_blocks_kept_is_the_static_network(shortcut: str) -> None:
    network = build(network="resnet-14", shortcut=shortcut)
    donor = static.build(static.METHOD.configure({"network": "resnet-14", "shortcut": shortcut}), TINY).eval()
    missing, unexpected = network.load_state_dict(donor.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("router.") for name in missing)
    images = torch.randn(4, 1, 16, 16)
    expected, ones = donor(images).output, torch.ones(4, network.gates)
    assert torch.equal(network(images, decisions=ones).output, expected)
    assert torch.equal(network.infer(images, ALL_ON).logits, expected)
    assert torch.equal(network.follow(images), expected)
    assert torch.equal(network.follow(images, ones), expected)
    assert torch.equal(network.outcomes(images, ones[None])[0], expected)


def test_all_blocks_dropped_is_the_stem_and_the_shortcuts() -> None:
    network = build(network="resnet-14")
    images = torch.randn(3, 1, 16, 16)
    features = network.stem(images)
    for k in range(network.gates):
        features = network.block(k).shortcut(features)
    assert torch.equal(network.infer(images, ALL_OFF).logits, network.classifier(features))


def test_given_decisions_are_followed_without_asking_the_policy() -> None:
    network = build(network="resnet-14")
    images, generator = torch.randn(7, 1, 16, 16), torch.Generator().manual_seed(1)
    choices = torch.bernoulli(torch.full((3, 7, network.gates), 0.5), generator=generator)
    choices[1] = choices[0]
    choices[1, :3, -1] = 1 - choices[0, :3, -1]  # differ at the very end, for three images
    with counted(network) as tally:
        outcomes = network.outcomes(images, choices)
    assert not any(name.startswith("router") for name in tally)
    for each, logits in zip(choices, outcomes, strict=True):
        assert torch.allclose(network.follow(images, each), logits, atol=1e-5)
        assert torch.allclose(network(images, decisions=each).output, logits, atol=1e-5)

    def cost(sets: torch.Tensor) -> int:
        with counted(network) as tally:
            network.outcomes(images, sets)
        return sum(tally.values())

    # two sets that agree on all images but at the last block share all other blocks
    run_last = int((choices[0, :, -1].bool() | choices[1, :, -1].bool()).sum())
    alone = cost(choices[:1]) - int(choices[0, :, -1].sum()) * network.block_macs[-1]
    assert cost(choices[:2]) == alone + run_last * network.block_macs[-1] + 3 * network.classifier_macs


def test_the_published_setting_is_the_papers() -> None:
    config = METHOD.configure(PAPER)
    pretrain, curriculum, finetune = METHOD.phases(config)
    assert (pretrain.optimiser.kind, pretrain.optimiser.lr, pretrain.batch_size) == ("sgd", 0.1, 0)
    assert (curriculum.optimiser.kind, curriculum.optimiser.lr, curriculum.batch_size) == ("adam", 1e-3, 2048)
    assert (finetune.optimiser.kind, finetune.optimiser.lr, finetune.batch_size) == ("adam", 1e-4, 256)
    assert [finetune.optimiser.lr_at(share) for share in (0.79, 0.81)] == pytest.approx([1e-4, 1e-5])
    assert curriculum.share / finetune.share == pytest.approx(5000 / 2000)
    assert curriculum.optimiser.weight_decay == finetune.optimiser.weight_decay == 0
    assert (config.gamma, config.curriculum_gamma, config.alpha, config.entropy) == (10, 1, 0.8, 0.1)


@pytest.mark.parametrize("share,names", [(0.0, ["pretrain", "finetune"]), (1.0, ["pretrain", "curriculum"])])
def test_either_later_phase_may_be_left_out(share: float, names: list[str]) -> None:
    phases = METHOD.phases(METHOD.configure({"curriculum_share": share}))
    assert [phase.name for phase in phases] == names
    assert sum(phase.share for phase in phases) == pytest.approx(1)


def test_the_first_phase_depends_on_nothing_of_the_later_ones() -> None:
    later = [*METHOD.space.stage(2), *METHOD.space.stage(3)]
    assert {"alpha", "entropy", "gamma", "curriculum_share"} <= set(later)
    default, other = METHOD.Config(), METHOD.Config(curriculum_share=0.3, alpha=0.6, gamma=20.0, policy_lr=1e-4)
    assert METHOD.phases(default)[0] == METHOD.phases(other)[0]
    assert METHOD.phases(default)[1].name == METHOD.phases(other)[1].name == "curriculum"


@pytest.mark.parametrize(
    "name,value",
    [
        ("alpha", 0.5),
        ("alpha", 1.1),
        ("pretrain_share", 1.0),
        ("curriculum_share", 1.2),
        ("release", 0.0),
        ("gamma", -1.0),
        ("entropy", -0.1),
        ("policy_width", 0.0),
        ("policy_lr", 0.0),
        ("finetune_batch_size", -1),
        ("curriculum_batch_size", 2.5),
        ("shortcut", "C"),
        ("impl", "theirs"),
        ("variant", "joint"),
        ("network", "resnet-33"),
    ],
)
def test_bad_values_are_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} = {value!r}"):
        METHOD.configure({name: value})
