"""ACT and SACT: groups of residual units that stop when their halting scores reach one.

M. Figurnov, M. D. Collins, Y. Zhu, L. Zhang, J. Huang, D. Vetrov, R. Salakhutdinov, "Spatially adaptive
computation time for residual networks", CVPR 2017, arXiv 1612.02297; public code:
github.com/mfigurnov/sact. Adaptive computation time itself: A. Graves, arXiv 1603.08983.

``act`` halts for whole images, ``sact`` position by position (the equations: `networks.halting.network`; the networks:
`networks.halting.preact`). ``act`` with ``variant="vanilla"`` is the network without halting, the paper's baseline and
the donor of weights on ImageNet.

Deviations and choices:

- tau is the paper's: a price per residual unit. As a share of the whole network, which other methods'
  prices multiply, it is tau times the number of units: 0.15 for ResNet-32 at the published 0.01. Deeper
  networks at the same tau therefore pay more for the same share.
- The paper's halting threshold T = 1 - eps is swept at inference, from 0 (every group ends behind its first unit) to
  "never" (the network without halting, by its weights). Above 1, which the paper does not have, scores are
  divided by T.
- Where all positions of an image have stopped, nothing of a unit is computed or counted; the public code counts the
  linear layer of the halting head (c MACs) for every unit.
- A unit whose active positions are too many to be gathered with profit is computed as a masked convolution, and
  charged by the paper's rule all the same: the first convolution on the mask dilated by 3 x 3, the others on the mask.
- Weight decay acts on kernels alone, as in the code (``decayed="all"`` changes that); no moving average of the
  weights (the code's on ImageNet).
- The leaky ReLU behind a unit's first batch norm within has the slope 0.01: the code's argument scope applies the
  activation of slope 0.1 there twice. The paper does not print a slope.
- The classifier and the halting heads begin as PyTorch's linear layers do; ``init="published"`` is the code's rule.
- Images are normalised and shifted as the data set's are; the code standardises CIFAR's one by one and shifts them
  by 2 pixels at most (``normalise="image"``, ``crop=2``).
- ``pretrained`` takes the weights of a vanilla network from its checkpoint (``network.safetensors``, or any file with
  its names); halting heads start fresh. torchvision has no pre-activation networks.
- ImageNet is derived from the public code, whose tests give the operations of ResNet-101; its halting heads
  have no activation behind their batch norm there.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from spaces import act, sact
from trainables.contracts.method import Method, one_captured_phase
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, DonorConfig, Phase, require
from trainables.networks.halting.heads import NEVER, HaltingHead, SpatialHead
from trainables.networks.halting.network import HaltingNetwork, SpatialHaltingNetwork
from trainables.networks.halting.preact import PREACT_NETWORKS, preact_body, units_per_group
from trainables.networks.initialisation import INITS, preactivation
from trainables.networks.resnet.cifar import StaticResNet

BELOW = (0.0, 0.3, 0.6, 0.8, 0.9)
"""Halting thresholds of a curve as shares of 1 - eps, which stands in its middle."""
ABOVE = (1.2, 1.5, 2.0, 4.0, NEVER)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """What ACT adds.

    `tau` is the price of a residual unit, `eps` lets a group stop where the scores add up to 1 - eps.
    `inner_slope`: of the leaky ReLU behind a CIFAR unit's first convolution (0.1 elsewhere). `init`: how weights
    begin (`networks.initialisation`). `pretrained`: a file of a vanilla network's weights to start from.
    """

    variants: ClassVar[tuple[str, ...]] = ("", "vanilla")

    network: str = "preact-resnet-20"
    weight_decay: float = 2e-4
    lr_decay_at: tuple[float, ...] = (0.6, 0.75, 0.9)
    tau: float = 0.01
    eps: float = 0.01
    decayed: str = "kernels"
    inner_slope: float = 0.01
    init: str = "default"
    pretrained: str = ""

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        least = min(units_per_group(self.network))
        known = " or ".join(repr(name) for name in self.variants)
        require(self.variant in self.variants, "variant", self.variant, f"must be {known}")
        halts = least > 1 or self.variant == "vanilla"
        require(halts, "network", self.network, "a group of one unit has nothing to halt; take preact-resnet-14")
        require(self.tau >= 0, "tau", self.tau, "the price of a unit must not be negative")
        require(0 < self.eps < 1, "eps", self.eps, "must be in (0, 1); groups stop at a sum of scores of 1 - eps")
        require(0 <= self.inner_slope <= 1, "inner_slope", self.inner_slope, "the slope must be in [0, 1]")
        require(self.init in INITS, "init", self.init, f"must be one of {', '.join(INITS)}")
        plain = self.variant == "vanilla" and self.donor
        require(not plain, "donor", self.donor, "the vanilla variant does not halt: it is a donor itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpatialConfig(Config):
    """The same for SACT, whose baseline is ACT's vanilla variant."""

    variants: ClassVar[tuple[str, ...]] = ("",)


