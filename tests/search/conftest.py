"""A real Ray for the tests of this folder, started once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from search.study import Study
    from trainables.data.splits import Data


@pytest.fixture(scope="session")
def ray_address() -> Iterator[str]:
    """The address of a real one-node cluster with two CPUs, guarded by a token of its own."""
    from cluster.connect import connect
    from tests.support.local_cluster import cluster as started

    cluster = started(num_cpus=2)

    connect(cluster.address)
    yield cluster.address
    import ray

    ray.shutdown()
    cluster.shutdown()


# -- promotion: a small study that was really trained, with MLflow beside it -----------------------


@pytest.fixture(scope="session")
def digits_small() -> Data:
    """The images of `tests.support.promoting.spec`."""
    from search.studies.stored import load_data
    from tests.support.promoting import spec

    return load_data(spec())


@pytest.fixture(scope="session")
def trained(digits_small: Data) -> Path:
    """A root with the study `tiny`, finished. It is only copied: all processes share it."""
    from search.study import Study
    from tests.support.once import once
    from tests.support.promoting import spec, train

    return once("trained", lambda root: train(Study.create(spec(), root=root, data=digits_small), digits_small))


@pytest.fixture
def tiny(trained: Path, tmp_path: Path) -> Study:
    """The study in a root of its own."""
    from search.study import Study
    from tests.support.promoting import copied

    copied(trained, tmp_path)
    return Study.load("tiny", root=tmp_path)


@pytest.fixture
def registry(tiny: Study, tmp_path: Path) -> str:
    """The address of the MLflow beside the study."""
    from search.tracking.server import default_uri

    return default_uri(tmp_path)


@pytest.fixture(scope="session")
def template() -> Path:
    """An MLflow database without runs and models, to be copied."""
    from tests.support.once import empty_registry

    return empty_registry()


@pytest.fixture
def uri(tmp_path: Path) -> str:
    """The address of an empty MLflow database."""
    from tests.support.once import registry_in

    return registry_in(tmp_path)
