"""The hard pass of a gated network under one setting: what is served, and where every call counts.

Nothing branches, so rows are images. Where the router reads pooled features (`fused_routers`), their
sums are kept from gate to gate and renewed only where a block ran; a single image on a CPU takes its
decisions as numbers, without masks.

Shape legend: B images, G gates, k chosen rows, c channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.execution import Sums, overwriting

if TYPE_CHECKING:
    from trainables.networks.gated import GatedResNet


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
