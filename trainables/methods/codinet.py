"""CoDiNet: paths that agree for augmented copies of an image and differ between images.

H. Wang, Z. Qin, S. Li, X. Li, "CoDiNet: path distribution modeling with consistency and
diversity for dynamic routing", IEEE TPAMI 2021, arXiv 2005.14439; public code beside the paper.

Every residual block has a gate that reads the block's input. Stage 1 trains everything with the
relaxed mixture; stage 2 freezes the routers and fine-tunes the rest on hard, noise-free decisions.

Shape legend: L images, M augmented copies (views) of each, N gates.

Deviations and choices (the paper is silent or its code differs):

- The routers' outputs are the logits U (the paper writes log U); their nonlinearity is a ReLU.
- Skipping a strided block is a 1 x 1 convolution, batch norm and ReLU with own weights, as in the code.
- Stage 2 takes a tenth of the epochs, the learning rate falls from 0.01 to 0.001, and cross entropy
  is its only loss. ``stage2_losses`` keeps the others, as the code does: blocks are mixed by hard decisions without
  a gradient, the losses over paths read the soft ones, whose gradient passes through the frozen routers.
- The cost c_k of a block is in units of the mean gated block (``cost_unit="block"``), in GFLOPs of
  two per MAC, or as a fraction of all gated blocks. ``cost="target_l1"`` is the public code's
  distance of the summed path length to `target` blocks per image.
- ``relaxation="bernoulli"`` (Table 9): trained with the probabilities themselves, decided by a draw
  at inference.
- ``impl="official"``: routers without nonlinearity, path vectors (v, 1 - v), which stretches
  distances by the square root of 2, and Gumbel noise that stays in stage 2 and at inference (a draw
  with P(run)); all losses stay in stage 2. Its order of outputs is not rebuilt.
- The threshold on P(run), 1/2 in the paper, is swept at inference.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.codinet import PAPER, SPACE
from trainables.constants import constant
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import LEARNING_RATE, Batch, DonorConfig, Optimiser, Phase, require
from trainables.networks.gated.gates import GATES, router_of
from trainables.networks.gated.network import SAMPLING_KNOBS, GatedResNet, thresholds
from trainables.networks.initialisation import INITS, he_everywhere, he_fan_out
from trainables.networks.resnet.imagenet import (
    RESIDUAL_NETWORKS,
    RESIDUAL_SHORTCUTS,
    check_residual,
    residual_body,
    static_donor,
)

VARIANTS = ("full", "con_only", "vanilla")
RELAXATIONS = ("gumbel", "softmax", "bernoulli")
COSTS = ("lookup", "target_l1")
COST_UNITS = ("block", "gflops", "fraction")
IMPLEMENTATIONS = ("ours", "official")
STAGE2 = "stage2"


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """CoDiNet's own choices.

    `batch_size` counts all views: L * M. `alpha`, `beta`, `gamma` weigh consistency, diversity and
    cost; `variant` switches off beta (con_only) or alpha and beta (vanilla). The margins m_c and
    m_d are distances between paths; `temperature` is T of the relaxation. `stage2_share` is the
    share of the epochs (0: no stage 2). `init`: how weights begin (`networks.initialisation`).
    """

    network: str = "resnet-32"
    variant: str = "full"
    shortcut: str = "auto"
    gate: str = "linear"
    rnn_size: int = 10
    relaxation: str = "gumbel"
    temperature: float = 1.0
    views: int = 4
    alpha: float = 0.2
    beta: float = 0.2
    gamma: float = 0.01
    margin_consistency: float = 0.2
    margin_diversity: float = 0.5
    cost: str = "lookup"
    cost_unit: str = "block"
    target: float = 16.0
    lr_decay_at: tuple[float, ...] = (150 / 220, 200 / 220)
    stage2_share: float = 0.1
    stage2_lr: float = 0.01
    stage2_losses: bool = False
    pretrained: str = ""
    init: str = "default"
    impl: str = "ours"

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        check_residual(self.network)
        for name, allowed in (
            ("variant", VARIANTS),
            ("shortcut", RESIDUAL_SHORTCUTS),
            ("gate", GATES),
            ("relaxation", RELAXATIONS),
            ("cost", COSTS),
            ("cost_unit", COST_UNITS),
            ("init", INITS),
            ("impl", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in allowed, name, value, f"codinet takes one of {', '.join(allowed)}")
        for name in ("alpha", "beta", "gamma", "margin_consistency", "margin_diversity", "target"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative")
        require(self.rnn_size >= 1, "rnn_size", self.rnn_size, "the LSTM needs at least one unit")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        require(self.views >= 1, "views", self.views, "an image appears at least once")
        alpha, beta = self.weights
        require(alpha == 0 or self.views >= 2, "views", self.views, "consistency (alpha > 0) compares at least 2")
        least = 2 if beta > 0 else 1
        require(
            self.batch_size >= least * self.views,
            "batch_size",
            self.batch_size,
            f"counts all views; {least} image(s) of {self.views} views need {least * self.views}",
        )
        require(0 <= self.stage2_share < 1, "stage2_share", self.stage2_share, "must be in [0, 1)")
        require(0 < self.stage2_lr < 100, "stage2_lr", self.stage2_lr, LEARNING_RATE)

    @property
    def weights(self) -> tuple[float, float]:
        """(alpha, beta) as the variant leaves them."""
        alpha = 0.0 if self.variant == "vanilla" else self.alpha
        return alpha, self.beta if self.variant == "full" else 0.0


def training_relaxation(config: Config) -> str:
    """How stage 1 makes decisions soft; what is drawn only at inference trains with the probability."""
    return "softmax" if config.relaxation == "bernoulli" else config.relaxation


def build(config: Config, task: Task) -> GatedResNet:
    """The network, initialised; every block has a gate."""
    body = residual_body(config.network, task, width=config.width, shortcut=config.shortcut)
    plain, size = config.impl == "official", config.rnn_size
    router = router_of(config.gate, body.shapes[:-1], plain=plain, embed=size, hidden=size, image=task.image)
    network = GatedResNet(
        config,
        task,
        body,
        router,
        gated=range(len(body.blocks)),
        skip="own",
        relaxation=training_relaxation(config),
        temperature=config.temperature,
    )
    official = config.init == "published" or config.impl == "official"
    (he_everywhere if official else he_fan_out)(network)
    return network


def consistency_loss(paths: Tensor, margin: float) -> Tensor:
    r"""How far the copies of an image stray from their mean path, beyond a margin.

    .. math:: L_{con} = \frac{1}{LM} \sum_{ij} [\| r_{ij} - \bar r_i \|_2 - m_c]_+^2

    r is `paths` (L, M, N), m_c `margin` (eq. 8 of the paper). The norm's gradient at 0 is 0.
    """
    distances = torch.linalg.vector_norm(paths - paths.mean(dim=1, keepdim=True), dim=-1)
    return F.relu(distances - margin).square().mean()


def diversity_loss(paths: Tensor, margin: float) -> Tensor:
    r"""How much closer than a margin the mean paths of different images lie.

    .. math:: L_{div} = \frac{1}{L(L-1)} \sum_{i \ne j} [m_d - \| \bar r_i - \bar r_j \|_2]_+^2

    r is `paths` (L, M, N), m_d `margin` (eq. 9 of the paper). The norm's gradient at 0 is 0;
    a single image differs from nobody: 0.
    """
    centres = paths.mean(dim=1)
    if len(centres) < 2:
        return centres.sum() * 0.0
    i, j = torch.triu_indices(len(centres), len(centres), offset=1, device=centres.device)
    distances = torch.linalg.vector_norm(centres[i] - centres[j], dim=-1)
    return F.relu(margin - distances).square().mean()


def cost_loss(decisions: Tensor, costs: Tensor) -> Tensor:
    r"""Mean cost of the executed blocks.

    .. math:: L_{cost} = \frac{1}{LM} \sum_{ij} \sum_k c_k v_{ijk}

    v is `decisions` (LM, N), c `costs` (N,) (eq. 11 of the paper, averaged over the batch).
    """
    return (decisions * costs).sum(dim=1).mean()


def target_loss(decisions: Tensor, target: float) -> Tensor:
    r"""The public code's cost: :math:`|\sum_{ij} \sum_k v_{ijk} - target \cdot LM|`, not averaged."""
    return (decisions.sum() - target * len(decisions)).abs()


