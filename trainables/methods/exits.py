r"""Early exits on any backbone: classifiers at its cuts, left where one is confident enough.

S. Teerapittayanon, B. McDanel, H. T. Kung, "BranchyNet: Fast inference via early exiting from deep neural networks",
ICPR 2016, arXiv 1709.01686. Y. Kaya, S. Hong, T. Dumitras, "Shallow-Deep Networks: Understanding and mitigating network
overthinking", ICML 2019, arXiv 1810.07052; public code: github.com/yigitcankaya/Shallow-Deep-Networks.

The backbone is cut where one tensor carries everything (`networks.backbones.cutting`); K - 1 heads stand there, the
backbone's own classifier is exit K. Variants:

- ``joint``: all exits together, their cross entropies weighted (BranchyNet, section 3.3):
  :math:`L = \sum_{k<K} \lambda_k L_k + L_K`.
- ``sdn``: the same with weights that rise over the training from 0.01 to the share :math:`C_k` of the MACs that exit k
  has seen (Kaya et al., section 4.2): early heads do not disturb features before these are any good.
- ``frozen``: the backbone first, alone; then the heads on it while it stays as it is (Kaya et al.'s conversion of a
  trained network, "IC-only training"). With ``trunk_share = 0`` pretrained weights are the trunk.

Deviations and choices:

- An image leaves by the largest softmax probability, as in Shallow-Deep Networks; BranchyNet thresholds the entropy.
- Thresholds are calibrated on validation images, one an exit, so that images spread over the exits as q asks
  (`networks.msdnet.thresholds`); the papers sweep one threshold for all.
- BranchyNet's branches are made by hand for each network; here all heads are of one kind
  (`networks.backbones.network.ExitHead`).
- Weights rise linearly in the steps of the training; the public code raises them by epochs.
- Without pretrained weights a backbone of torchvision begins as torchvision begins it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from spaces.exits import PAPER, SPACE
from trainables.contracts.method import Method, scheduled
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import LEARNING_RATE, Batch, Optimiser, Phase, require
from trainables.networks.backbones.config import NETWORKS, BackboneConfig
from trainables.networks.backbones.network import HEADS, PLACES, ExitBackbone
from trainables.networks.msdnet.thresholds import QUANTILES, calibrate, exit_settings

VARIANTS = ("joint", "sdn", "frozen")
TRUNK, HEADS_ALONE = "trunk", "heads"
MOST_EXITS = 9
FIRST_WEIGHT = 0.01
"""What Shallow-Deep Networks' weights of early exits rise from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(BackboneConfig):
    """Early exits' own choices.

    `exits` is K, `where` the early ones stand: at the ends of ``stages`` or at even ``shares`` of the MACs. `head`:
    pool, mixed or conv. `early_weight`: the loss weight of every exit but the last (``joint``); `exit_weights`: of
    all K instead. `trunk_share`: of the epochs that the trunk is trained before the heads (``frozen``), which are
    trained at `heads_lr`. `curve_points`: values of q in a curve.
    """

    network: str = "resnet-20"
    variant: str = "joint"
    exits: int = 4
    where: str = "stages"
    head: str = "pool"
    early_weight: float = 0.5
    exit_weights: tuple[float, ...] = ()
    trunk_share: float = 0.6
    heads_lr: float = 0.1
    curve_points: int = 12

    def __post_init__(self) -> None:
        BackboneConfig.__post_init__(self)
        for name, allowed in (("variant", VARIANTS), ("where", PLACES), ("head", HEADS)):
            value = getattr(self, name)
            require(value in allowed, name, value, f"exits takes one of {', '.join(allowed)}")
        require(2 <= self.exits <= MOST_EXITS, "exits", self.exits, f"a network has from 2 to {MOST_EXITS} exits")
        most = f"must be a whole number from 2 to {QUANTILES}"
        require(2 <= self.curve_points <= QUANTILES, "curve_points", self.curve_points, most)
        for name, values in (("early_weight", (self.early_weight,)), ("exit_weights", self.exit_weights)):
            good = all(isinstance(each, int | float) and 0 <= each < math.inf for each in values)
            require(good, name, getattr(self, name), "the weight of an exit must not be negative")
        count, rule = len(self.exit_weights), f"must be {self.exits} numbers, one per exit"
        require(count in (0, self.exits), "exit_weights", self.exit_weights, rule)
        require(0 <= self.trunk_share < 1, "trunk_share", self.trunk_share, "must be a share in [0, 1)")
        require(0 < self.heads_lr < 100, "heads_lr", self.heads_lr, LEARNING_RATE)
        alone = self.variant == "frozen" and self.trunk_share == 0 and not self.pretrained
        rule = "heads alone need pretrained weights below them: give pretrained, or train the trunk first"
        require(not alone, "trunk_share", self.trunk_share, rule)


