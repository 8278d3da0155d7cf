"""SGD and Adam without PyTorch's compiler, whose import would take longer than everything else a worker imports.

PyTorch's optimisers import `torch._dynamo` in their first call, to keep themselves out of graphs that are
being compiled. Here only regions of networks are compiled (`compiled` of a configuration), never an
optimiser, so there is nothing to keep out of; the arithmetic is PyTorch's own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch.optim import SGD as PlainSGD
from torch.optim import Adam, Optimizer

for _function in vars(Optimizer).values():
    _raw = inspect.unwrap(_function) if inspect.isfunction(_function) else _function
    if _raw is not _function:  # as `torch._compile._disable_dynamo` remembers it
        _raw.__dynamo_disable = _raw

_SGD_STEP, _ADAM_STEP = inspect.unwrap(PlainSGD.step), inspect.unwrap(Adam.step)


class SGD(PlainSGD):
    """`torch.optim.SGD`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.SGD`."""
        return _SGD_STEP(self, closure)


class FusedAdam(Adam):
    """`torch.optim.Adam`."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """See `torch.optim.Adam`."""
        return _ADAM_STEP(self, closure)
