"""IMTA's plain form and gradient equilibrium: losses, thresholds, what a curve asks for, the papers' costs."""

from __future__ import annotations

import json
import math
import random
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.contracts.method import config_dict
from trainables.contracts.network import Inference, Task
from trainables.contracts.recipe import Batch
from trainables.methods.imta import METHOD, Config
from trainables.networks.msdnet.exits import NOBODY, confidence
from trainables.networks.msdnet.network import MSDNet
from trainables.networks.msdnet.thresholds import anytime, calibrate, exit_shares, quantile_thresholds

torch.set_num_threads(1)

SMALL = Task(classes=5, size=16, channels=1)
TINY = {"growth": 4, "channels": 8, "width": 1.0}

# classes 100: the printed cost, and the parameters of an image that leaves at each exit
OPS = {
    4: [6_859_876, 14_350_024, 26_127_404, 38_042_768],
    5: [6_859_876, 14_350_024, 27_536_684, 41_714_576, 58_480_628],
    6: [6_859_876, 14_350_024, 27_291_436, 46_560_656, 67_427_060, 89_091_416],
    7: [6_859_876, 14_350_024, 27_291_436, 48_448_912, 76_432_628, 108_850_520, 137_280_956],
}
PARAMS = [299_704, 649_740, 1_111_388, 1_727_200, 2_384_968, 3_052_244, 3_966_664]

# the oracle: largest probability and prediction of 3 exits on 8 images, and the labels
PROBABILITIES = [
    [0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.45, 0.4],
    [0.95, 0.85, 0.65, 0.75, 0.5, 0.6, 0.7, 0.55],
    [0.99, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.5],
]
PREDICTIONS = [[0, 1, 2, 0, 1, 2, 0, 1], [0, 1, 2, 0, 1, 0, 0, 1], [0, 1, 2, 0, 1, 2, 0, 2]]
LABELS = torch.tensor([0, 1, 2, 1, 1, 2, 0, 2])
ORACLE = {0.5: ([0.6, 0.6], 0.75, 2.0e6), 1: ([0.8, 0.7], 0.875, 2.75e6), 1.5: ([0.9, 0.75], 0.875, 3.125e6)}


def oracle_logits() -> Tensor:
    """Logits (3, 8, 3) whose softmax has the oracle's probabilities, the rest shared by the other classes."""
    top = torch.tensor(PROBABILITIES, dtype=torch.float64)[..., None]
    return torch.where(F.one_hot(torch.tensor(PREDICTIONS), 3).bool(), top, (1 - top) / 2).log()


def build(task: Task = SMALL, seed: int = 0, **values: Any) -> MSDNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = METHOD.build(METHOD.configure(values), task)
    assert isinstance(network, MSDNet)
    return network


def batch(count: int = 4, task: Task = SMALL) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, task.channels, task.size, task.size, generator=generator)
    return Batch(images, torch.randint(task.classes, (count,), generator=generator))


@pytest.mark.parametrize("exits", OPS)
def test_the_papers_cost_is_reproduced(exits: int) -> None:
    network = build(Task(classes=100), network=f"msdnet-{exits}")
    assert METHOD.paper_cost is not None
    cost = METHOD.paper_cost(network)
    assert cost["ops"] == OPS[exits]
    assert cost["params"][-1] == sum(p.numel() for p in network.parameters())
    if exits == 7:
        assert cost["params"] == PARAMS
    assert network.training and all(p.device.type == "cpu" for p in network.parameters())
    json.dumps(cost)


@pytest.mark.parametrize("q", ORACLE)
def test_thresholds_are_those_of_the_public_code(q: float) -> None:
    thresholds, accuracy, cost = ORACLE[q]
    assert quantile_thresholds(torch.tensor(PROBABILITIES, dtype=torch.float64), q) == thresholds
    knobs = calibrate({"q": q}, oracle_logits())
    assert knobs["thresholds"] == pytest.approx(thresholds, abs=1e-12)
    network = build(Task(classes=3, size=16), network="msdnet-3", **TINY)
    result = network.replay(oracle_logits(), knobs)
    assert result.exits is not None
    assert float(result.logits.argmax(dim=1).eq(LABELS).double().mean()) == accuracy
    assert float(torch.tensor([1e6, 2e6, 4e6])[result.exits].mean()) == cost


