"""What many tests share: quiet Ray settings, one thread, and a study's journal told by hand."""

from __future__ import annotations

import os
import secrets

import pytest

from tests.support.command import Run, runner

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Before anything imports Ray, which reads them then and never again.
os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: (exit code, stdout, stderr)."""
    return runner(monkeypatch, capfd)


@pytest.fixture
def story() -> type:
    """The class `Story`: a study of some methods, told by hand."""
    from tests.support.story import Story

    return Story


# Files of few but long tests, which begin first, so that no worker is left with them at the end.
LONG = (
    "test_live_cluster.py",
    "test_process.py",
    "test_server.py",
    "test_project.py",
    "test_object_storage.py",
    "test_slurm_script.py",
    "test_cli.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (`--no-loadscope-reorder` keeps this order among the workers)."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
