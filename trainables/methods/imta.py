"""IMTA's adaptive networks: MSDNets with several exits, trained together, left by confidence.

H. Li, H. Zhang, X. Qi, R. Yang, G. Huang, "Improved techniques for training adaptive deep
networks", ICCV 2019, arXiv 1908.06294; public code: github.com/kalviny/IMTA. The network is that of
G. Huang et al., "Multi-scale dense networks for resource efficient image classification",
ICLR 2018, arXiv 1703.09844; public code: github.com/kalviny/MSDNet-PyTorch.

Three techniques, in any combination (`variant`): gradient equilibrium (GE), inline subnetwork
collaboration (ISC: every exit reads the logits of the one before) and one-for-all distillation (OFA:
the last exit teaches the others). ISC and OFA belong to a second phase, which trains new last layers
on the frozen trunk. ``none`` and ``ge`` have one phase, ``all`` is the three together.

Deviations and choices:

- Thresholds are found on held-out images as they are; the public code augments them, and keeps
  the epoch that was best on the test set.
- ``ge_scales="all"`` rescales the gradient of every scale, which is what the paper's equation
  asks for; the public code rescales the coarsest one only (``"coarsest"``), which leaves the
  gradients of finer scales unequal.
- The knowledge path is the code's small network (``isc="fc"``) or the paper's simplest form,
  ``"identity"``; no gradient flows back along it, as in the paper (``detach=False``: the code).
- Phase II trains fresh last layers of all exits, as the code does (``heads="tuned"``: they begin
  as those of phase I, the paper's wording). Those of phase I stay as the teacher
  (``teacher="frozen"``; ``"live"``: the new last exit) and are not stored with a promoted model.
- alpha and T are not printed. The defaults are those of the public ImageNet script (0.9, 1), with
  the divergence averaged over images; ``divergence="elementmean"`` is the code's, over images and classes.
- The frozen trunk keeps its batch-norm statistics; in the code they drift (``phase2_bn="train"``).
- ``impl="official"`` sets what the public code does on CIFAR: plain momentum, coarsest scale, gradient
  along the path, drifting statistics, elementmean with alpha 0.1 and T 3.
- ``cached_views=N`` trains phase II on N fixed augmented copies of every training image, whose trunk
  outputs are computed once and kept in memory (4 bytes times copies times features of all exits).
  It changes the protocol: the papers draw new augmentations in every epoch.
- `early_weight` is one lambda for all exits but the last, whose own is 1; `exit_weights` gives
  each its own. The papers use 1.
- Two confidences that only rounding tells apart are the same (`networks.msdnet.exits.leaves`), so that a
  calibrated image leaves at its exit in whatever batch it is executed.
- Small images have fewer scales, unless `factors` asks for them; an exit pools over all that is left.
- Images are normalised as the data set's are; the code's own constants for CIFAR are ``normalise="msdnet"``.
- `width` multiplies the channels of the stem, the growth and the classifiers, each rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spaces.imta import PAPER, SPACE
from trainables import checkpoints
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import LEARNING_RATE, Batch, DonorConfig, Optimiser, Phase, require
from trainables.networks.msdnet.collaboration import ISC_FORMS, CollaborativeMSDNet, EquilibriumMSDNet
from trainables.networks.msdnet.losses import REDUCTIONS, distilled_losses, weighted_losses
from trainables.networks.msdnet.network import FACTORS, NETWORKS, STEP_MODES, MSDNet, exits_of, layout_of, named
from trainables.networks.msdnet.operations import operations_of_exits, parameters_of_exits
from trainables.networks.msdnet.thresholds import QUANTILES, calibrate, exit_settings
from trainables.training.features import cache_of, trunk_features

VARIANTS = ("none", "ge", "isc", "ofa", "all", "ge_isc", "ge_ofa", "isc_ofa")
GE_SCALES = ("all", "coarsest")
PHASE1, PHASE2 = "phase1", "phase2"
OFFICIAL: dict[str, Any] = {
    "nesterov": False,
    "ge_scales": "coarsest",
    "detach": False,
    "phase2_bn": "train",
    "alpha": 0.1,
    "temperature": 3.0,
    "divergence": "elementmean",
}
"""What ``impl="official"`` sets."""
_MEASURES = tuple("network width growth channels factors bottleneck reduction step_mode step base".split())
_CHOICES = {
    "variant": VARIANTS,
    "step_mode": ("auto", *STEP_MODES),
    "factors": ("auto", *FACTORS),
    "ge_scales": GE_SCALES,
    "isc": ISC_FORMS,
    "heads": ("fresh", "tuned"),
    "divergence": REDUCTIONS,
    "teacher": ("frozen", "live"),
    "phase2_bn": ("eval", "train"),
    "impl": ("ours", "official"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(DonorConfig):
    """IMTA's own choices.

    `growth`, `channels`, `factors`, `bottleneck`, `reduction`, `step_mode`, `step`, `base`: the
    measures of the network (`networks.msdnet.network.Layout`); None and ``auto`` are the published ones.
    `early_weight`: the loss weight of every exit but the last; `exit_weights`: of all K instead.
    `ge_scales`: where GE rescales gradients. `curve_points`: values of q in a curve.

    Phase II: `isc`, `detach`: the knowledge path; `heads`: how last layers begin; `alpha`,
    `temperature`, `square_temperature` (times T^2), `divergence`, `teacher`: the distillation;
    `phase2_share` of the epochs at the rate `phase2_lr`; `phase2_bn`; `cached_views`; `phase1`: a
    checkpoint folder to begin behind, in place of an own phase I, as a `donor` does for all variants. `impl`: see
    above.
    """

    network: str = "msdnet-5"
    variant: str = "none"
    nesterov: bool = True
    batch_size: int = 64
    growth: Any = None
    channels: Any = None
    factors: str = "auto"
    bottleneck: bool = True
    reduction: float = 0.5
    step_mode: str = "auto"
    step: Any = None
    base: Any = None
    early_weight: float = 1.0
    exit_weights: tuple[float, ...] = ()
    ge_scales: str = "all"
    isc: str = "fc"
    detach: bool = True
    heads: str = "fresh"
    alpha: float = 0.9
    temperature: float = 1.0
    square_temperature: bool = True
    divergence: str = "batchmean"
    teacher: str = "frozen"
    phase2_share: float = 0.375
    phase2_lr: float = 0.1
    phase2_bn: str = "eval"
    cached_views: int = 0
    phase1: str = ""
    impl: str = "ours"
    curve_points: int = 12

    def __post_init__(self) -> None:
        DonorConfig.__post_init__(self)
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            require(value in allowed, name, value, f"imta takes one of {', '.join(allowed)}")
        body = named(self.network)
        published = {"growth": body.growth, "channels": body.channels, "step": body.step}
        published |= {"base": body.step, "step_mode": body.step_mode}
        # what was left open becomes the published value, so that a configuration says what was built
        for name, value in {**published, **(OFFICIAL if self.impl == "official" else {})}.items():
            if name not in published or getattr(self, name) in (None, "auto"):
                object.__setattr__(self, name, value)
        for name in ("growth", "channels", "step", "base", "curve_points"):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            least, most = (2, QUANTILES) if name == "curve_points" else (1, math.inf)
            rule = f"from 2 to {QUANTILES}" if name == "curve_points" else "of at least 1"
            require(whole and least <= value <= most, name, value, f"must be a whole number {rule}")
        require(0 < self.reduction <= 1, "reduction", self.reduction, "the share of channels kept must be in (0, 1]")
        self._check_losses(body.exits)

    def _check_losses(self, exits: int) -> None:
        for name, weights in (("early_weight", (self.early_weight,)), ("exit_weights", self.exit_weights)):
            good = all(0 <= weight < math.inf for weight in weights)
            require(good, name, getattr(self, name), "the weight of an exit must not be negative")
        count = len(self.exit_weights)
        require(count in (0, exits), "exit_weights", self.exit_weights, f"must be {exits} numbers, one per exit")
        require(0 <= self.alpha <= 1, "alpha", self.alpha, "the weight of the cross entropy must be in [0, 1]")
        require(0 < self.temperature < math.inf, "temperature", self.temperature, "must be positive")
        require(0 < self.phase2_share < 1, "phase2_share", self.phase2_share, "must be a share in (0, 1)")
        require(0 < self.phase2_lr < 100, "phase2_lr", self.phase2_lr, LEARNING_RATE)
        require(self.cached_views >= 0, "cached_views", self.cached_views, "must not be negative; 0 caches nothing")
        drifting = self.cached_views and self.phase2_bn == "train"
        require(
            not drifting, "cached_views", self.cached_views, "a trunk that drifts cannot be cached; phase2_bn = eval"
        )
        alone = two_phases(self) and exits < 2
        require(not alone, "network", self.network, f"variant {self.variant} is between exits and needs at least 2")
        for name, none in (("augment", "none"), ("mixup", 0), ("cutmix", 0)):
            value = getattr(self, name)
            rule = "cached features are of images as they are; cached_views = 0"
            require(not self.cached_views or value == none, name, value, rule)
        balanced = self.cached_views and self.balance != "none"
        require(not balanced, "balance", self.balance, "cached features are drawn as they are; cached_views = 0")
        early = self.phase1 and not two_phases(self)
        require(not early, "phase1", self.phase1, f"variant {self.variant} has no second phase to begin")
        require(not (self.phase1 and self.donor), "phase1", self.phase1, "a donor is the network of phase I already")


def uses(config: Config, technique: str) -> bool:
    """Whether a variant has a technique: ge, isc or ofa."""
    return config.variant == "all" or technique in config.variant.split("_")


def two_phases(config: Config) -> bool:
    """Whether new last layers are trained on the frozen trunk."""
    return uses(config, "isc") or uses(config, "ofa")


def build(config: Config, task: Task) -> MSDNet:
    """The network with PyTorch's own initialisation, as the public code has it."""
    scales = config.ge_scales if uses(config, "ge") else "none"
    layout, exactly = layout_of(config), config.factors != "auto"
    if not two_phases(config):
        if scales == "none":
            return MSDNet(config, task, layout, exactly=exactly)
        return EquilibriumMSDNet(config, task, layout, scales=scales, exactly=exactly)
    isc = config.isc if uses(config, "isc") else ""
    return CollaborativeMSDNet(config, task, layout, scales=scales, isc=isc, detach=config.detach, exactly=exactly)


