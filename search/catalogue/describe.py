"""Methods and networks as plain records, for `routefront methods` and `routefront describe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from search.errors import InputError
from spaces.space import Parameter, nearest
from trainables.contracts.method import Method, config_dict
from trainables.contracts.network import RoutedNetwork, Task
from trainables.execution.macs import counted
from trainables.registry import get_method


def _parameter(parameter: Parameter) -> dict[str, Any]:
    record: dict[str, Any] = {"takes": parameter.describe(), "stage": parameter.stage}
    if parameter.when is not None:
        record["when"] = {parameter.when.parameter: list(parameter.when.values)}
    return record


def method_record(method: Method) -> dict[str, Any]:
    """A method as `routefront methods --json` prints it."""
    return {
        "name": method.name,
        "title": method.title,
        "paper": method.paper,
        "variants": list(method.variants),
        "networks": list(method.networks),
        "knobs": dict(method.knobs),
        "space": {name: _parameter(parameter) for name, parameter in method.space.parameters.items()},
        "published": {k: list(v) if isinstance(v, tuple) else v for k, v in method.published.items()},
        "defaults": config_dict(method.Config()),
    }


def macs_by_part(network: RoutedNetwork) -> dict[str, dict[str, int]]:
    """MACs per image by part (stem, blocks, shortcuts, skips, router ...) and kind (conv, linear, lstm).

    Everything is counted once: both what runs a block and what goes around it.
    """
    task = network.task
    network.eval()
    with counted(network) as tally, torch.no_grad():
        network(torch.zeros(1, *task.image))
    parts: dict[str, dict[str, int]] = {}
    for name, macs in tally.items():
        part = "shortcuts" if ".shortcut" in name else name.partition(".")[0]
        module = network.get_submodule(name)
        kinds = {
            "conv": nn.Conv1d | nn.Conv2d | nn.Conv3d,
            "linear": nn.Linear,
            "lstm": nn.LSTM | nn.LSTMCell,
            "attention": nn.MultiheadAttention,
        }
        kind = next((word for word, types in kinds.items() if isinstance(module, types)), "functions")
        parts.setdefault(part, {}).setdefault(kind, 0)
        parts[part][kind] += macs
    return parts


def network_description(
    name: str, values: Mapping[str, Any], *, classes: int = 10, image_size: int | Sequence[int] = 32, channels: int = 3
) -> dict[str, Any]:
    """One configured network as `routefront describe --json` prints it; MACs per image.

    Raises `InputError` for an unknown method, variant or key, and where the network does not fit.
    """
    try:
        method = get_method(name)
        variant = values.get("variant")
        if variant is not None and variant not in method.variants:
            raise ValueError(f"{name} has no variant {variant!r}{nearest(str(variant), method.variants)}")
        config = method.configure(values)
        task = Task(
            classes=classes,
            size=image_size if isinstance(image_size, int) else (image_size[0], image_size[1]),
            channels=channels,
        )
        network = method.build(config, task)
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "method": name,
        "variant": config.variant,
        "network": config.network,
        "params": sum(parameter.numel() for parameter in network.parameters()),
        "params_by_part": network.params_by_part(),
        "macs_by_part": macs_by_part(network),
        "macs_full": network.macs_full,
        "macs_min": network.macs_min,
        "macs_fixed": network.fixed_macs,
        "units": [{"name": unit.name, "kind": unit.kind, "macs": unit.macs} for unit in network.units],
        "exits": [{"name": leaving.name, "macs": leaving.macs} for leaving in network.exits],
        "paper_cost": method.paper_cost(network) if method.paper_cost else {},
        "config": config_dict(config),
    }
