r"""Adaptive computation time on residual groups: every group stops when its halting scores reach one.

M. Figurnov et al., "Spatially adaptive computation time for residual networks", CVPR 2017, arXiv
1612.02297, sections 3.1 and 3.2; A. Graves, arXiv 1603.08983.

In a group of n units, x_u being the state behind unit u and h_u in [0, 1] its halting score (h_n = 1), with
a halting threshold T = 1 - eps and sums over v = 1 ... u:

.. math:: N = \min\{u : \sum_v h_v \ge T\}, \quad R = 1 - \sum_{v < N} h_v, \quad
          y = \sum_{u < N} h_u x_u + R\, x_N, \quad \rho = N + R

Everything here is told by the *remaining mass* :math:`r_u = 1 - \sum_{v < u} h_v` before unit u, 0 where the group
has stopped: unit u runs where r_u > 0, x_u weighs :math:`r_u - r_{u+1}`, N counts the r_u > 0, R is the last of them.
So the decisions are the r_u of units 2 ... n of every group: 1 = run, as everywhere.

With spatial halting h, r, N, R belong to a position; x stays where it has stopped.

Above T = 1, which the paper does not have, scores are divided by T: ever later, and for T to infinity y = x_n,
the network without halting.

In the hard passes images (`by_images`) and positions (`by_positions`) that have stopped are not computed.

Shape legend: B images, S settings, G groups, n units of a group, h height, w width (1 and 1 without spatial halting),
U units of the contract, D decisions, P = S * B claims (a setting's wish for an image), R rows (distinct activations),
m chosen positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.contracts.network import Inference, Knobs, Routed, Task, Unit
from trainables.execution.macs import macs_of
from trainables.execution.rows import overwriting, put, take
from trainables.networks.halting.heads import HaltingHead, SpatialHead, ponder_of, remaining, threshold_of
from trainables.networks.halting.positions import Places, dilated, features_of, rows_of
from trainables.networks.halting.preact import PreActBody, PreActUnit
from trainables.networks.resnet.cifar import ResidualNetwork

GATHER_FROM_MACS = 10e6
"""MACs of a unit on its images' positions below which gathering some of them saves nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """Unit `place` of group `group`: block k of the network, and its halting head (none behind a group's last)."""

    k: int
    group: int
    place: int
    last: bool
    unit: PreActUnit
    head: Any
    """Its `HaltingHead` or `SpatialHead`, or None."""


class HaltingNetwork(ResidualNetwork):
    """A pre-activation network whose groups halt, image by image or (`spatial`) position by position.

    Units: the residual units and the halting heads behind all but the last of a group, spatial heads in two
    parts, the convolution at positions and the linear layer (``router-global-k``). A group's first unit and
    head always run. Knob: ``threshold`` T, without one 1 - `eps`. ``aux``: ``ponder`` (B, G), rho meaned over
    positions, and ``ponder_std`` over positions; ``probabilities`` (B, D'), r meaned over positions.
    """

    spatial = False
    routing = ("router.",)

    def __init__(self, config: Any, task: Task, body: PreActBody, *, eps: float) -> None:
        super().__init__(config, task, body)
        self.eps, self.groups = eps, body.groups
        ends = {sum(body.groups[: g + 1]) - 1 for g in range(len(body.groups))}
        kind = SpatialHead if self.spatial else HaltingHead
        self.router = nn.ModuleList(
            nn.Identity() if k in ends else kind(body.shapes[k + 1][0], body.style) for k in range(len(body.blocks))
        )
        self._describe()

    def _describe(self) -> None:
        units, least = [], self.stem_macs + self.classifier_macs
        for step in self.steps():
            shape, k = self.shapes[step.k + 1], step.k
            mine = [Unit(f"block-{k}", "block", self.block_macs[k])]
            if step.head is not None:
                linear = macs_of(step.head.linear, (shape[0],))[0]
                local = macs_of(step.head.local, shape)[0] if self.spatial else 0
                mine += [Unit(f"router-{k}", "router", local)] if self.spatial else []
                mine += [Unit(f"router-global-{k}" if self.spatial else f"router-{k}", "router", linear)]
            units += mine
            least += sum(unit.macs for unit in mine) if step.place == 0 else 0
        fixed = self.stem_macs + self.classifier_macs
        self.describe_units(units, fixed=fixed, full=fixed + sum(unit.macs for unit in units), least=least)
        self.first_macs = tuple(self.part_macs(step.unit.layers()[0][0], step.k) for step in self.steps())

    def steps(self) -> Iterator[Step]:
        """All residual units in order."""
        k = 0
        for group, count in enumerate(self.groups):
            for place in range(count):
                last, unit = place == count - 1, self.blocks[k]
                assert isinstance(unit, PreActUnit)
                yield Step(k, group, place, last, unit, None if last else self.router[k])
                k += 1

    def in_groups(self) -> list[list[Step]]:
        """The steps of each group."""
        steps = list(self.steps())
        return [[step for step in steps if step.group == group] for group in range(len(self.groups))]

    def parts(self, step: Step) -> int:
        """How many of the contract's units a step is: its unit, its head, of a spatial head both layers."""
        return 1 if step.last else 3 if self.spatial else 2

    def sparse_pays(self, k: int, wide: int, positions: int) -> bool:
        """Whether block k is quicker on `wide` of the positions, gathered, than on all that its images have.

        Measured unit by unit on one thread of a CPU: the share below which gathering pays grows with the MACs of
        a position, from 0.18 (16 channels) and 0.5 (64) to 0.75 of ImageNet's later groups; small batches of small
        images do not pay for the calls. `tests/benchmarks/inference/bench_halting.py` shows what it comes to on CIFAR's
        networks. Not measured on other devices, where nothing is gathered.
        """
        height, width = self.shapes[k + 1][1:]
        each = self.block_macs[k] / (height * width)
        if self.unit_macs.device.type != "cpu" or positions * each < GATHER_FROM_MACS:
            return False
        return wide < positions * min(0.75, 0.07 * math.log2(each) - 0.68)

    def grid(self, group: int) -> tuple[int, int]:
        """The shape of a group's decisions: its positions, or (1, 1)."""
        return self.shapes[sum(self.groups[: group + 1])][1:] if self.spatial else (1, 1)

    def path_macs(self, path: Tensor) -> Tensor:
        """MACs are whole numbers, of which shares of odd numbers of positions may lose the last digit."""
        macs = super().path_macs(path)
        return macs + (macs.round() - macs).detach()

    def shares(self, step: Step, mass: Tensor) -> list[Tensor]:
        """Executed shares (B,), float64, of the units of a step where `mass` r (B, h, w) remains before it.

        Hard values (r > 0) with the gradient of r itself, which is the chance that the unit is reached
        if r is read as a distribution over where to stop. The first convolution of a spatial unit runs at
        the positions that the next one reads.
        """

        def straight(soft: Tensor, hard: Tensor) -> Tensor:
            return hard.double() + (soft - soft.detach()).double()

        def mean(soft: Tensor, hard: Tensor) -> Tensor:
            return straight(soft.mean(dim=(1, 2)), hard.double().mean(dim=(1, 2)))

        runs = mass > 0
        active = mean(mass, runs)
        if not self.spatial:
            return [active] if step.last else [active, active]
        block = active
        if step.place > 0:
            block = self.block_share(step.k, mean(dilated(mass), dilated(runs)), active)
        if step.last:
            return [block]
        return [block, active, straight(mass.mean(dim=(1, 2)), runs.any(dim=2).any(dim=1))]

    def block_share(self, k: int, wide: Tensor, active: Tensor) -> Tensor:
        """The executed share of unit k whose first convolution ran on the share `wide` of positions."""
        first, whole = self.first_macs[k], self.block_macs[k]
        return (first * wide + (whole - first) * active) / whole

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Every unit on every image, outputs weighted; `decisions` (B, D) are the r_u (see the module).

        Their own come from the threshold 1 - eps. These networks take no price and draw nothing.
        """
        features, path, masses, ponder = self.stem(inputs), [], [], []
        known = None if decisions is None else self.masses(decisions)
        for group, steps in enumerate(self.in_groups()):
            height, width = self.grid(group)
            mass = features.new_ones(len(inputs), height, width, dtype=self._exact(features))
            total, output, group_masses = torch.zeros_like(mass), None, [mass]
            for step in steps:
                features = self._unit(step, features, mass)
                path += self.shares(step, mass)
                if step.last:
                    later = torch.zeros_like(mass)
                elif known is not None:
                    later = known[group][step.place]
                else:
                    total = total + step.head(features)
                    later = remaining(total, mass > 0, 1 - self.eps)
                part = (mass - later).to(features.dtype)[:, None] * features
                output = part if output is None else output + part
                mass = later
                group_masses += [] if step.last else [later]
            assert output is not None
            features = output
            masses += group_masses[1:]
            ponder.append(ponder_of(group_masses))
        logits = self.classifier(features)
        taken = torch.cat([mass.flatten(1) for mass in masses], dim=1)
        aux = {
            "ponder": torch.stack([cost.mean(dim=(1, 2)) for cost in ponder], dim=1),
            "ponder_std": torch.stack([cost.detach().std(dim=(1, 2), unbiased=False) for cost in ponder], dim=1),
            "probabilities": torch.stack([mass.mean(dim=(1, 2)) for mass in masses], dim=1),
        }
        if self.spatial:  # what is computed at each position of the finest grid, for pictures
            sizes = list(ponder[0].shape[1:])
            each = [F.interpolate(cost.detach()[:, None].float(), size=sizes)[:, 0] for cost in ponder]
            aux["ponder_map"] = torch.stack(each).sum(dim=0)
        return Routed((logits,), logits, taken, self.path_macs(torch.stack(path, dim=1)), aux)

    @staticmethod
    def _exact(features: Tensor) -> torch.dtype:
        return torch.promote_types(features.dtype, torch.float32)

    def _unit(self, step: Step, features: Tensor, mass: Tensor) -> Tensor:
        """The state behind a unit; positions that have stopped keep theirs."""
        if not self.spatial or step.place == 0:
            return step.unit(features)
        return features + (mass > 0).to(features.dtype)[:, None] * step.unit.branch(features)

    def masses(self, decisions: Tensor) -> list[list[Tensor]]:
        """Decisions (B, D) as the r_u of units 2 ... n of every group, (B, h, w) each."""
        found, at = [], 0
        for group, count in enumerate(self.groups):
            height, width = self.grid(group)
            size = height * width * (count - 1)
            maps = decisions[:, at : at + size].view(len(decisions), count - 1, height, width)
            found.append(list(maps.unbind(1)))
            at += size
        return found

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several thresholds, what they agree about computed once."""
        thresholds = [threshold_of(each, 1 - self.eps) for each in knobs]
        return (by_positions if self.spatial else by_images)(self, inputs, thresholds)

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass under one threshold: a sweep of one setting."""
        return self.sweep(inputs, [knobs], generator=generator)[0]

    def inference(self, logits: Tensor, masses: Tensor, path: Tensor) -> Inference:
        """What the hard pass returns, from decisions (B, D) and executed shares (B, U)."""
        blocks = [i for i, unit in enumerate(self.units) if unit.kind == "block"]
        return Inference(logits, path, self.path_macs(path), masses, length=path[:, blocks].sum(dim=1))


class SpatialHaltingNetwork(HaltingNetwork):
    """Groups that halt position by position (SACT)."""

    spatial = True


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