def build(config: Config, task: Task) -> RoutedNetwork:
    """The network, initialised; halting scores begin near 0.05."""
    body = preact_body(config.network, task, width=config.width, inner_slope=config.inner_slope)
    if config.variant == "vanilla":
        network: RoutedNetwork = StaticResNet(config, task, body)
    else:
        kind = SpatialHaltingNetwork if isinstance(config, SpatialConfig) else HaltingNetwork
        network = kind(config, task, body, eps=config.eps)
    preactivation(network, config.init)
    for module in network.modules():
        if isinstance(module, HaltingHead | SpatialHead):
            module.first_biases()
    return network


def vanilla(config: Config, task: Task) -> dict[str, Any]:
    """See `Method.donor`: the network without halting."""
    return {"method": "act", "variant": "vanilla", "network": config.network, "width": config.width}


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    r"""Cross entropy, and what the groups g = 1 ... G cost: ``ponder_g``.

    .. math:: L = CE + \tau \sum_g \mathrm{mean}_{B, positions}\, \rho_g
    """
    config: Config = network.config
    routed = network(batch.images, generator=batch.generator)
    terms = {"cross_entropy": batch.cross_entropy(routed.output, config.label_smoothing)}
    if "ponder" in routed.aux:
        costs = config.tau * routed.aux["ponder"].mean(dim=0)
        terms |= {f"ponder_{group}": cost for group, cost in enumerate(costs.unbind(), start=1)}
    return terms


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """Halting thresholds by rising cost, the trained one in the middle; none without halting."""
    if config.variant == "vanilla":
        return ({},)
    trained = 1 - config.eps
    below = [round(share * trained, 6) for share in BELOW]
    return tuple({"threshold": threshold} for threshold in (*below, trained, *ABOVE))


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's FLOPs: two for a multiply-add of a convolution or linear layer, halting heads included."""
    unit = "FLOPs = 2 x MACs of convolutions and linear layers, halting heads included"
    return {"unit": unit, "flops": 2 * network.macs_full, "flops_min": 2 * network.macs_min}


METHOD = Method(
    name="act",
    title="Adaptive computation time",
    paper="arXiv:1612.02297",
    space=act.SPACE,
    published=act.PAPER,
    Config=Config,
    build=build,
    phases=one_captured_phase,
    networks=PREACT_NETWORKS[1:],
    variants=Config.variants,
    knobs={
        "threshold": "a group of residual units stops where its halting scores add up to it: 0 behind the first, "
        "the paper's is 1 - eps, above 1 scores are divided by it"
    },
    objective=objective,
    settings=settings,
    paper_cost=paper_cost,
    donor=vanilla,
    mixes=True,
)
SPATIAL = dataclasses.replace(
    METHOD,
    name="sact",
    title="Spatially adaptive computation time",
    space=sact.SPACE,
    published=sact.PAPER,
    Config=SpatialConfig,
    variants=SpatialConfig.variants,
)
