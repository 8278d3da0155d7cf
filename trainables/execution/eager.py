"""Calls that run as they are written, also in a network with compiled regions."""

from __future__ import annotations

import contextlib
import sys
from contextlib import AbstractContextManager

import torch


def eagerly() -> AbstractContextManager[object]:
    """Within, nothing is compiled and nothing compiled is called: for batches whose shape changes from call to call.

    PyTorch's own way loads its compiler, which takes three seconds; a process without it has compiled nothing.
    """
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()
