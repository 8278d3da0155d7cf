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

Shape legend: B images, G groups, n units of a group, h height, w width (1 and 1 without spatial halting), U
units of the contract, D decisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainables.macs import macs_of
from trainables.network import Inference, Knobs, Routed, Task, Unit
from trainables.networks.halting_heads import HaltingHead, SpatialHead, ponder_of, remaining, threshold_of
from trainables.networks.halting_pass import by_images, by_positions
from trainables.networks.positions import dilated
from trainables.networks.preact import PreActBody, PreActUnit
from trainables.networks.resnet import ResidualNetwork

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
        images do not pay for the calls. `tests/benchmarks/bench_halting.py` shows what it comes to on CIFAR's
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
