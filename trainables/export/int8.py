"""Parts in eight bits: onnxruntime's own static quantiser, calibrated on images that the parts themselves see.

Convolutions over maps are quantised (weights by output channel, activations by tensor; both ends of a part stay
float32). What lies behind a pooling of whole maps, routers and classifiers, stays float32: it is a thousandth of the
work, and it decides. Weights have seven bits, since processors without VNNI saturate at eight (onnxruntime's
`reduce_range`).

MACs are counted as before: an int8 multiplication is one, too.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainables.export.folder import file_record, seal
from trainables.export.graphs import quietly, tool
from trainables.export.program import ExportError
from trainables.export.routefront_runner import Runner, read_manifest

INT8 = "int8"
CALIBRATION = 256
"""Images whose largest and smallest activations scale the quantised ones."""
_POOLS = ("ReduceMean", "GlobalAveragePool")
_BATCH = 64


def add_int8(folder: Path, images: np.ndarray) -> dict[str, Any]:
    """Write a quantised form of every part with convolutions into an exported folder; the new manifest.

    `images` (n, c, h, h), uint8, without labels. The parts see what they see under the promoted setting, and where they
    see nothing then, under the dearest one. ``precisions.int8`` of the manifest lists the new files, with the settings
    of float32, whose accuracy is to be measured anew (`measured`). Raises `ExportError` where nothing is quantised.
    """
    manifest = read_manifest(folder)
    tool("onnx")
    seen = _inputs(folder, manifest, images[:CALIBRATION])
    parts = {}
    for name, record in manifest["parts"].items():
        if seen.get(name) and (content := _quantised(folder / record["file"], seen[name])) is not None:
            file = f"{name}.{INT8}.onnx"
            (folder / file).write_bytes(content)
            parts[name] = {**record, **file_record(file, content)}
    if not parts:
        raise ExportError("no part has a convolution that images come to: there is nothing to quantise")
    manifest["precisions"] = {INT8: {"parts": parts, "settings": manifest["settings"]}}
    return seal(folder, manifest)


def measured(folder: Path, settings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Write what int8 reaches at every setting of the curve into the manifest; the new manifest."""
    manifest = read_manifest(folder)
    manifest["precisions"][INT8]["settings"] = [dict(each) for each in settings]
    return seal(folder, manifest)


def _inputs(folder: Path, manifest: Mapping[str, Any], images: np.ndarray) -> dict[str, list[dict[str, np.ndarray]]]:
    """By part what it is given for some images, batch by batch."""
    runner, seen = Runner(folder), dict[str, list[dict[str, np.ndarray]]]()
    open_to = {name: list[dict[str, np.ndarray]]() for name in manifest["parts"]}
    for name, part in runner._parts.items():

        def run(given: list[np.ndarray], name: str = name, part: Any = part, run: Any = part.run) -> Any:
            open_to[name].append({key: np.array(value) for key, value in zip(part.inputs, given, strict=True)})
            return run(given)

        part.run = run
    dearest = max(manifest["settings"], key=lambda each: each["macs"])["values"]
    for values in (manifest["promoted"]["values"], dearest):
        for start in range(0, len(images), _BATCH):
            runner.predict(images[start : start + _BATCH], values=values)
        for name, batches in open_to.items():
            if batches and name not in seen:
                seen[name] = list(batches)
            batches.clear()
    return seen


def _quantised(path: Path, batches: Sequence[Mapping[str, np.ndarray]]) -> bytes | None:
    """The content of a part's quantised graph; None where it has no convolution over maps."""
    onnx, tools = tool("onnx"), importlib.import_module("onnxruntime.quantization")
    graph = onnx.load(str(path))
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}-{number}"  # they are told apart by names
    behind, left_out, there = set[str](), [], False
    for node in graph.graph.node:
        if node.op_type in _POOLS or behind & set(node.input):
            behind |= set(node.output)
        if node.op_type == "Conv":
            small = bool(behind & set(node.input))
            left_out += [node.name] if small else []
            there = there or not small
    if not there:
        return None

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(batches)

        def get_next(self) -> Any:
            return next(self.left, None)

    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch, quietly():
        before, after = Path(scratch) / "before.onnx", Path(scratch) / "after.onnx"
        onnx.save(graph, str(before))
        tools.quantize_static(
            str(before),
            str(after),
            Reader(),
            quant_format=tools.QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            nodes_to_exclude=left_out,
            per_channel=True,
            reduce_range=True,
            activation_type=tools.QuantType.QUInt8,
            weight_type=tools.QuantType.QInt8,
        )
        found = onnx.load(str(after))
    found.producer_name, found.producer_version = "routefront", ""
    onnx.checker.check_model(found)
    return found.SerializeToString(deterministic=True)
