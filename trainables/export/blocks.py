"""Backbones with gated residual blocks as parts: what lies between blocks, routers, shortcuts, branches.

Shape legend: B images.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainables.export.gated import RULE, settings_of
from trainables.export.program import IMAGES, LOGITS, Draw, Part, Program, Step
from trainables.networks.backbones.cutting import as_maps
from trainables.networks.backbones.network import GatedBackbone


class _Gate(nn.Module):
    """A router's answer: whether its block runs (B,)."""

    def __init__(self, network: GatedBackbone, gate: int) -> None:
        super().__init__()
        self.router, self.gate, self.layout = network.router, gate, network.layouts[gate]

    def forward(self, features: Tensor, limit: Tensor) -> Tensor:
        logit, _ = self.router(self.gate, as_maps(features, self.layout), features.new_zeros(features.shape[0], 0))
        return torch.sigmoid(logit) >= limit


class _Added(nn.Module):
    """A branch, added to what its block's shortcut left: that of the features themselves, or one computed before."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, features: Tensor, *short: Tensor) -> Tensor:
        return (short[0] if short else features) + self.branch(features)


def program_of(network: GatedBackbone) -> Program:
    """The program of a backbone with gated blocks. Its curve draws nothing."""
    steps: list[Step | Draw] = []
    begin = nn.Sequential(network.entry, network.plain[0])
    steps.append(Step(Part("begin", begin, (IMAGES,), ("x-0",))))
    for gate, (branch, short) in enumerate(zip(network.branches, network.shorts, strict=True)):
        state, flag, name = f"x-{gate}", f"run-{gate}", f"block-{gate}"
        router = Part(f"router-{gate}", _Gate(network, gate), (state, "threshold"), (flag,))
        steps.append(Step(router, charges=(f"router-{gate}",)))
        if isinstance(short, nn.Identity):
            steps.append(Step(Part(name, _Added(branch), (state,), (state,)), when=flag, charges=(name,)))
            behind = state
        else:
            behind = f"short-{gate}"
            steps.append(Step(Part(behind, short, (state,), (behind,))))
            steps.append(Step(Part(name, _Added(branch), (state, behind), (behind,)), when=flag, charges=(name,)))
        last = gate == network.gates - 1
        writes = LOGITS if last else f"x-{gate + 1}"
        steps.append(Step(Part(f"after-{gate}", network.plain[gate + 1], (behind,), (writes,))))
    return Program("gated", RULE, steps, settings_of(draws=False), {"threshold": torch.tensor(0.5)})
