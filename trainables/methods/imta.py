"""IMTA's adaptive networks: MSDNets with several exits, trained together, left by confidence.

H. Li, H. Zhang, X. Qi, R. Yang, G. Huang, "Improved techniques for training adaptive deep
networks", ICCV 2019, arXiv 1908.06294; public code: github.com/kalviny/IMTA. The network is that of
G. Huang et al., "Multi-scale dense networks for resource efficient image classification",
ICLR 2018, arXiv 1703.09844; public code: github.com/kalviny/MSDNet-PyTorch.

``variant="none"``: the loss of all exits, summed (the papers' baseline). ``"ge"``: the same with
gradient equilibrium, the first of IMTA's three techniques.

Deviations and choices:

- Knowledge transfer between the exits (ISC, OFA) and its second phase are not built yet.
- Thresholds are found on held-out images as they are; the public code augments them, and keeps
  the epoch that was best on the test set.
- ``ge_scales="all"`` rescales the gradient of every scale, which is what the paper's equation
  asks for; the public code rescales the coarsest one only (``"coarsest"``), which leaves the
  gradients of finer scales unequal.
- `early_weight` is one lambda for all exits but the last, whose own is 1; the papers use 1.
- Two confidences that only rounding tells apart are the same (`networks.exits.leaves`), so that a
  calibrated image leaves at its exit in whatever batch it is executed.
- Images below 32 pixels have fewer scales; above, an exit pools over all that is left.
- `width` multiplies the channels of the stem, the growth and the classifiers, each rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.imta import PAPER, SPACE
from trainables.macs import macs_of
from trainables.method import Batch, Method, Phase, TrainingConfig, require
from trainables.network import Routed, RoutedNetwork, Task
from trainables.networks.exits import confidence, leaves
from trainables.networks.msdnet import HEAD, NETWORKS, STEP_MODES, Layout, MSDNet, exits_of

VARIANTS = ("none", "ge")
GE_SCALES = ("all", "coarsest")
NOBODY = 1e8
"""A threshold that no confidence reaches (JSON has no infinity)."""
QUANTILES = 40
"""The papers sweep q = p / 20 for p = 1 ... 40."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """IMTA's own choices.

    `growth`, `channels`, `bottleneck`, `reduction`, `step_mode`, `step`, `base`: the measures of
    the network (`networks.msdnet.Layout`). `early_weight`: the loss weight of every exit but the
    last. `ge_scales`: where variant ge rescales gradients. `curve_points`: values of q in a curve.
    """

    network: str = "msdnet-5"
    variant: str = "none"
    nesterov: bool = True
    batch_size: int = 64
    growth: int = 6
    channels: int = 16
    bottleneck: bool = True
    reduction: float = 0.5
    step_mode: str = "lin_grow"
    step: int = 1
    base: int = 1
    early_weight: float = 1.0
    ge_scales: str = "all"
    curve_points: int = 12

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        exits_of(self.network)
        for name, allowed in (("variant", VARIANTS), ("step_mode", STEP_MODES), ("ge_scales", GE_SCALES)):
            value = getattr(self, name)
            require(value in allowed, name, value, f"imta takes one of {', '.join(allowed)}")
        for name in ("growth", "channels", "step", "base", "curve_points"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            require(whole and value >= 1, name, value, "must be a whole number of at least 1")
        require(0 < self.reduction <= 1, "reduction", self.reduction, "the share of channels kept must be in (0, 1]")
        weight = self.early_weight
        require(0 <= weight < math.inf, "early_weight", weight, "the weight of the early exits must not be negative")
        require(
            2 <= self.curve_points <= QUANTILES, "curve_points", self.curve_points, f"must be from 2 to {QUANTILES}"
        )
        require(self.momentum > 0 or not self.nesterov, "momentum", self.momentum, "Nesterov's must be above 0")


def layout_of(config: Config) -> Layout:
    """The measures of the network that a configuration asks for."""

    def wide(channels: int) -> int:
        return max(1, round(channels * config.width))

    return Layout(
        exits=exits_of(config.network),
        channels=wide(config.channels),
        growth=wide(config.growth),
        head=wide(HEAD),
        bottleneck=config.bottleneck,
        reduction=config.reduction,
        step_mode=config.step_mode,
        step=config.step,
        base=config.base,
    )


def rescale_gradient(features: Tensor, factor: float) -> Tensor:
    r"""R(x; s): x itself going forward, s times the gradient going back (IMTA, section 3.1)."""
    if not (features.requires_grad and torch.is_grad_enabled()):
        return features
    through = features.view_as(features)
    through.register_hook(lambda gradient: gradient * factor)
    return through


class EquilibriumMSDNet(MSDNet):
    r"""An MSDNet with gradient equilibrium (GE).

    Behind stage i of k (from 1) the classifier reads R(w_i; 1 / (k - i + 1)) and the next stage
    R(w_i; (k - i) / (k - i + 1)), so that every loss j >= i reaches w_i as

    .. math:: \nabla^{GE}_{w_i} L_j = \nabla_{w_i} L_j / (k - i + 1)

    and the sum of the k - i + 1 of them stays bounded. Classifiers keep their own gradients.
    """

    def hand_over(self, stage: int, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The same values with rescaled gradients, on all scales or on the coarsest."""
        left = len(self.exits) - stage  # k - i + 1
        *finer, coarsest = features
        onward = (left - 1) / left
        if self.config.ge_scales == "all":
            finer = [rescale_gradient(each, onward) for each in finer]
        return rescale_gradient(coarsest, 1 / left), [*finer, rescale_gradient(coarsest, onward)]


def build(config: Config, task: Task) -> MSDNet:
    """The network with PyTorch's own initialisation, as the public code has it."""
    kind = EquilibriumMSDNet if config.variant == "ge" else MSDNet
    return kind(config, task, layout_of(config))