def block_costs(network: GatedResNet, unit: str, like: Tensor) -> Tensor:
    """c_k (N,) of the gated blocks: in mean blocks, GFLOPs of two per MAC, or fractions of their sum."""
    macs = constant(network.gated_macs, like.dtype, like.device)
    return macs / {"block": macs.mean(), "fraction": macs.sum(), "gflops": 0.5e9}[unit]


def auxiliary_losses(network: GatedResNet, decisions: Tensor, views: int) -> dict[str, Tensor]:
    """The weighted losses over paths whose weight is not 0: consistency, diversity, cost.

    `decisions` (L * M, N), the `views` copies of an image being neighbours.
    """
    config: Config = network.config
    alpha, beta = config.weights
    vectors = torch.cat([decisions, 1 - decisions], dim=1) if config.impl == "official" else decisions
    paths = vectors.unflatten(0, (-1, views))
    terms: dict[str, Tensor] = {}
    if alpha > 0:
        terms["consistency"] = alpha * consistency_loss(paths, config.margin_consistency)
    if beta > 0:
        terms["diversity"] = beta * diversity_loss(paths, config.margin_diversity)
    if config.gamma > 0 and config.cost == "target_l1":
        terms["cost"] = config.gamma * target_loss(decisions, config.target)
    elif config.gamma > 0:
        terms["cost"] = config.gamma * cost_loss(decisions, block_costs(network, config.cost_unit, decisions))
    return terms


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    r"""Cross entropy and, in stage 1 (or with ``stage2_losses``), the weighted losses over paths.

    .. math:: L = L_{cls} + \alpha L_{con} + \beta L_{div} + \gamma L_{cost}

    (eq. 12 of the paper.) The cross entropy is over all L * M images.
    """
    assert isinstance(network, GatedResNet)
    routed = network(batch.images, generator=batch.generator)
    smoothing = network.config.label_smoothing
    terms = {"cross_entropy": batch.cross_entropy(routed.output, smoothing)}
    if phase.name != STAGE2 or keeps_losses(network.config):
        terms.update(auxiliary_losses(network, routed.decisions, batch.views))
    return terms


