"""The pruned hard pass of a multi-path network: each path is computed for the images that keep it, for no others.

A *row* is an image with one history of which paths were left out: settings that agree so far share it. What a path
computes depends on the row before the routing layer alone, so it is computed once for all rows behind it.

Shape legend: B images, S settings, R rows, k rows of one path, m inputs and n outputs of a routing layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.execution import take
from trainables.network import Inference

if TYPE_CHECKING:
    from trainables.networks.multipath import MultiPathNetwork, Pruning
    from trainables.networks.routing_layers import RoutingLayer

_CODED = 40
"""Up to so many paths, which of them a row keeps is written into one integer beside the row's number."""


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
