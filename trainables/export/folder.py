"""The folder of an exported network: parts, manifest, runner (`docs/export.md` describes the format)."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainables.contracts.network import Knobs, RoutedNetwork
from trainables.export import routefront_runner as runner
from trainables.export.graphs import OPSET, onnx_parts, tool
from trainables.export.program import Program
from trainables.export.pt2 import pt2_parts
from trainables.export.single import single_graph
from trainables.normalisation import Normalisation

MANIFEST, RUNNER, SINGLE = "manifest.json", "routefront_runner.py", "single.onnx"
ONNX, PT2 = "onnx", "pt2"
"""Forms of parts."""
_TYPES = {1: "float", 7: "int64", 9: "bool", 11: "double"}


def write(
    folder: Path,
    network: RoutedNetwork,
    program: Program,
    *,
    settings: Sequence[Mapping[str, Any]],
    promoted: Knobs,
    classes: Sequence[str],
    normalisation: Normalisation,
    model: Mapping[str, Any],
    reference: Mapping[str, Any] | None = None,
    opset: int = OPSET,
    form: str = ONNX,
) -> dict[str, Any]:
    """Write parts, manifest and runner into an existing empty folder; the manifest.

    `settings`: the curve, each with ``knobs``, ``accuracy`` and ``macs`` (mean an image on validation). `model`: what
    the network says of itself. `reference`: counts of the validation images (`routefront_runner.figures_of`). `form`:
    `ONNX`, or `PT2` for parts of torch.export, without the file for single images. Raises `ExportError` for what cannot
    be exported.
    """
    parts, graphs = {}, {}
    if form == PT2:
        for name, (content, inputs, outputs) in pt2_parts(program, network, network.task.image).items():
            (folder / f"{name}.pt2").write_bytes(content)
            parts[name] = {**file_record(f"{name}.pt2", content), "inputs": inputs, "outputs": outputs}
    else:
        graphs = onnx_parts(program, network, network.task.image, opset)
        for name, graph in graphs.items():
            content = graph.SerializeToString(deterministic=True)
            (folder / f"{name}.onnx").write_bytes(content)
            parts[name] = {**file_record(f"{name}.onnx", content), **_tensors(graph)}
    manifest: dict[str, Any] = {
        "format": runner.FORMAT,
        "version": runner.VERSION,
        "model": dict(model),
        "form": form,
        "opset": opset if form == ONNX else None,
        "classes": list(classes),
        "image": {
            "channels": network.task.channels,
            "size": network.task.size,
            "normalisation": normalisation.record(),
        },
        "units": [{"name": unit.name, "kind": unit.kind, "macs": unit.macs} for unit in network.units],
        "fixed_macs": network.fixed_macs,
        "macs_full": network.macs_full,
        "exits": [exit.name for exit in network.exits],
        "parts": parts,
        "rule": program.rule,
        "program": [step.record() for step in program.steps],
        "settings": [{**each, "values": program.values(each["knobs"])} for each in settings],
        "reference": reference,
        "promoted": {"knobs": dict(promoted), "values": program.values(promoted)},
    }
    manifest |= _single(folder, manifest, graphs)
    shutil.copyfile(str(runner.__file__), folder / RUNNER)
    return seal(folder, manifest)


def _single(folder: Path, manifest: Mapping[str, Any], graphs: Mapping[str, Any]) -> dict[str, Any]:
    """Write the file for one image at a time; its record, or why there is none."""
    if manifest["form"] != ONNX:
        return {"single": None, "single_missing": "the parts are no ONNX graphs"}
    if any("draw" in step for step in manifest["program"]):
        return {"single": None, "single_missing": "the program draws, which one file cannot"}
    content = single_graph(manifest, graphs).SerializeToString(deterministic=True)
    (folder / SINGLE).write_bytes(content)
    return {"single": file_record(SINGLE, content)}


def seal(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write a manifest with its digest; what was written."""
    plain = json.loads(json.dumps({name: value for name, value in manifest.items() if name != "digest"}))
    sealed = {**plain, "digest": runner.digest_of(plain)}
    (folder / MANIFEST).write_text(json.dumps(sealed, indent=1))
    return sealed


def file_record(name: str, content: bytes) -> dict[str, Any]:
    """What the manifest says of a file."""
    return {"file": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _tensors(graph: Any) -> dict[str, Any]:
    return {
        "inputs": [_tensor(each) for each in graph.graph.input],
        "outputs": [_tensor(e) for e in graph.graph.output],
    }


def _tensor(value: Any) -> dict[str, Any]:
    kind = value.type.tensor_type
    dims = [dim.dim_value if dim.WhichOneof("value") == "dim_value" else None for dim in kind.shape.dim]
    name = _TYPES.get(kind.elem_type) or tool("onnx").TensorProto.DataType.Name(kind.elem_type).lower()
    return {"name": value.name, "type": name, "shape": dims}