def keeps_losses(config: Config) -> bool:
    """Whether stage 2 keeps the losses over paths, as the public code does."""
    return config.stage2_losses or config.impl == "official"


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """Thresholds; where decisions are drawn at inference, thresholds of the draw."""
    drawn = config.relaxation == "bernoulli" or config.impl == "official"
    return tuple({**each, "sampling": "bernoulli", "seed": 0} if drawn else each for each in thresholds(config))


def phases(config: Config) -> tuple[Phase, ...]:
    """Stage 1 trains everything; stage 2 everything but the routers, on hard decisions."""
    first = Phase(
        name="stage1",
        optimiser=Optimiser.of(config),
        share=1 - config.stage2_share,
        relaxation=training_relaxation(config),
        capturable=True,
    )
    if config.stage2_share == 0:
        return (first,)
    drawn = "sampling" in settings(config)[0]
    if keeps_losses(config):
        relaxation = "gumbel_detached" if drawn else "softmax_detached"
    else:
        relaxation = "bernoulli" if drawn else "hard"
    second = Phase(
        name=STAGE2,
        optimiser=Optimiser.of(config, lr=config.stage2_lr, schedule="step", decay_at=(0.5,), decay=0.1, warmup=0.0),
        share=config.stage2_share,
        frozen=("router.",),
        eval_mode=("router",),
        relaxation=relaxation,
        capturable=True,
    )
    return first, second


def views(config: Config) -> int:
    """M, the augmented copies of an image in a batch."""
    return config.views


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's GFLOPs on CIFAR: two per MAC of the convolutions, routers left out."""
    assert isinstance(network, GatedResNet)
    other = network.classifier_macs + network.router_macs
    return {
        "unit": "GFLOPs = 2 x convolution MACs, routers left out",
        "gflops": 2 * (network.macs_full - other) / 1e9,
        "gflops_min": 2 * (network.macs_min - other) / 1e9,
    }


METHOD = Method(
    name="codinet",
    title="CoDiNet",
    paper="arXiv:2005.14439",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=RESIDUAL_NETWORKS,
    variants=VARIANTS,
    knobs=SAMPLING_KNOBS,
    phases=phases,
    objective=objective,
    settings=settings,
    views=views,
    paper_cost=paper_cost,
    donor=static_donor,
    mixes=True,
)
