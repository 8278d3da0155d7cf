"""Networks of parallel paths, and ensembles, as parts: gates, which paths stay, edges, paths, averages.

Shape legend: B images, m inputs and n outputs of a routing layer, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.export.program import IMAGES, LOGITS, Part, Program, Step, Whole, whole
from trainables.methods.ensemble import Ensemble
from trainables.networks.multipath.bodies import Segment
from trainables.networks.multipath.network import MultiPathNetwork, Pruning
from trainables.networks.multipath.routing import CrossPrediction

RULE = "a path stays where its mean gate exceeds `threshold` and is among the `keep` largest; the strongest always"
MEMBERS_RULE = "the first members answer, as many as the setting says"


class _Gates(nn.Module):
    """The gates (B, n) of input i."""

    def __init__(self, segment: Segment, i: int) -> None:
        super().__init__()
        self.gates, self.i = segment.router.gates, i

    def forward(self, features: Tensor) -> Tensor:
        assert self.gates is not None
        return self.gates.one(self.i, features)


class _Keep(nn.Module):
    """Which paths stay.

    ``forward(gates of input 1 ... m (B, n), [whether each input is there (B,)], threshold, keep)``
    returns a flag (B,) an output, with `edges` then a flag an edge, input by input, and last the weights (B, m, n).
    """

    def __init__(self, inputs: int, outputs: int, *, edges: bool) -> None:
        super().__init__()
        self.inputs, self.outputs, self.edges = inputs, outputs, edges

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        m = self.inputs
        threshold, most = given[-2:]
        there = torch.stack(given[m : 2 * m], dim=1) if len(given) > m + 2 else None
        gates = torch.stack(given[:m], dim=1)
        count = torch.ones_like(gates[:, :, 0]).sum(dim=1) if there is None else there.to(gates.dtype).sum(dim=1)
        if there is not None:
            gates = torch.where(there[:, :, None], gates, torch.zeros_like(gates))
        strength = gates.sum(dim=1) / count[:, None]
        columns = strength.unbind(1)
        stays = []
        for j, mine in enumerate(columns):  # how many are stronger; of equals the first is
            ahead = [other >= mine if i < j else other > mine for i, other in enumerate(columns) if i != j]
            rank = torch.stack(ahead, dim=1).long().sum(dim=1) if ahead else torch.zeros_like(mine, dtype=torch.long)
            stays.append(((mine > threshold) & (rank < most)) | (rank == 0))
        edges = []
        if self.edges:
            each = [None] * m if there is None else list(there.unbind(1))
            edges = [stay if here is None else here & stay for here in each for stay in stays]
        return (*stays, *edges, gates * (m / count)[:, None, None])


class _Scaled(nn.Module):
    """The weights of a layer without gates: ``forward(whether each input is there (B,) ...)`` to (B, m, n)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def forward(self, *there: Tensor) -> Tensor:
        here = torch.stack(there, dim=1).to(torch.float32)
        scale = self.inputs / here.sum(dim=1, keepdim=True)
        return (here * scale)[:, :, None].expand(-1, -1, self.outputs) * 1.0


class _Edge(nn.Module):
    """What input i adds to output j: ``forward(features, weights (B, m, n))``."""

    def __init__(self, segment: Segment, i: int, j: int) -> None:
        super().__init__()
        self.router, self.i, self.j = segment.router, i, j

    def forward(self, features: Tensor, weights: Tensor) -> Tensor:
        return self.router.edge(self.i, self.j, features, weights[:, self.i, self.j])


class _Path(nn.Module):
    """A path behind a routing layer.

    ``forward(inputs ..., [weights])``; with `summed` the inputs are edges' outputs.
    """

    def __init__(self, segment: Segment, j: int, *, summed: bool, weighs: bool) -> None:
        super().__init__()
        self.router, self.stage, self.j = segment.router, segment.stage, j
        self.summed, self.weighs = summed, weighs

    def forward(self, *given: Tensor) -> Tensor:
        inputs = list(given)
        if self.summed:
            parts = inputs
        else:
            weights = inputs.pop() if self.weighs else None
            parts = []
            for i, features in enumerate(inputs):
                gate = features.new_ones(features.shape[0]) if weights is None else weights[:, i, self.j]
                parts.append(self.router.edge(i, self.j, features, gate))
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return self.stage(self.router.finish(self.j, total), self.stage.pieces()[self.j])


class _Average(nn.Module):
    """``forward(logits ..., whether each path is there ...)``: the mean over those that are."""

    def __init__(self, paths: int) -> None:
        super().__init__()
        self.paths = paths

    def forward(self, *given: Tensor) -> Tensor:
        logits = torch.stack(given[: self.paths], dim=1)
        if len(given) == self.paths:
            return logits.mean(dim=1)
        there = torch.stack(given[self.paths :], dim=1).to(logits.dtype)
        return (logits * there[:, :, None]).sum(dim=1) / there.sum(dim=1, keepdim=True)


