"""ConvNet-AIG: gates held to a target rate, batch by batch, so that blocks specialise.

A. Veit, S. Belongie, "Convolutional networks with adaptive inference graphs", ECCV 2018,
arXiv 1711.11503; public code: github.com/andreasveit/convnet-aig.

Every block has a gate that reads its input and scales its residual branch,
``relu(shortcut(x) + w F(x))``; w is a hard sample whose gradient is that of the Gumbel softmax. The
loss pulls the mean of each gate over a batch towards a target rate t, which leaves it open which
images a block serves.

Shape legend: B images, N blocks, G gates.

Deviations and choices:

- A block with t = 1 has no gate, adds nothing to the loss and still counts in its mean over N
  blocks. ``impl="official"``, like the public code, builds such gates too and samples them.
- At inference a block runs where P(run) reaches a threshold, 1/2 being the more likely choice; the
  threshold is swept. The public code goes on sampling: ``sampling="bernoulli"`` among the knobs,
  which is what the curve of ``impl="official"`` sweeps.
- The gates' last layers start as published; the body and the gates' first layers start from He's
  normal initialisation, where the public code has PyTorch's default on CIFAR.
- A training batch of one image is normalised by the gates' running statistics.
- Any local or recurrent gate (`gate`) and any relaxation that has a gradient may be taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spaces.aig import PAPER, SPACE, imagenet_targets
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import Batch, DonorConfig, Optimiser, Phase, require
from trainables.networks.gated.gates import GATES, first_gates, router_of
from trainables.networks.gated.network import SAMPLING_KNOBS, GatedResNet, thresholds
from trainables.networks.initialisation import he_fan_out
from trainables.networks.resnet.cifar import SHORTCUTS
from trainables.networks.resnet.imagenet import RESIDUAL_NETWORKS, block_count, residual_body, static_donor

RELAXATIONS = ("gumbel_straight_through", "gumbel", "softmax", "straight_through")
PROFILES = ("flat", "imagenet")
IMPLEMENTATIONS = ("ours", "official")
SKIP_BIAS, RUN_BIAS = 0.1, 2.0
"""What the gates' outputs start from: P(run) of 0.87."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """ConvNet-AIG's own choices.

    `target` is the rate t of every block, with ``profile="imagenet"`` of those that the paper does
    not spare in ResNet-50 and ResNet-101; `targets` are the rates of all blocks one by one (they
    win where they are given; 1 means no gate). `target_weight` weighs the loss on rates. `gate`,
    `relaxation` and its `temperature`, `shortcut` (A, B or pool) and `impl`: see the module.
    `pretrained` is a file of torchvision's weights for an ImageNet body.
    """

    network: str = "resnet-20"
    shortcut: str = "B"
    pretrained: str = ""
    gate: str = "conv1x1"
    rnn_size: int = 10
    relaxation: str = "gumbel_straight_through"
    temperature: float = 1.0
    target: float = 0.6
    profile: str = "flat"
    targets: tuple[float, ...] = ()
    target_weight: float = 2.0
    lr_decay_at: tuple[float, ...] = (150 / 350, 250 / 350)
    impl: str = "ours"

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        require(self.variant == "", "variant", self.variant, "aig has no variants")
        for name, allowed in (
            ("shortcut", SHORTCUTS),
            ("gate", GATES),
            ("relaxation", RELAXATIONS),
            ("profile", PROFILES),
            ("impl", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in allowed, name, value, f"aig takes one of {', '.join(allowed)}")
        require(self.rnn_size >= 1, "rnn_size", self.rnn_size, "the LSTM needs at least one unit")
        require(self.temperature > 0, "temperature", self.temperature, "must be positive")
        require(self.target_weight >= 0, "target_weight", self.target_weight, "must not be negative")
        self.rates(block_count(self.network))

    def rates(self, blocks: int) -> tuple[float, ...]:
        """The target rate of each of so many blocks; `ValueError` where they are no rates or too few."""
        require(
            0 <= self.target < 1, "target", self.target, "a rate must be in [0, 1); at 1 no block would have a gate"
        )
        targets = self.targets
        if not targets:
            targets = (
                imagenet_targets(self.network, self.target) if self.profile == "imagenet" else (self.target,) * blocks
            )
        good = all(isinstance(t, int | float) and not isinstance(t, bool) and 0 <= t <= 1 for t in targets)
        require(good, "targets", targets, "rates must be numbers in [0, 1]")
        rule = f"{self.network} has {blocks} blocks and takes as many rates, not {len(targets)}"
        require(len(targets) == blocks, "targets", targets, rule)
        require(min(targets) < 1, "targets", targets, "at least one block needs a gate, a rate below 1")
        return tuple(float(t) for t in targets)


def initialise(network: GatedResNet) -> None:
    """Convolutions by He's rule; the gates' last layers nearly without weight and open at first (87 %)."""
    he_fan_out(network)
    first_gates(network.router, skip=SKIP_BIAS, run=RUN_BIAS, std=1e-3)


def build(config: Config, task: Task) -> GatedResNet:
    """The network, initialised; blocks with a target rate below 1 have gates."""
    body = residual_body(config.network, task, width=config.width, shortcut=config.shortcut)
    rates = config.rates(len(body.blocks))
    gated = [k for k, rate in enumerate(rates) if rate < 1 or config.impl == "official"]
    read = [body.shapes[k] for k in gated]
    network = GatedResNet(
        config,
        task,
        body,
        router_of(config.gate, read, embed=config.rnn_size, hidden=config.rnn_size, image=task.image),
        gated=gated,
        skip="shortcut",
        mixing="branch",
        relaxation=config.relaxation,
        temperature=config.temperature,
    )
    network.register_buffer("targets", torch.tensor([rates[k] for k in gated]), persistent=False)
    initialise(network)
    return network


def target_loss(decisions: Tensor, targets: Tensor, blocks: int) -> Tensor:
    r"""How far the gates' rates over a batch are from their targets.

    .. math:: L_{target} = \frac{1}{N} \sum_k (t_k - \mathrm{mean}_B w_k)^2

    (The paper sums over blocks, its code averages.) w is `decisions` (B, G), t `targets` (G,), N
    `blocks`; a gate whose target is 1 adds nothing.
    """
    exact = torch.promote_types(decisions.dtype, torch.float32)  # bfloat16 would round the rates
    missed = (targets - decisions.mean(dim=0, dtype=exact)).square()
    return (missed * (targets < 1)).sum() / blocks


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """Cross entropy and the weighted loss on the gates' rates."""
    assert isinstance(network, GatedResNet)
    config: Config = network.config
    routed = network(batch.images, generator=batch.generator)
    smoothing = network.config.label_smoothing
    terms = {"cross_entropy": batch.cross_entropy(routed.output, smoothing)}
    if config.target_weight > 0:
        missed = target_loss(routed.decisions, network.get_buffer("targets"), len(network.blocks))
        terms["target"] = config.target_weight * missed
    return terms


def phases(config: Config) -> tuple[Phase, ...]:
    """Everything together, on sampled decisions."""
    return (Phase(name="train", optimiser=Optimiser.of(config), relaxation=config.relaxation, capturable=True),)


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """Thresholds; of the draw where the implementation samples at inference."""
    drawn = {"sampling": "bernoulli", "seed": 0} if config.impl == "official" else {}
    return tuple({**each, **drawn} for each in thresholds(config))


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
    name="aig",
    title="ConvNet-AIG",
    paper="arXiv:1711.11503",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=RESIDUAL_NETWORKS,
    knobs=SAMPLING_KNOBS,
    phases=phases,
    objective=objective,
    settings=settings,
    paper_cost=paper_cost,
    donor=static_donor,
    mixes=True,
)
