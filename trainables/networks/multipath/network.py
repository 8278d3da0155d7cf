"""Networks of parallel paths with soft routing between them, and their pruned forms.

D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks", arXiv 2107.02450. Gates
weigh what the paths hand on; all paths run, and their logits are averaged. Parts: `networks.multipath.routing`,
`networks.multipath.layers`, `networks.multipath.bodies`.

Our extension, off by default: paths whose gates say little are left out (`Pruning`). In the pruned hard pass each path
is computed for the images that keep it, for no others. A *row* is an image with one history of which paths were left
out: settings that agree so far share it. What a path computes depends on the row before the routing layer alone,
so it is computed once for all rows behind it.

Shape legend: B images, S settings, R rows, k rows of one path, m inputs and n outputs of a routing layer, X paths,
D gates, U units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from trainables.contracts.network import Inference, Knobs, Routed, RoutedNetwork, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import take
from trainables.networks.multipath.bodies import Body, Segment
from trainables.networks.multipath.layers import Paths, apart, grouped_pays, wide
from trainables.networks.multipath.routing import CrossPrediction

if TYPE_CHECKING:
    from trainables.networks.multipath.routing import RoutingLayer


_CODED = 40
"""Up to so many paths, which of them a row keeps is written into one integer beside the row's number."""

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


@dataclass(slots=True)
class _Path:
    """What one path holds: `features` (k, ...) and, for every row, which of them is its own, or -1."""

    features: Tensor | None
    of_row: Tensor

    @property
    def there(self) -> Tensor:
        """The rows that have this path, bool (R,)."""
        return self.of_row >= 0

    def at(self, rows: Tensor) -> Tensor:
        """The features of some rows (k,), all of which have them."""
        assert self.features is not None
        if len(rows) == len(self.of_row) == len(self.features):
            return self.features
        return take(self.features, self.of_row[rows])


def pruned_one(network: MultiPathNetwork, image: Tensor, pruning: Pruning) -> Inference:
    """The pruned pass of a single image (1, ...) in float32 on a CPU, whose decisions are plain numbers."""
    features: dict[int, Tensor] = {0: network.trunk(image)}
    there, decisions = [image.new_ones(1, 1)], []
    for segment in network.segments:
        router, stage, m, n = segment.router, segment.stage, segment.router.inputs, segment.router.outputs
        if router.gates is None:
            gates, kept = image.new_ones(m, n), list(range(n))
        else:
            gates = torch.cat([router.gates.one(i, each) for i, each in features.items()])
            kept = pruning.chosen((gates.sum(dim=0) / len(gates)).tolist())
            decided = image.new_zeros(m, n)
            for row, i in enumerate(features):
                decided[i, kept] = gates[row, kept]
            decisions.append(decided.flatten())
        scaled = gates * (m / len(features))
        pieces, following = stage.pieces(), {}
        for j in kept:
            parts = [router.edge(i, j, each, scaled[k : k + 1, j]) for k, (i, each) in enumerate(features.items())]
            total = parts[0]
            for part in parts[1:]:
                total = total + part
            following[j] = stage(router.finish(j, total), pieces[j])
        features = following
        there.append(image.new_zeros(1, n).index_fill_(1, torch.tensor(kept), 1))
    logits = torch.stack(list(features.values())).mean(dim=0)
    path = network._path(there)
    return Inference(logits, path, network.path_macs(path), torch.cat(decisions)[None])


