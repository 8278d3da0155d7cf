"""How weights begin: their spread layer by layer, the first loss, and gradients that no layer loses."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import plan
from trainables.data.augment import normalise, to_device
from trainables.data.datasets import load
from trainables.networks.gated.gates import PointwiseGate
from trainables.networks.gated.network import GatedResNet
from trainables.networks.halting.heads import HaltingHead, SpatialHead
from trainables.networks.multipath.layers import PathLinear
from trainables.registry import get_method

CASES: dict[str, dict[str, Any]] = {
    "static resnet-20": {},
    "static densenet-bc-40": {},
    "codinet resnet-20": {},
    "skipnet resnet-20": {},
    "aig resnet-20": {},
    "blockdrop resnet-20": {},
    "sdv resnet-20": {"drop": 0.0},
    "act preact-resnet-20": {},
    "sact preact-resnet-20": {},
    "imta msdnet-3": {},
    "multipath basecnn": {},
    "multipath basecnn-3": {},
    "multipath basecnn-2-cp": {},
    "multipath resnet-20-2": {},
    "ensemble basecnn": {"members": 2},
    "decide pyramid": {},
    "decide pyramid-static-4": {},
}
COLUMNS = ("decide pyramid", "decide pyramid-static-4")
"""Their classifiers read 2,048 numbers of variance 1 by weights of variance 1 / 2,048: logits of variance 1."""


def built(case: str, seed: int = 0, **more: Any) -> RoutedNetwork:
    """The network of a case, in the form that its first phase trains."""
    name, network = case.split(" ")
    method = get_method(name)
    config = method.configure({"network": network, **CASES.get(case, {}), **more})
    torch.manual_seed(seed)
    made = method.build(config, Task(channels=1))
    phase = plan(method.phases(config), 9)[0][0]
    made.relaxation = phase.relaxation
    return made.train()


@cache
def digits() -> tuple[Tensor, Tensor]:
    """A batch of scikit-learn's digits at 32 x 32."""
    data = load("digits", root=Path("data"), image_size=32).for_config(get_method("static").configure({}))
    images, labels = to_device(data.train, "cpu")
    assert isinstance(images, Tensor)
    return normalise(images[:128], data), labels[:128]


def answered(network: RoutedNetwork) -> list[Tensor]:
    """The loss of every exit, all gates open."""
    images, labels = digits()
    decisions = None
    if isinstance(network, GatedResNet):
        decisions = torch.ones(len(images), network.gates)
    routed = network(images, decisions=decisions, generator=torch.Generator().manual_seed(1))
    return [F.cross_entropy(logits, labels) for logits in routed.logits]


@pytest.mark.parametrize("case", CASES)
def test_the_first_loss_is_that_of_guessing(case: str) -> None:
    with torch.no_grad():
        losses = answered(built(case))
    allowed = 0.3 if case in COLUMNS else 0.2
    assert all(abs(loss.item() / math.log(10) - 1) < allowed for loss in losses), losses


@pytest.mark.parametrize("case", CASES)
def test_no_layer_lacks_a_gradient(case: str) -> None:
    network = built(case)
    torch.stack(answered(network)).sum().backward()
    norms = {
        name: module.weight.grad.norm().item()
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
        and module.weight.grad is not None
        and not name.startswith(("router", "stem"))
        and module.kernel_size == (3, 3)
    }
    # the stem reads one channel, nearly the same everywhere, and adds up over all positions; so do
    # maps of many scales: few positions of the coarse ones, many of the fine ones, whose gradients add up
    allowed = 40 if case.startswith(("imta", "decide", "static densenet")) else 10
    assert len(norms) >= 3 and max(norms.values()) / min(norms.values()) < allowed, norms


def _std(weight: Tensor) -> float:
    return weight.detach().std(correction=0).item()


