"""Networks out of checkpoints: to go on with, and prepared as they are served."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spaces import own_networks
from trainables.checkpoints import NETWORK, CheckpointError, config_of, read_record, read_tensors
from trainables.contracts.method import Method
from trainables.contracts.network import Inference, Knobs, RoutedNetwork, Task
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.cascade import Cascade, Step
from trainables.inference.prepare import prepared
from trainables.normalisation import Normalisation
from trainables.registry import get_method

SIZES = (1, 16, 128, 1024)
"""Sizes of batches for which `Forms` measures."""
AGREE = 1e-4
"""Logits of two forms agree where they differ by no more than this share of the largest."""


def load_network(folder: Path, device: torch.device | str = "cpu") -> tuple[Method, RoutedNetwork, dict[str, Any]]:
    """The method, the network in eval mode and the record of a checkpoint."""
    record = read_record(folder)
    method = get_method(record["method"])
    with own_networks.carrying(str(record.get("source", ""))):
        network = method.build(config_of(method, record), Task(**record["task"]))
    try:
        network.load_state_dict(read_tensors(folder, NETWORK))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"checkpoint {folder} is of another network: {reason}") from None
    return method, network.to(device).eval(), record


def trust_source(folder: Path) -> None:
    """Let this process run the file that the network of a checkpoint comes from, where it is of a person's own.

    Whoever calls this trusts whoever wrote the checkpoint: it is a model of the person's own registry.
    """
    own_networks.trust(str(read_record(folder).get("source", "")))


def load_prepared(folder: Path, device: torch.device | str = "cpu") -> RoutedNetwork:
    """The network of a checkpoint as it is served: on its device, in eval mode, prepared for inference.

    On a GPU its `infer` and `sweep` compute in IEEE float32, as its curve was measured, and `infer` takes the form
    that is faster for the size of a batch (`Forms`): MACs of the dense one are those of everything.
    """
    network = prepared(load_network(folder, device)[1])
    if torch.device(device).type == "cuda":
        network.infer = ieee_float32()(Forms(network, device).infer)
        network.sweep = ieee_float32()(network.sweep)
    return network


def load_cascade(folder: Path, record: Mapping[str, Any], device: torch.device | str = "cpu") -> Cascade:
    """The cascade of a folder whose members' checkpoints lie below it, as it is served.

    `record`: ``kind``, ``answer`` and ``members``, each with its ``folder``, ``knobs``, ``temperature`` and
    ``normalisation``. Settings of one checkpoint are one network.
    """
    networks: dict[str, RoutedNetwork] = {}
    steps = []
    for member in record["members"]:
        name = member["folder"]
        if Path(name).name != name:
            raise CheckpointError(f"member {name!r} leads out of {folder}")
        if name not in networks:
            networks[name] = load_prepared(folder / name, device)
        normalisation = Normalisation.of(member["normalisation"])
        steps.append(Step(networks[name], normalisation, member["knobs"], member["temperature"]))
    return Cascade(steps, record["kind"], record["answer"])


class Forms:
    """Two forms of one hard pass, skipping and dense, and a table of which is faster, measured here on random images.

    Skipping waits for a GPU at every gate and launches small kernels; computing everything does neither, and is faster
    for small batches. The table is measured at the default setting; where the two forms do not agree on what is
    answered and decided, the dense one is never taken.

    `faster_dense`: by the size of a batch whether the dense form is faster; the entry of the next larger size counts.
    """

    def __init__(self, network: RoutedNetwork, device: torch.device | str, sizes: Sequence[int] = SIZES) -> None:
        self._skipping, self._dense = network.infer, network.dense
        self.faster_dense: dict[int, bool] = {}
        draw = torch.Generator().manual_seed(0)
        for size in sizes:
            images = torch.randn(size, *network.task.image, generator=draw).to(device)
            images = images.contiguous(memory_format=torch.channels_last)
            try:
                self.faster_dense[size] = self._pays(images)
            except torch.OutOfMemoryError:
                self.faster_dense[size] = False

    @torch.inference_mode()
    @ieee_float32()
    def _pays(self, images: Tensor) -> bool:
        dense, skipping = self._dense(images, {}), self._skipping(images, {})
        if dense is None or not torch.equal(dense.decisions, skipping.decisions):
            return False
        off = (dense.logits - skipping.logits).abs().max() / skipping.logits.abs().max()
        if not off.item() <= AGREE:
            return False
        return _seconds(lambda: self._dense(images, {})) < _seconds(lambda: self._skipping(images, {}))

    def dense_for(self, count: int) -> bool:
        """Whether a batch of so many images is computed densely."""
        larger = [size for size in self.faster_dense if size >= count]
        return self.faster_dense[min(larger) if larger else max(self.faster_dense)]

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """See `RoutedNetwork.infer`."""
        if len(inputs) and self.dense_for(len(inputs)):
            found = self._dense(inputs, knobs, generator=generator)
            assert found is not None
            return found
        return self._skipping(inputs, knobs, generator=generator)


def _seconds(call: Callable[[], object], repeats: int = 5) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return sorted(taken)[repeats // 2]
