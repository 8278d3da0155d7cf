"""The hard passes of networks that halt: images and positions that have stopped are not computed.

Shape legend: B images, S settings, P = S * B claims (a setting's wish for an image), R rows (distinct
activations), h height, w width, m chosen positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.execution import overwriting, put, take
from trainables.network import Inference
from trainables.networks.halting_heads import remaining
from trainables.networks.positions import Places, dilated, features_of, rows_of

if TYPE_CHECKING:
    from trainables.networks.halting import HaltingNetwork, Step


@dataclass(slots=True)
class _Told:
    """What a pass tells of itself: r_2 ... r_n of every group and the executed shares of the units."""

    decisions: list[Tensor] = field(default_factory=list)
    path: list[Tensor] = field(default_factory=list)

    def nothing_more(self, network: HaltingNetwork, steps: Sequence[Step], like: Tensor) -> None:
        """These steps did not run for anyone; `like` is a mask r (P,)."""
        for step in steps:
            self.path += [torch.zeros_like(like, dtype=torch.float64)] * network.parts(step)
            self.decisions += [] if step.last else [torch.zeros_like(like)]


def by_images(network: HaltingNetwork, inputs: Tensor, thresholds: Sequence[float]) -> list[Inference]:
    """Whole images halt.

    Scores do not depend on the threshold before an image has halted, so settings share a group's units; behind
    it they share a row where they stopped an image at the same unit (above T = 1 weights depend on T: such
    settings share the first group alone).
    """
    count, device = len(inputs), inputs.device
    limits = torch.tensor(thresholds, device=device).repeat_interleave(count)
    kinds = torch.tensor([s + 1 if t > 1 else 0 for s, t in enumerate(thresholds)], device=device)
    claims = _Claims(torch.arange(count, device=device).repeat(len(thresholds)), limits, kinds.repeat_interleave(count))
    features, told = network.stem(inputs), _Told()
    for steps in network.in_groups():
        features = _group(network, steps, features, claims, told)
    logits = network.classifier(features)
    masses, shares = torch.stack(told.decisions, dim=1), torch.stack(told.path, dim=1)
    each = zip(claims.row.split(count), masses.split(count), shares.split(count), strict=True)
    return [network.inference(take(logits, rows), mine, share) for rows, mine, share in each]


@dataclass(slots=True)
class _Claims:
    """For every setting and image: the row that holds it (P,), T, and the kind of T: claims of one row
    and one kind that stop together have one output.
    """

    row: Tensor
    limit: Tensor
    kind: Tensor


def _group(network: HaltingNetwork, steps: Sequence[Step], features: Tensor, claims: _Claims, told: _Told) -> Tensor:
    """One group for all claims, which then hold rows of what is returned."""
    exact = torch.promote_types(features.dtype, torch.float32)
    mass = torch.ones(len(claims.row), dtype=exact, device=features.device)
    limits, kinds = claims.limit.to(exact), len(claims.row) + 1
    left: list[Tensor] = []  # what has left the group, and in which of those rows each claim is
    held, leaving = torch.zeros_like(claims.row), 0
    row = claims.row  # among the features, which become fewer
    total = output = None
    for step in steps:
        features = overwriting(step.unit)(features)
        told.path += [(mass > 0).double()] * network.parts(step)
        score = None
        if step.last:
            later = torch.zeros_like(mass)
        else:
            score = step.head(features)[:, 0, 0]
            total = score if total is None else total + score
            later = remaining(total[row], mass > 0, limits)
            told.decisions.append(later)
        halts = ((mass > 0) & (later == 0)).nonzero().squeeze(1)
        if len(halts):
            keys, which = torch.unique(row[halts] * kinds + claims.kind[halts], return_inverse=True)
            one = torch.empty_like(keys).scatter_(0, which, halts)  # one claim of each
            left.append(_weighted(features, output, row[one], mass[one], limits[one]))
            held[halts] = which + leaving
            leaving += len(keys)
        mass = later
        if score is None or total is None:
            break
        weighted = score.to(features.dtype)[:, None, None, None] * features
        output = weighted if output is None else output.add_(weighted)
        stays = torch.zeros(len(features), dtype=torch.bool, device=row.device).index_fill_(0, row[mass > 0], True)
        rows = stays.nonzero().squeeze(1)
        if not len(rows):
            told.nothing_more(network, steps[step.place + 1 :], mass)
            break
        if len(rows) < len(features):
            features, output, total = take(features, rows), take(output, rows), total[rows]
            row = torch.where(mass > 0, (stays.cumsum(0) - 1)[row], 0)
    claims.row = held
    return torch.cat(left) if left else features[:0]


def _weighted(features: Tensor, output: Tensor | None, rows: Tensor, mass: Tensor, limits: Tensor) -> Tensor:
    """What leaves a group: the rest r of its last state and the scores' part of those before (scores / T above 1)."""
    everything = len(rows) == len(features) and bool((rows[1:] > rows[:-1]).all())
    last = features if everything else take(features, rows)
    leaves = mass.to(features.dtype)[:, None, None, None] * last
    if output is None:
        return leaves
    before = output if everything else take(output, rows)
    return leaves.addcdiv_(before, limits.clamp(min=1).to(features.dtype)[:, None, None, None])


