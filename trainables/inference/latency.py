"""Latency of an image in milliseconds: the one measurement for curves, queries and promotion."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import numpy as np
import torch

from trainables.contracts.network import Knobs, RoutedNetwork
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
    return [float(np.median(times)) for times in taken]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
