"""A real Ray for the tests of this folder, started once."""

from __future__ import annotations

import shutil
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
def trained(tmp_path_factory: pytest.TempPathFactory, digits_small: Data) -> Path:
    """A root with the study `tiny`, finished."""
    from search.study import Study
    from tests.support.promoting import spec, train

    root = tmp_path_factory.mktemp("trained")
    train(Study.create(spec(), root=root, data=digits_small), digits_small)
    return root


@pytest.fixture
def tiny(trained: Path, tmp_path: Path) -> Study:
    """The study in a root of its own; artifacts of the first root stay where they are."""
    from search.study import Study

    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    return Study.load("tiny", root=tmp_path)


@pytest.fixture
def registry(tiny: Study, tmp_path: Path) -> str:
    """The address of the MLflow beside the study."""
    from search.tracking.server import default_uri

    return default_uri(tmp_path)


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database: making one takes seconds, copying it none."""
    from search.tracking.server import quiet

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    quiet().MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tmp_path: Path, template: Path) -> str:
    """The address of an empty MLflow database."""
    from search.tracking.server import default_uri

    shutil.copy(template, tmp_path / "mlflow.db")
    return default_uri(tmp_path)