def program_of(network: MultiPathNetwork, curve: Iterable[Knobs]) -> Program:
    """The program of a network of paths: one part where no setting of the `curve` leaves paths out."""
    if not network.gated or not any(Pruning.of(knobs, network.paths).prunes for knobs in curve):
        found = whole(network, "all paths run for every image")
        found.settings = _unpruned(network)
        return found
    units = {unit.name for unit in network.units}
    steps: list[Any] = [Step(Part("trunk", network.trunk, (IMAGES,), ("path-0-0",)))]
    flags: tuple[str, ...] = ()  # of the inputs of a layer; none: all are there
    for layer, segment in enumerate(network.segments):
        flags = _layer(layer, segment, flags, steps, units)
    logits = tuple(f"path-{len(network.segments)}-{j}" for j in range(network.paths))
    steps.append(Step(Part("average", _Average(network.paths), (*logits, *flags), (LOGITS,))))

    def settings(knobs: Knobs) -> dict[str, Any]:
        pruning = Pruning.of(knobs, network.paths)
        return {"threshold": pruning.threshold, "keep": pruning.keep or network.paths}

    examples = {"threshold": torch.tensor(0.0), "keep": torch.tensor(network.paths)}
    return Program("paths", RULE, steps, settings, examples)


def _unpruned(network: MultiPathNetwork) -> Any:
    def settings(knobs: Knobs) -> dict[str, Any]:
        if Pruning.of(knobs, network.paths).prunes:
            raise ValueError(f"knobs {dict(knobs)!r}: no setting of the curve leaves paths out")
        return {}

    return settings


def _layer(layer: int, segment: Segment, flags: tuple[str, ...], steps: list[Any], units: set[str]) -> tuple[str, ...]:
    """The steps of a routing layer and of the paths behind it; the flags of these paths."""
    router, place = segment.router, segment.place
    m, n = router.inputs, router.outputs
    inputs = [f"path-{layer}-{i}" for i in range(m)]
    weights, edges = f"weights-{layer}", isinstance(router, CrossPrediction)
    when = flags or ("",) * m
    if router.gates is not None:
        gates = tuple(f"gates-{layer}-{i}" for i in range(m))
        for i in range(m):
            name = f"router-{place}-{i + 1}"
            part = Part(f"gates-{place}-{i + 1}", _Gates(segment, i), (inputs[i],), (gates[i],))
            steps.append(Step(part, when=when[i], charges=(name,) if name in units else ()))
        following = tuple(f"keep-{layer}-{j}" for j in range(n))
        both = tuple(f"edge-{layer}-{i}-{j}" for i in range(m) for j in range(n)) if edges else ()
        part = Part(
            f"keep-{place}",
            _Keep(m, n, edges=edges),
            (*gates, *flags, "threshold", "keep"),
            (*following, *both, weights),
        )
        steps.append(Step(part))
    else:
        following = ()
        if flags:
            steps.append(Step(Part(f"weights-{place}", _Scaled(m, n), flags, (weights,))))
    weighs = router.gates is not None or bool(flags)
    for j in range(n):
        reads = tuple(inputs)
        if edges:
            reads = tuple(f"sum-{layer}-{i}-{j}" for i in range(m))
            for i in range(m):
                name = f"{place}-{i + 1}-to-{j + 1}"
                part = Part(f"edge-{name}", _Edge(segment, i, j), (inputs[i], weights), (reads[i],))
                steps.append(Step(part, when=f"edge-{layer}-{i}-{j}", charges=(name,) if name in units else ()))
        elif weighs:
            reads = (*reads, weights)
        name = f"{place}-path-{j + 1}"
        path = Part(f"path-{name}", _Path(segment, j, summed=edges, weighs=weighs), reads, (f"path-{layer + 1}-{j}",))
        steps.append(Step(path, when=following[j] if following else "", charges=(name,) if name in units else ()))
    return following


class _Members(nn.Module):
    """``forward(logits ..., weights (N,))`` to the members' mean."""

    def __init__(self, network: Ensemble) -> None:
        super().__init__()
        self.network = network

    def forward(self, *given: Tensor) -> Tensor:
        *logits, weights = given
        return self.network.averaged(logits, weights[None])


def ensemble_program_of(network: Ensemble) -> Program:
    """The program of an ensemble."""
    count = len(network.members)
    steps: list[Any] = []
    for k, member in enumerate(network.members):
        part = Part(f"member-{k + 1}", Whole(member), (IMAGES,), (f"logits-{k + 1}",))
        steps.append(Step(part, when=f"member-{k + 1}", charges=(f"member-{k + 1}",)))
    logits = tuple(f"logits-{k + 1}" for k in range(count))
    steps.append(Step(Part("average", _Members(network), (*logits, "weights"), (LOGITS,))))

    def settings(knobs: Knobs) -> dict[str, Any]:
        chosen = network._members(knobs)
        return {
            **{f"member-{k + 1}": k < chosen for k in range(count)},
            "weights": [float(k < chosen) for k in range(count)],
        }

    examples: dict[str, Tensor] = {f"member-{k + 1}": torch.tensor(True) for k in range(count)}
    return Program("members", MEMBERS_RULE, steps, settings, {**examples, "weights": torch.ones(count)})
