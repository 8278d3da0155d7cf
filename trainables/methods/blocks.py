"""Skipped blocks on any backbone: gates on the residual blocks that are found in its graph, held to a target rate.

Gates and losses are ConvNet-AIG's: A. Veit, S. Belongie, "Convolutional networks with adaptive inference graphs", ECCV
2018, arXiv 1711.11503 (`trainables.methods.aig`). A residual block is an addition of two tensors that come, apart from
each other, from one cut of the graph (`networks.backbones.cutting`); a gate reads that cut and scales the branch:
``shortcut(x) + w branch(x)``, whatever follows. So attention and the layers behind it are two blocks of a transformer.

Shape legend: B images, G gates.

Deviations and choices:

- All blocks are gated and have one target rate; the paper spares some of ResNet-50's and ResNet-101's.
- At inference a block runs where P(run) reaches a threshold, which is swept.
- Without pretrained weights a backbone of torchvision begins as torchvision begins it; gates begin open, at 0.87.
- Gates of tokens read their mean, as those of maps read the mean over positions.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from spaces.blocks import PAPER, SPACE
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, Optimiser, Phase, require
from trainables.methods.aig import RELAXATIONS, target_loss
from trainables.networks.backbones.config import NETWORKS, BackboneConfig
from trainables.networks.backbones.network import GatedBackbone
from trainables.networks.gated.network import SAMPLING_KNOBS, thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(BackboneConfig):
    """`target` is the rate of every block, `target_weight` weighs the loss on rates; `relaxation`, `temperature`: how
    decisions are made soft in training.
    """

    network: str = "torchvision:mobilenet_v3_small"
    relaxation: str = "gumbel_straight_through"
    temperature: float = 1.0
    target: float = 0.6
    target_weight: float = 2.0

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        require(self.variant == "", "variant", self.variant, "blocks has no variants")
        known = ", ".join(RELAXATIONS)
        require(self.relaxation in RELAXATIONS, "relaxation", self.relaxation, f"blocks takes one of {known}")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        require(0 <= self.target < 1, "target", self.target, "a rate must be in [0, 1)")
        require(self.target_weight >= 0, "target_weight", self.target_weight, "must not be negative")


def build(config: Config, task: Task) -> GatedBackbone:
    """The backbone, cut at its residual blocks, with a gate each."""
    network = GatedBackbone(config, task, relaxation=config.relaxation, temperature=config.temperature)
    return network.train()


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """Cross entropy and the weighted loss on the gates' rates."""
    assert isinstance(network, GatedBackbone)
    config: Config = network.config
    routed = network(batch.images, generator=batch.generator)
    smoothing = config.label_smoothing
    terms = {"cross_entropy": batch.cross_entropy(routed.output, smoothing)}
    if config.target_weight > 0:
        targets = routed.decisions.new_full((network.gates,), config.target)
        terms["target"] = config.target_weight * target_loss(routed.decisions, targets, network.gates)
    return terms


def phases(config: Config) -> tuple[Phase, ...]:
    """Everything together, on sampled decisions."""
    return (Phase(name="train", optimiser=Optimiser.of(config), relaxation=config.relaxation, capturable=True),)


METHOD = Method(
    name="blocks",
    title="Skipped blocks on any backbone (ConvNet-AIG's gates)",
    paper="arXiv:1711.11503",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    knobs=SAMPLING_KNOBS,
    phases=phases,
    objective=objective,
    settings=thresholds,
    mixes=True,
)
