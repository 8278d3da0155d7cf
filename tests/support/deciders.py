"""Small networks of columns and batches for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Task
from trainables.contracts.recipe import Batch
from trainables.methods.decide import METHOD
from trainables.networks.columns.layers import Router
from trainables.networks.columns.network import ColumnNetwork

SMALL = Task(classes=3, size=8, channels=1)


def build(task: Task = SMALL, decided: float = 1.0, **values: Any) -> ColumnNetwork:
    """A small network whose routers have weights of size `decided` in their last layers (0: as built)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = METHOD.build(METHOD.configure({"network": "pyramid-3", "width": 0.25, **values}), task)
        assert isinstance(network, ColumnNetwork)
        for router in network.routers.values():
            assert isinstance(router, Router)
            nn.init.normal_(router.scores.weight, 0, decided)
            nn.init.normal_(router.scores.bias, 0, decided)
    return network


def batch_of(count: int = 6, task: Task = SMALL, share: float = 0.0, steps: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, task.channels, task.size, task.size, generator=generator)
    return Batch(images, torch.arange(count) % task.classes, generator=generator, share=share, steps=steps)


def terms_of(network: ColumnNetwork, batch: Batch) -> dict[str, Tensor]:
    assert METHOD.anneal is not None
    METHOD.anneal(network, batch.share, batch.steps)
    return METHOD.objective(network, batch, METHOD.phases(network.config)[0])
