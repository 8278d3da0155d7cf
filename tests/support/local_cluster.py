"""A real Ray cluster on this machine, with the processes that trials need and no others."""

from __future__ import annotations

from typing import Any


def cluster(num_cpus: int) -> Any:
    """A `ray.cluster_utils.Cluster` whose head has so many CPUs.

    Dashboard, autoscaler, log monitor and metrics are left out, as in the local Ray of a study without an address
    (`cluster.local`): they take four seconds of processor time a start and some all along; no test of a study asks
    them.
    """
    from cluster import local
    from cluster.connect import prepare_environment

    prepare_environment(local=True)
    from ray.cluster_utils import Cluster

    with local.lean(alone=False):  # nodes join it
        return Cluster(initialize_head=True, head_node_args={"num_cpus": num_cpus, "include_dashboard": False})