def test_anytime_is_the_accuracy_of_each_exit() -> None:
    right = (torch.tensor(PREDICTIONS) == LABELS).double().mean(dim=1)
    assert anytime(oracle_logits(), LABELS) == right.tolist() == [0.75, 0.625, 0.875]


@settings(deadline=None, max_examples=50)
@given(st.floats(0.01, 50), st.integers(1, 40))
def test_shares_are_a_geometric_distribution(q: float, exits: int) -> None:
    shares = exit_shares(q, exits)
    assert sum(shares) == pytest.approx(1) and len(shares) == exits and min(shares) >= 0
    assert all(b == pytest.approx(q * a) for a, b in pairwise(shares) if a > 1e-200)


def test_whole_quotas_are_not_lost_to_rounding() -> None:
    sure = torch.linspace(0.9, 0.1, 49, dtype=torch.float64).repeat(7, 1)
    taken = quantile_thresholds(sure, 1.0)  # 49 / 7 images each
    assert taken == pytest.approx([float(sure[0, 7 * i + 6]) for i in range(6)])


def test_thresholds_are_unset_where_nobody_is_to_leave_or_nobody_is_left() -> None:
    few = torch.tensor([[0.5, 0.4], [0.6, 0.7], [0.9, 0.9]])
    assert quantile_thresholds(few, 1.0) == [NOBODY, NOBODY]  # floor(2 / 3) = 0
    # ties leave together, and then the second exit finds fewer than its share
    tied = torch.tensor([[0.5, 0.5, 0.5, 0.4], [0.6, 0.7, 0.8, 0.9], [0.9, 0.9, 0.9, 0.9]])
    assert quantile_thresholds(tied, 1.0) == [0.5, pytest.approx(0.9)]
    assert quantile_thresholds(torch.full((3, 4), 0.5), 1.0) == [0.5, NOBODY]
    assert quantile_thresholds(torch.full((1, 4), 0.5), 1.0) == []
    json.dumps(calibrate({"q": 1.0}, torch.zeros(3, 4, 2)))


def replayed(network: MSDNet, setting: dict[str, Any], logits: Tensor) -> Inference:
    return network.replay(logits, calibrate(setting, logits))


def test_cost_rises_with_q_up_to_flooring() -> None:
    network = build(network="msdnet-5", **TINY)
    logits = torch.randn(5, 400, 5, generator=torch.Generator().manual_seed(4)) * 4
    config = METHOD.configure({"network": "msdnet-5", "curve_points": 40})
    asked = METHOD.settings(config)
    costs = [float(replayed(network, s, logits).macs.mean()) for s in asked]
    swept = [cost for setting, cost in zip(asked, costs, strict=True) if "q" in setting]
    slack = 5 * network.macs_full / 400
    assert len(swept) == 40 and all(later >= earlier - slack for earlier, later in pairwise(swept))
    alone = {s["exit"]: cost for s, cost in zip(asked, costs, strict=True) if "exit" in s}
    assert alone == {i: each.macs for i, each in enumerate(network.exits, start=1)}
    # each exit but the last answers its share
    exits = replayed(network, {"q": 1.0}, logits).exits
    assert exits is not None
    assert (torch.bincount(exits, minlength=5) - 80).abs().max() <= 2


def test_calibrated_images_leave_where_they_were_calibrated_to() -> None:
    network = build(network="msdnet-4", **TINY).eval()
    images = batch(40).images
    with torch.no_grad():
        logits = torch.stack(network(images).logits)
    for setting in METHOD.settings(network.config):
        knobs = calibrate(setting, logits)
        for order in (torch.arange(40), torch.arange(39, -1, -1)):
            executed, planned = network.infer(images[order], knobs), network.replay(logits[:, order], knobs)
            assert torch.equal(executed.path, planned.path)
            torch.testing.assert_close(executed.logits, planned.logits, rtol=1e-5, atol=1e-5)


