"""ACT: the networks' sizes to the digit, the arithmetic of halting, halting off = the network without it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from search.catalogue.describe import network_description
from spaces.act import IMAGENET, PAPER
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch
from trainables.data.splits import Augment, Data, Split
from trainables.diagnostics.measure import diagnose, usual_setting
from trainables.execution.macs import counted
from trainables.inference.evaluation import curve
from trainables.inference.prepare import prepared
from trainables.methods.act import METHOD, SPATIAL
from trainables.networks.halting.heads import NEVER, HaltingHead, ponder_of, remaining
from trainables.networks.halting.network import HaltingNetwork
from trainables.networks.resnet.cifar import StaticResNet

torch.set_num_threads(1)
TINY = Task(classes=5, size=16, channels=1)


def build(task: Task = TINY, **values: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return METHOD.build(METHOD.configure({"network": "preact-resnet-14", **values}), task).eval()


def told(network: HaltingNetwork, scores: list[float]) -> HaltingNetwork:
    """A network whose heads answer these scores, unit by unit, in every group."""
    for step in network.steps():
        if step.head is not None:
            nn.init.zeros_(step.head.linear.weight)
            nn.init.constant_(step.head.linear.bias, torch.tensor(scores[step.place]).logit().item())
    return network


def images_of(count: int, task: Task = TINY) -> Tensor:
    noise = torch.randn(count, task.channels, task.size, task.size, generator=torch.Generator().manual_seed(1))
    return noise * torch.logspace(-1, 1, count)[:, None, None, None]


def undecided(network: Any) -> Any:
    """Heads that disagree about images, as trained ones do."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        for parameter in network.router.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 1.0)
    return network


# n: parameters of the network without halting, of ACT, of SACT
PARAMS = {5: (464_730, 466_086, 471_014), 18: (1_729_994, 1_735_757, 1_756_701)}
# a unit of every group is 4,718,592 MACs (3,538,944 where a group begins), stem and classifier 442,368 + 640
VANILLA_MACS = {5: 68_861_952 + 640, 18: 252_887_040 + 640}


@pytest.mark.parametrize("n", PARAMS)
def test_the_published_networks_to_the_digit(n: int) -> None:
    network = f"preact-resnet-{6 * n + 2}"
    vanilla = network_description("act", {"network": network, "variant": "vanilla"})
    act, sact = (network_description(name, {"network": network}) for name in ("act", "sact"))
    assert (vanilla["params"], act["params"], sact["params"]) == PARAMS[n]
    assert vanilla["macs_full"] == vanilla["macs_min"] == VANILLA_MACS[n]
    assert act["macs_full"] == VANILLA_MACS[n] + (n - 1) * (16 + 32 + 64)
    local = 9 * (16 * 1024 + 32 * 256 + 64 * 64)
    assert sact["macs_full"] == act["macs_full"] + (n - 1) * local
    for found in (vanilla, act, sact):
        assert sum(sum(kinds.values()) for kinds in found["macs_by_part"].values()) == found["macs_full"]
        assert found["paper_cost"]["flops"] == 2 * found["macs_full"]
    first = 442_368 + 640 + 4_718_592 + 2 * 3_538_944 + 16 + 32 + 64
    assert act["macs_min"] == first and sact["macs_min"] == first + local
    if n == 18:  # the public code's own test
        assert vanilla["paper_cost"]["flops"] == 505_775_360


def test_the_arithmetic_of_halting() -> None:
    """h = (.3, .5, .4): N = 3, R = .2, rho = 3.2, weights (.3, .5, .2, 0)."""
    masses = [torch.ones(1, 1, 1)]
    total = torch.zeros(1, 1, 1)
    for score in (0.3, 0.5, 0.4):
        total = total + score
        masses.append(remaining(total, masses[-1] > 0, 0.99))
    assert torch.stack(masses).flatten().tolist() == pytest.approx([1, 0.7, 0.2, 0])
    weights = [float(a - b) for a, b in zip(masses, [*masses[1:], torch.zeros(1)], strict=True)]
    assert weights == pytest.approx([0.3, 0.5, 0.2, 0])
    assert ponder_of(masses).item() == pytest.approx(3.2)
    assert ponder_of([torch.ones(2, 1, 1)] * 4).flatten().tolist() == [5, 5]  # never a score: N = 4, R = 1
    assert ponder_of([torch.ones(1, 1, 1), torch.zeros(1, 1, 1)]).item() == 2


