"""Residual networks whose blocks have gates: which run is decided image by image.

The hard pass under one setting is what is served, and where every call counts (`hard_pass`). Nothing branches, so
rows are images. Where the router reads pooled features (`networks.gated.fast`), their sums are kept from gate
to gate and renewed only where a block ran; a single image on a CPU takes its decisions as numbers, without masks.

Shape legend: B images, S settings, G gates, U units, R rows (distinct activations of a sweep), k chosen rows,
c channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.constants import constant
from trainables.contracts.network import Inference, Knobs, Routed, Task, Unit
from trainables.contracts.router import Router
from trainables.execution.rows import Sums, overwriting, run_either, run_rows, split_rows, take
from trainables.networks.gated.gates import DETACHED, LocalRouter, hard_at, image_noise, relax
from trainables.networks.resnet.cifar import Body, ResidualNetwork, Shape, StridedPointwise, ZeroPadShortcut

SKIPS = ("own", "shortcut", "pool")
THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
"""What gated methods sweep: from all blocks on, through the papers' 1/2, to almost none."""

OPEN_STD = 1e-3
"""Of the last layers of routers that begin open, as ConvNet-AIG has it."""

THRESHOLD_KNOB = {"threshold": "a block runs where P(run) reaches it: 0 runs all, above 1 none; the papers' is 0.5"}
SAMPLING_KNOBS = {
    **THRESHOLD_KNOB,
    "sampling": "bernoulli: a block runs with its probability, shifted so that 0.5 at the threshold",
    "seed": "of the sampling: an image always draws the same under it",
}


def thresholds(config: Any) -> tuple[dict[str, Any], ...]:
    """The settings of a gated method's curve."""
    return tuple({"threshold": threshold} for threshold in THRESHOLDS)


def limits_of(images: Tensor, knobs: Knobs, gates: int) -> Tensor:
    r"""What P(run) of every gate must reach for its block to run: (B, G), or (1, 1) for all alike.

    It is the threshold :math:`\theta`. With ``sampling="bernoulli"`` it is
    :math:`\sigma(\mathrm{logit}\,u + \mathrm{logit}\,\theta)`, u uniform per image and gate: the block
    runs with probability :math:`\sigma(z - \mathrm{logit}\,\theta)`, which is P(run) at 1/2.

    Raises `ValueError` for another knob, a threshold that is not a number from 0, another sampling.
    """
    for name in knobs:
        if name not in ("threshold", "sampling", "seed"):
            raise ValueError(f"unknown knob {name!r}; gated networks take threshold, sampling and seed")
    value, sampling = knobs.get("threshold", 0.5), knobs.get("sampling", "none")
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise ValueError(f"threshold = {value!r}: must be a number of at least 0 (above 1 no block runs)")
    if sampling not in ("none", "bernoulli"):
        raise ValueError(f"sampling = {sampling!r}: must be none or bernoulli")
    if sampling == "none" or not 0 < value < 1:
        return images.new_full((1, 1), float(value), dtype=torch.float32)
    noise = image_noise(images, int(knobs.get("seed", 0)), gates)
    return torch.sigmoid(torch.logit(noise, eps=1e-7) + math.log(value / (1 - value)))


def skip_of(kind: str, shape_in: Shape, shape_out: Shape) -> nn.Module:
    """What an image passes instead of a block; the identity where the shape stays.

    `own`: a strided 1 x 1 convolution, batch norm and ReLU with weights of its own. `pool`:
    average pooling and channels of zeros. `shortcut`: the block's own shortcut, which belongs to
    the block and is not built a second time. Raises `ValueError` for another kind.
    """
    if kind not in SKIPS:
        raise ValueError(f"skip = {kind!r}: must be one of {', '.join(SKIPS)}")
    channels_in, channels_out = shape_in[0], shape_out[0]
    if kind == "shortcut" or shape_in == shape_out:
        return nn.Identity()
    stride = -(-shape_in[1] // shape_out[1])
    if kind == "pool":
        return ZeroPadShortcut(channels_out, stride, average=True)
    convolution = StridedPointwise(channels_in, channels_out, stride)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU())


