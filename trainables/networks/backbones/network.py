"""Backbones as routed networks: with exits, with gates on their residual blocks, or with nothing to decide.

Shape legend: B images, C classes, K exits, G gates, S settings, U units, R rows (distinct activations of a sweep),
k chosen rows, c channels, h height, w width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces import own_networks
from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import split_rows, take
from trainables.networks.backbones import cutting, source, weights
from trainables.networks.backbones.cutting import Cut, Dropped, Network, Part, as_maps, layout, maps_shape
from trainables.networks.gated.gates import first_gates, hard_at, relax, router_of
from trainables.networks.gated.network import limits_of
from trainables.networks.msdnet.exits import ExitNetwork

HEADS = ("pool", "mixed", "conv")
PLACES = ("stages", "shares")
LEAST_SHARE = 0.03
"""An exit before so little of the network's MACs would know hardly more than the pixels."""
SKIP_BIAS, RUN_BIAS = 0.1, 2.0
"""What the gates' outputs start from, as ConvNet-AIG has it: P(run) of 0.87."""


@dataclass(slots=True)
class Origin:
    """Where a network came from: the traced one, the text of its file (else empty), its pixels and last layer.

    `packages`: distributions that building it takes.
    """

    network: Network
    text: str
    pixels: tuple[int, int]
    last_layer: str
    packages: tuple[str, ...]


def origin_of(config: Any, task: Task) -> tuple[Origin, nn.Module]:
    """The traced network of a configuration (`network`, `width`, `resolution`), and what its images pass first.

    Raises `ValueError` with one line for what cannot be built or cut, and for images of other channels.
    """
    pixels = max(4, round(task.height * config.resolution)), max(4, round(task.width * config.resolution))
    asked = Task(classes=task.classes, size=pixels, channels=task.channels)
    model, reads = source.build(config.network, asked, width=config.width)
    if task.channels not in (1, reads):
        raise ValueError(f"network = {config.network!r}: reads {reads} channels, the images have {task.channels}")
    found = cutting.trace(config.network, model, (reads, *pixels), task.classes)
    calls = [str(n.target) for n in found.nodes if n.op == "call_module" and cutting.has_weights(found.model, n)]
    text = own_networks.text_of(config.network) if own_networks.parts(config.network) is not None else ""
    origin = Origin(found, text, pixels, calls[-1] if calls else "", source.packages(config.network))
    return origin, Entry(pixels, reads if reads != task.channels else 0)


class Entry(nn.Module):
    """What images pass before the network: another size, grey repeated in all channels."""

    def __init__(self, pixels: tuple[int, int], repeat: int) -> None:
        super().__init__()
        self.pixels, self.repeat = pixels, repeat

    def forward(self, images: Tensor) -> Tensor:
        """(B, channels, size, size) to what the network reads."""
        images = cutting.resized(images, self.pixels)
        return images.expand(-1, self.repeat, -1, -1) if self.repeat else images


class Backbone(RoutedNetwork):
    """What all of them share: the text of the file that they come from, pretrained weights, dropout's generator."""

    source_text: str
    pixels: tuple[int, int]
    last_layer: str
    packages: tuple[str, ...]

    def belongs_to(self, origin: Origin) -> None:
        """Remember where the network came from."""
        self.source_text, self.pixels, self.last_layer = origin.text, origin.pixels, origin.last_layer
        self.packages = origin.packages

    def take_weights(self, pretrained: str) -> bool:
        """See `networks.backbones.weights.take_weights`."""
        return weights.take_weights(self, pretrained)

    def draw_from(self, generator: torch.Generator | None) -> None:
        """Let dropout and stochastic depth draw from this generator."""
        for module in self.modules():
            if isinstance(module, Dropped):
                module.generator = generator


def checked(origin: Origin, parts: Sequence[nn.Module]) -> None:
    """Raise `ValueError` where the parts one behind the other compute something else than the network did."""
    network = origin.network
    if not cutting.same(network.model, parts, network.shapes[network.cuts[0].node] or ()):
        raise ValueError(
            f"network = {network.name!r}: cannot be cut: its parts compute something else than the whole (a layer that"
            " overwrites its input, or draws at random in eval mode?)"
        )


# -- static ----------------------------------------------------------------------------------------