def phases(config: Config) -> tuple[Phase, ...]:
    """One phase by the shared recipe, or a share of it and the last layers on the frozen rest."""
    if not two_phases(config):
        return (Phase(name="train", optimiser=Optimiser.of(config), capturable=True),)
    trunk = ("stages.", "classifiers.")
    second = Phase(
        name=PHASE2,
        optimiser=Optimiser.of(config, lr=config.phase2_lr, warmup=0.0),
        share=1.0 if config.phase1 or config.donor else config.phase2_share,
        trained=("heads.",),
        frozen=trunk,
        eval_mode=("stages", "classifiers") if config.phase2_bn == "eval" else (),
        source="features" if config.cached_views else "images",
        cached_views=config.cached_views,
        capturable=True,
    )
    if config.phase1 or config.donor:
        return (second,)
    share = 1 - config.phase2_share
    first = Phase(name=PHASE1, optimiser=Optimiser.of(config), share=share, trained=trunk, capturable=True)
    return first, second


def trunk_donor(config: Config, task: Task) -> dict[str, Any]:
    """See `Method.donor`: an MSDNet of the same measures and of one phase."""
    return {"method": "imta", "variant": ("none", "ge"), **{name: getattr(config, name) for name in _MEASURES}}


def exit_weights(config: Config) -> list[float]:
    """Lambda of exit 1 ... K."""
    return list(config.exit_weights) or [config.early_weight] * (exits_of(config.network) - 1) + [1.0]


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """The weighted cross entropies of all exits; in phase II those of the new last layers, distilled with OFA."""
    config: Config = network.config
    weights, smoothing, given = exit_weights(config), config.label_smoothing, (batch.class_weights, batch.mixed)
    if phase.name != PHASE2:
        if isinstance(network, CollaborativeMSDNet):
            network.become(second=False)
        return weighted_losses(network(batch.images).logits, batch.labels, weights, smoothing, *given)
    assert isinstance(network, CollaborativeMSDNet)
    network.become(second=True)
    read = batch.images if phase.source == "features" else trunk_features(network, batch.images)
    logits = network.collaborate(read)
    if not uses(config, "ofa"):
        return weighted_losses(logits, batch.labels, weights, smoothing, *given)
    with torch.no_grad():
        teacher = network.teacher(read) if config.teacher == "frozen" else logits[-1].detach()
    return distilled_losses(
        logits,
        batch.labels,
        teacher,
        weights,
        alpha=config.alpha,
        temperature=config.temperature,
        reduction=config.divergence,
        squared=config.square_temperature,
        smoothing=smoothing,
        class_weights=batch.class_weights,
        mixed=batch.mixed,
    )


