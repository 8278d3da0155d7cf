"""Stochastic depth: blocks that are dropped at random, in training and (SDV) at inference.

G. Huang, Y. Sun, Z. Liu, D. Sedra, K. Q. Weinberger, "Deep networks with stochastic depth", ECCV
2016, arXiv 1603.09382; public code: github.com/yueatsprograms/Stochastic_Depth. The variant that
drops at inference too is the baseline SDV of SkipNet (arXiv 1711.09485, section 4.1).

Block l of L is dropped with rate d_l; what remains of it is ``relu(shortcut(x))``. Variants:

- ``sdv``: a mask per image and pass in training; at inference one that follows from the image and
  the knob ``seed``, at the rate of the knob ``drop``. Nothing is scaled; d_l = d.
- ``original``: a mask per training batch, whose dropped blocks are not computed; d_l = d l / L. At
  inference every block runs, its branch scaled by 1 - d_l: one operating point at full cost, in
  which the path says that all blocks were executed, because they were.

Shape legend: B images, L blocks.

Deviations and choices:

- The convolutions have no biases (the public code's have, in front of batch norms).
- In a batch that drops a block its parameters have a gradient of zero, so that weight decay and
  momentum go on, as in the public code.
- SkipNet describes SDV in a sentence: all blocks may be dropped, the first and the transitions too
  (an image then takes the transition's shortcut); batch statistics are those of all images.
- One mask per image makes an operating point of SDV a sample: compare the points of several seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spaces.sdv import PAPER, SPACE
from trainables.constants import constant
from trainables.contracts.method import Method
from trainables.contracts.network import Knobs, Routed, RoutedNetwork, Task
from trainables.contracts.recipe import DonorConfig, Optimiser, Phase, require
from trainables.contracts.router import Router
from trainables.networks.gated.gates import image_noise, relax
from trainables.networks.gated.network import GatedResNet
from trainables.networks.initialisation import he_fan_out
from trainables.networks.resnet.cifar import NETWORKS, SHORTCUTS, BasicBlock, Body, blocks_per_group, cifar_resnet
from trainables.networks.resnet.imagenet import static_donor

VARIANTS = ("sdv", "original")
MODES = ("uniform", "linear")
DROPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
KNOBS = {
    "drop": "sdv: the rate d at which blocks are dropped, in [0, 1]; the rate of training where it is not given",
    "seed": "sdv: of the masks; an image always has the same one under it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """Stochastic depth's own choices.

    `drop` d is the rate at which blocks are dropped; `mode`: ``uniform`` for all blocks alike,
    ``linear`` from d / L at the first to d at the last. `shortcut`: A, B or pool. An empty `mode`
    or `shortcut` is the variant's own: uniform and B for sdv, linear and pool for original (A behind a `donor`).
    """

    network: str = "resnet-20"
    variant: str = "sdv"
    drop: float = 0.5
    mode: str = ""
    shortcut: str = ""

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        blocks_per_group(self.network)
        for name, allowed in (("variant", VARIANTS), ("mode", ("", *MODES)), ("shortcut", ("", *SHORTCUTS))):
            value = getattr(self, name)
            require(value in allowed, name, value, f"sdv takes one of {', '.join(filter(None, allowed))}")
        require(0 <= self.drop < 1, "drop", self.drop, "the rate must be in [0, 1)")

    def rates(self, blocks: int, drop: float | None = None) -> tuple[float, ...]:
        r"""d_l of each of L `blocks` at rate d, the configuration's where `drop` is not given.

        .. math:: d_l = d \quad\text{or, linear,}\quad d_l = d \, l / L, \quad l = 1 .. L

        (eq. 4 of Huang et al., whose survival probability is 1 - d_l.)
        """
        rate = self.drop if drop is None else drop
        linear = (self.mode or MODES[VARIANTS.index(self.variant)]) == "linear"
        return tuple(rate * k / blocks if linear else rate for k in range(1, blocks + 1))


class ConstantRouter(Router):
    """Gates that answer every image with the same P(run), without weights and without cost."""

    logits: Tensor

    def __init__(self, probabilities: Sequence[float]) -> None:
        super().__init__()
        logits = [math.log(max(p, 1e-12) / max(1 - p, 1e-12)) for p in probabilities]  # sigmoid is exact at 0 and 1
        self.register_buffer("logits", torch.tensor(logits), persistent=False)

    def forward(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Router`."""
        return self.logits[gate].expand(len(features)), memory

    def macs(self, gate: int) -> tuple[int, int]:
        """See `Router`."""
        return 0, 0