class StaticBackbone(Backbone):
    """A backbone as it is. Units are its stages, which always run."""

    def __init__(self, config: Any, task: Task) -> None:
        super().__init__(config, task)
        origin, self.entry = origin_of(config, task)
        self.belongs_to(origin)
        found = origin.network
        self.part = cutting.part(found, [found.cuts[0].node], found.cuts[-1].node)
        checked(origin, [self.part])
        spent = [0, *(cut.macs for cut in stage_ends(found))]
        stages = [after - before for before, after in pairwise(spent)]
        units = [Unit(f"block-{i}", "block", macs) for i, macs in enumerate(stages) if macs]
        self.describe_units(units, fixed=found.total - spent[-1], full=found.total, least=found.total)

    def _logits(self, inputs: Tensor) -> Tensor:
        return self.part(self.entry(inputs))

    def _path(self, inputs: Tensor) -> Tensor:
        return torch.ones(len(inputs), len(self.units), device=inputs.device)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Logits (B, C); `decisions` are (B, 0), there is nothing to decide or to price."""
        self.draw_from(generator)
        logits = self._logits(inputs)
        return Routed((logits,), logits, logits.new_zeros(len(inputs), 0), self.path_macs(self._path(inputs)))

    @torch.no_grad()
    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The same pass; there is no knob."""
        logits, path = self._logits(inputs), self._path(inputs)
        return Inference(logits, path, self.path_macs(path), logits.new_zeros(len(inputs), 0))


# -- exits -----------------------------------------------------------------------------------------


def stage_ends(network: Network) -> list[Cut]:
    """The last cut at every resolution, from fine to coarse; of tokens, which have one resolution, one."""
    found: dict[tuple[int, int], Cut] = {}
    for cut in network.cuts[1:-1]:
        if layout(cut.shape):
            found[maps_shape(cut.shape)[1:]] = cut
    ends = [cut for size, cut in found.items() if size != (1, 1) or len(found) == 1]
    return sorted(ends, key=lambda cut: cut.index) or [network.cuts[-2]]


def exit_places(network: Network, exits: int, where: str) -> list[Cut]:
    """The cuts behind which the K - 1 early exits stand, in the network's order.

    ``stages``: the ends of its stages but the last, the cheapest of them left out where there are too many, and places
    at even shares of the MACs where there are too few. ``shares``: at i / K of the MACs, as Shallow-Deep Networks have
    it. Raises `ValueError` where the network cannot be cut in so many places.
    """
    total, tail = network.total, stage_ends(network)[-1]
    places = [
        cut
        for cut in network.cuts[1:-1]
        if layout(cut.shape) and cut.index < tail.index and LEAST_SHARE * total <= cut.macs < tail.macs
    ]
    distinct = {cut.macs: cut for cut in places}  # of places with no computation between them the last
    places = list(distinct.values())
    if len(places) < exits - 1:
        raise ValueError(
            f"exits = {exits!r}: {network.name} can be cut in {len(places)} places where one tensor carries everything,"
            f" so it has {len(places) + 1} exits at most"
        )
    ends = [distinct[cut.macs] for cut in stage_ends(network)[:-1] if cut.macs in distinct]
    chosen = ends[-(exits - 1) :] if where == "stages" and exits > 1 else []
    for share in range(1, exits):
        if len(chosen) == exits - 1:
            break
        free = [cut for cut in places if cut not in chosen]
        chosen.append(min(free, key=lambda cut: abs(cut.macs - total * share / exits)))
    return sorted(chosen, key=lambda cut: cut.index)


