"""Networks out of checkpoints: to go on with, and prepared as they are served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from trainables.checkpoints import NETWORK, CheckpointError, config_of, read_record, read_tensors
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork, Task
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.prepare import prepared
from trainables.registry import get_method


def load_network(folder: Path, device: torch.device | str = "cpu") -> tuple[Method, RoutedNetwork, dict[str, Any]]:
    """The method, the network in eval mode and the record of a checkpoint."""
    record = read_record(folder)
    method = get_method(record["method"])
    network = method.build(config_of(method, record), Task(**record["task"]))
    try:
        network.load_state_dict(read_tensors(folder, NETWORK))
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"checkpoint {folder} is of another network: {reason}") from None
    return method, network.to(device).eval(), record


def load_prepared(folder: Path, device: torch.device | str = "cpu") -> RoutedNetwork:
    """The network of a checkpoint as it is served: on its device, in eval mode, prepared for inference.

    On a GPU its `infer` and `sweep` compute in IEEE float32, as its curve was measured.
    """
    network = prepared(load_network(folder, device)[1])
    if torch.device(device).type == "cuda":
        network.infer = ieee_float32()(network.infer)
        network.sweep = ieee_float32()(network.sweep)
    return network