class ScaledBlock(BasicBlock):
    """A block that survives training batches with a probability, by which its branch is scaled in eval mode."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, shortcut: str, survival: float) -> None:
        super().__init__(channels_in, channels_out, stride, shortcut)
        self.scale = survival

    def branch(self, inputs: Tensor) -> Tensor:
        """See `ResidualBlock`; the expectation over masks in eval mode."""
        inner = super().branch(inputs)
        return inner if self.training else self.scale * inner


class StochasticDepthResNet(GatedResNet):
    """A gated network whose decisions are drawn without looking at the image.

    Knobs of the variant sdv: ``drop`` and ``seed``; the original has none.
    """

    def __init__(self, config: Config, task: Task, body: Body) -> None:
        self.original = config.variant == "original"
        blocks = range(len(body.blocks))
        router = ConstantRouter([1 - rate for rate in config.rates(len(blocks))])
        super().__init__(
            config, task, body, router, gated=blocks, skip="shortcut", mixing="branch", relaxation="bernoulli"
        )

    def limits(self, inputs: Tensor, knobs: Knobs) -> Tensor:
        """0 where a block runs, 2 where it is dropped, (B, L); (1, 1) for the original, which drops none.

        Raises `ValueError` for another knob, a rate outside [0, 1], a seed that is no whole number.
        """
        if self.original:
            for name in knobs:
                raise ValueError(f"unknown knob {name!r}: the original stochastic depth runs all blocks and takes none")
            return inputs.new_zeros(1, 1)
        for name in knobs:
            if name not in KNOBS:
                raise ValueError(f"unknown knob {name!r}; stochastic depth takes {' and '.join(KNOBS)}")
        drop, seed = knobs.get("drop", self.config.drop), knobs.get("seed", 0)
        number = isinstance(drop, int | float) and not isinstance(drop, bool)
        require(number and 0 <= drop <= 1, "drop", drop, "must be a rate in [0, 1]")
        whole = isinstance(seed, int) and not isinstance(seed, bool)
        require(whole, "seed", seed, "must be a whole number")
        rates = constant(tuple(self.config.rates(self.gates, float(drop))), torch.get_default_dtype(), inputs.device)
        return 2.0 * (image_noise(inputs, seed, self.gates) < rates)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """See `GatedResNet`; in eval mode the decisions are those of inference without knobs."""
        if decisions is None and self.training and self.original:
            return self._forward_batch(inputs, generator)
        if decisions is None and not self.training:
            decisions = (self.limits(inputs, {}) < 1).to(inputs.dtype).expand(len(inputs), self.gates)
        return super().forward(inputs, decisions=decisions, price=price, generator=generator)

    def _forward_batch(self, inputs: Tensor, generator: torch.Generator | None) -> Routed:
        """The pass under one mask for the batch: dropped blocks are not computed, their gradients are zero."""
        assert isinstance(self.router, ConstantRouter)
        mask = relax("bernoulli", self.router.logits, generator=generator)
        features = self.stem(inputs)
        idle = inputs.new_zeros(())
        for k, runs in enumerate(mask.tolist()):  # asks the device once a batch
            block = self.block(k)
            if runs:
                features = block(features)
            else:
                features = F.relu(block.shortcut(features))
                idle = idle + 0.0 * torch.stack([parameter.sum() for parameter in block.parameters()]).sum()
        output = self.classifier(features) + idle
        chosen, scores = (each.expand(len(inputs), -1) for each in (mask, self.router.logits))
        aux = {"gate_logits": scores, "probabilities": torch.sigmoid(scores)}
        return Routed((output,), output, chosen, self.path_macs(self._path(chosen)), aux)


def build(config: Config, task: Task) -> StochasticDepthResNet:
    """The network, initialised; every block may be dropped."""
    original = "A" if config.donor else "pool"
    shortcut = config.shortcut or (original if config.variant == "original" else "B")
    body = cifar_resnet(config.network, task, width=config.width, shortcut=shortcut)
    if config.variant == "original":
        shapes, rates = body.shapes, config.rates(len(body.blocks))
        body.blocks = [
            ScaledBlock(before[0], after[0], -(-before[1] // after[1]), shortcut, 1 - rate)
            for before, after, rate in zip(shapes, shapes[1:], rates, strict=False)
        ]
    network = StochasticDepthResNet(config, task, body)
    he_fan_out(network)
    return network


def donor(config: Config, task: Task) -> dict[str, Any]:
    """See `Method.donor`."""
    return static_donor(config, task, config.shortcut or ("A" if config.variant == "original" else "B"))


def phases(config: Config) -> tuple[Phase, ...]:
    """Everything together, on drawn masks."""
    drawn_here = config.variant == "original"  # which blocks run is read from the device once a step
    return (
        Phase(
            name="train",
            optimiser=Optimiser.of(config),
            relaxation="bernoulli",
            capturable=not drawn_here,
            waits=int(drawn_here),
        ),
    )


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """Rates from none to nearly all, the training's among them; nothing to set for the original."""
    if config.variant == "original":
        return ({},)
    return tuple({"drop": drop, "seed": 0} for drop in sorted({*DROPS, config.drop}))


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """MACs of the convolutions, as SkipNet counts, with all blocks run and, under sdv, with none."""
    assert isinstance(network, StochasticDepthResNet)
    cost = {"unit": "FLOPs = convolution MACs", "flops": network.macs_full - network.classifier_macs}
    return cost if network.original else {**cost, "flops_min": network.macs_min - network.classifier_macs}


METHOD = Method(
    name="sdv",
    title="Stochastic depth",
    paper="arXiv:1603.09382",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    variants=VARIANTS,
    knobs=KNOBS,
    phases=phases,
    settings=settings,
    paper_cost=paper_cost,
    donor=donor,
    mixes=True,
)
