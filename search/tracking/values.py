"""Values as MLflow takes them: names, nested parameters, diagnostics, the images. Imports no MLflow."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

_UNNAMEABLE = re.compile(r"[^\w\-. /:]")  # what MLflow refuses in the name of a metric or a parameter

_SCALARS = ("acc", "macs", "K", "n_paths", "compute_pct", "seconds", "share_of_time")
_BY_COPY = ("consistency", "kl_aug")
_BY_NUMBER = ("exit_acc", "exit_frac", "exit_acc_given_exit", "ponder", "ponder_std", "ponder_map_std")


def diagnostic_metrics(found: Mapping[str, Any]) -> dict[str, float]:
    """The scalars of a trial's diagnostics by metric name; what was measured on no image is left out.

    Consistency is a share of the images here, so that validation splits of different sizes compare.
    """
    named: dict[str, float | None] = {name: found[name] for name in _SCALARS if name in found}
    for name in _BY_COPY:
        scale = found["images"] if name == "consistency" else 1
        named |= {f"{name}/{copy}": value / scale for copy, value in found[name].items()}
    for name in _BY_NUMBER:  # exits, groups
        named |= {f"{name}/{i}": value for i, value in enumerate(found.get(name, []), start=1)}
    named |= {f"skip_ratio/{block}": r for block, r in zip(found["blocks"], found["skip_ratio"], strict=True)}
    return {f"diagnostics/{name}": float(value) for name, value in named.items() if value is not None}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested values as MLflow parameters: dotted names, text; what is None is left out."""
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{name}.")
        elif value is not None:
            found[plain_name(f"{prefix}{name}")] = value if isinstance(value, str) else json.dumps(value)
    return found


def plain_name(text: str) -> str:
    """A name as MLflow takes it for a metric or a parameter."""
    return _UNNAMEABLE.sub("_", text)


def dataset_input(data: Mapping[str, Any]) -> dict[str, str]:
    """The images of a study as the fields of an `mlflow.entities.Dataset`, from the study's first event.

    MLflow knows a data set by name and digest, so that studies over the same images share one.
    """
    fields = {
        "name": data["name"],
        "digest": data["hash"][:16],  # MLflow takes 36 characters
        "source_type": "local",
        "source": json.dumps({"uri": data["name"]}),
    }
    if data.get("task", {}).get("classes"):
        size, channels = data["task"]["size"], data["task"]["channels"]
        edges = [size, size] if isinstance(size, int) else size
        tensor = {"features": ("uint8", [-1, channels, *edges]), "targets": ("int64", [-1])}
        fields["schema"] = json.dumps({"mlflow_tensorspec": {k: _tensor(*v) for k, v in tensor.items()}})
    if any(data.get("counts", ())):
        images = dict(zip(("train", "validation", "test"), data["counts"], strict=True))
        fields["profile"] = json.dumps({**images, "classes": len(data.get("classes", ()))})
    return fields


def _tensor(dtype: str, shape: list[int]) -> str:
    return json.dumps([{"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}}])
