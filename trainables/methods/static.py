"""Static residual networks: no routing, the baseline and the donor of weights.

K. He, X. Zhang, S. Ren, J. Sun, "Deep residual learning for image recognition", CVPR 2016,
arXiv 1512.03385, section 4.2 (CIFAR).

Deviations: besides the paper's shortcuts A and B there is ``pool`` (average pooling and zero
channels), which the BlockDrop and ACT networks use; the warm-up rises linearly in place of the
constant 0.01 of the paper's 110 layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spaces.static import PAPER, SPACE
from trainables.method import Method, TrainingConfig, require
from trainables.network import RoutedNetwork, Task
from trainables.networks.resnet import (
    NETWORKS,
    SHORTCUTS,
    StaticResNet,
    blocks_per_group,
    cifar_resnet,
    kaiming_normal,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """`shortcut`: what a block adds where the shape changes: A, B or pool."""

    shortcut: str = "A"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        blocks_per_group(self.network)
        require(self.variant == "", "variant", self.variant, "static networks have no variants")
        require(self.shortcut in SHORTCUTS, "shortcut", self.shortcut, f"must be one of {', '.join(SHORTCUTS)}")


def build(config: Config, task: Task) -> StaticResNet:
    """The network, initialised."""
    body = cifar_resnet(config.network, task, width=config.width, shortcut=config.shortcut)
    network = StaticResNet(config, task, body)
    kaiming_normal(network)
    return network


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's FLOPs: multiply-adds of the convolutions, each counted once."""
    assert isinstance(network, StaticResNet)
    return {"unit": "FLOPs = convolution MACs", "flops": network.macs_full - network.classifier_macs}


METHOD = Method(
    name="static",
    title="Static residual networks",
    paper="arXiv:1512.03385",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    paper_cost=paper_cost,
)
