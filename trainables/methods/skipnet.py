"""SkipNet: gates after each block that decide whether the next one runs (supervised phase, SP).

X. Wang, F. Yu, Z.-Y. Dou, T. Darrell, J. E. Gonzalez, "SkipNet: learning dynamic routing in
convolutional networks", ECCV 2018, arXiv 1711.09485; public code: github.com/ucbdrive/skipnet.

The first block always runs; gate k reads the mixed output of block k and decides block k + 1.
SP trains everything on cross entropy alone: hard decisions forward, the soft probability's
gradient backward (``relaxation="straight_through"``, the paper's Hd); ``softmax`` mixes by the
probability and tests hard (the paper's St).

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
- The reinforcement phases (HRL+SP, HRL+S, RL) are not built yet.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import nn

from spaces.skipnet import PAPER, SPACE
from trainables.gates import GATES, router_of
from trainables.method import Method, Optimiser, Phase, TrainingConfig, require
from trainables.network import RoutedNetwork, Task
from trainables.networks.gated import THRESHOLD_KNOB, GatedResNet, thresholds
from trainables.networks.resnet import NETWORKS, SHORTCUTS, blocks_per_group, cifar_resnet

RELAXATIONS = ("straight_through", "softmax")
TRANSITIONS = ("projection", "pool")
IMPLEMENTATIONS = ("ours", "official")


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """SkipNet's own choices.

    `gate`: rnn, ff1, ff2 or linear; `rnn_size`: width of the recurrent gate's embedding and LSTM;
    `relaxation`: straight_through (Hd) or softmax (St); `shortcut`: A, B or pool; `transition`:
    what skipping a strided block means; `impl`: official builds the trailing gate.
    """

    network: str = "resnet-38"
    variant: str = "sp"
    shortcut: str = "B"
    gate: str = "rnn"
    rnn_size: int = 10
    relaxation: str = "straight_through"
    transition: str = "projection"
    impl: str = "ours"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        blocks_per_group(self.network)
        for name, allowed in (
            ("variant", ("sp",)),
            ("shortcut", SHORTCUTS),
            ("gate", GATES),
            ("relaxation", RELAXATIONS),
            ("transition", TRANSITIONS),
            ("impl", IMPLEMENTATIONS),
        ):
            value = getattr(self, name)
            require(value in allowed, name, value, f"skipnet takes one of {', '.join(allowed)}")
        require(self.rnn_size >= 1, "rnn_size", self.rnn_size, "the LSTM needs at least one unit")


def initialise(network: nn.Module) -> None:
    """Convolutions normal with variance 2 / (k² out), linear layers 2 / (in out), as the public code has it.

    The LSTM keeps PyTorch's uniform initialisation; biases are zero.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            area = module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=math.sqrt(2 / (area * module.out_channels)))
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(2 / (module.in_features * module.out_features)))
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def build(config: Config, task: Task) -> GatedResNet:
    """The network, initialised; its first block has no gate."""
    body = cifar_resnet(config.network, task, width=config.width, shortcut=config.shortcut)
    trailing = config.impl == "official"
    read = body.shapes[1:] if trailing else body.shapes[1:-1]
    router = router_of(config.gate, read, embed=config.rnn_size, hidden=config.rnn_size)
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
    initialise(network)
    return network


def phases(config: Config) -> tuple[Phase, ...]:
    """SP: everything together on cross entropy."""
    return (Phase(name="sp", optimiser=Optimiser.of(config), relaxation=config.relaxation),)


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
    networks=NETWORKS,
    variants=("sp",),
    knobs=THRESHOLD_KNOB,
    phases=phases,
    settings=thresholds,
    paper_cost=paper_cost,
)
