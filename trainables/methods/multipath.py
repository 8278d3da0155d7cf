"""Multi-path networks with data-dependent routing: cross-prediction, cross-connection, cross-stitch, none.

D. Tissera, R. Wijesinghe, K. Vithanage, A. Xavier, S. Fernando, R. Rodrigo, "End-to-end data-dependent
routing in multi-path neural networks", arXiv 2107.02450 (no public code was found). ``variant`` is the routing: ``cc``
(section 4), ``cp`` (section 3), ``stitch`` (cross-stitch, arXiv 1604.03539, which the paper compares with) or ``none``
(parallel paths without routing, BaseCNN-X). Networks: BaseCNN, WideCNN and DeepCNN (one path and X), their
forms with squeeze and excitation, ResNet-(6n+2)-X, VGG-13-X, ImageNet's ResNets with X paths.

All paths always run, so that computation does not depend on the image. Our extension, off by default:
the knobs ``threshold`` and ``keep`` leave out paths whose gate, averaged over the inputs of a routing layer,
is small; what is left out is not computed (`networks.multipath.network.Pruning`). Threshold 0 is the paper's.
A curve sweeps both, the pruned points are ours.

Deviations and choices, where the paper is silent:

- gates have biases; the sum in equation 4 runs over the m inputs; gates are never below 1e-30;
- batch norm behind every convolution (`batch_norm`), in cross-prediction one per output, before the ReLU;
  convolutions of the plain CNNs and predictions keep their biases beside it;
- cross-connections stand behind the pool where there is one; no pool before BaseCNN's linear layers (only this gives
  the printed parameters); squeeze and excitation stands behind each convolution's ReLU, ratio 16;
- logits are averaged, not probabilities; residual bodies use shortcut B, which fits the printed counts best;
- cross-stitch starts at 0.9 for a path itself, with the remaining 0.1 spread over the others; from one input at 1;
- cross-prediction on ImageNet bodies, and stitch and none on residual ones, follow the others' places;
- weights start as in He et al. (normal, variance 2 / fan-in), biases at zero.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from spaces.multipath import PAPER, SPACE
from trainables.contracts.method import Method, one_captured_phase
from trainables.contracts.network import RoutedNetwork, Task
from trainables.contracts.recipe import TrainingConfig, require
from trainables.networks.initialisation import he_fan_out
from trainables.networks.multipath.bodies import NETWORKS, Layout, body_of, chosen_places, parse
from trainables.networks.multipath.layers import COMPUTATIONS
from trainables.networks.multipath.network import MultiPathNetwork
from trainables.networks.multipath.routing import GATE_SIZE, ROUTINGS
from trainables.networks.resnet.cifar import SHORTCUTS

SHARES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98)
"""Thresholds of a curve, as shares of 1 / X, what a gate is on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """Multi-path networks' own choices.

    `variant`, the routing, may also be said by `routing` or by the end of the network's name (basecnn-2-cp); empty it
    is cc, or none for a single path. `places`: where routing attaches (``published``, ``all``, ``first`` or ``last`` of
    the published ones, or names with commas). `gate_size`: hidden units of the gates. `se_ratio`: of squeeze and
    excitation, 0 without, -1 what the network's name says. `shortcut`: of residual bodies, A, B, pool or auto (B).
    `computation`: paths as one grouped computation, in a loop, or as is faster (auto).
    """

    network: str = "basecnn-2"
    routing: str = ""
    places: str = "published"
    gate_size: int = GATE_SIZE
    batch_norm: bool = True
    se_ratio: int = -1
    shortcut: str = "auto"
    computation: str = "auto"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        named = parse(self.network)
        said = {"variant": self.variant, "routing": self.routing, "network": named.routing}
        said = {name: word for name, word in said.items() if word}
        for name, word in said.items():
            require(word in ROUTINGS, name, word, f"must be one of {', '.join(ROUTINGS)}")
        if len(set(said.values())) > 1:
            raise ValueError(f"{', '.join(f'{n} = {w!r}' for n, w in said.items())}: the routing is said in two ways")
        routing = next(iter(said.values()), "cc" if named.paths > 1 else "none")
        object.__setattr__(self, "variant", routing)
        object.__setattr__(self, "routing", routing)
        whole = isinstance(self.gate_size, int) and not isinstance(self.gate_size, bool)
        require(whole and self.gate_size >= 1, "gate_size", self.gate_size, "must be a whole number of at least 1")
        whole = isinstance(self.se_ratio, int) and not isinstance(self.se_ratio, bool)
        rule = "must be a whole number of at least 1; 0 is without, -1 what the network's name says"
        require(whole and self.se_ratio >= -1, "se_ratio", self.se_ratio, rule)
        none = not named.residual or self.se_ratio <= 0
        require(none, "se_ratio", self.se_ratio, f"{self.network} has no squeeze and excitation; plain CNNs do")
        known = ("auto", *SHORTCUTS)
        require(self.shortcut in known, "shortcut", self.shortcut, f"must be one of {', '.join(known)}")
        require(self.computation in COMPUTATIONS, "computation", self.computation, "must be auto, grouped or loop")
        chosen_places(layout_of(self))


def layout_of(config: Config) -> Layout:
    """The measures of the network that a configuration asks for."""
    named = parse(config.network)
    return replace(
        named,
        routing=config.variant,
        places=config.places,
        width=config.width,
        gate_size=config.gate_size,
        batch_norm=config.batch_norm,
        se_ratio=named.se_ratio if config.se_ratio < 0 else config.se_ratio,
        shortcut="B" if config.shortcut == "auto" else config.shortcut,
    )


def build(config: Config, task: Task) -> MultiPathNetwork:
    """The network, initialised."""
    layout = layout_of(config)
    network = MultiPathNetwork(config, task, body_of(layout, task), paths=layout.paths, computation=config.computation)
    he_fan_out(network)
    return network


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """The paper's forward, then rising thresholds, then falling numbers of paths; one point where nothing is gated."""
    layout = layout_of(config)
    if layout.paths == 1 or layout.routing not in ("cc", "cp"):
        return ({},)
    thresholds = tuple({"threshold": round(share / layout.paths, 6)} for share in SHARES)
    return ({"threshold": 0.0}, *thresholds, *({"keep": keep} for keep in range(layout.paths - 1, 0, -1)))


def paper_cost(network: RoutedNetwork) -> dict[str, Any]:
    """What the paper prints: parameters."""
    return {"unit": "parameters", "params": sum(p.numel() for p in network.parameters())}


METHOD = Method(
    name="multipath",
    title="Multi-path networks (cross-prediction, cross-connection, cross-stitch)",
    paper="arXiv:2107.02450",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    phases=one_captured_phase,
    networks=NETWORKS,
    variants=ROUTINGS,
    knobs={
        "threshold": "ours: a path runs where its mean gate exceeds it, the strongest always; 0, the paper's, runs all",
        "keep": "ours: only so many paths run behind each routing layer, those with the largest mean gates",
    },
    settings=settings,
    paper_cost=paper_cost,
    usual={"threshold": 0.0},
    mixes=True,
)
