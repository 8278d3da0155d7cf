"""What many tests share: quiet Ray settings, one thread, and a study's journal told by hand."""

from __future__ import annotations

import os
import secrets

import pytest

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Ray, which reads them then and never again.
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


@pytest.fixture
def story() -> type:
    """The class `Story`: a study of some methods, told by hand."""
    from tests.story import Story

    return Story
