"""Parts as ONNX graphs: one pass of torch's own exporter over all of them, then cut apart.

All parts are the branches of one module that is exported once, and `onnx.utils.Extractor` cuts each branch out of
the result. Parts hold no decision of Python's, so that tracing (``dynamo=False``) loses nothing; it takes a fortieth of
the time of the exporter that decomposes (`DECISIONS.md`).

onnx and onnxruntime are the extra ``export`` of this distribution; nothing else needs them.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import evaluating
from trainables.export.program import ExportError, Part, Program, traced

OPSETS = range(17, 21)
"""Versions of ONNX's operators that are written; 20 is the newest that torch's tracing exporter has."""
OPSET = 18

_EXAMPLES = 3  # images that are traced: a batch that no channel or class is mistaken for is marked dynamic anyway


def tool(name: str) -> ModuleType:
    """The module onnx or onnxruntime; `ExportError` says how to install them."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ExportError(
            f"{name} cannot be imported ({error}); install the extra: pip install 'routefront[export]'"
        ) from None


class _All(nn.Module):
    """All parts side by side: the arguments of the first, then those of the second, ..."""

    def __init__(self, parts: Sequence[Part], counts: Sequence[int]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(part.module for part in parts)
        self.counts = tuple(counts)

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        at = 0
        for part, count in zip(self.parts, self.counts, strict=True):
            found = part(*arguments[at : at + count])
            results += [found] if isinstance(found, Tensor) else list(found)
            at += count
        return tuple(results)


def onnx_parts(program: Program, network: nn.Module, image: tuple[int, int, int], opset: int = OPSET) -> dict[str, Any]:
    """An ``onnx.ModelProto`` of every part by name; inputs and outputs have the names of `Part.reads` and `writes`.

    Images come first in every tensor but settings, in any number. Each graph was checked by onnx's own checker, its
    shapes and types included. Raises `ExportError` with the part that torch's exporter does not take.
    """
    onnx = tool("onnx")
    if opset not in OPSETS:
        raise ExportError(f"opset {opset}: ONNX's operators are written in versions {OPSETS[0]} to {OPSETS[-1]}")
    parts = program.parts()
    with evaluating(network):
        images = torch.zeros(_EXAMPLES, *image)
        examples = traced(program, images)
        arguments = {name: given for name, (given, _) in examples.items()}
        whole, names = _exported(parts, arguments, set(program.examples), opset)
    found = {}
    present = {value.name for value in whole.graph.input}
    extractor = importlib.import_module("onnx.utils").Extractor(whole)
    for part, (inputs, outputs) in zip(parts, names, strict=True):
        unread = [name for name, its in zip(part.reads, inputs, strict=True) if its not in present]
        if unread:
            raise ExportError(f"part {part.name} does not read {', '.join(unread)}: its graph cannot be told apart")
        model = extractor.extract_model(list(inputs), list(outputs))
        _rename(model, dict(zip([*inputs, *outputs], [*part.reads, *_written(part)], strict=True)))
        _tidy(model, part.name, [tuple(result.shape) for result in examples[part.name][1]])
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception as error:  # the checker's errors have no common class
            raise ExportError(f"part {part.name}: onnx's checker refuses it: {_line(error)}") from None
        found[part.name] = model
    return found


def _written(part: Part) -> list[str]:
    """Names of a part's outputs: in a graph no two values have one name, so what it overwrites ends with ``+``."""
    return [f"{name}+" if name in part.reads else name for name in part.writes]


def _exported(
    parts: Sequence[Part], arguments: Mapping[str, Sequence[Tensor]], shared: set[str], opset: int
) -> tuple[Any, list[tuple[list[str], list[str]]]]:
    """The graph of all parts, and the names of each one's inputs and outputs in it."""
    flat, axes, names = [], {}, []
    for p, part in enumerate(parts):
        mine = [f"p{p}.in{i}" for i in range(len(part.reads))]
        theirs = [f"p{p}.out{i}" for i in range(len(part.writes))]
        flat += [tensor.clone() for tensor in arguments[part.name]]
        axes |= {name: {0: "n"} for name, read in zip(mine, part.reads, strict=True) if read not in shared}
        axes |= {name: {0: "n"} for name in theirs}
        names.append((mine, theirs))
    module = _All(parts, [len(part.reads) for part in parts]).eval()
    try:
        return _trace(module, flat, axes, names, opset), names
    except Exception as error:  # whatever comes out: torch does not take it
        _blame(parts, arguments, opset)
        raise ExportError(f"torch's exporter does not take the network: {_line(error)}") from None


def _trace(
    module: nn.Module, flat: list[Tensor], axes: Any, names: Sequence[tuple[list[str], list[str]]], opset: int
) -> Any:
    """The ``ModelProto`` of a module on example arguments."""
    with tempfile.TemporaryDirectory(prefix="routefront-") as scratch, quietly(), torch.no_grad():
        path = Path(scratch) / "all.onnx"
        torch.onnx.export(
            module,
            tuple(flat),
            path,
            dynamo=False,
            dynamic_axes=axes,
            input_names=[name for mine, _ in names for name in mine],
            output_names=[name for _, theirs in names for name in theirs],
            opset_version=opset,
        )
        return tool("onnx").load(str(path))


def _blame(parts: Sequence[Part], arguments: Mapping[str, Sequence[Tensor]], opset: int) -> None:
    """Raise for the first part that torch does not take by itself."""
    for part in parts:
        names = [f"in{i}" for i in range(len(part.reads))], [f"out{i}" for i in range(len(part.writes))]
        try:
            _trace(_All([part], [len(part.reads)]).eval(), list(arguments[part.name]), {}, [names], opset)
        except Exception as error:
            raise ExportError(f"part {part.name} cannot be exported: {_line(error)}") from None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Within, exporters neither print nor warn; what they refuse they raise."""
    kept = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(kept)


def _rename(model: Any, names: Mapping[str, str]) -> None:
    """Give values of a graph other names."""
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for place in (node.input, node.output):
            place[:] = [names.get(name, name) for name in place]


def _tidy(model: Any, name: str, shapes: Sequence[tuple[int, ...]]) -> None:
    """Name the graph, say the outputs' `shapes`, call the number of images ``n``, drop the exporter's notes."""
    for value, shape in zip(model.graph.output, shapes, strict=True):
        dims = value.type.tensor_type.shape.dim
        del dims[:]
        for place, extent in enumerate(shape):
            dims.add(**({"dim_value": extent} if place else {"dim_param": "n"}))
    model.graph.name, model.producer_name, model.producer_version = name, "routefront", ""
    model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for place, dim in enumerate(dims):
            if dim.WhichOneof("value") != "dim_value" and place == 0:
                dim.dim_param = "n"
        del value.metadata_props[:]
    used = {name for node in model.graph.node for name in node.input} | {value.name for value in model.graph.output}
    kept = [each for each in model.graph.initializer if each.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for each in model.graph.initializer:
        del each.metadata_props[:]


def _line(error: Exception) -> str:
    """The first line of an error's own words, in at most 200 characters."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return (lines[0] if lines else type(cause).__name__)[:200]
