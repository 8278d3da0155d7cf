"""Cutting networks that others wrote, and counting what they compute."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from spaces import own_networks
from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.execution.macs import counted, macs_of
from trainables.methods import blocks, exits
from trainables.networks.backbones import cutting, source

FAMILIES = {
    # pixels, residual blocks: grouped and depthwise convolutions, products and additions, attention
    "alexnet": (64, 0),
    "densenet121": (32, 0),
    "efficientnet_b0": (32, 9),
    "mobilenet_v3_small": (32, 6),
    "mobilenet_v2": (32, 10),
    "resnext50_32x4d": (32, 16),
    "shufflenet_v2_x0_5": (32, 0),
    "convnext_tiny": (32, 18),
    "swin_t": (32, 24),
    "vit_b_32": (64, 24),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_are_those_of_pytorchs_own_counter(name: str) -> None:
    size, residuals = FAMILIES[name]
    with torch.device("meta"):  # counting needs no weights
        model, channels = source.build(f"torchvision:{name}", Task(classes=7, size=size))
        network = cutting.trace(name, model, (channels, size, size), 7)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # PyTorch's counter does not know its fused attention
    try:
        with FlopCounterMode(display=False) as other, torch.no_grad():
            network.model(torch.zeros(1, channels, size, size, device="meta"))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    assert network.total == other.get_total_flops() / 2  # it counts a multiplication and an addition
    assert len(cutting.residuals(network)) == residuals


needs_timm = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
TIMM = {
    # pixels, residual blocks: convolutions of large kernels, inverted residuals, windows of tokens
    "convnext_atto": ((32, 32), 12),
    "mobilenetv3_small_050": ((32, 48), 7),
    "resnet10t": ((32, 48), 4),
    "vit_tiny_patch16_224": ((32, 48), 24),
    "efficientvit_m0": ((64, 64), 0),
    "mixer_s32_224": ((64, 64), 16),
}


@needs_timm
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_are_cut_and_counted(name: str) -> None:
    size, residuals = TIMM[name]
    with torch.device("meta"):
        model, channels = source.build(f"timm:{name}", Task(classes=7, size=size))
        network = cutting.trace(name, model, (channels, *size), 7)
    with FlopCounterMode(display=False) as other, torch.no_grad():
        network.model(torch.zeros(1, channels, *size, device="meta"))
    assert network.total == other.get_total_flops() / 2
    assert not residuals or len(cutting.residuals(network)) == residuals


@needs_timm
def test_a_model_of_timm_trains_answers_and_is_named() -> None:
    task = Task(classes=3, size=(32, 48))
    images, truth = torch.randn(4, 3, 32, 48, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    for module, more in ((exits, {"exits": 2}), (blocks, {})):
        method = module.METHOD
        config = method.configure({"network": "timm:test_convnext", **more})
        network = method.build(config, task)
        phase = method.phases(config)[0]
        terms = method.objective(network, Batch(images, truth, generator=torch.Generator().manual_seed(0)), phase)
        torch.stack(list(terms.values())).sum().backward()
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
        network.eval()
        setting = method.settings(config)[0]
        knobs = setting
        if method.calibrate is not None:
            knobs = method.calibrate(setting, torch.stack(network(images).logits))
        with counted(network) as tally:
            answered = network.infer(images, knobs)
        assert sum(tally.values()) == pytest.approx(float(answered.macs.sum()), rel=1e-6)
    with pytest.raises(ValueError, match="timm has no model 'convnext_ato'; did you mean 'convnext_atto'"):
        source.build("timm:convnext_ato", task)


def test_what_a_forward_reads_beside_images_keeps_its_default() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

        def forward(self, images: Tensor, mask: Tensor | None = None, twice: bool = False) -> Tensor:
            features = self.first(images)
            if mask is not None:
                features = features * mask
            if twice:
                features = features * 2
            return self.last(features.mean(dim=(2, 3)))

    assert len(cutting.trace("mine.py:build", Masked(), (3, 8, 9), 3).cuts) > 2


TINY = """
from torchvision.models import SwinTransformer, VisionTransformer, mobilenet_v3_small


def maps(classes):
    return mobilenet_v3_small(num_classes=classes, width_mult=0.25)


def last(classes):
    heads = {"depths": [2, 1], "num_heads": [2, 2], "window_size": [4, 4], "num_classes": classes}
    return SwinTransformer(patch_size=[4, 4], embed_dim=8, **heads)


def tokens(classes):
    return VisionTransformer(32, 8, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=classes)
