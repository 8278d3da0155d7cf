"""Static networks: no routing, the baselines and donors of weights.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv 1512.03385, section 4.2 (CIFAR). Beside its residual networks stand the DenseNets that MSDNet and
IMTA compare with (G. Huang et al., CVPR 2017, arXiv 1608.06993; growth 12, no dropout).

A network that others wrote (``torchvision:MODEL``, ``timm:MODEL``, ``FILE.py:FUNCTION``: `networks.backbones.source`)
is taken as it is, to compare with what exits and skipped blocks make of it.

With `smallest_size` below 1 a residual network is trained and read at three sizes of its images, which are its
operating points (`networks.resnet.sized`).

Deviations: besides the paper's shortcuts A and B there is ``pool`` (average pooling and zero
channels), which the BlockDrop and ACT networks use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spaces.static import PAPER, SPACE
from trainables.contracts.method import Method, one_captured_phase, one_phase
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Phase, TrainingConfig, require
from trainables.networks.backbones.config import check_backbone
from trainables.networks.backbones.network import StaticBackbone
from trainables.networks.backbones.source import is_backbone
from trainables.networks.initialisation import he_fan_out
from trainables.networks.resnet.cifar import SMALLEST_IMAGE, StaticResNet
from trainables.networks.resnet.densenet import DENSE_NETWORKS, DenseNet, dense_layers
from trainables.networks.resnet.imagenet import (
    IMAGENET_NETWORKS,
    RESIDUAL_NETWORKS,
    RESIDUAL_SHORTCUTS,
    SMALLEST_IMAGENET_IMAGE,
    check_residual,
    residual_body,
)
from trainables.networks.resnet.sized import SizedResNet, sizes_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """`shortcut`: what a block adds where the shape changes: A, B, pool or auto (the network's published one);
    DenseNets add nothing, whatever it says.

    `pretrained`: a file of torchvision's weights to start an ImageNet body from, or weights of a network that others
    wrote (`networks.backbones.weights`), for which `resolution` multiplies the size of its images.

    `smallest_size`: the least of three sizes at which a residual network reads its images, as a share of their own; 1:
    it reads them as they are.
    """

    shortcut: str = "auto"
    pretrained: str = ""
    resolution: float = 1.0
    smallest_size: float = 1.0

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        whole = is_backbone(self.network)
        rule = f"{self.network} reads images as they are"
        require(whole or self.resolution == 1, "resolution", self.resolution, rule)
        if whole:
            check_backbone(self, self.pretrained, self.resolution)
            require(self.shortcut == "auto", "shortcut", self.shortcut, f"{self.network} has its own; leave it at auto")
        elif self.network.startswith("densenet"):
            dense_layers(self.network)
            require(not self.pretrained, "pretrained", self.pretrained, f"{self.network} takes no weights from files")
        else:
            check_residual(self.network)
        rule = "a share of the images' size, from 0.25 to 1"
        require(0.25 <= self.smallest_size <= 1, "smallest_size", self.smallest_size, rule)
        sized = not whole and not self.network.startswith("densenet")
        rule = f"{self.network} reads images at one size alone; residual networks take several"
        require(sized or self.smallest_size == 1, "smallest_size", self.smallest_size, rule)
        require(self.variant == "", "variant", self.variant, "static networks have no variants")
        known = ", ".join(RESIDUAL_SHORTCUTS)
        require(self.shortcut in RESIDUAL_SHORTCUTS, "shortcut", self.shortcut, f"must be one of {known}")


def build(config: Config, task: Task) -> RoutedNetwork:
    """The network, initialised."""
    if is_backbone(config.network):
        return StaticBackbone(config, task).train()
    if config.network.startswith("densenet"):
        dense = DenseNet(config, task, config.network, width=config.width)
        he_fan_out(dense)
        return dense
    body = residual_body(config.network, task, width=config.width, shortcut=config.shortcut)
    if config.smallest_size < 1:
        least = SMALLEST_IMAGENET_IMAGE if config.network in IMAGENET_NETWORKS else SMALLEST_IMAGE
        network = SizedResNet(config, task, body, sizes_from(config.smallest_size), least)
    else:
        network = StaticResNet(config, task, body)
    he_fan_out(network)
    return network


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """One point, or one a size."""
    sizes = sizes_from(config.smallest_size)
    return tuple({"size": size} for size in sizes) if len(sizes) > 1 else ({},)


def phases(config: Config) -> tuple[Phase, ...]:
    """One phase; a GPU repeats its steps where all batches have one size."""
    return one_captured_phase(config) if config.smallest_size == 1 else one_phase(config)


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's FLOPs: multiply-adds of the convolutions, each counted once."""
    if isinstance(network, StaticBackbone):
        return {"unit": "MACs of all its layers", "macs": network.macs_full}
    assert isinstance(network, StaticResNet | SizedResNet | DenseNet)
    return {"unit": "FLOPs = convolution MACs", "flops": network.macs_full - network.classifier_macs}


METHOD = Method(
    name="static",
    title="Static networks (ResNet, DenseNet)",
    paper="arXiv:1512.03385",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    knobs={"size": "the size at which images are read, as a share of their own (with smallest_size below 1)"},
    phases=phases,
    settings=settings,
    networks=(*RESIDUAL_NETWORKS, *DENSE_NETWORKS),
    paper_cost=paper_cost,
    mixes=True,
)
