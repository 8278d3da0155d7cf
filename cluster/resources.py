"""What a cluster holds: its nodes as Ray sees them now, and how many trials fit on them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

ALIVE, DRAINING = "alive", "draining"
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: `id` (Ray's, hexadecimal), host name, CPUs, GPUs, memory in bytes, alive or draining."""

    id: str
    host: str
    cpus: float
    gpus: float
    memory: float = 0.0
    state: str = ALIVE

    def holds(self, cpus_per_trial: float, gpus_per_trial: float) -> int:
        """How many trials it runs at once; one trial's share of a GPU lies on one GPU."""
        fit = math.floor(self.cpus / cpus_per_trial + _ROUNDING)
        if not gpus_per_trial:
            return fit
        if gpus_per_trial < 1:
            return min(fit, math.floor(self.gpus) * math.floor(1 / gpus_per_trial + _ROUNDING))
        return min(fit, math.floor(self.gpus / gpus_per_trial + _ROUNDING))

    def record(self) -> dict[str, Any]:
        """Everything, as plain values."""
        return asdict(self)


def nodes_of(ray: Any) -> list[Node]:
    """The living nodes of the connected cluster, in the order of their ids."""
    from ray._private.state import state  # Ray has no public word for nodes that are being drained

    draining = state.get_draining_nodes()
    found = []
    for node in ray.nodes():
        if node["Alive"]:
            has: Mapping[str, float] = node["Resources"]
            found.append(
                Node(
                    id=node["NodeID"],
                    host=node["NodeManagerHostname"],
                    cpus=has.get("CPU", 0.0),
                    gpus=has.get("GPU", 0.0),
                    memory=has.get("memory", 0.0),
                    state=DRAINING if node["NodeID"] in draining else ALIVE,
                )
            )
    return sorted(found, key=lambda node: node.id)


def node_of(actor: Any) -> str:
    """The id of the node on which an actor lives; empty where Ray does not know."""
    from ray._private.state import actors  # the public one asks the dashboard, which need not run

    found: Mapping[str, Any] = actors(actor._actor_id.hex()) or {}
    return str(found.get("Address", {}).get("NodeID", ""))


def slots(nodes: Iterable[Node], cpus_per_trial: float, gpus_per_trial: float) -> int:
    """How many trials the nodes run at once; what is being drained takes no more."""
    return sum(node.holds(cpus_per_trial, gpus_per_trial) for node in nodes if node.state == ALIVE)


def most_slots(ray: Any, cpus_per_trial: float, gpus_per_trial: float) -> int:
    """How many trials would run at once if the autoscaler had started all it may; 0 where there is none."""
    from ray._private.state import state

    most: Mapping[str, float] = state.get_max_resources_from_cluster_config() or {}
    if not most:
        return 0
    return Node("", "", most.get("CPU", 0), most.get("GPU", 0)).holds(cpus_per_trial, gpus_per_trial)


def room(ray: Any, nodes: Iterable[Node], cpus_per_trial: float, gpus_per_trial: float, wanted: int = 0) -> int:
    """How many trials to run at once: `wanted`, or as many as the nodes hold, or may hold where an autoscaler is."""
    share = cpus_per_trial, gpus_per_trial
    fit = max(slots(nodes, *share), most_slots(ray, *share))
    return min(wanted, fit) if wanted else fit


def misfit(nodes: Iterable[Node], cpus_per_trial: float, gpus_per_trial: float) -> str:
    """One line: what a trial needs that no node has."""
    offers = sorted({(node.cpus, node.gpus) for node in nodes if node.state == ALIVE}, reverse=True)
    has = ", ".join(f"{cpus:g} CPU and {gpus:g} GPU" for cpus, gpus in offers[:4]) or "nothing free"
    return (
        f"no trial fits: one needs {cpus_per_trial:g} CPU and {gpus_per_trial:g} GPU on one node; the nodes have {has}"
    )


def amounts(cpus_per_trial: float, gpus_per_trial: float, share: float = 1) -> dict[str, float]:
    """What Ray is asked for a trial that gets `share` trials' CPUs of a node: {"CPU": ..., "GPU": ...}, no zeros.

    A trial uses one GPU. Where it gets more than its own CPUs, it is to be alone, and it gets a whole GPU: Ray refuses
    amounts above one that are not whole, and what other trials leave of a GPU may be too little.
    """
    gpus = gpus_per_trial if share <= 1 else float(gpus_per_trial > 0)
    bundle = {"CPU": cpus_per_trial * share, "GPU": min(gpus, 1.0)}
    return {kind: amount for kind, amount in bundle.items() if amount}
