"""Networks of parallel paths with soft routing between them, and their pruned forms.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450. Gates
weigh what the paths hand on; all paths run, and their logits are averaged. Parts: `routing_layers`,
`multipath_layers`, `multipath_bodies`.

Our extension, off by default: paths whose gates say little are left out (`Pruning`).

Shape legend: B images, S settings, m inputs and n outputs of a routing layer, X paths, D gates, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainables.macs import macs_of
from trainables.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.networks.multipath_bodies import Body, Segment
from trainables.networks.multipath_choice import grouped_pays
from trainables.networks.multipath_layers import Paths, apart, wide
from trainables.networks.multipath_sweep import pruned_sweep
from trainables.networks.routing_layers import CrossPrediction

KNOBS = ("threshold", "keep")


@dataclass(frozen=True, slots=True)
class Pruning:
    r"""Which paths are left out behind a routing layer, image by image (not in the paper).

    The gate of path j is the mean over the inputs that are there, :math:`s_j = \sum_i g_{ij} / m`. A path stays
    if :math:`s_j` exceeds `threshold` and is among the `keep` largest (0: any number); the one with the
    largest always stays. What is left out is not computed: neither the path up to the next routing layer, nor its
    gates there, nor predictions from it or for it.
    """

    threshold: float = 0.0
    keep: int = 0

    @property
    def prunes(self) -> bool:
        """Whether anything may be left out."""
        return self.threshold > 0 or self.keep > 0

    @classmethod
    def of(cls, knobs: Knobs, paths: int) -> Pruning:
        """From knobs; `ValueError` for another knob, a threshold outside [0, 1], a keep-count outside 1 ... X."""
        for name in knobs:
            if name not in KNOBS:
                raise ValueError(f"unknown knob {name!r}; multi-path networks take {' and '.join(KNOBS)}")
        threshold, keep = knobs.get("threshold", 0.0), knobs.get("keep", paths)
        number = isinstance(threshold, int | float) and not isinstance(threshold, bool)
        if not number or not 0 <= threshold <= 1:
            raise ValueError(f"threshold = {threshold!r}: must be a number in [0, 1]; 0 keeps all paths")
        whole = isinstance(keep, int) and not isinstance(keep, bool)
        if not whole or not 1 <= keep <= paths:
            raise ValueError(f"keep = {keep!r}: must be a whole number from 1 to {paths}, the paths of the network")
        return cls(float(threshold), 0 if keep == paths else keep)

    def chosen(self, gates: Sequence[float]) -> list[int]:
        """The paths of one image that stay, ascending, from mean gates that are float32 numbers."""
        order = sorted(range(len(gates)), key=lambda j: -gates[j])
        threshold = float(np.float32(self.threshold))  # as tensors compare
        stay = [j for j in order[: self.keep or None] if gates[j] > threshold]
        return sorted(stay or order[:1])

    def kept(self, gates: Tensor) -> Tensor:
        """Which paths stay, bool (..., n), from their mean gates (..., n)."""
        strongest = gates.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1, stable=True)
        stays = gates > self.threshold
        if self.keep:
            stays = stays & (strongest < self.keep)
        return stays | (strongest == 0)


class MultiPathNetwork(RoutedNetwork):
    """X paths from the image to averaged logits, with routing layers between them.

    Decisions: all gates, layer by layer, those of input 1 for all outputs first. In injected decisions
    a path all of whose gates are 0 is left out; where inputs of a layer are missing, the sum over
    the others is scaled by m / (inputs there), and logits are averaged over the paths that are there.

    Units: in every routing layer the gates of each input (kind router), of cross-predictions each
    convolution or linear layer (kind edge), and the layers of each path behind it (kind path).
    """

    def __init__(self, config: Any, task: Task, body: Body, *, paths: int, computation: str = "auto") -> None:
        super().__init__(config, task)
        self.paths, self.computation = paths, computation
        self.trunk = body.trunk
        self.routers = torch.nn.ModuleList(segment.router for segment in body.segments)
        self.stages = torch.nn.ModuleList(segment.stage for segment in body.segments)
        self.segments = tuple(body.segments)  # the same modules with their types
        self.measures = False  # whether `forward` says how large the tensors are that it routes
        self.gate_counts = tuple(s.router.inputs * s.router.outputs if s.router.gates else 0 for s in self.segments)
        self._describe()

    def _describe(self) -> None:
        units: list[Unit] = []
        self.path_costs: list[int] = []  # MACs of one path of every segment, predictions for it included
        self.parts: list[tuple[int, str]] = []  # (layer, kind) of every run of units: what `_path` puts together
        fixed, shape = macs_of(self.trunk, self.task.image)
        least = full = fixed
        fewest_before = 1
        for index, segment in enumerate(self.segments):
            m, n, place = segment.router.inputs, segment.router.outputs, segment.place
            fewest = 1 if self.gate_counts[index] else n
            costs, shape = self._costs(segment, shape)
            self.path_costs.append(costs["path"] + m * costs["edge"])
            names = {
                "router": [f"router-{place}-{i + 1}" for i in range(m)],
                "edge": [f"{place}-{i + 1}-to-{j + 1}" for i in range(m) for j in range(n)],
                "path": [f"{place}-path-{j + 1}" for j in range(n)],
            }
            runs = {"router": fewest_before, "edge": fewest_before * fewest, "path": fewest}
            for kind, macs in costs.items():
                if macs:
                    units += [Unit(name, kind, macs) for name in names[kind]]
                    self.parts.append((index, kind))
                    full += macs * len(names[kind])
                    least += macs * runs[kind]
            fewest_before = fewest
        self.describe_units(units, fixed=fixed, full=full, least=least)

    def _costs(self, segment: Segment, shape: Any) -> tuple[dict[str, int], Any]:
        """MACs of one input's gates, one prediction and one path of a segment; the shape that leaves it, wide."""
        router, n = segment.router, segment.router.outputs
        in_router, shapes = macs_of(router, shape)
        gates = edge = 0
        if router.gates is not None:
            gates = macs_of(router.gates.hidden, (router.inputs * router.width,))[0] // router.inputs
            gates += router.gates.score.in_features * n
        if isinstance(router, CrossPrediction):
            edge = macs_of(router.predict, shape)[0] // (router.inputs * n)
        channels, *rest = shapes[0]
        in_stage, shape = macs_of(segment.stage, (n * channels, *rest))
        own = in_router - router.inputs * (gates + n * edge) + in_stage  # excitation behind predictions is the path's
        return {"router": gates, "edge": edge, "path": own // n}, shape

    @property
    def gated(self) -> bool:
        """Whether there are gates that paths can be pruned by."""
        return any(self.gate_counts)

    def unit_groups(self) -> tuple[int, ...]:
        """See `RoutedNetwork`: the routing layers."""
        names = [(index, kind) for index, kind in self.parts]
        sizes = {"router": lambda r: r.inputs, "edge": lambda r: r.inputs * r.outputs, "path": lambda r: r.outputs}
        return tuple(i for i, kind in names for _ in range(sizes[kind](self.segments[i].router)))

    def _path(self, there: Sequence[Tensor]) -> Tensor:
        """Executed share of every unit (B, U); `there` says which paths are: (B, 1), then (B, n) behind every layer."""
        shares = []
        for index, kind in self.parts:
            before, behind = there[index], there[index + 1]
            both = (before[:, :, None] * behind[:, None, :]).flatten(1)
            shares.append({"router": before, "path": behind, "edge": both}[kind])
        return torch.cat(shares, dim=1)

    def _groups(self, index: int, inputs: Paths) -> bool:
        """Whether the segment of this number runs grouped on these inputs."""
        if self.computation != "auto":
            return self.computation == "grouped"
        segment = self.segments[index]
        router, stage = segment.router, segment.stage
        example = apart(inputs, router.inputs)[0]

        def run(grouped: bool) -> None:
            """The segment both ways, forward and, where gradients are wanted, back; statistics stay."""
            mode = stage.training
            try:
                for part in (router, stage):
                    part.eval()
                each = [example.detach()] * router.inputs
                given = wide(each) if grouped else each
                gates = None if router.gates is None else example.new_ones(len(example), router.inputs, router.outputs)
                outputs = stage.run(router.mix(given, gates, grouped), grouped)
                if torch.is_grad_enabled():
                    parameters = [p for p in segment.router.parameters() if p.requires_grad]
                    parameters = [*parameters, *(p for p in stage.parameters() if p.requires_grad)]
                    if parameters:
                        torch.autograd.grad(wide(outputs).sum(), parameters, allow_unused=True)
            finally:
                for part in (router, stage):
                    part.train(mode)

        what, macs = (self.config.network, segment.place), self.path_costs[index]
        return grouped_pays(run, example, self.paths, macs, what, torch.is_grad_enabled())

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """All paths; `decisions` (B, D) replace the gates. These networks take no price.

        ``aux["probabilities"]`` (B, D) are the network's own gates, whatever was decided; with `measures`
        ``aux["strengths"]`` are the mean sizes of every input and output of every routing layer.
        """
        activations: Paths = self.trunk(inputs)
        there = [inputs.new_ones(len(inputs), 1, dtype=torch.float32)]
        own, taken, strengths, at = [], [], [], 0
        for index, (segment, count) in enumerate(zip(self.segments, self.gate_counts, strict=True)):
            router = segment.router
            gates = router.weigh(activations)
            behind = there[-1].new_ones(len(inputs), router.outputs)
            if gates is not None:
                own.append(gates.flatten(1))
                if decisions is not None:
                    gates = decisions[:, at : at + count].unflatten(1, (router.inputs, router.outputs))
                at += count
                taken.append(gates.flatten(1))
                behind = _reached(gates)
                if decisions is not None:
                    gates = gates * (router.inputs / there[-1].detach().sum(dim=1))[:, None, None]
            grouped = self._groups(index, activations)
            mixed = router.mix(activations, gates, grouped)
            if self.measures:
                strengths += [_strengths(activations, router.inputs), _strengths(mixed, router.outputs)]
            activations = segment.stage.run(mixed, grouped)
            there.append(behind)
        logits = torch.stack(apart(activations, self.paths), dim=1)
        if decisions is None:
            output = logits.mean(dim=1)
        else:
            last = there[-1].detach().to(logits.dtype)
            output = (logits * last[:, :, None]).sum(dim=1) / last.sum(dim=1, keepdim=True)
        empty = inputs.new_zeros(len(inputs), 0)
        chosen = torch.cat(taken, dim=1) if taken else empty
        aux = {"probabilities": torch.cat(own, dim=1) if own else empty, "path_logits": logits}
        if strengths:
            aux["strengths"] = torch.cat(strengths, dim=1)
        return Routed((output,), output, chosen, self.path_macs(self._path(there)), aux)

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """`forward`, unless the knobs leave paths out: a sweep of one setting."""
        return self.sweep(inputs, [knobs], generator=generator)[0]

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several knobs: a path's layers are computed once for all settings that need them.

        Raises `ValueError` for knobs that are not possible here (see `Pruning`).
        """
        prunings = [Pruning.of(each, self.paths) for each in knobs]
        if any(p.prunes for p in prunings):
            if not self.gated:
                raise ValueError(
                    f"knobs {dict(knobs[0])!r}: paths are pruned by their gates, and this network has none"
                )
            return pruned_sweep(self, inputs, prunings)
        routed = self(inputs)
        path = self._path([inputs.new_ones(len(inputs), n) for n in (1, *(s.router.outputs for s in self.segments))])
        return [Inference(routed.output, path, self.path_macs(path), routed.decisions)] * len(knobs)


def _reached(gates: Tensor) -> Tensor:
    """1 for every path (B, n) with a gate above 0, else 0; the gradient is that of the sum of its gates."""
    total = gates.float().sum(dim=1)
    return (total > 0).float() + (total - total.detach())


def _strengths(activations: Paths, paths: int) -> Tensor:
    """Mean size of each tensor (B, paths)."""
    return torch.stack([each.detach().float().abs().flatten(1).mean(dim=1) for each in apart(activations, paths)], 1)
