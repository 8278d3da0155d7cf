"""Measures here what a study's trials need (memory, time); computes how many share a device of a cluster.

Three networks of the study's space are trained for a moment, alone and several at once: one that costs
little, one in the middle, one of the largest. Where the cluster has GPUs and this machine has none, the
memory of the largest is estimated, and nothing is said of speed.
"""

from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cluster.packing import Packing, on_cpus, on_gpu, trials_an_hour
from cluster.processors import usable_cpus
from cluster.resources import Node, misfit, slots
from search.errors import InputError
from search.planning.creation import built_of
from search.planning.forecast import forecast
from search.spec.study import StudySpec
from spaces.space import drawn
from trainables.registry import get_method
from trainables.worker.gpus import described, seen
from trainables.worker.probe import Prober, device_estimate

if TYPE_CHECKING:
    from trainables.data.splits import Data

_DRAWS, _GPU_LEVELS = 24, (1, 2, 4, 8)
_SIZES = {"small": 0.1, "middle": 0.5, "large": 0.95}


@dataclass(slots=True)
class Size:
    """A network of the study and what the probe said; `epoch_seconds` alone, by images per second with its views."""

    name: str
    config: dict[str, Any]
    params: int
    macs_full: int
    views: int
    throughput: dict[int, float] = field(default_factory=dict)
    memory: float = 0.0
    device_memory: float = 0.0
    epoch_seconds: float | None = None


def sizes_of(spec: StudySpec, data: Data) -> list[Size]:
    """A cheap, a middling and a large network of the study's space, by MACs of a training image with its views."""
    spaces, rng, found = spec.spaces(), random.Random(spec.seed), []
    for number in range(_DRAWS):
        name = list(spaces)[number % len(spaces)]
        method, values = get_method(name), drawn(spaces[name], rng, {})
        network = built_of(method, values, data.task)
        views = method.views(network.config)
        params = sum(parameter.numel() for parameter in network.parameters())
        found.append(Size("", {"method": name, **values}, params, network.macs_full, views))
    found.sort(key=lambda size: size.macs_full * size.views)
    chosen: dict[int, Size] = {}
    for name, share in _SIZES.items():
        place = min(len(found) - 1, round(share * (len(found) - 1)))
        found[place].name = name
        chosen[place] = found[place]
    return list(chosen.values())


def here() -> Node:
    """The machine that asks, as a node."""
    cores = usable_cpus()
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return Node("", socket.gethostname(), cores, torch.cuda.device_count(), memory)


def plan(
    spec: StudySpec,
    data: Data,
    nodes: Sequence[Node],
    *,
    seconds: float = 3.0,
    studies: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Plain values: device, gpu (what its GPUs are, empty without one), sizes, packing, nodes, slots, trials_an_hour,
    limit and the lines of ``[resources]``.

    Raises `InputError` where no node can hold a trial, or the probe fails.
    """
    machine, gpus = here(), any(node.gpus for node in nodes)
    device = "cuda" if gpus and machine.gpus else "cpu"
    try:
        cards = described(seen()) if device == "cuda" else {}
    except ValueError as error:
        raise InputError(f"this machine's GPU: {error}") from None
    threads = max(1, int(spec.resources.cpus_per_trial))
    if not slots(nodes, threads, 0):
        raise InputError(misfit(nodes, threads, spec.resources.gpus_per_trial))
    sizes = sizes_of(spec, data)
    most = max(_GPU_LEVELS) if device == "cuda" else max(1, min(8, math.floor(machine.cpus / threads)))
    try:
        with Prober(data, most=most, threads=threads, device=device) as prober:
            for size in sizes:
                for level in prober.levels:
                    say(f"probing the {size.name} network, {level} at once")
                    _measure(prober, size, level, seconds)
    except RuntimeError as error:
        raise InputError(f"the probe could not train: {error}") from None
    shares = _likely_epochs(spec, studies)
    for size in sizes:
        size.epoch_seconds = len(data.train) * size.views / size.throughput[1]
    guessed = gpus and device == "cpu"
    try:
        packing = _packing(sizes, nodes, threads, data, guessed)
        if not slots(nodes, packing.cpus_per_trial, packing.gpus_per_trial):
            raise ValueError(misfit(nodes, packing.cpus_per_trial, packing.gpus_per_trial))
    except ValueError as error:
        raise InputError(str(error)) from None
    alone = sum(size.epoch_seconds or 0.0 for size in sizes) / len(sizes) * shares
    rate = None if guessed else trials_an_hour(nodes, packing, alone, spec.resources.workers)
    fit = slots(nodes, packing.cpus_per_trial, packing.gpus_per_trial)
    limit = packing.limit
    if spec.resources.workers and spec.resources.workers < fit:
        limit = f"resources.workers = {spec.resources.workers}"
    elif spec.budget.trials < fit:
        limit = f"budget.trials = {spec.budget.trials}, less than the {fit} that fit at once"
    return {
        "study": spec.name,
        "device": torch.cuda.get_device_name(0) if device == "cuda" else f"{machine.cpus:g} CPU cores",
        "gpu": cards,
        "sizes": [asdict(size) for size in sizes],
        "nodes": [node.record() for node in nodes],
        "packing": asdict(packing),
        "slots": fit,
        "epochs_a_trial": shares,
        "trials_an_hour": rate,
        "limit": limit,
        "estimated": guessed,
        "resources": _resources(packing, sizes, gpus),
    }


def _measure(prober: Prober, size: Size, level: int, seconds: float) -> None:
    try:
        found = prober.measure(size.config, level, seconds)
    except MemoryError:
        if level == 1:
            raise InputError(f"one trial of {size.config} does not fit this machine's memory") from None
        return  # so many do not fit together
    size.throughput[level] = found.images_per_second
    size.memory, size.device_memory = max(size.memory, found.memory), max(size.device_memory, found.device_memory)


def _packing(sizes: Sequence[Size], nodes: Sequence[Node], threads: int, data: Data, guessed: bool) -> Packing:
    """By the throughput of the middling network and the memory of the one that takes most."""
    middle = next((size for size in sizes if size.name == "middle"), sizes[-1])
    with_gpus = [node for node in nodes if node.gpus]
    if not with_gpus:
        least = min(nodes, key=lambda node: node.cpus)
        memory = max(size.memory for size in sizes)
        return on_cpus(middle.throughput, memory, least.cpus, least.memory, threads)
    cores = min(node.cpus / node.gpus for node in with_gpus)
    if guessed:
        memory = max(device_estimate(size.config, data) for size in sizes)
        for size in sizes:
            size.device_memory = device_estimate(size.config, data)
        return on_gpu({1: 1.0}, memory, math.inf, cores, threads)
    total = float(torch.cuda.get_device_properties(0).total_memory)
    return on_gpu(middle.throughput, max(size.device_memory for size in sizes), total, cores, threads)


def _likely_epochs(spec: StudySpec, studies: Path | None) -> float:
    """Epochs that a trial gets on average."""
    return forecast(spec, studies)["likely_epochs"] / spec.budget.trials


def _resources(packing: Packing, sizes: Sequence[Size], gpus: bool) -> dict[str, Any]:
    """The table ``[resources]`` of the study file; memory is twice what the largest took, in whole 100 MB."""
    memory = 2 * max(size.memory for size in sizes)
    found: dict[str, Any] = {"cpus_per_trial": packing.cpus_per_trial, "memory": f"{math.ceil(memory / 1e8) * 100}MB"}
    return found | ({"gpus_per_trial": packing.gpus_per_trial} if gpus else {})
