r"""Networks that halt as parts: each residual unit with its halting head and the sums that both keep.

The equations are those of `trainables.networks.halting.network`. Whole images that have stopped (ACT) and images
all of whose positions have (SACT) are not computed; of the others, SACT's parts compute every position and mask
those that have stopped, while MACs charge the positions that are used, as the registry's model says them.

Shape legend: B images, c channels, h height, w width (1 and 1 without spatial halting).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.export.program import IMAGES, LOGITS, Part, Program, Step
from trainables.networks.halting.heads import remaining, threshold_of
from trainables.networks.halting.network import HaltingNetwork
from trainables.networks.halting.network import Step as Unit

RULE = "a residual group stops where the sum of its halting scores reaches `threshold`"


class _Unit(nn.Module):
    """One unit with its head.

    ``forward(features, [mass, output, total], threshold)`` returns features, output and, but for a group's last unit,
    whether something goes on (B,), total and mass (B, h, w); a spatial unit behind the first also returns the executed
    shares (B,), float64, of its block, of its score at positions, and of its pooled score. A group's last unit takes
    neither total nor threshold.
    """

    def __init__(self, network: HaltingNetwork, step: Unit) -> None:
        super().__init__()
        self.network, self.step = network, step
        self.unit, self.head = step.unit, step.head
        self.spatial = network.spatial

    def forward(self, features: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        state = list(given)
        threshold = None if self.head is None else state.pop()
        total = state.pop() if self.head is not None and state else None
        shares: list[Tensor] = []
        mass = output = None
        if not state:
            features = self.unit(features)
        else:
            mass, output = state
            runs = mass > 0
            if self.spatial:
                features = features + runs.to(features.dtype)[:, None] * self.unit.branch(features)
                shares = self._shares(runs)
            else:
                features = self.unit(features)
        if self.head is None:
            return (features, _added(output, mass, features), *shares[:1])
        assert threshold is not None
        score = self.head(features)
        total = score if total is None else total + score
        later = _remaining(total, mass, threshold)
        weight = (1 - later) if mass is None else mass - later
        goes_on = later.flatten(1).amax(dim=1) > 0
        return (features, _added(output, weight, features), goes_on, total, later, *shares)

    def _shares(self, runs: Tensor) -> list[Tensor]:
        here = runs.to(torch.float32)
        wide = nn.functional.max_pool2d(here[:, None], 3, stride=1, padding=1)[:, 0]
        active = here.double().mean(dim=(1, 2))
        block = self.network.block_share(self.step.k, wide.double().mean(dim=(1, 2)), active)
        return [block, active, (active > 0).double()]


def _remaining(total: Tensor, mass: Tensor | None, threshold: Tensor) -> Tensor:
    return remaining(total, None if mass is None else mass > 0, threshold)


def _added(output: Tensor | None, weight: Tensor | None, features: Tensor) -> Tensor:
    if weight is None:
        return features
    part = weight.to(features.dtype)[:, None] * features
    return part if output is None else output + part


def program_of(network: HaltingNetwork) -> Program:
    """The program of a network that halts."""
    steps: list[Any] = [Step(Part("stem", network.stem, (IMAGES,), ("x-0",)))]
    entering = "x-0"
    for group, members in enumerate(network.in_groups()):
        flag, state, output = "", f"x-{group + 1}", f"output-{group + 1}"
        total, mass = f"total-{group + 1}", f"mass-{group + 1}"
        for step in members:
            k = step.k
            reads = (entering,) if step.place == 0 else (state, mass, output)
            if not step.last:
                reads = (*reads, *(() if step.place == 0 else (total,)), "threshold")
            goes = f"on-{k}"
            writes = (state, output) if step.last else (state, output, goes, total, mass)
            names = _units(network, step)
            shares: dict[str, str] = {}
            if network.spatial and step.place:
                shares = {name: f"share-{name}" for name in names}
                writes = (*writes, *shares.values())
            part = Part(f"unit-{k}", _Unit(network, step), reads, writes)
            steps.append(Step(part, when=flag, charges=() if shares else names, shares=shares))
            flag = goes
        entering = output
    steps.append(Step(Part("classifier", network.classifier, (entering,), (LOGITS,))))

    def settings(knobs: Knobs) -> dict[str, Any]:
        return {"threshold": threshold_of(knobs, 1 - network.eps)}

    return Program("halting", RULE, steps, settings, {"threshold": torch.tensor(0.9)})


def _units(network: HaltingNetwork, step: Unit) -> tuple[str, ...]:
    names = [f"block-{step.k}"]
    if not step.last:
        names += [f"router-{step.k}"]
        names += [f"router-global-{step.k}"] if network.spatial else []
    return tuple(names)