"""
LAYOUTS = ("maps", "last", "tokens")


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    """A file with a network of every layout of features: maps, channels last, tokens."""
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    own_networks.trust(TINY)
    return str(path)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_parts_cost_and_compute_what_the_whole_does(kind: str, tiny: str) -> None:
    torch.manual_seed(0)
    model, channels = source.build(f"{tiny}:{kind}", Task(classes=7, size=32))
    network = cutting.trace(kind, model, (channels, 32, 32), 7)
    places = [network.cuts[0], *network.cuts[2:-1:5], network.cuts[-1]]
    parts = [cutting.part(network, [a.node], b.node) for a, b in pairwise(places)]
    assert cutting.same(network.model, parts, (channels, 32, 32))
    assert any(cutting.layout(cut.shape) == kind for cut in places)
    costs = [macs_of(part, a.shape)[0] for part, a in zip(parts, places, strict=False)]
    assert costs == [b.macs - a.macs for a, b in pairwise(places)]
    assert sum(costs) == network.total


def test_functions_are_counted_where_a_module_says_so() -> None:
    class Products(nn.Module):
        functional = True

        def forward(self, x: Tensor) -> Tensor:
            scores = torch.einsum("bic,bjc->bij", x, x)  # 2 * 5 * 5 * 3
            mixed = torch.nn.functional.scaled_dot_product_attention(x, x, x)  # 2 * 5 * 5 * 6
            return scores @ mixed + torch.bmm(scores, x)  # twice 2 * 5 * 5 * 3

    class Silent(Products):
        functional = False

    inputs = torch.randn(2, 5, 3)
    for module, expected in ((Products(), 150 + 300 + 150 + 150), (Silent(), 0)):
        with counted(module) as tally:
            module(inputs)
        assert sum(tally.values()) == expected


def test_dropout_draws_from_the_trainings_generator_and_not_at_inference() -> None:
    dropped = cutting.Dropped(0.5, "row").train()
    answers = []
    for _ in range(2):
        dropped.generator = torch.Generator().manual_seed(3)
        answers.append(dropped(torch.ones(64, 2, 3)))
    assert torch.equal(*answers)
    rows = answers[0].flatten(1)
    assert ((rows == 0).all(dim=1) | (rows == 2).all(dim=1)).all() and 0 < (rows == 0).float().mean() < 1
    assert torch.equal(dropped.eval()(torch.ones(3)), torch.ones(3))


# -- networks of a person's own ---------------------------------------------------------------------


class Branching(nn.Module):
    """A network with a layer that torch.fx cannot follow, and one that decides in its own forward where `whole`."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) if x.sum() > 0 else self.conv(-x)

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.stem, self.layer, self.head, self.whole = nn.Conv2d(3, 8, 3), Branching.Layer(), nn.Linear(8, 3), whole

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.whole and x.mean() > 0:
            x = x + 1
        return self.head(self.layer(x).mean(dim=(2, 3)))


def test_a_layer_that_cannot_be_followed_is_one_layer() -> None:
    network = cutting.trace("mine.py:build", Branching(whole=False), (3, 8, 8), 3)
    assert "layer" in [node.target for node in network.nodes if node.op == "call_module"]
    assert network.total == 6 * 6 * 8 * 27 + 6 * 6 * 8 * 72 + 24  # what is inside it is counted


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.mean(dim=(2, 3))
        return self.fc(x), x


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Branching(whole=True), "cannot be cut: torch.fx cannot follow Branching.forward"),
        (Two, "answers several values; logits of 3 classes are (B, 3)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(7, 3)), "cannot read images of 3 x 8 x 8 (channels x pixels)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), "answers (B, 5); logits of 3 classes are (B, 3)"),
        (lambda: nn.Flatten(), "has no weights to train"),
    ],
)
def test_what_cannot_be_cut_is_said_in_a_line(make: Callable[[], nn.Module], says: str) -> None:
    with pytest.raises(ValueError, match=r"network = 'mine\.py:build'") as caught:
        cutting.trace("mine.py:build", make(), (3, 8, 8), 3)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", LAYOUTS)
def test_every_layout_of_features_has_exits_and_gates(kind: str, tiny: str) -> None:
    task = Task(classes=5, size=32, channels=1)
    given = {"network": f"{tiny}:{kind}", "exits": 3}
    images = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    leaving = exits.build(exits.METHOD.configure(given), task).eval()
    for knobs in ({"thresholds": [0.0, 0.0]}, {"thresholds": [1e8, 0.0]}, {}):
        with counted(leaving) as tally:
            found = leaving.infer(images, knobs)
        assert sum(tally.values()) == found.macs.sum().item()
    gated = blocks.build(blocks.METHOD.configure({"network": f"{tiny}:{kind}"}), task).eval()
    for threshold in (0.0, 0.87, 2.0):
        with counted(gated) as tally:
            found = gated.infer(images, {"threshold": threshold})
        assert sum(tally.values()) == found.macs.sum().item()
        routed = gated(images, decisions=found.decisions)
        assert torch.allclose(routed.output, found.logits, atol=1e-4)
    loss = gated.train()(images, generator=torch.Generator().manual_seed(0)).output.sum()
    loss.backward()
    assert all(p.grad is not None for n, p in gated.named_parameters() if n.startswith("plain."))


def test_width_and_resolution_change_what_is_computed() -> None:
    def macs(**values: float) -> int:
        config = blocks.METHOD.configure({"network": "torchvision:mobilenet_v3_small", **values})
        return blocks.build(config, Task(size=64)).macs_full

    assert macs(width=0.5) < 0.5 * macs() and macs(resolution=0.5) < 0.45 * macs()
    with pytest.raises(ValueError, match=r"width = 0.5: torchvision:resnet18 has no factor of its channels"):
        blocks.build(blocks.METHOD.configure({"network": "torchvision:resnet18", "width": 0.5}), Task())
    with pytest.raises(ValueError, match=r"reads 3 channels, the images have 2"):
        blocks.build(blocks.METHOD.configure({"network": "torchvision:resnet18"}), Task(channels=2))


def test_running_averages_follow_in_short_trainings() -> None:
    """Torchvision's own momentum of 0.01 and 0.0003 leaves half and nearly all of what averages begin with."""
    images = torch.full((8, 3, 32, 32), 2.0)
    for name in ("mobilenet_v3_small", "mnasnet0_5"):
        network, _ = source.build(f"torchvision:{name}", Task(size=32))
        first = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
        seen: list[Tensor] = []
        hook = partial(lambda kept, _, given: kept.append(given[0].mean((0, 2, 3))), seen)
        first.register_forward_pre_hook(hook)
        with torch.no_grad():
            for _ in range(60):
                network.train()(images)
        assert first.running_mean is not None and torch.allclose(first.running_mean, seen[-1], rtol=0.01, atol=1e-4)
