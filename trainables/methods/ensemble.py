"""Ensembles: networks that are trained by themselves, whose answers are averaged.

The baseline of D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv
2107.02450, section 6.1: three BaseCNNs, or BaseCNN, WideCNN and DeepCNN (``basecnn+widecnn+deepcnn``). Members may be
those or residual networks.

Deviations and choices:

- members share batches (images, order and augmentation) and differ by their initialisation; each has a loss of its
  own, and none sees another's gradient, so that training them in one go is training each alone;
- responses are averaged as logits, or as probabilities (`average`); the paper does not say which;
- the knob ``members`` (ours) answers with the first members alone: a curve of accuracy against MACs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spaces.ensemble import PAPER, SPACE
from trainables.contracts.method import Method, one_captured_phase
from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.contracts.recipe import Batch, Phase, TrainingConfig, require
from trainables.methods import multipath, static
from trainables.networks.multipath.bodies import PLAIN, parse
from trainables.networks.resnet.imagenet import RESIDUAL_NETWORKS, check_residual

AVERAGES = ("logits", "probabilities")
ALL = "basecnn+widecnn+deepcnn"
NETWORKS = (*PLAIN, *(name for name in RESIDUAL_NETWORKS), ALL)


def names_of(network: str, members: int) -> tuple[str, ...]:
    """The members' networks: `members` of one, or those that stand with + between them (then `members` is 0).

    Raises `ValueError` for an unknown network and for an ensemble of one.
    """
    names = network.split("+")
    if len(names) > 1:
        require(members in (0, len(names)), "members", members, f"{network} names its {len(names)} members")
    else:
        require(members != 0, "members", members, "an ensemble of one network needs their number, at least 2")
        require(members >= 2, "members", members, "an ensemble has at least 2 members")
        names = names * members
    for name in names:
        if name.startswith("resnet"):
            check_residual(name)
        elif parse(name).paths > 1 or parse(name).routing:
            raise ValueError(f"network = {network!r}: members have one path; {name!r} is a network of multipath")
    return tuple(names)


_MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Config(TrainingConfig):
    """`members`: how many networks (0: as many as the name lists, or 3); `average`: logits or probabilities."""

    network: str = "basecnn"
    members: int = 0
    average: str = "logits"

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        require(self.variant == "", "variant", self.variant, "ensembles have no variants")
        whole = isinstance(self.members, int) and not isinstance(self.members, bool)
        rule = f"must be a whole number from 2 to {_MOST}; 0 takes as many as the name lists, or 3"
        require(whole and (self.members == 0 or 2 <= self.members <= _MOST), "members", self.members, rule)
        require(self.average in AVERAGES, "average", self.average, f"must be one of {', '.join(AVERAGES)}")
        if not self.members:
            object.__setattr__(self, "members", self.network.count("+") + 1 if "+" in self.network else 3)
        names_of(self.network, self.members)


class Ensemble(RoutedNetwork):
    """N networks whose answers are averaged.

    Decisions (B, N): which members answer, 1 or 0. Units: the members, of kind path.
    """

    def __init__(self, config: Config, task: Task, members: Sequence[RoutedNetwork]) -> None:
        super().__init__(config, task)
        self.members = nn.ModuleList(members)
        macs = [member.macs_full for member in members]
        units = [Unit(f"member-{k + 1}", "path", each) for k, each in enumerate(macs)]
        self.describe_units(units, fixed=0, full=sum(macs), least=macs[0])

    def averaged(self, logits: Sequence[Tensor], weights: Tensor) -> Tensor:
        """Logits (B, C) of the members' mean under weights (B, N), of those that ran."""
        each = torch.stack(list(logits), dim=1)
        shares = (weights / weights.sum(dim=1, keepdim=True)).to(each.dtype)[:, : each.shape[1], None]
        if self.config.average == "probabilities":
            return (each.softmax(dim=2) * shares).sum(dim=1).clamp_min(1e-30).log()
        return (each * shares).sum(dim=1)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """All members; ``aux["member_logits"]`` (N, B, C). `decisions` (B, N) weigh them; there is no price."""
        logits = [member(inputs).output for member in self.members]
        weights = inputs.new_ones(len(inputs), len(logits)) if decisions is None else decisions
        output = self.averaged(logits, weights)
        # nothing is decided image by image: diagnostics have nothing to show
        aux = {"member_logits": torch.stack(logits), "probabilities": output.new_zeros(len(output), 0)}
        return Routed((output,), output, weights, self.path_macs(weights), aux)

    def _members(self, knobs: Knobs) -> int:
        for name in knobs:
            require(name == "members", "knobs", dict(knobs), "ensembles take members")
        count = knobs.get("members", len(self.members))
        whole = isinstance(count, int) and not isinstance(count, bool)
        rule = f"must be a whole number from 1 to {len(self.members)}"
        require(whole and 1 <= count <= len(self.members), "members", count, rule)
        return count

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The first ``members`` of them, all by default; the others are not computed."""
        return self.sweep(inputs, [knobs], generator=generator)[0]

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """Every member that some setting asks for runs once."""
        counts = [self._members(each) for each in knobs]
        logits = [self.members[k].infer(inputs, {}).logits for k in range(max(counts))]  # pyright: ignore[reportCallIssue]
        results = []
        for count in counts:
            runs = inputs.new_zeros(len(inputs), len(self.members))
            runs[:, :count] = 1
            results.append(Inference(self.averaged(logits[:count], runs), runs, self.path_macs(runs), runs))
        return results


def build(config: Config, task: Task) -> Ensemble:
    """The members, each initialised by itself."""
    recipe = {"width": config.width}
    members: list[RoutedNetwork] = []
    for name in names_of(config.network, config.members):
        maker = static if name.startswith("resnet") else multipath
        members.append(maker.build(maker.Config(network=name, **recipe), task))  # pyright: ignore[reportArgumentType]
    return Ensemble(config, task, members)


def objective(network: RoutedNetwork, batch: Batch, phase: Phase) -> dict[str, Tensor]:
    """The members' cross entropies, summed: no parameter is in two of them."""
    logits = network(batch.images, generator=batch.generator).aux["member_logits"]
    smoothing = network.config.label_smoothing
    return {f"member_{k + 1}": batch.cross_entropy(each, smoothing) for k, each in enumerate(logits)}


def settings(config: Config) -> tuple[dict[str, Any], ...]:
    """The first member, the first two, ... all."""
    return tuple({"members": count} for count in range(1, config.members + 1))


METHOD = Method(
    name="ensemble",
    title="Ensembles of independently trained networks",
    paper="arXiv:2107.02450",
    space=SPACE,
    published=PAPER,
    Config=Config,
    build=build,
    phases=one_captured_phase,
    networks=NETWORKS,
    knobs={"members": "ours: how many of the members answer, the first ones"},
    objective=objective,
    settings=settings,
    paper_cost=multipath.paper_cost,
    mixes=True,
)