def by_positions(network: HaltingNetwork, inputs: Tensor, thresholds: Sequence[float]) -> list[Inference]:
    """Positions halt; settings share the stem, the first unit and its scores, all that no threshold changes."""
    first = network.in_groups()[0][0]
    entered = first.unit(network.stem(inputs))
    score = first.head(entered)
    found = []
    for threshold in thresholds:
        features, scores, told = entered if len(thresholds) == 1 else entered.clone(), score, _Told()
        for steps in network.in_groups():
            if steps[0].group:
                features = steps[0].unit(features)
                scores = steps[0].head(features)
            features = _Group(network, features, scores, threshold, told).run(steps)
        masses, path = torch.cat([each.flatten(1) for each in told.decisions], dim=1), torch.stack(told.path, dim=1)
        found.append(network.inference(network.classifier(features), masses, path))
    return found


class _Group:
    """A group whose positions halt, from behind its first unit: states and sums of all images stay in place.

    A unit takes the images that have active positions, as a masked convolution (`_dense`), or its active
    positions alone (`_sparse`) where that is quicker (`sparse_pays`).
    """

    def __init__(self, network: HaltingNetwork, features: Tensor, score: Tensor, threshold: float, told: _Told) -> None:
        self.network, self.threshold, self.told = network, threshold, told
        self.shape = features.shape
        self.positions = features.shape[2] * features.shape[3]
        self.state = rows_of(features)
        self.total, self.mass = score, remaining(score, None, threshold)
        self.output = self.state * (1 - self.mass).to(features.dtype).flatten()[:, None]
        self.sums: Tensor | None = None
        told.decisions.append(self.mass)

    def run(self, steps: Sequence[Step]) -> Tensor:
        """The output (B, c, h, w) of the group."""
        counts = [self.mass.new_full((2, len(self.mass)), self.positions)]
        for step in steps[1:]:
            runs = self.mass > 0
            wide = dilated(runs)
            counts.append(torch.stack([wide, runs]).sum(dim=(2, 3)))
            each = counts[-1].tolist()  # the only wait for the device in a unit
            if not any(each[1]):
                counts += [torch.zeros_like(counts[0])] * (len(steps) - len(counts))
                self.told.decisions += [torch.zeros_like(self.mass)] * sum(not s.last for s in steps[step.place :])
                break
            images = None if all(each[1]) else torch.tensor([i for i, some in enumerate(each[1]) if some])
            here = len(each[1]) if images is None else len(images)
            around, active = sum(each[0]), sum(each[1])
            if self.network.sparse_pays(step.k, around, here * self.positions):
                self._sparse(step, Places.of(runs), Places.of(wide))
            else:
                self._dense(step, runs, None if images is None else images.to(runs.device), around, active)
            self.told.decisions += [] if step.last else [self.mass]
        self._tell(steps, torch.stack([each.double() for each in counts]) / self.positions)
        return features_of(self.output, self.shape)

    def _tell(self, steps: Sequence[Step], shares: Tensor) -> None:
        """Executed shares of all units of the group, from those (n, 2, B) of the positions, wide and active."""
        for step, (wide, active) in zip(steps, shares.unbind(), strict=True):
            block = self.network.block_share(step.k, wide, active)
            self.told.path += [block] if step.last else [block, active, (active > 0).double()]

    def _dense(self, step: Step, runs: Tensor, images: Tensor | None, wide: int, active: int) -> None:
        """The unit on all positions of `images` (None: all), its residual masked."""
        state, output = features_of(self.state, self.shape), features_of(self.output, self.shape)

        def some(tensor: Tensor) -> Tensor:
            return tensor if images is None else take(tensor, images)

        mine, mask, mass = some(state), some(runs), some(self.mass)
        mine.addcmul_(mask.to(mine.dtype)[:, None], step.unit.branch(mine, wide, active))
        later = torch.zeros_like(mass)
        if step.head is not None:
            total = some(self.total) + step.head(mine, active)
            later = remaining(total, mask, self.threshold)
            self.total = total if images is None else put(images, total, self.total.clone())
        weight = (mass - later).to(mine.dtype)[:, None]
        if images is None:
            output.addcmul_(weight, mine)
            self.mass = later
        else:
            put(images, mine, state)
            output.index_add_(0, images, weight * mine)
            self.mass = put(images, later, torch.zeros_like(self.mass))
        self.sums = None

    def _sparse(self, step: Step, active: Places, wide: Places) -> None:
        """The unit on its active positions; the first convolution on those around them too."""
        if self.sums is None and step.head is not None:
            self.sums = self.state.view(self.shape[0], self.positions, -1).sum(dim=1)
        residual = step.unit.at(self.state, active, wide)
        state = self.state.index_select(0, active.flat).add_(residual)
        self.state.index_copy_(0, active.flat, state)
        before = self.mass.flatten().index_select(0, active.flat)
        later = torch.zeros_like(before)
        if step.head is not None:
            assert self.sums is not None
            image = active.flat.div(self.positions, rounding_mode="floor")
            self.sums.index_add_(0, image, residual)
            images, among = torch.unique_consecutive(image, return_inverse=True)
            pooled = self.sums.index_select(0, images) / self.positions
            score = step.head.at(self.state, pooled, among, active, wide)
            total = self.total.flatten()
            summed = total.index_select(0, active.flat) + score
            later = remaining(summed, None, self.threshold)
            self.total = total.index_copy(0, active.flat, summed).view_as(self.total)
        self.output.index_add_(0, active.flat, (before - later).to(state.dtype)[:, None] * state)
        self.mass = torch.zeros_like(self.mass).flatten().index_copy_(0, active.flat, later).view_as(self.mass)
