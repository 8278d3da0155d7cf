from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _drawn_alike() -> None:
    """Weights that a test draws without a generator are the same whichever tests ran before it."""
    torch.manual_seed(0)
