"""What many tests share: quiet Ray settings, one thread, and a study's journal told by hand."""

from __future__ import annotations

import atexit
import gc
import os
import secrets
import shutil
import tempfile
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

from tests.support.command import Run, runner
from tests.support.once import shared

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What is remembered of a person's consent (`search.studies.trust`) never gets into the home of who runs the tests.
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="routefront-state-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)
shared()  # here, so that all processes of a run have one
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


# What `make quick` leaves out: fixtures that start Ray or servers or train a study, and files of long tests.
HEAVY_FIXTURES = {"ray_address", "nodes", "trained", "tiny", "template", "uri", "running", "start", "wheel", "driver"}
HEAVY_FILES = (
    "tests/mlflow", "tests/benchmarks", "tests/cluster/test_live_cluster.py", "tests/cluster/test_connect.py",
    "tests/cluster/manifests/test_slurm_script.py", "tests/search/promotion", "tests/search/tracking",
    "tests/search/studies", "tests/search/tune", "tests/search/report", "tests/search/state/test_kept.py",
    "tests/search/engine/test_donors.py", "tests/search/engine/test_shared_stages.py", "tests/search/simulation",
    "tests/trainables/networks", "tests/trainables/training", "tests/trainables/worker", "tests/trainables/inference",
    "tests/trainables/methods", "tests/trainables/execution", "tests/trainables/diagnostics", "tests/test_packaging.py",
    "tests/trainables/test_conformance.py", "tests/security/test_local_ray.py", "tests/security/test_models.py",
    "tests/security/test_secrets.py", "tests/security/test_hostile.py", "tests/search/test_strange_paths.py",
    "tests/search/commands/test_streams.py", "tests/security/test_images.py", "tests/security/test_neighbours.py",
    "tests/security/test_limits.py", "tests/security/test_not_ours.py", "tests/trainables/data/test_hybrid.py",
    "tests/trainables/data/test_clutter.py", "tests/trainables/test_plug_ins.py", "tests/search/planning",
    "tests/search/sampling/test_optuna_surrogate.py",
)  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--quick``: no Ray, no servers, no trainings."""
    parser.addoption("--quick", action="store_true", help="leave out what starts Ray or servers, or trains for long")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """Collect garbage once behind all imports, and no more of what they made: it took a quarter of the collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long files first (`--no-loadscope-reorder` keeps this order among the workers); with ``--quick`` none of them."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))
    if config.getoption("--quick"):
        kept = [item for item in items if not _heavy(item)]
        config.hook.pytest_deselected(items=[item for item in items if _heavy(item)])
        items[:] = kept


def _heavy(item: pytest.Item) -> bool:
    return bool(HEAVY_FIXTURES & set(getattr(item, "fixturenames", ()))) or item.nodeid.startswith(HEAVY_FILES)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What each folder took, seconds of all workers together: later work has a budget out of these."""
    spent: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = report.nodeid.partition("::")[0].rpartition("/")[0]
                spent[folder] += report.duration
                counts[folder] += report.when == "call"
    if spent:
        terminalreporter.section("seconds by folder")
        for folder, seconds in spent.most_common():
            terminalreporter.line(f"{seconds:8.1f}  {counts[folder]:5d} tests  {folder}")