def weighted_losses(routed: Routed, labels: Tensor, early_weight: float) -> dict[str, Tensor]:
    r"""Loss terms ``exit_1`` ... ``exit_K``, whose sum is :math:`L = \sum_i \lambda_i CE_i`.

    lambda is `early_weight` for i < K and 1 for the last exit; `labels` (B,).
    """
    weights = [early_weight] * (len(routed.logits) - 1) + [1.0]
    return {
        f"exit_{i}": weight * F.cross_entropy(logits, labels)
        for i, (weight, logits) in enumerate(zip(weights, routed.logits, strict=True), start=1)
    }


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """The weighted cross entropies of all exits."""
    routed = network(batch.images, generator=batch.generator)
    return weighted_losses(routed, batch.labels, network.config.early_weight)


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """What a curve asks for, by rising cost: all at exit 1, `curve_points` values of q, all at exit K."""
    gaps = config.curve_points - 1
    steps = [1 + round((QUANTILES - 1) * i / gaps) for i in range(config.curve_points)]
    return ({"exit": 1}, *({"q": p / 20} for p in steps), {"exit": exits_of(config.network)})


def exit_shares(q: float, exits: int) -> list[float]:
    r"""The share of images that each exit is to answer: :math:`\pi_i = q^i / \sum_j q^j`, i = 1 ... K.

    Raises `ValueError` unless q is a positive number.
    """
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 < q < math.inf:
        raise ValueError(f"q = {q!r}: must be a positive number; below 1 images leave early, above 1 late")
    # divided by the largest power first: q^i alone may leave the range of floats
    powers = [q ** (i - (exits if q > 1 else 1)) for i in range(1, exits + 1)]
    return [power / sum(powers) for power in powers]


def quantile_thresholds(confidences: Tensor, q: float) -> list[float]:
    """The K - 1 thresholds at which exit i answers its share of images (K, n).

    Exit by exit, the images still there are walked down by confidence until floor(n pi_i) are found:
    the last one's confidence is the threshold. `NOBODY` where none or not enough are found.
    """
    exits, count = confidences.shape
    left = torch.zeros(count, dtype=torch.bool, device=confidences.device)
    thresholds = []
    for sure, share in zip(confidences[:-1], exit_shares(q, exits)[:-1], strict=True):
        wanted = math.floor(count * share + 1e-9)  # 9 * (1 / 3) is three images
        ranked = sure[~left].sort(descending=True).values
        threshold = ranked[wanted - 1].item() if 1 <= wanted <= len(ranked) else NOBODY
        left |= leaves(sure, threshold)
        thresholds.append(threshold)
    return thresholds


def calibrate(setting: Mapping[str, Any], logits: Tensor) -> dict[str, Any]:
    """The thresholds for a setting from all exits' logits (K, n, C) on calibration images.

    ``{"q": q}`` spreads the images over the exits (`exit_shares`); ``{"exit": i}`` sends all to
    exit i, from 1. Raises `ValueError` for another setting, or an exit that does not exist.
    """
    exits = len(logits)
    if set(setting) == {"q"}:
        return {"thresholds": quantile_thresholds(confidence(logits), setting["q"])}
    if set(setting) != {"exit"}:
        raise ValueError(f"setting {dict(setting)!r}: must be {{'q': number}} or {{'exit': 1 to {exits}}}")
    wanted = setting["exit"]
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= exits:
        raise ValueError(f"exit = {wanted!r}: must be a whole number from 1 to {exits}")
    return {"thresholds": [NOBODY if i < wanted else 0.0 for i in range(1, exits)]}


def anytime(logits: Tensor, labels: Tensor) -> list[float]:
    """Accuracy, in [0, 1], of every exit on all images: logits (K, n, C), labels (n,)."""
    return logits.argmax(dim=-1).eq(labels).double().mean(dim=-1).tolist()


def operations(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[int, Any]:
    """The papers' unit of cost per image, and the shape of the output.

    MACs, one operation per bias of a linear layer, per element of a ReLU and per element that a
    pooling window reads.
    """
    extra = 0

    def add(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal extra
        extra += inputs[0].numel() if isinstance(part, nn.AdaptiveAvgPool2d) else output.numel()

    kinds = nn.ReLU | nn.Linear | nn.AdaptiveAvgPool2d
    handles = [part.register_forward_hook(add) for part in module.modules() if isinstance(part, kinds)]
    try:
        macs, shape = macs_of(module, *shapes)
    finally:
        for handle in handles:
            handle.remove()
    return macs + extra, shape


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The papers' MADDs and the parameters of an image that leaves at exit 1 ... K, earlier exits included."""
    assert isinstance(network, MSDNet)
    shapes: Any = [(network.task.channels, network.task.size, network.task.size)]
    madds, params = [0], [0]
    for stage, classifier in zip(network.stages, network.classifiers, strict=True):
        in_stage, shapes = operations(stage, *shapes)
        in_exit, _ = operations(classifier, shapes[-1])
        madds.append(madds[-1] + in_stage + in_exit)
        params.append(params[-1] + sum(p.numel() for part in (stage, classifier) for p in part.parameters()))
    unit = "MADDs = MACs + linear biases + ReLU elements + pooled elements, cumulative over exits"
    return {"unit": unit, "ops": madds[1:], "params": params[1:]}


METHOD = Method(
    name="imta",
    title="IMTA (MSDNet with calibrated exits)",
    paper="arXiv:1908.06294",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    networks=NETWORKS,
    variants=VARIANTS,
    knobs={"thresholds": "an image leaves at the first exit whose largest softmax probability reaches its threshold"},
    objective=objective,
    settings=settings,
    calibrate=calibrate,
    paper_cost=paper_cost,
)