def begin(network: RoutedNetwork, phase: Phase) -> None:
    """Take the form of the phase; before phase II, the weights to begin with."""
    if isinstance(network, CollaborativeMSDNet):
        network.become(second=phase.name == PHASE2)
        if phase.name == PHASE2:
            if network.config.phase1:
                begin_behind(network, network.config.phase1)
            if network.config.heads == "tuned":
                network.take_over()


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """What a curve asks for: `curve_points` values of q, and every exit by itself."""
    return exit_settings(exits_of(config.network), config.curve_points)


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """The papers' MADDs and the parameters of an image that leaves at exit 1 ... K, earlier exits included.

    `params` are those that are served; `params_with_teacher` counts the last layers of phase I too.
    """
    assert isinstance(network, MSDNet)
    unit = "MADDs = MACs + linear biases + ReLU elements + pooled elements, cumulative, knowledge paths left out"
    params = parameters_of_exits(network)
    cost = {"unit": unit, "ops": operations_of_exits(network), "params": params}
    return {**cost, "params_with_teacher": sum(p.numel() for p in network.parameters())}


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
    phases=phases,
    objective=objective,
    begin=begin,
    settings=settings,
    calibrate=calibrate,
    features=cache_of,
    paper_cost=paper_cost,
    donor=trunk_donor,
    mixes=True,
)