def test_the_arithmetic_in_a_network() -> None:
    network = told(build(network="preact-resnet-26", width=0.5), [0.3, 0.5, 0.4])
    images = images_of(3)
    with torch.no_grad():
        features = network.stem(images)
        for steps in network.in_groups():
            states = []
            for step in steps:
                features = step.unit(features)
                states.append(features)
            features = 0.3 * states[0] + 0.5 * states[1] + 0.2 * states[2]
        expected, result, routed = network.classifier(features), network.infer(images, {}), network(images)
    assert torch.allclose(result.logits, expected, atol=1e-5) and torch.allclose(routed.output, expected, atol=1e-5)
    run = [unit.name for unit, share in zip(network.units, result.path[0], strict=True) if share]
    assert [name for name in run if name.startswith("block")] == [f"block-{k}" for k in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
    assert result.length is not None and result.length.tolist() == [9] * 3
    assert torch.allclose(routed.aux["ponder"], torch.full((3, 3), 3.2))
    assert torch.equal(routed.macs, result.macs)


@pytest.mark.parametrize("method", [METHOD, SPATIAL])
def test_halting_off_is_the_network_without_it(method: Any) -> None:
    config = method.configure({"network": "preact-resnet-20", "width": 0.5})
    network, donor = method.build(config, TINY).eval(), build(network="preact-resnet-20", width=0.5, variant="vanilla")
    assert isinstance(donor, StaticResNet)
    missing, unexpected = network.load_state_dict(donor.state_dict(), strict=False)
    assert not unexpected and missing and all(name.startswith("router.") for name in missing)
    images = images_of(4)
    result, expected = undecided(network).infer(images, {"threshold": NEVER}), donor(images).output
    assert torch.allclose(result.logits, expected, rtol=1e-4, atol=1e-4)
    assert result.macs.tolist() == [network.macs_full] * 4
    ones = torch.ones(4, result.decisions.shape[1])
    assert torch.allclose(network(images, decisions=ones).output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", [METHOD, SPATIAL])
def test_thresholds_run_from_the_first_units_to_all(method: Any) -> None:
    network = undecided(method.build(method.configure({"network": "preact-resnet-20"}), TINY).eval())
    settings = method.settings(network.config)
    assert len(settings) == 11 and settings[5] == {"threshold": 0.99}
    assert usual_setting(method, network.config) == {"threshold": 0.99}
    swept = network.sweep(images_of(7), settings)
    macs = torch.stack([each.macs for each in swept])
    assert (macs[1:].mean(dim=1) >= macs[:-1].mean(dim=1)).all() and len(set(macs.mean(dim=1).tolist())) > 4
    assert macs[0].tolist() == [network.macs_min] * 7 and macs[-1].tolist() == [network.macs_full] * 7
    assert torch.equal(network.infer(images_of(7), {}).macs, swept[5].macs)
    with pytest.raises(ValueError, match=r"threshold = -0.1: .*at least 0"):
        network.infer(images_of(1), {"threshold": -0.1})
    with pytest.raises(ValueError, match="unknown knob 'q'"):
        network.infer(images_of(1), {"q": 1})
    assert network.infer(torch.zeros(0, 1, 16, 16), {}).logits.shape == (0, 5)


def test_a_sweep_shares_what_thresholds_agree_about() -> None:
    """Up to T = 1 settings which stop an image at the same units share all of its work."""
    network = told(build(network="preact-resnet-20"), [0.4, 0.99])
    with counted(network) as once:
        network.infer(images_of(5), {"threshold": 0.9})
    with counted(network) as tally:
        alike = network.sweep(images_of(5), [{"threshold": t} for t in (0.5, 0.6, 0.7, 0.9)])
    assert tally == once and all(torch.equal(each.logits, alike[0].logits) for each in alike)


@pytest.mark.parametrize("method", [METHOD, SPATIAL])
def test_the_ponder_cost_reaches_the_heads_through_the_remainder(method: Any) -> None:
    """d rho / d h_v = -1 for the units v before the one that stops, and 0 behind."""
    network = method.build(method.configure({"network": "preact-resnet-26", "tau": 2.0}), TINY).train()
    (phase,) = method.phases(network.config)
    terms = method.objective(network, Batch(images_of(4), torch.arange(4)), phase)
    assert list(terms) == ["cross_entropy", "ponder_1", "ponder_2", "ponder_3"]
    assert all(2.0 * 4 <= terms[f"ponder_{g}"].item() <= 2.0 * 5 for g in (1, 2, 3))  # scores start near 0.05
    terms["ponder_2"].backward(retain_graph=True)
    reached = {
        step.k
        for step in network.steps()
        if step.head is not None and step.head.linear.weight.grad is not None and step.head.linear.weight.grad.any()
    }
    assert {4, 5, 6} <= reached and not reached & {8, 9, 10}
    scores = torch.tensor([0.3, 0.5, 0.4, 0.9], requires_grad=True)
    masses = [torch.ones(1, 1, 1)]
    for place in range(1, 5):
        masses.append(remaining(scores[:place].sum().view(1, 1, 1), masses[-1] > 0, 0.99))
    (gradient,) = torch.autograd.grad(ponder_of(masses).sum(), scores)
    assert gradient.tolist() == [-1, -1, 0, 0]


def test_scores_start_low_and_nothing_halts() -> None:
    network = build(network="preact-resnet-20")
    heads = [step.head for step in network.steps() if step.head is not None]
    assert all(isinstance(head, HaltingHead) and head.linear.bias.item() == -3 for head in heads)
    with torch.no_grad():
        network.train()
        for _ in range(60):  # until the batch norms know what they see
            network(images_of(3))
        network.eval()
    assert network.infer(images_of(3), {}).macs.tolist() == [network.macs_full] * 3


@pytest.mark.parametrize("count,size", [(1, 16), (3, 11), (7, 9)])
def test_prepared_networks_answer_the_same(count: int, size: int) -> None:
    task = dataclasses.replace(TINY, size=size)
    network = undecided(build(task, network="preact-resnet-20"))
    fast, images = prepared(network), images_of(count, task)
    for threshold in (0.0, 0.6, 0.99, 1.5):
        ours, theirs = fast.infer(images, {"threshold": threshold}), network.infer(images, {"threshold": threshold})
        assert torch.equal(ours.path, theirs.path) and torch.allclose(ours.logits, theirs.logits, atol=1e-5)
    vanilla = build(task, variant="vanilla")
    assert torch.allclose(prepared(vanilla)(images).output, vanilla(images).output, atol=1e-5)


def test_a_single_image_can_be_trained_on() -> None:
    network = build().train()
    (phase,) = METHOD.phases(network.config)
    terms = METHOD.objective(network, Batch(images_of(1), torch.zeros(1, dtype=torch.long)), phase)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("method", [METHOD, SPATIAL])
def test_diagnostics_and_curves_tell_what_a_group_costs(method: Any, small: Data) -> None:
    network: RoutedNetwork = undecided(method.build(method.configure({"network": "preact-resnet-20"}), small.task))
    found = diagnose(method, network, small)
    record = found.record
    assert all(2 <= cost <= 4 for cost in record["ponder"]) and len(record["ponder"]) == 3
    assert record["decisions"] == 6 and len(record["blocks"]) == 9 and record["groups"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert any(spread > 0 for spread in record["ponder_std"])
    assert any(record["ponder_map_std"]) is (method is SPATIAL)
    images = torch.from_numpy(small.validation.images).float() / 255
    points = curve(method, network, images, torch.from_numpy(small.validation.labels)).points
    assert 3 <= points[5]["path_length"] <= 9
    assert points[0]["path_length"] == 3 and points[-1]["path_length"] == 9


@pytest.fixture(scope="module")
def small() -> Data:
    drawn = np.random.default_rng(0)
    contrast = np.linspace(1, 255, 20)[:, None, None, None]
    split = Split((drawn.random((20, 1, 8, 8)) * contrast).astype(np.uint8), np.arange(20) % 5)
    task = dataclasses.replace(TINY, size=8)
    classes = tuple("abcde")
    more: dict[str, Any] = {"mean": (0.2,), "std": (0.3,), "augment": Augment(), "hash": "0"}
    return Data(name="noise", task=task, classes=classes, train=split, validation=split, test=split, **more)


def test_published_settings() -> None:
    config = METHOD.configure(PAPER)
    (phase,) = METHOD.phases(config)
    rates = [phase.optimiser.lr_at(share) for share in (0.5, 0.7, 0.8, 0.95)]
    assert rates == pytest.approx([0.1, 0.01, 0.001, 0.0001]) and config.tau == 0.01
    assert METHOD.configure(IMAGENET).tau == 0.005 and SPATIAL.configure(IMAGENET).label_smoothing == 0.1


@pytest.mark.parametrize(
    "values,message",
    [
        ({"tau": -0.1}, r"tau = -0.1: the price of a unit must not be negative"),
        ({"eps": 0.0}, r"eps = 0.0: must be in \(0, 1\)"),
        ({"eps": 1.0}, r"eps = 1.0: must be in \(0, 1\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing = 1.0"),
        ({"network": "resnet-20"}, r"network = 'resnet-20': must be preact-resnet-N.*did you mean 'preact-resnet-20'"),
        ({"network": "preact-resnet-100"}, r"the nearest is preact-resnet-98"),
        ({"network": "preact-resnet-8"}, r"nothing to halt; take preact-resnet-14"),
        ({"network": "preact-resnet-18-imagenet"}, r"network = 'preact-resnet-18-imagenet'"),
        ({"variant": "sact"}, r"variant = 'sact': must be '' or 'vanilla'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        METHOD.configure(values)
    assert "\n" not in str(caught.value)