class GatedResNet(ResidualNetwork):
    """A residual network in which gate g decides whether block ``gated[g]`` runs.

    A gate reads the (already mixed) input of its block. With F the whole block, S the path around
    it and v the decision, a block's output is ``v * F(x) + (1 - v) * S(x)``. With
    ``mixing="branch"`` the gate scales the residual branch alone, ``relu(S(x) + v * F(x))``, F
    being the layers before the addition (`skip` must be ``shortcut``). The other blocks always run.

    `skip` is S: ``own``, ``pool`` (see `skip_of`), or ``shortcut``, the shortcut of the block
    itself, which F and S then share, so that it is computed once for every image and belongs to
    the fixed MACs. `trailing` adds a gate behind the last block that decides nothing (SkipNet's
    public code has one): the router must have been built for it.

    Units: the gated blocks, the paths around them that cost something (executed where the block
    is not) and the routers (always executed). Knob: ``threshold`` on P(run).
    """

    routing = ("router.", "skips.")

    def __init__(
        self,
        config: Any,
        task: Task,
        body: Body,
        router: Router,
        *,
        gated: Sequence[int],
        skip: str,
        mixing: str = "block",
        relaxation: str,
        temperature: float = 1.0,
        trailing: bool = False,
    ) -> None:
        super().__init__(config, task, body)
        self.router = router
        self.gated, self.skip, self.mixing, self.trailing = tuple(gated), skip, mixing, trailing
        self.follows = tuple(k + 1 in self.gated or k + 1 == len(self.blocks) for k in self.gated)
        self.own_relaxation, self.temperature = relaxation, temperature
        self.skips = nn.ModuleList(skip_of(skip, self.shapes[k], self.shapes[k + 1]) for k in self.gated)
        self.stays = tuple(self._stays(k, way) for k, way in zip(self.gated, self.skips, strict=True))
        self._describe()

    def _describe(self) -> None:
        """Units and MACs; where F and S share the shortcut, its MACs move from the block to the fixed ones."""
        gated = self.gated
        shared = [self.part_macs(self.block(k).shortcut, k) if self.skip == "shortcut" else 0 for k in gated]
        block_macs = [self.block_macs[k] - macs for k, macs in zip(gated, shared, strict=True)]
        skip_macs = [self.part_macs(skip, k) for skip, k in zip(self.skips, gated, strict=True)]
        routers = [self.router.macs(gate) for gate in range(len(gated) + self.trailing)]
        ahead = self.router.macs_ahead()
        self.router_macs = ahead[0] + sum(total for total, _ in routers)
        self.router_conv_macs = ahead[1] + sum(convolutions for _, convolutions in routers)
        self._costly_skips = [gate for gate, macs in enumerate(skip_macs) if macs]
        units = [Unit(f"block-{k}", "block", macs) for k, macs in zip(gated, block_macs, strict=True)]
        units += [Unit(f"skip-{gated[gate]}", "skip", skip_macs[gate]) for gate in self._costly_skips]
        routed = [*gated, *([len(self.blocks)] if self.trailing else [])]
        units += [Unit(f"router-{k}", "router", total) for k, (total, _) in zip(routed, routers, strict=True) if total]
        units += [Unit("policy", "router", ahead[0])] if ahead[0] else []
        ungated = sum(macs for k, macs in enumerate(self.block_macs) if k not in gated)
        fixed = self.stem_macs + self.classifier_macs + ungated + sum(shared)
        always = fixed + self.router_macs
        cheapest = sum(min(b, s) for b, s in zip(block_macs, skip_macs, strict=True))
        self.describe_units(units, fixed=fixed, full=always + sum(block_macs), least=always + cheapest)

    def _stays(self, k: int, way: nn.Module) -> bool:
        """Whether features that skip block k stay exactly what they are."""
        around = self.block(k).shortcut if self.skip == "shortcut" else way
        return isinstance(around, nn.Identity) and self.mixing == "block"

    @property
    def gates(self) -> int:
        """G, the number of decisions."""
        return len(self.skips)

    @property
    def gated_macs(self) -> tuple[int, ...]:
        """MACs of each gated block."""
        return tuple(unit.macs for unit in self.units[: self.gates])

    @torch.no_grad()
    def begin_open(self, probability: float) -> None:
        """See `RoutedNetwork`: last layers with weights of `OPEN_STD` and the biases of P(run)."""
        logit = math.log(probability / (1 - probability))
        for layer in self.router.outputs():
            layer.weight.mul_(OPEN_STD / layer.weight.std().clamp(min=OPEN_STD))
            assert layer.bias is not None
            # a router that does not subtract two outputs has one per gate
            apart = isinstance(self.router, LocalRouter)
            layer.bias.copy_(torch.tensor([0.0, logit]) if apart else torch.full_like(layer.bias, logit))

    def _path(self, decisions: Tensor) -> Tensor:
        """Executed share of every unit (B, U) under decisions (B, G)."""
        always = len(self.units) - self.gates - len(self._costly_skips)  # the routers
        routers = decisions.new_ones(len(decisions), always)
        costly = constant(tuple(self._costly_skips), torch.long, decisions.device)
        return torch.cat([decisions, 1 - decisions.index_select(1, costly), routers], dim=1)

    def enter(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The features before the first gate and the router's memory."""
        return self.ungated(self.stem(inputs), 0), self.router.begin(inputs)

    def ungated(self, features: Tensor, k: int) -> Tensor:
        """The blocks from k to the next gated one."""
        while k < len(self.blocks) and k not in self.gated:
            features = overwriting(self.block(k))(features)
            k += 1
        return features

    def leave(self, features: Tensor, memory: Tensor) -> Tensor:
        """Logits behind the last block; a trailing gate answers, and nobody listens."""
        if self.trailing:
            self.router(self.gates, features, memory)
        return self.classifier(features)

    def _decide(self, logit: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Decisions (B,) twice, as features are mixed by them and as losses read them.

        They are relaxed in training mode, and hard at 1/2 without noise in eval mode. The two differ for the
        relaxations of `networks.gated.gates.DETACHED`.
        """
        if not self.training:
            decision = hard_at(torch.sigmoid(logit))
            return decision, decision
        name = self.relaxation or self.own_relaxation
        soft = relax(DETACHED.get(name, name), logit, temperature=self.temperature, generator=generator)
        return (hard_at(soft) if name in DETACHED else soft), soft

    def _mix(self, gate: int, features: Tensor, decision: Tensor) -> Tensor:
        """The features behind a block under decisions (B,) in [0, 1]."""
        block, share = self.block(self.gated[gate]), decision.to(features.dtype)[:, None, None, None]
        short = self.skips[gate](features) if self.skip != "shortcut" else block.shortcut(features)
        if self.mixing == "branch":
            return F.relu(short + share * block.branch(features))
        through = block(features, short) if self.skip == "shortcut" else block(features)
        # lerp is exact at 0 and 1, so that hard decisions give what the hard pass gives
        return torch.lerp(short, through, share)

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """The relaxed mixture; `decisions` (B, G) in [0, 1] replace the gates' own.

        ``aux["gate_logits"]`` and ``aux["probabilities"]`` (B, G) are z and P(run), whatever was
        decided. These networks take no price.
        """
        features, memory = self.enter(inputs)
        taken, mixed, logits = [], [], []
        for gate in range(self.gates):
            logit, memory = self.router(gate, features, memory)
            mixes, read = self._decide(logit, generator) if decisions is None else (decisions[:, gate],) * 2
            features = self.ungated(self._mix(gate, features, mixes), self.gated[gate] + 1)
            taken.append(read)
            mixed.append(mixes)
            logits.append(logit)
        output = self.leave(features, memory)
        chosen, scores = torch.stack(taken, dim=1), torch.stack(logits, dim=1)
        aux = {"gate_logits": scores, "probabilities": torch.sigmoid(scores)}
        return Routed((output,), output, chosen, self.path_macs(self._path(torch.stack(mixed, dim=1))), aux)

    def limits(self, inputs: Tensor, knobs: Knobs) -> Tensor:
        """What P(run) must reach, (B, G) or (1, 1): see `limits_of`."""
        return limits_of(inputs, knobs, self.gates)

    def execute(self, gate: int, features: Tensor, rows: Tensor, sums: Sums | None = None) -> Tensor:
        """The features (R, ...) behind a block that runs on some rows (k,) only; they may be overwritten."""
        k, skip = self.gated[gate], self.skips[gate]
        block = self.block(k)
        if self.stays[gate]:
            features = run_rows(block, rows, features, into=features, sums=sums)
        else:
            if sums is not None:
                sums.forget()
            if self.skip == "shortcut":
                short = block.shortcut(features)
                around = F.relu(short) if self.mixing == "branch" else short
                features = run_rows(block, rows, features, short, into=around)
            else:
                features = run_either(block, skip, rows, features)
        return features

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several knobs at once, branching only where decisions differ.

        The batch may grow to S * B rows in the worst case: bound memory by the size of the batch.
        """
        each = [self.limits(inputs, k).expand(len(inputs), self.gates) for k in knobs]
        limits = torch.stack(each).to(inputs.device)
        if len(knobs) == 1:
            return [self._inference(*hard_pass(self, inputs, limits[0]))]
        row_of = torch.arange(len(inputs), device=inputs.device).expand(len(knobs), -1)
        features, memory = self.enter(inputs)
        taken = []
        for gate in range(self.gates):
            logit, memory = self.router(gate, features, memory)
            wanted = torch.sigmoid(logit)[row_of] >= limits[:, :, gate]
            doubled, row_of, rows = split_rows(wanted, row_of, len(features))
            if len(doubled):
                features = torch.cat([features, take(features, doubled)])
                memory = torch.cat([memory, take(memory, doubled)])
            features = self.ungated(self.execute(gate, features, rows), self.gated[gate] + 1)
            taken.append(wanted)
        logits = self.leave(features, memory)
        decisions = torch.stack(taken, dim=2).to(inputs.dtype)
        return [self._inference(logits[rows], each) for rows, each in zip(row_of, decisions, strict=True)]

    @torch.no_grad()
    def dense(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """See `RoutedNetwork`: blocks and the paths around them, of which each image takes one."""
        limits, taken = self.limits(inputs, knobs).expand(len(inputs), self.gates), []
        features, memory = self.enter(inputs)
        for gate, least in enumerate(limits.unbind(1)):
            logit, memory = self.router(gate, features, memory)
            decision = torch.sigmoid(logit) >= least
            through, around = self._both(gate, features)
            features = torch.where(decision[:, None, None, None], through, around)
            features = self.ungated(features, self.gated[gate] + 1)
            taken.append(decision)
        decisions = torch.stack(taken, dim=1).to(inputs.dtype)
        return self.all_charged(self._inference(self.leave(features, memory), decisions))

    def _both(self, gate: int, features: Tensor) -> tuple[Tensor, Tensor]:
        """What a block makes of all features, and what the path around it does, as `execute` has them."""
        block = self.block(self.gated[gate])
        if self.stays[gate]:
            return block(features), features
        if self.skip != "shortcut":
            return block(features), self.skips[gate](features)
        short = block.shortcut(features)
        return block(features, short), F.relu(short) if self.mixing == "branch" else short

    def _inference(self, logits: Tensor, decisions: Tensor) -> Inference:
        path = self._path(decisions)
        return Inference(logits, path, self.path_macs(path), decisions)

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass under one set of knobs: a sweep of one setting."""
        return self.sweep(inputs, [knobs], generator=generator)[0]


def hard_pass(network: GatedResNet, inputs: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and decisions (B, G), where a block runs if P(run) reaches its limit (B, G)."""
    return (_one if len(inputs) == 1 else _many)(network, inputs, limits)


def _many(network: GatedResNet, inputs: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    router, taken = network.router, []
    features, memory = network.enter(inputs)
    sums = Sums() if getattr(router, "pools", False) else None
    for gate, least in enumerate(limits.unbind(1)):
        if sums is None:
            logit, memory = router(gate, features, memory)
        else:
            logit, memory = router(gate, features, memory, sums.of(features))
        decision = torch.sigmoid(logit) >= least
        rows = decision.nonzero().squeeze(1)
        features = network.execute(gate, features, rows, sums)
        if not network.follows[gate]:
            features = network.ungated(features, network.gated[gate] + 1)
            if sums is not None:
                sums.forget()
        taken.append(decision)
    return network.leave(features, memory), torch.stack(taken, dim=1).to(inputs.dtype)


def _one(network: GatedResNet, inputs: Tensor, limits: Tensor) -> tuple[Tensor, Tensor]:
    features, memory = network.enter(inputs)
    everything = torch.arange(1, device=inputs.device)
    rows, taken = (everything[:0], everything), []
    router, stays, blocks = network.router, network.stays, list(network.blocks)
    ask = router.alone() if hasattr(router, "alone") and inputs.device.type == "cpu" else None  # pyright: ignore
    changed = True
    for gate, least in enumerate(limits[0].tolist()):
        if ask is not None:
            run = ask(gate, features, changed) >= least
        else:
            logit, memory = router(gate, features, memory)
            run = torch.sigmoid(logit).item() >= least
        changed = run or not stays[gate]
        if not stays[gate]:
            features = network.execute(gate, features, rows[run])
        elif run:
            features = overwriting(blocks[network.gated[gate]])(features)
        if not network.follows[gate]:
            features, changed = network.ungated(features, network.gated[gate] + 1), True
        taken.append(run)
    return network.leave(features, memory), inputs.new_tensor([taken])