def begin_behind(network: CollaborativeMSDNet, folder: str) -> None:
    """Take trunk and classifiers of phase I from a checkpoint folder of another training.

    Raises `ValueError` with one line where there is none, or it is of another network or was trained on
    images normalised otherwise, or was promoted and lacks what the last classifier of phase I would teach.
    """
    path = Path(folder).expanduser()
    try:
        record = checkpoints.read_record(path)
        tensors = checkpoints.read_tensors(path, checkpoints.NETWORK)
    except checkpoints.CheckpointError as error:
        raise ValueError(f"phase1 = {folder!r}: {error}") from None
    own = network.state_dict()
    wanted = {name for name in own if not name.startswith("heads.")}
    found = {name: tensor for name, tensor in tensors.items() if not name.startswith("heads.")}
    missing = sorted(wanted - set(found))
    if missing and all(name.startswith("classifiers.") for name in missing) and not set(found) - wanted:
        raise ValueError(f"phase1 = {folder!r}: lacks {missing[0]}, the distillation teacher; it was promoted")
    wrong = [name for name in sorted(wanted | set(found)) if _shape(own, name) != _shape(found, name)]
    if wrong:
        is_of = f"{record.get('method')} on {record.get('config', {}).get('network')}"
        raise ValueError(
            f"phase1 = {folder!r}: is of another network ({is_of}): {wrong[0]} has shape {_shape(found, wrong[0])}"
            f" there and {_shape(own, wrong[0])} here"
        )
    before, now = record.get("config", {}).get("normalise", "data"), network.config.normalise
    if before != now:
        raise ValueError(f"phase1 = {folder!r}: was trained with normalise = {before!r}, this training has {now!r}")
    nn.Module.load_state_dict(network, found, strict=False)


def _shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