def pruned_sweep(network: MultiPathNetwork, inputs: Tensor, prunings: Sequence[Pruning]) -> list[Inference]:
    """One `Inference` a pruning; its decisions are the gates, 0 where input or output was left out."""
    if len(inputs) == len(prunings) == 1 and inputs.device.type == "cpu" and inputs.dtype == torch.float32:
        return [pruned_one(network, inputs, prunings[0])]
    features = network.trunk(inputs)
    everybody = torch.arange(len(inputs), device=inputs.device)
    row_of = everybody.expand(len(prunings), -1)
    paths = [_Path(features, everybody)]
    there = [inputs.new_ones(len(prunings), len(inputs), 1)]
    decisions = []
    for segment in network.segments:
        router, stage = segment.router, segment.stage
        gates = _gates(router, paths, len(everybody))
        present = torch.stack([path.there for path in paths], dim=1).to(gates.dtype)
        count = present.sum(dim=1)
        strengths = gates.sum(dim=1) / count[:, None]
        if router.gates is None:
            keeps = torch.ones(*row_of.shape, router.outputs, dtype=torch.bool, device=inputs.device)
        else:
            keeps = torch.stack([p.kept(strengths[rows]) for p, rows in zip(prunings, row_of, strict=True)])
            decisions.append((gates[row_of] * keeps[:, :, None, :]).flatten(2))
        there.append(keeps.to(inputs.dtype))
        parents, kept, row_of = _rows(row_of, keeps, len(everybody))
        scaled = gates * (router.inputs / count)[:, None, None]
        pieces = stage.pieces()
        following = []
        for j in range(router.outputs):
            wanted = torch.zeros(len(everybody), dtype=torch.bool, device=inputs.device)
            wanted[parents[kept[:, j]]] = True
            rows = wanted.nonzero().squeeze(1)
            place = torch.full((len(everybody),), -1, device=inputs.device).index_copy_(
                0, rows, torch.arange(len(rows), device=inputs.device)
            )
            mixed = _mixed(router, j, paths, rows, scaled)
            following.append(
                _Path(None if mixed is None else stage(mixed, pieces[j]), torch.where(kept[:, j], place[parents], -1))
            )
        paths, everybody = following, torch.arange(len(parents), device=inputs.device)
    logits = _averaged(paths, len(everybody))
    results = []
    for s, rows in enumerate(row_of):
        path = network._path([each[s] for each in there])
        chosen = torch.cat([each[s] for each in decisions], dim=1).to(inputs.dtype)
        results.append(Inference(logits[rows], path, network.path_macs(path), chosen))
    return results


def _gates(router: RoutingLayer, paths: list[_Path], rows: int) -> Tensor:
    """Gates (R, m, n), 0 where the input is not there; 1 in layers without gates."""
    kinds = [path.features.dtype for path in paths if path.features is not None]
    dtype = torch.promote_types(kinds[0], torch.float32)
    each = []
    for i, path in enumerate(paths):
        if path.features is None or router.gates is None:
            value = float(router.gates is None)
            each.append(torch.full((rows, router.outputs), value, dtype=dtype, device=path.of_row.device))
            continue
        found = router.gates.one(i, path.features).to(dtype)
        each.append(found[path.of_row.clamp(min=0)] * path.there[:, None])
    return torch.stack(each, dim=1)


def _rows(row_of: Tensor, keeps: Tensor, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows behind a routing layer: the row that each comes from (R',), what it keeps (R', n), and the new `row_of`."""
    if len(row_of) == 1:
        return row_of[0], keeps[0], torch.arange(row_of.shape[1], device=row_of.device)[None]
    count = keeps.shape[-1]
    if count > _CODED:
        table = torch.cat([row_of[:, :, None], keeps.long()], dim=2).flatten(0, 1)
        found, inverse = torch.unique(table, dim=0, return_inverse=True)
        return found[:, 0], found[:, 1:].bool(), inverse.view_as(row_of)
    bits = 2 ** torch.arange(count, device=row_of.device)
    codes, inverse = torch.unique(row_of * 2**count + (keeps * bits).sum(dim=2), return_inverse=True)
    return codes // 2**count, (codes[:, None] % 2**count & bits) > 0, inverse.view_as(row_of)


def _mixed(router: RoutingLayer, j: int, paths: list[_Path], rows: Tensor, gates: Tensor) -> Tensor | None:
    """Output j on some rows (k,): the sum over the inputs that each of them has; None for no rows."""
    if not len(rows):
        return None
    total = None
    for i, path in enumerate(paths):
        if path.features is None:
            continue
        has = path.there[rows]
        mine = has.nonzero().squeeze(1)
        if not len(mine):
            continue
        chosen = rows[mine]
        part = router.edge(i, j, path.at(chosen), gates[chosen, i, j])
        if len(mine) == len(rows):
            total = part if total is None else total + part
        else:
            if total is None:
                total = part.new_zeros(len(rows), *part.shape[1:])
            total = total.index_add(0, mine, part)
    assert total is not None, "every row has an input"
    return router.finish(j, total)


def _averaged(paths: list[_Path], rows: int) -> Tensor:
    """Logits (R, C), the mean over the paths that each row has."""
    total: Tensor | None = None
    count = torch.zeros(rows, device=paths[0].of_row.device)
    for path in paths:
        if path.features is not None:
            part = path.features[path.of_row.clamp(min=0)] * path.there[:, None]
            total = part if total is None else total + part
            count += path.there
    assert total is not None
    return total / count[:, None].to(total.dtype)