def fan_out(module: nn.Conv2d) -> float:
    """He's rule by fan out."""
    area = module.kernel_size[0] * module.kernel_size[1]
    return math.sqrt(2 / (area * module.out_channels // module.groups))


def fan_in(module: nn.Conv2d | nn.Linear) -> float:
    """He's rule by fan in."""
    return math.sqrt(2 / module.weight[0].numel())


def uniform(module: nn.Conv2d | nn.Linear) -> float:
    """PyTorch's default: uniform in +- 1 / sqrt(fan in)."""
    return 1 / math.sqrt(3 * module.weight[0].numel())


def skipnets(module: nn.Linear) -> float:
    """SkipNet's rule for linear layers."""
    return math.sqrt(2 / (module.in_features * module.out_features))


def glorot_free(module: nn.Conv2d | nn.Linear) -> float:
    """The columns' rule: variance 1 / fan in."""
    return math.sqrt(1 / module.weight[0].numel())


RULES: dict[str, tuple[Callable[[Any], float], Callable[[Any], float], bool]] = {
    # convolutions, linear layers, whether biases of convolutions are 0
    "static resnet-20": (fan_out, uniform, False),
    "static densenet-bc-40": (fan_out, uniform, False),
    "codinet resnet-20": (fan_out, uniform, False),
    "skipnet resnet-20": (fan_out, skipnets, False),
    "aig resnet-20": (fan_out, uniform, False),
    "blockdrop resnet-20": (fan_out, uniform, False),
    "sdv resnet-20": (fan_out, uniform, False),
    "act preact-resnet-20": (fan_in, uniform, True),
    "sact preact-resnet-20": (fan_in, uniform, True),
    "imta msdnet-3": (uniform, uniform, False),
    "multipath basecnn": (fan_out, uniform, False),
    "multipath basecnn-3": (fan_out, uniform, False),
    "multipath resnet-20-2": (fan_out, uniform, False),
    "decide pyramid": (glorot_free, glorot_free, True),
}


@pytest.mark.parametrize("case", RULES)
def test_every_layer_begins_by_the_rule_of_its_family(case: str) -> None:
    convolution, linear, zero = RULES[case]
    network = built(case)
    own: set[nn.Module] = set()  # layers of which a test below says how they begin
    for module in network.modules():
        if isinstance(module, PointwiseGate):
            own.add(module.conv2)
        elif type(module).__name__ == "Router":
            own.add(module.get_submodule("scores"))
    seen = 0
    for name, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear) or module in own:
            continue
        count = module.weight.numel()
        wanted = (convolution if isinstance(module, nn.Conv2d) else linear)(module)
        assert _std(module.weight) == pytest.approx(wanted, rel=4 / math.sqrt(count)), name
        seen += 1
        bias = module.bias
        if bias is None:
            continue
        if isinstance(module, nn.Conv2d) and not isinstance(module, PathLinear):
            assert bool(bias.any()) is not (zero and not _halts(network, module)), name
    assert seen >= 8
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    assert all(torch.all(m.weight == 1) and not m.bias.any() for m in norms if m.affine)


def _halts(network: nn.Module, module: nn.Module) -> bool:
    return any(isinstance(m, SpatialHead) and m.local is module for m in network.modules())


def test_gates_and_halting_scores_begin_where_their_papers_say() -> None:
    for module in built("aig resnet-20").modules():
        if isinstance(module, PointwiseGate):
            assert _std(module.conv2.weight) == pytest.approx(1e-3, rel=0.7)
            assert module.conv2.bias is not None and module.conv2.bias.tolist() == pytest.approx([0.1, 2.0])
    heads = [m for m in built("act preact-resnet-20").modules() if isinstance(m, HaltingHead)]
    assert heads and all(head.linear.bias.item() == -3 for head in heads)
    spatial = [m for m in built("sact preact-resnet-20").modules() if isinstance(m, SpatialHead)]
    assert spatial and all(head.local.bias is not None and head.local.bias.item() == -3 for head in spatial)
    routers = [m for m in built("decide pyramid").modules() if type(m).__name__ == "Router"]
    assert routers and not any(router.get_parameter("scores.weight").any() for router in routers)


@pytest.mark.parametrize(("case", "more"), [("codinet resnet-20", {}), ("codinet resnet-20", {"impl": "official"})])
def test_codinets_published_rule_draws_the_classifier_by_he_too(case: str, more: dict[str, Any]) -> None:
    network = built(case, **(more or {"init": "published"}))
    layers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.weight.numel() > 200]
    assert len(layers) > 3
    assert all(_std(m.weight) == pytest.approx(fan_in(m), rel=4 / math.sqrt(m.weight.numel())) for m in layers)


def test_acts_published_rule_truncates_and_has_no_biases() -> None:
    network = built("act preact-resnet-20", init="published")
    layer = network.get_submodule("classifier.fc")
    assert isinstance(layer, nn.Linear) and not layer.bias.any()
    assert _std(layer.weight) == pytest.approx(fan_in(layer), rel=0.15)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.abs().max() <= 2 * fan_in(module) / 0.8796 + 1e-6


@pytest.mark.parametrize(("variant", "gate", "zero"), [("sp", "rnn", False), ("rl", "rnn", True), ("rl", "ff2", False)])
def test_skipnets_linear_biases(variant: str, gate: str, zero: bool) -> None:
    network = built("skipnet resnet-20", variant=variant, gate=gate)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear)]
    assert all(bool(layer.bias.any()) is not zero for layer in layers)


def test_skipnets_lstm_on_imagenet() -> None:
    method = get_method("skipnet")
    network = method.build(method.configure({"network": "resnet-34-imagenet", "width": 0.25}), Task(size=64))
    (lstm,) = (m for m in network.modules() if isinstance(m, nn.LSTMCell))
    assert not lstm.bias_ih.any() and not lstm.bias_hh.any()
    assert _std(lstm.weight_ih) == pytest.approx(math.sqrt(2 / (10 + 40)), rel=0.2)
