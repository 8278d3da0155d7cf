"""Parts as ``.pt2`` files of torch.export, which ExecuTorch and AOTInductor take; and the runner that calls them.

The same parts and the same program as ONNX's (`trainables.export.graphs`); the manifest names ``.pt2`` files. A part
takes any number of images but none: torch.export fixes no batch, and a part is not called without images.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainables.contracts.network import evaluating
from trainables.export.program import ExportError, Program, traced
from trainables.export.routefront_runner import Refused, Runner, checked_file

_EXAMPLES = 3  # images that are traced
_TYPES = {torch.float32: "float", torch.float64: "double", torch.bool: "bool", torch.int64: "int64"}


def pt2_parts(program: Program, network: nn.Module, image: tuple[int, int, int]) -> dict[str, tuple[bytes, Any, Any]]:
    """By name of every part the content of its file, and what its inputs and outputs are (`_tensor`).

    Raises `ExportError` with the part that torch.export does not take.
    """
    found = {}
    with evaluating(network), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        examples = traced(program, torch.zeros(_EXAMPLES, *image))
        number = torch.export.Dim("n", min=1)
        for part in program.parts():
            given, results = examples[part.name]
            shapes = tuple({0: number} if name not in program.examples else None for name in part.reads)
            module = _Given(part.module)
            try:
                taken = torch.export.export(
                    module, tuple(each.clone() for each in given), dynamic_shapes=(shapes,), strict=False
                )
                content = io.BytesIO()
                torch.export.save(taken, content)
            except Exception as error:  # whatever comes out: torch does not take it
                line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
                if line.startswith("Constraints violated"):
                    line = "something in it fixes the number of images"
                raise ExportError(f"part {part.name} cannot be exported by torch.export: {line[:200]}") from None
            inputs = [_tensor(n, t, n in program.examples) for n, t in zip(part.reads, given, strict=True)]
            outputs = [_tensor(n, t, False) for n, t in zip(part.writes, results, strict=True)]
            found[part.name] = content.getvalue(), inputs, outputs
    return found


class _Given(nn.Module):
    """A part whose arguments are a list, of which each has its own sizes."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *given: Tensor) -> Any:
        return self.part(*given)


def _tensor(name: str, tensor: Tensor, setting: bool) -> dict[str, Any]:
    shape: list[int | None] = list(tensor.shape)
    return {"name": name, "type": _TYPES[tensor.dtype], "shape": shape if setting else [None, *shape[1:]]}


class Pt2Runner(Runner):
    """A folder of ``.pt2`` parts, run by torch on the processor: as `Runner`, whose methods it has.

    torch itself reads these files, which it does not promise to be safe: load folders that you have written.
    """

    def part(self, record: Mapping[str, Any], threads: int) -> Any:
        """See `Runner`."""
        return _Part(self.folder, record)


class _Part:
    """An exported part under torch."""

    def __init__(self, folder: Path, record: Mapping[str, Any]) -> None:
        if not record["file"].endswith(".pt2"):
            raise Refused(f"{folder} holds no .pt2 parts; {record['file']} is for routefront_runner.py")
        self.module = torch.export.load(io.BytesIO(checked_file(folder, dict(record)))).module()
        self.types = [np.dtype({"float": "f4", "double": "f8", "bool": "?", "int64": "i8"}[each["type"]])
                      for each in record["inputs"]]  # fmt: skip
        self.shapes = [each["shape"] for each in record["inputs"]]

    @torch.inference_mode()
    def run(self, given: list[np.ndarray]) -> list[np.ndarray]:
        """The results of a part as arrays."""
        found = self.module(*(torch.from_numpy(np.ascontiguousarray(each)) for each in given))
        return [each.numpy() for each in ([found] if isinstance(found, Tensor) else found)]
