"""A real Ray for the tests of this folder, started once."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def token() -> None:
    """A token before anything of Ray is imported: Ray reads it then and never again."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@pytest.fixture(scope="session")
def ray_address(token: None) -> Iterator[str]:
    """The address of a real one-node cluster with two CPUs, guarded by a token of its own."""
    from cluster.connect import prepare_environment

    prepare_environment(local=False, preload=["trainables.ray_trainable"])
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    from cluster.connect import connect

    connect(cluster.address)
    yield cluster.address
    import ray

    ray.shutdown()
    cluster.shutdown()
