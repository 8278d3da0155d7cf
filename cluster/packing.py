"""How many trials share a device or a node: arithmetic on what a probe measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.resources import Node

ENOUGH = 0.95
"""So much of the best throughput that was measured is enough: fewer trials on a GPU wait less and need less memory."""
_MEMORY_USED = 0.9


@dataclass(frozen=True, slots=True)
class Packing:
    """`per_device` trials on a GPU (0 without), what each asks for, and what hinders more of them.

    `rate`: the throughput of one trial when so many share the device, as a part of that of one alone.
    """

    per_device: int
    cpus_per_trial: float
    gpus_per_trial: float
    rate: float
    limit: str


def on_gpu(
    throughput: Mapping[int, float], memory: float, device_memory: float, cpus_per_gpu: float, threads: int = 1
) -> Packing:
    """Trials on one GPU: the fewest that reach `ENOUGH` of the best throughput and fit its memory (bytes).

    `throughput` by how many trained at once, `memory` of one trial. Every trial gets at least `threads` CPUs.
    Raises `ValueError` where not even one fits.
    """
    fits = math.floor(_MEMORY_USED * device_memory / memory)
    if fits < 1:
        raise ValueError(f"one trial takes {memory / 1e9:.1f} GB, the GPU has {device_memory / 1e9:.1f} GB")
    cores = max(1, math.floor(cpus_per_gpu / threads))
    allowed = {count: rate for count, rate in throughput.items() if count <= min(fits, cores)}
    best = max(allowed.values())
    count = min(count for count, rate in allowed.items() if rate >= ENOUGH * best)
    limit = "the GPU's arithmetic: more trials at once train no more images"
    if count == max(allowed) and count < max(throughput):
        limit = "the GPU's memory" if fits <= cores else f"CPUs: {cpus_per_gpu:g} a GPU"
    elif count == max(throughput):
        limit = f"more than {count} trials at once were not measured"
    return Packing(
        count,
        max(threads, math.floor(cpus_per_gpu / count)),
        round(1 / count, 4) if count > 1 else 1.0,
        allowed[count] / count / throughput[1],
        limit,
    )


def on_cpus(throughput: Mapping[int, float], memory: float, cpus: float, host_memory: float, threads: int) -> Packing:
    """Trials on a node without GPUs: one for every `threads` cores, as far as memory goes (bytes).

    The throughput was measured on a machine whose cores are at least as many as the trials of the last level.
    """
    cores, fits = math.floor(cpus / threads), math.floor(_MEMORY_USED * host_memory / memory) if host_memory else 10**6
    if min(cores, fits) < 1:
        raise ValueError(
            f"one trial takes {threads} cores and {memory / 1e9:.1f} GB, the node has {cpus:g} and"
            f" {host_memory / 1e9:.1f} GB"
        )
    count = max(level for level in throughput if level <= max(1, cores))
    limit = "cores" if cores <= fits else "the node's memory"
    share = threads if cores <= fits else math.floor(cpus / fits)
    return Packing(0, float(share), 0.0, throughput[count] / count / throughput[1], limit)


def trials_an_hour(nodes: Sequence[Node], packing: Packing, seconds_alone: float, workers: int = 0) -> float:
    """Trials that the nodes finish in an hour, where one takes so many seconds alone."""
    count = sum(node.holds(packing.cpus_per_trial, packing.gpus_per_trial) for node in nodes)
    return 3600 * (min(workers, count) if workers else count) * packing.rate / seconds_alone
