"""SkipNet: gates after each block that decide whether the next one runs, refined as a policy.

X. Wang, F. Yu, Z.-Y. Dou, T. Darrell, J. E. Gonzalez, "SkipNet: learning dynamic routing in
convolutional networks", ECCV 2018, arXiv 1711.09485; public code: github.com/ucbdrive/skipnet.

The first block always runs; gate k reads the mixed output of block k and decides block k + 1.
Variants, by the paper's names:

- ``sp``, supervised: everything on cross entropy alone, hard decisions forward, the soft
  probability's gradient backward (``relaxation="straight_through"``, Hd); ``softmax`` mixes by the
  probability and tests hard (St).
- ``hrl_sp``, the two-stage algorithm: SP, then hybrid reinforcement learning, in which gates sample
  their decisions and learn from rewards (`policy_loss`) while the layers learn from cross entropy.
- ``hrl_s``: hybrid reinforcement learning from scratch.
- ``rl``: rewards alone; the class label is sampled as the last action.

Shape legend: B images, N gates.

Deviations and choices:

- No gate behind the last block, where the public code has one that decides nothing;
  ``impl="official"`` builds it.
- Around a transition an image takes the block's own 1 x 1 convolution and batch norm, as in the
  public code, but computed once for both uses (the code computes it twice). The paper speaks of
  pooling: ``transition="pool"``.
- A probability of exactly 1/2 runs the block (eq. 7; the code skips it).
- Feed-forward gates answer with two logits, as in the code (the paper: one number). The paper
  does not say what its linear gate looks like: FC, ReLU, FC on pooled features here.
- The threshold on P(run), 1/2 in the paper, is swept at inference.
- `rl_weight` is 1 by eq. 6. The public code's 0.01 multiplies a sum over 128 images on CIFAR (1.28
  here) and a mean on ImageNet (0.01). Its ImageNet reward couples all images of a batch by
  broadcasting; here every image has its own.
- `discount` and `hrl_sharpen` (the ImageNet code divides the gates' last layer by 0.05 before HRL)
  are the public code's and off by default.
- ``rl``: a wrong label loses 1, a right one 0 (the paper does not say).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.skipnet import PAPER, SPACE
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import LEARNING_RATE, Batch, DonorConfig, Optimiser, Phase, require
from trainables.networks import initialisation
from trainables.networks.gated.gates import GATES, router_of
from trainables.networks.gated.network import THRESHOLD_KNOB, GatedResNet, thresholds
from trainables.networks.resnet.imagenet import (
    IMAGENET_NETWORKS,
    RESIDUAL_NETWORKS,
    RESIDUAL_SHORTCUTS,
    check_residual,
    residual_body,
    static_donor,
)

VARIANTS = ("sp", "hrl_sp", "hrl_s", "rl")
BETAS = ("one", "alpha/N")
RELAXATIONS = ("straight_through", "softmax")
TRANSITIONS = ("projection", "pool")
IMPLEMENTATIONS = ("ours", "official")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """SkipNet's own choices.

    `gate`: one of `networks.gated.gates.GATES`; `rnn_size`: width of the recurrent gate's embedding and LSTM;
    `relaxation`: straight_through (Hd) or softmax (St); `shortcut`: A, B, pool or auto;
    `transition`: what skipping a strided block means; `pretrained`: a file of torchvision's weights
    to start an ImageNet body from; `impl`: official builds the trailing gate.

    Reinforcement: `alpha` weighs the reward of skipping, `beta` the loss in the reward (``one``, or
    ``alpha/N`` as on ImageNet), `rl_weight` the policy's term, `discount` later rewards. HRL behind
    SP takes `hrl_share` of the epochs at the constant rate `hrl_lr`; `hrl_sharpen` divides the
    gates' last layers before it.
    """

    network: str = "resnet-38"
    variant: str = "sp"
    shortcut: str = "B"
    gate: str = "rnn"
    rnn_size: int = 10
    relaxation: str = "straight_through"
    transition: str = "projection"
    alpha: float = 0.1
    beta: str = "one"
    rl_weight: float = 1.0
    discount: float = 1.0
    hrl_share: float = 10 / 74
    hrl_lr: float = 1e-4
    hrl_sharpen: float = 1.0
    pretrained: str = ""
    impl: str = "ours"

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        rule = "skipnet learns by rewards, which have no weights of classes; take sampled"
        require(self.balance != "loss", "balance", self.balance, rule)
        check_residual(self.network)
        for name, allowed in (
            ("variant", VARIANTS),
            ("shortcut", RESIDUAL_SHORTCUTS),
            ("gate", GATES),
            ("relaxation", RELAXATIONS),
            ("transition", TRANSITIONS),
            ("beta", BETAS),
            ("impl", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in allowed, name, value, f"skipnet takes one of {', '.join(allowed)}")
        require(self.alpha >= 0, "alpha", self.alpha, "must not be negative")
        require(self.rl_weight > 0, "rl_weight", self.rl_weight, "must be positive")
        require(0 < self.discount <= 1, "discount", self.discount, "must be in (0, 1]")
        require(0 < self.hrl_share < 1, "hrl_share", self.hrl_share, "must be a share in (0, 1)")
        require(0 < self.hrl_lr < 100, "hrl_lr", self.hrl_lr, LEARNING_RATE)
        require(0 < self.hrl_sharpen <= 1, "hrl_sharpen", self.hrl_sharpen, "must be in (0, 1], 1 being off")
        require(self.rnn_size >= 1, "rnn_size", self.rnn_size, "the LSTM needs at least one unit")


def initialise(network: GatedResNet, config: Config) -> None:
    """Weights as in the public code, which has rules of its own for LSTMs on ImageNet and for rewards alone."""
    rewarded = config.variant in ("hrl_s", "rl") and config.gate == "rnn"
    initialisation.skipnet(network, zero_linear_biases=rewarded)
    if config.network in IMAGENET_NETWORKS:
        initialisation.xavier_lstm(network)


def build(config: Config, task: Task) -> GatedResNet:
    """The network, initialised; its first block has no gate."""
    body = residual_body(config.network, task, width=config.width, shortcut=config.shortcut)
    trailing = config.impl == "official"
    read = body.shapes[1:] if trailing else body.shapes[1:-1]
    router = router_of(config.gate, read, embed=config.rnn_size, hidden=config.rnn_size, image=task.image)
    network = GatedResNet(
        config,
        task,
        body,
        router,
        gated=range(1, len(body.blocks)),
        skip="shortcut" if config.transition == "projection" else "pool",
        relaxation=config.relaxation,
        trailing=trailing,
    )
    initialise(network, config)
    return network


def phases(config: Config) -> tuple[Phase, ...]:
    """SP, then HRL at a constant small rate; or one of both from scratch by the shared recipe."""
    supervised = Phase(name="sp", optimiser=Optimiser.of(config), relaxation=config.relaxation, capturable=True)
    if config.variant == "sp":
        return (supervised,)
    if config.variant in ("hrl_s", "rl"):
        return (dataclasses.replace(supervised, name=config.variant.removesuffix("_s"), relaxation="bernoulli"),)
    refined = Phase(
        name="hrl",
        optimiser=Optimiser.of(config, lr=config.hrl_lr, schedule="step", decay_at=(), warmup=0.0),
        share=config.hrl_share,
        relaxation="bernoulli",
        capturable=True,
    )
    return dataclasses.replace(supervised, share=1 - config.hrl_share), refined


def rewards(actions: Tensor, loss: Tensor, *, alpha: float, beta: float, discount: float = 1.0) -> Tensor:
    r"""What each gate's decision earned, (B, N).

    .. math:: r_i = \sum_{j \ge i} \gamma^{j-i} \frac{\alpha}{N} (1 - g_j) - \gamma^{N-i+1} \beta L

    (eq. 6 with the relaxed reward of section 3.2, :math:`\gamma = 1`, C = 1.) g is `actions`
    (B, N) in {0, 1}, L `loss` (B,); no gradient.
    """
    count = actions.shape[1]
    later = -beta * loss.detach()
    earned = []
    for skipped in (1 - actions.detach()).flip(1).unbind(1):
        later = alpha / count * skipped + discount * later
        earned.append(later)
    return torch.stack(earned, dim=1).flip(1)


def policy_loss(logits: Tensor, actions: Tensor, rewards: Tensor) -> Tensor:
    r"""The REINFORCE term, whose gradient is that of :math:`-\mathrm{mean}_B \sum_i r_i \log p(g_i)` (eq. 6).

    `logits` z (B, N) of running, `actions` g in {0, 1}, `rewards` r, all (B, N).
    """
    surprise = F.binary_cross_entropy_with_logits(logits, actions.detach(), reduction="none")
    return (surprise * rewards).sum(dim=1).mean()


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    r"""SP: cross entropy. HRL: cross entropy and the policy's term. RL: the policy's term alone.

    .. math:: J = E_x E_g [L - \frac{\alpha}{N} \sum_i R_i]

    (eq. 5.) In RL the label is an action too: its log-probability earns :math:`-\beta L`.
    """
    routed = network(batch.images, generator=batch.generator)
    config: Config = network.config
    losses = F.cross_entropy(routed.output, batch.labels, reduction="none", label_smoothing=config.label_smoothing)
    if phase.name == "sp":
        return {"cross_entropy": losses.mean()}
    beta = 1.0 if config.beta == "one" else config.alpha / routed.decisions.shape[1]
    terms: dict[str, Tensor] = {}
    label_term = losses.new_zeros(())
    if phase.name == "rl":
        labels = drawn(routed.output.detach().softmax(dim=1), batch.generator)
        wrong = labels.ne(batch.labels).to(losses.dtype)
        label_term = (F.cross_entropy(routed.output, labels, reduction="none") * -beta * wrong).mean()
        losses = wrong
    else:
        terms["cross_entropy"] = losses.mean()
    earned = rewards(routed.decisions, losses, alpha=config.alpha, beta=beta, discount=config.discount)
    term = policy_loss(routed.aux["gate_logits"], routed.decisions, earned) + label_term
    return {**terms, "policy": config.rl_weight * term}


def drawn(shares: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of C drawn by its share, (B, C) to (B,): what `torch.multinomial` draws, which waits to check its input.

    The largest of p / q, q being exponential, is at c with probability p_c.
    """
    return (shares / torch.empty_like(shares).exponential_(1, generator=generator)).argmax(dim=1)


def begin(network: RoutedNetwork, phase: Phase) -> None:
    """Sharpen the policy that HRL starts from: the gates' last layers, divided by `hrl_sharpen`."""
    assert isinstance(network, GatedResNet)
    if phase.name == "hrl" and network.config.variant == "hrl_sp":
        for layer in network.router.outputs():
            for parameter in layer.parameters():
                parameter.div_(network.config.hrl_sharpen)


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The paper's FLOPs: MACs of the convolutions, the gates' among them, with all and no gated blocks run."""
    assert isinstance(network, GatedResNet)
    other = network.classifier_macs + network.router_macs - network.router_conv_macs
    return {
        "unit": "FLOPs = convolution MACs, gates included",
        "flops": network.macs_full - other,
        "flops_min": network.macs_min - other,
    }


METHOD = Method(
    name="skipnet",
    title="SkipNet",
    paper="arXiv:1711.09485",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=RESIDUAL_NETWORKS,
    variants=VARIANTS,
    knobs=THRESHOLD_KNOB,
    phases=phases,
    objective=objective,
    begin=begin,
    settings=thresholds,
    paper_cost=paper_cost,
    donor=static_donor,
)