class ExitHead(nn.Module):
    r"""A classifier at a cut.

    ``pool``: global average pooling and a linear layer. ``mixed``: Shallow-Deep Networks' feature reduction, maps
    pooled to 4 x 4 at most by

    .. math:: \sigma(a)\, \max + (1 - \sigma(a))\, \mathrm{mean}

    with a learned a, and a linear layer (Kaya et al., section 3.2; there the mixture is not kept within [0, 1]).
    ``conv``: a 3 x 3 convolution, batch norm and ReLU before ``pool``, as BranchyNet's branches have one.
    """

    def __init__(self, kind: str, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.layout = layout(shape)
        channels, height, width = maps_shape(shape)
        self.kind, self.grid = kind, (min(4, height), min(4, width))
        if kind == "conv":
            self.before = nn.Sequential(
                nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
            )
        if kind == "mixed":
            self.mixture = nn.Parameter(torch.zeros(()))
        positions = self.grid[0] * self.grid[1] if kind == "mixed" else 1
        self.fc = nn.Linear(channels * positions, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Features at the cut to logits (B, C)."""
        maps = as_maps(features, self.layout)
        if self.kind == "mixed":
            share = torch.sigmoid(self.mixture)
            most, mean = F.adaptive_max_pool2d(maps, self.grid), F.adaptive_avg_pool2d(maps, self.grid)
            return self.fc((share * most + (1 - share) * mean).flatten(1))
        return self.fc((self.before(maps) if self.kind == "conv" else maps).mean(dim=(2, 3)))


class Stage(nn.Module):
    """A part of a backbone as the stage of a network with exits: it answers a list of one tensor."""

    def __init__(self, entry: nn.Module, part: Part) -> None:
        super().__init__()
        self.entry, self.part = entry, part

    def forward(self, features: Tensor) -> list[Tensor]:
        """The tensor at the stage's beginning to that at its end."""
        return [self.part(self.entry(features))]


class ExitBackbone(ExitNetwork, Backbone):
    """A backbone with K exits: K - 1 heads at its cuts, and its own classifier.

    `progress`: the share of its phase that is done, where the loss reads it.
    """

    def __init__(self, config: Any, task: Task, *, exits: int, where: str, head: str) -> None:
        origin, entry = origin_of(config, task)
        found = origin.network
        places = exit_places(found, exits, where)
        ends = [found.cuts[0], *places, stage_ends(found)[-1]]
        parts = [cutting.part(found, [a.node], b.node) for a, b in pairwise(ends)]
        tail = cutting.part(found, [ends[-1].node], found.cuts[-1].node)
        checked(origin, [*parts, tail])
        stages = [Stage(nn.Identity() if i else entry, part) for i, part in enumerate(parts)]
        heads = [ExitHead(head, cut.shape, task.classes) for cut in places]
        super().__init__(config, task, stages, [*heads, tail])
        self.progress: float | Tensor = 0.0
        self.belongs_to(origin)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """See `ExitNetwork`; dropout draws from the generator."""
        self.draw_from(generator)
        return super().forward(inputs, decisions=decisions, price=price, generator=generator)


# -- gates -----------------------------------------------------------------------------------------


class GatedBackbone(Backbone):
    """A backbone in which gate g decides whether the branch of residual block g runs: shortcut(x) + v branch(x).

    A gate reads its block's input (`networks.gated.gates.PointwiseGate`). Units: the branches, the routers. Shortcuts
    and all between blocks always run. Knob: ``threshold`` on P(run), and those of the sampling.
    """

    routing = ("router.",)

    def __init__(self, config: Any, task: Task, *, relaxation: str, temperature: float) -> None:
        super().__init__(config, task)
        origin, self.entry = origin_of(config, task)
        self.belongs_to(origin)
        found = origin.network
        blocks = [each for each in cutting.residuals(found) if layout(each.start.shape)]
        if not blocks:
            raise ValueError(
                f"network = {found.name!r}: has no residual block to skip (an addition of a branch to what it read, as"
                " in resnet, mobilenet, efficientnet, convnext, regnet, swin or vit); exits can be put on it"
            )
        self.own_relaxation, self.temperature = relaxation, temperature
        at, plain, branches, shorts = found.cuts[0].node, list[nn.Module](), list[nn.Module](), list[nn.Module]()
        for block in blocks:
            start = block.start.node
            plain.append(nn.Identity() if at is start else cutting.part(found, [at], start))
            branches.append(cutting.part(found, [start], block.branch))
            shorts.append(nn.Identity() if block.shortcut is start else cutting.part(found, [start], block.shortcut))
            at = block.end.node
        plain.append(cutting.part(found, [at], found.cuts[-1].node))
        self.plain, self.branches, self.shorts = map(nn.ModuleList, (plain, branches, shorts))
        self.layouts = tuple(layout(block.start.shape) for block in blocks)
        ends = list(dict.fromkeys(maps_shape(block.end.shape)[1:] for block in blocks))
        self._groups = tuple(ends.index(maps_shape(block.end.shape)[1:]) for block in blocks)
        self.router = router_of("conv1x1", [maps_shape(block.start.shape) for block in blocks])
        first_gates(self.router, skip=SKIP_BIAS, run=RUN_BIAS, std=1e-3)
        checked(origin, [_WholeBlocks(self)])
        macs = [macs_of(b, block.start.shape)[0] for b, block in zip(self.branches, blocks, strict=True)]
        routers = [self.router.macs(gate)[0] for gate in range(len(blocks))]
        units = [Unit(f"block-{k}", "block", each) for k, each in enumerate(macs)]
        units += [Unit(f"router-{k}", "router", each) for k, each in enumerate(routers)]
        fixed, always = found.total - sum(macs), found.total - sum(macs) + sum(routers)
        self.describe_units(units, fixed=fixed, full=always + sum(macs), least=always)

    def unit_groups(self) -> tuple[int, ...]:
        """Blocks whose outputs have one resolution are a group."""
        return (*self._groups, *self._groups)

    @property
    def gates(self) -> int:
        """G, the number of decisions."""
        return len(self.branches)

    def _path(self, decisions: Tensor) -> Tensor:
        """Executed share of every unit (B, U) under decisions (B, G)."""
        return torch.cat([decisions, torch.ones_like(decisions)], dim=1)

    def _ask(self, gate: int, features: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        return self.router(gate, as_maps(features, self.layouts[gate]), memory)

    def _enter(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.plain[0](self.entry(inputs)), self.router.begin(inputs)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """The relaxed mixture; `decisions` (B, G) in [0, 1] replace the gates' own.

        ``aux["gate_logits"]`` and ``aux["probabilities"]`` (B, G) are z and P(run). These networks take no price.
        """
        self.draw_from(generator)
        features, memory = self._enter(inputs)
        taken, logits = [], []
        for gate in range(self.gates):
            logit, memory = self._ask(gate, features, memory)
            decision = self._decide(logit, generator) if decisions is None else decisions[:, gate]
            share = decision.to(features.dtype).view(-1, *(1,) * (features.dim() - 1))
            features = self.shorts[gate](features) + share * self.branches[gate](features)
            features = self.plain[gate + 1](features)
            taken.append(decision)
            logits.append(logit)
        chosen, scores = torch.stack(taken, dim=1), torch.stack(logits, dim=1)
        aux = {"gate_logits": scores, "probabilities": torch.sigmoid(scores)}
        return Routed((features,), features, chosen, self.path_macs(self._path(chosen)), aux)

    def _decide(self, logit: Tensor, generator: torch.Generator | None) -> Tensor:
        if not self.training:
            return hard_at(torch.sigmoid(logit))
        name = self.relaxation or self.own_relaxation
        return relax(name, logit, temperature=self.temperature, generator=generator)

    def _execute(self, gate: int, features: Tensor, rows: Tensor) -> Tensor:
        """The features (R, ...) behind a block whose branch runs on some rows (k,) only."""
        short = self.shorts[gate](features)
        if len(rows) == len(features):
            return short + self.branches[gate](features)
        if not len(rows):
            return short
        own = short.clone() if isinstance(self.shorts[gate], nn.Identity) else short
        return own.index_add_(0, rows, self.branches[gate](take(features, rows)).to(own.dtype))

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several knobs at once, branching only where decisions differ.

        The batch may grow to S * B rows in the worst case: bound memory by the size of the batch.
        """
        each = [limits_of(inputs, k, self.gates).expand(len(inputs), self.gates) for k in knobs]
        limits = torch.stack(each).to(inputs.device)
        row_of = torch.arange(len(inputs), device=inputs.device).expand(len(knobs), -1)
        features, memory = self._enter(inputs)
        taken = []
        for gate in range(self.gates):
            logit, memory = self._ask(gate, features, memory)
            wanted = torch.sigmoid(logit)[row_of] >= limits[:, :, gate]
            doubled, row_of, rows = split_rows(wanted, row_of, len(features))
            if len(doubled):
                features = torch.cat([features, take(features, doubled)])
                memory = torch.cat([memory, take(memory, doubled)])
            features = self.plain[gate + 1](self._execute(gate, features, rows))
            taken.append(wanted)
        decisions = torch.stack(taken, dim=2).to(inputs.dtype)
        return [self._inference(features[rows], each) for rows, each in zip(row_of, decisions, strict=True)]

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass under one set of knobs: a sweep of one setting."""
        return self.sweep(inputs, [knobs], generator=generator)[0]

    @torch.no_grad()
    def dense(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """See `RoutedNetwork`: every branch for every image, added where its gate says so."""
        limits, taken = limits_of(inputs, knobs, self.gates).expand(len(inputs), self.gates), []
        features, memory = self._enter(inputs)
        for gate, least in enumerate(limits.unbind(1)):
            logit, memory = self._ask(gate, features, memory)
            decision = torch.sigmoid(logit) >= least
            short, branch = self.shorts[gate](features), self.branches[gate](features)
            runs = decision.view(-1, *(1,) * (features.dim() - 1))
            features = self.plain[gate + 1](torch.where(runs, short + branch, short))
            taken.append(decision)
        return self.all_charged(self._inference(features, torch.stack(taken, dim=1).to(inputs.dtype)))

    def _inference(self, logits: Tensor, decisions: Tensor) -> Inference:
        path = self._path(decisions)
        return Inference(logits, path, self.path_macs(path), decisions)


class _WholeBlocks(nn.Module):
    """A gated backbone all of whose blocks run, without its entry: what the backbone itself computes."""

    def __init__(self, network: GatedBackbone) -> None:
        super().__init__()
        self.parts = network.plain, network.branches, network.shorts

    def forward(self, features: Tensor) -> Tensor:
        """What the network's images become."""
        plain, branches, shorts = self.parts
        features = plain[0](features)
        for after, branch, short in zip(list(plain)[1:], branches, shorts, strict=True):
            features = after(short(features) + branch(features))
        return features