def build(config: Config, task: Task) -> ExitBackbone:
    """The backbone, cut, with its heads."""
    network = ExitBackbone(config, task, exits=config.exits, where=config.where, head=config.head)
    return network.train()


def phases(config: Config) -> tuple[Phase, ...]:
    """One for all exits, or the trunk with its own classifier and then the heads."""
    if config.variant != "frozen":
        return (Phase(name="train", optimiser=Optimiser.of(config), capturable=True),)
    last = f"classifiers.{config.exits - 1}"
    heads = Phase(
        name=HEADS_ALONE,
        optimiser=Optimiser.of(config, lr=config.heads_lr, warmup=0.0),
        share=1 - config.trunk_share,
        trained=("classifiers.",),
        # where the trunk was never trained here, its classifier may be of other classes and is a head like the others
        frozen=(f"{last}.",) if config.trunk_share else (),
        eval_mode=("stages", last) if config.trunk_share else ("stages",),
        capturable=True,
    )
    if not config.trunk_share:
        return (heads,)
    first = Phase(
        name=TRUNK,
        optimiser=Optimiser.of(config),
        share=config.trunk_share,
        trained=("stages.", f"{last}."),
        comparable=False,  # its early exits answer at random
        capturable=True,
    )
    return first, heads


def exit_weights(network: ExitBackbone, phase: Phase) -> Sequence[float | Tensor]:
    """The loss weights of exit 1 ... K; 0 where the phase does not train an exit."""
    config: Config = network.config
    early, last = config.exits - 1, 1.0
    if phase.name == TRUNK:
        return [0.0] * early + [last]
    if phase.name == HEADS_ALONE and config.trunk_share > 0:
        last = 0.0  # it is the trunk's, which stays as it is
    if config.exit_weights:
        return [*config.exit_weights[:-1], config.exit_weights[-1] * last]
    if phase.name == HEADS_ALONE:
        return [1.0] * early + [last]
    if config.variant == "joint":
        return [config.early_weight] * early + [last]
    rises = [leaving.macs / network.exits[-1].macs - FIRST_WEIGHT for leaving in network.exits[:-1]]
    return [FIRST_WEIGHT + rise * network.progress for rise in rises] + [last]


def anneal(network: RoutedNetwork, share: float, steps: int) -> None:
    """Tell the network how much of the phase is done, where weights rise with it."""
    assert isinstance(network, ExitBackbone)
    if network.config.variant == "sdn":
        network.progress = scheduled(network.progress, share, network.unit_macs.device)


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """The weighted cross entropies of the exits that the phase trains."""
    assert isinstance(network, ExitBackbone)
    logits, smoothing = network(batch.images, generator=batch.generator).logits, network.config.label_smoothing
    return {
        f"exit_{k}": weight * batch.cross_entropy(each, smoothing)
        for k, (each, weight) in enumerate(zip(logits, exit_weights(network, phase), strict=True), start=1)
        if isinstance(weight, Tensor) or weight > 0
    }


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """What a curve asks for: `curve_points` values of q, and every exit by itself."""
    return exit_settings(config.exits, config.curve_points)


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """Shallow-Deep Networks' cost of an exit: its share of what the network without early heads computes."""
    assert isinstance(network, ExitBackbone)
    full = network.macs_full - sum(unit.macs for unit in network.units[1:-1:2])
    shares = [round(leaving.macs / full, 4) for leaving in network.exits]
    return {"unit": "share of the MACs of the backbone alone, heads included", "shares": shares}


METHOD = Method(
    name="exits",
    title="Early exits on any backbone (BranchyNet, Shallow-Deep Networks)",
    paper="arXiv:1810.07052",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    variants=VARIANTS,
    knobs={
        "thresholds": "an image leaves at the first exit whose largest softmax probability reaches its threshold",
    },
    phases=phases,
    objective=objective,
    settings=settings,
    calibrate=calibrate,
    anneal=anneal,
    paper_cost=paper_cost,
    mixes=True,
)
