"""Latency of an image in milliseconds: the one measurement for curves, queries and promotion."""

from __future__ import annotations

import itertools
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.contracts.objective import Timing
from trainables.data.encoded import Images
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.prepare import prepared

PASSES = 30
SECONDS = 0.5
"""A figure is the median of `PASSES` passes, or of as many as fit into so many seconds a figure, at least `LEAST`."""
LEAST = 5


@torch.inference_mode()
@ieee_float32()
def milliseconds(
    network: RoutedNetwork, images: Images, knobs: Sequence[Knobs], size: int = 1, *, passes: int = PASSES
) -> list[float]:
    """Median milliseconds of an image in batches of a size under each of several knobs, on this machine as it is.

    The network is prepared for inference as it is served (`trainables.inference.prepare.prepared`). Real `images`
    decide what is computed: each pass takes other ones, all knobs in turn, so that whatever else runs disturbs them
    alike. Fewer images than one batch are repeated. A first pass warms up and is not counted.
    """
    return [float(np.median(times)) for times in _passes(network, images, knobs, size, passes)]


@torch.inference_mode()
@ieee_float32()
def repeated(
    network: RoutedNetwork, images: Images, knobs: Sequence[Knobs], timing: Timing
) -> list[tuple[float, float, float]]:
    """As `milliseconds`, several times over: by knobs the median, least and most of the repeats' medians.

    The median of the passes of a repeat leaves out passes that something else disturbed, the median of the repeats a
    whole repeat that was. Threads are the processor's, set for the measurement alone.
    """
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(timing.threads)
        each = max(LEAST, PASSES // timing.repeats)
        found = [
            [float(np.median(times)) for times in _passes(network, images, knobs, timing.batch, each)]
            for _ in range(timing.repeats)
        ]
    finally:
        torch.set_num_threads(before)
    return [(float(np.median(taken)), min(taken), max(taken)) for taken in zip(*found, strict=True)]


def machine_of(device: torch.device) -> str:
    """What a latency was measured on: the model of the GPU, or of the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return " ".join((named or platform.processor() or platform.machine() or "unknown processor").split())[:100]


def _passes(
    network: RoutedNetwork, images: Images, knobs: Sequence[Knobs], size: int, passes: int
) -> list[list[float]]:
    """Milliseconds an image of every pass, by knobs."""
    training = network.training
    network.eval()
    fast = prepared(network)
    network.train(training)
    batches = [batch for batch in itertools.islice(images.split(size), passes + 1) if len(batch) == size]
    if not batches:
        whole = torch.cat(list(images.split(max(1, len(images)))))
        batches = [whole.repeat(-(-size // len(whole)), 1, 1, 1)[:size]]
    # as networks are trained, and as they are served
    batches = [batch.contiguous(memory_format=torch.channels_last) for batch in batches]
    taken: list[list[float]] = [[] for _ in knobs]
    ending = float("inf")
    for number in range(passes + 1):
        batch = batches[number % len(batches)]
        for times, each in zip(taken, knobs, strict=True):
            generator = torch.Generator(batch.device).manual_seed(int(each.get("seed", 0)))
            _wait_for(batch.device)
            started = time.perf_counter()
            fast.infer(batch, each, generator=generator)
            _wait_for(batch.device)
            if number:
                times.append(1000 * (time.perf_counter() - started) / size)
        if not number:
            ending = time.perf_counter() + SECONDS * len(knobs)
        elif number >= LEAST and time.perf_counter() > ending:
            break
    return taken


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
