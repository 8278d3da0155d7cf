"""A short measured probe: how fast trainings are, and what memory they take, when several share a machine or a GPU.

Every training is a process of its own, as a worker's is; those that are measured together begin together.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

import numpy as np
import torch

from spaces import own_networks
from trainables.data.splits import Data
from trainables.registry import get_method
from trainables.training.training import Training
from trainables.worker.machine import own_memory

_BATCHES = 4
_ANSWER_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Together:
    """`trials` trainings at once: training images (views counted) per second of all, bytes of the largest.

    `memory` is of the host, `device_memory` of the GPU (what the system says is in use, shared out), 0 without one.
    """

    trials: int
    images_per_second: float
    memory: float
    device_memory: float = 0.0


class Prober:
    """Processes that train for a moment when they are told. Use it as a context manager."""

    def __init__(self, data: Data, *, most: int, threads: int = 1, device: str = "cpu") -> None:
        context = multiprocessing.get_context("spawn")
        self._barriers: dict[int, Barrier] = {count: context.Barrier(count) for count in _levels(most)}
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(most):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, data, threads, device, self._barriers), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()

    @property
    def levels(self) -> list[int]:
        """How many trainings are measured together: 1, 2, 4, 8 ... as far as there are processes."""
        return sorted(self._barriers)

    def measure(self, config: Mapping[str, Any], trials: int, seconds: float) -> Together:
        """`trials` trainings of one configuration ({method, ...}) at once.

        Raises `MemoryError` where they do not fit together, `RuntimeError` where the training itself fails.
        """
        for pipe in self._pipes[:trials]:
            pipe.send((dict(config), trials, seconds, own_networks.trusted()))
        answers = [self._answer(pipe) for pipe in self._pipes[:trials]]
        failed = [answer for answer in answers if isinstance(answer, str)]
        if failed:
            kind = MemoryError if "memory" in failed[0].lower() else RuntimeError
            raise kind(failed[0])
        rates, memories, devices = zip(*answers, strict=True)
        return Together(trials, sum(rates), max(memories), max(devices) / trials)

    def _answer(self, pipe: Connection) -> Any:
        if not pipe.poll(_ANSWER_SECONDS):
            raise RuntimeError(f"a training of the probe said nothing for {_ANSWER_SECONDS:.0f} s")
        try:
            return pipe.recv()
        except EOFError:
            raise MemoryError("a process of the probe was killed: out of memory?") from None


def _levels(most: int) -> list[int]:
    return [count for count in (1, 2, 4, 8, 16) if count <= most]


def _serve(pipe: Connection, data: Data, threads: int, device: str, barriers: Mapping[int, Barrier]) -> None:
    """Train as told, over and over, until killed."""
    torch.set_num_threads(threads)
    while True:
        config, trials, seconds, sources = pipe.recv()
        own_networks.trust_digests(sources)
        try:
            found: Any = _run(config, data, device, seconds, barriers[trials])
        except Exception as error:
            barriers[trials].abort()
            found = f"{type(error).__name__}: {error}".splitlines()[0] or traceback.format_exc()
        pipe.send(found)


def _run(
    config: Mapping[str, Any], data: Data, device: str, seconds: float, barrier: Barrier
) -> tuple[float, float, float]:
    """(images per second, bytes of the host, bytes in use on the GPU) of one training among several."""
    method = get_method(config["method"])
    made = method.configure({key: value for key, value in config.items() if key != "method"})
    count = min(len(data.train), _BATCHES * made.batch_size)
    few = dataclasses.replace(data, train=data.train.take(np.arange(count)))

    def fresh() -> Training:
        training = Training(method, made, few, epochs=1_000_000, device=device)
        training.donor = ""  # which weights it begins with does not change what it costs
        return training

    training = fresh()
    training.step()  # allocations, algorithms chosen, files read
    barrier.wait(_ANSWER_SECONDS)
    images, began = 0, time.perf_counter()
    while (taken := time.perf_counter() - began) < seconds:
        try:
            images += training.step()["images"]
        except FloatingPointError:  # it diverged, which costs as much
            training = fresh()
    if device != "cuda":
        return images / taken, own_memory(), 0.0
    free, total = torch.cuda.mem_get_info()
    barrier.wait(_ANSWER_SECONDS)  # nobody leaves while others look
    return images / taken, own_memory(), float(total - free)


def device_estimate(config: Mapping[str, Any], data: Data) -> float:
    """Bytes that a training takes on a GPU, guessed without one.

    Weights, gradients and momentum (12 bytes a parameter), what every module hands on for a batch, kept for
    the backward pass, once more for workspaces, the images, and 600 MB for CUDA itself.
    """
    method = get_method(config["method"])
    made = method.configure({key: value for key, value in config.items() if key != "method"})
    network = method.build(made, data.task)
    kept = 0

    def count(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        nonlocal kept
        if isinstance(output, torch.Tensor) and not list(module.children()):
            kept += output.numel() * output.element_size()

    hooks = [module.register_forward_hook(count) for module in network.modules()]
    with torch.no_grad():
        network(torch.zeros(2, *data.task.image))
    for hook in hooks:
        hook.remove()
    batch = made.batch_size * method.views(made)
    images = sum(array.nbytes for split in (data.train, data.validation) for array in split.arrays)
    weights = 12 * sum(parameter.numel() for parameter in network.parameters())
    return weights + 2 * kept / 2 * batch + images + 600e6