def test_settings_cover_the_sweep_and_every_exit() -> None:
    asked = METHOD.settings(METHOD.configure({}))
    assert [s["exit"] for s in asked if "exit" in s] == [1, 2, 3, 4, 5]
    assert asked[0] == {"exit": 1} and asked[-1] == {"exit": 5} and "q" in asked[len(asked) // 2]
    qs = [s["q"] for s in asked if "q" in s]
    assert len(qs) == 12 and qs == sorted(set(qs)) and (qs[0], qs[-1]) == (0.05, 2.0)
    full = METHOD.settings(METHOD.configure({"curve_points": 40}))
    assert [s["q"] for s in full if "q" in s] == [p / 20 for p in range(1, 41)]
    assert len(METHOD.settings(METHOD.configure({"curve_points": 2}))) == 7


@pytest.mark.parametrize(
    "setting",
    [
        *({"q": q} for q in (0, -1, math.nan, math.inf, "1", True)),
        *({"exit": i} for i in (0, 4, 1.0, True)),
        {"q": 1, "exit": 1},
        {"threshold": 0.5},
        {},
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"q = |exit = |setting "):
        calibrate(setting, torch.zeros(3, 4, 2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", "resnet-20"),
        ("network", "msdnet-0"),
        ("variant", "ofa_isc"),
        ("variant", ""),
        ("step_mode", "linear"),
        ("ge_scales", "fine"),
        ("growth", 0),
        ("growth", 2.5),
        ("channels", 0),
        ("step", 0),
        ("base", -1),
        ("reduction", 0.0),
        ("reduction", 1.5),
        ("early_weight", -0.1),
        ("curve_points", 1),
        ("curve_points", 41),
        ("momentum", 0.0),
        ("batch_size", 0),
        ("bottleneck", 1),
    ],
)
def test_bad_configurations_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"{name} = {value!r}"):
        METHOD.configure({name: value})


def test_defaults_are_the_papers() -> None:
    config = Config(schedule="step")
    phase = METHOD.phases(config)[0]
    assert (config.network, config.variant, config.batch_size, config.nesterov) == ("msdnet-5", "none", 64, True)
    assert phase.optimiser.nesterov and [round(phase.optimiser.lr_at(s), 6) for s in (0, 0.5, 0.75)] == [
        0.1,
        0.01,
        1e-3,
    ]
    published = METHOD.configure(METHOD.published)
    assert METHOD.configure(config_dict(published)) == published


def test_every_configuration_of_the_space_is_possible() -> None:
    rng = random.Random(0)
    for _ in range(200):
        values = METHOD.space.sample(rng)
        config = METHOD.configure(values)
        assert {name: getattr(config, name) for name in values} == values


def test_width_scales_all_channels() -> None:
    half = build(network="msdnet-3", width=0.5)
    assert (half.layout.channels, half.layout.growth, half.layout.head) == (8, 3, 64)
    assert build(network="msdnet-3", width=0.01).layout.growth == 1


def test_losses_are_named_and_weighted() -> None:
    data = batch()
    network = build(network="msdnet-3", early_weight=0.5, **TINY)
    phase = METHOD.phases(network.config)[0]
    terms = METHOD.objective(network, data, phase)
    with torch.no_grad():
        logits = network(data.images).logits
    expected = [w * F.cross_entropy(x, data.labels).item() for w, x in zip((0.5, 0.5, 1), logits, strict=True)]
    assert list(terms) == ["exit_1", "exit_2", "exit_3"]
    assert [t.item() for t in terms.values()] == pytest.approx(expected, rel=1e-5)
    torch.stack(list(terms.values())).sum().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_same_seed_same_loss() -> None:
    losses = []
    for _ in range(2):
        network = build(network="msdnet-3", **TINY)
        terms = METHOD.objective(network, batch(), METHOD.phases(network.config)[0])
        losses.append([t.item() for t in terms.values()])
    assert losses[0] == losses[1]


def test_confidence_orders_images_that_float32_cannot_tell_apart() -> None:
    sure = confidence(torch.tensor([[20.0, 0.0], [22.0, 0.0]]))
    assert sure[0] < sure[1] < 1
