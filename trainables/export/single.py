"""The program of a network as one ONNX file for one image at a time: every conditional step is an ``If`` node.

Parts are inlined; a step whose flag is false hands on what its registers held before, and zeros where they held
nothing. Weights lie in the branch that reads them, where onnxruntime lays convolutions out for the processor (it does
not look for weights outside a branch); in the outer graph, once, where several steps run the part.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trainables.export.graphs import tool
from trainables.export.program import EXIT, IMAGES, LOGITS, ExportError
from trainables.export.routefront_runner import edges_of

PIXELS = "pixels"
_ALWAYS = "always"


def single_graph(manifest: Mapping[str, Any], graphs: Mapping[str, Any]) -> Any:
    """The ``ModelProto`` of a manifest's program over its part's graphs.

    Inputs: ``pixels``, uint8 (1, c, h, h), and every value of a setting, of which the promoted ones are the defaults.
    Outputs: ``logits`` and ``probabilities`` (1, C), ``macs`` (1,), ``path`` (1, U) and, with exits, ``exit`` (1,).
    Raises `ExportError` where a program draws: a hash of 64-bit products is no graph.
    """
    if any("draw" in step for step in manifest["program"]):
        raise ExportError("a program that draws cannot be one file: draws are hashes, which ONNX has no operators for")
    return _Builder(manifest, graphs).model()


class _Builder:
    def __init__(self, manifest: Mapping[str, Any], graphs: Mapping[str, Any]) -> None:
        self.onnx = tool("onnx")
        self.helper = self.onnx.helper
        self.manifest, self.graphs = manifest, graphs
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constants: dict[tuple[Any, ...], str] = {}
        self.inputs: list[Any] = []
        self.now: dict[str, str] = {}  # which value a register is at present
        self.shapes: dict[str, tuple[int, list[int]]] = {}  # type and shape (1, ...) of every register
        self.weights: dict[str, dict[str, str]] = {}  # of every part of several steps: what its initializers are called
        used = [step["part"] for step in manifest["program"] if "part" in step]
        self.shared = {name for name in used if used.count(name) > 1}
        self.flags: dict[str, str] = {}  # by "when f" and "unless f" the value that is true there
        self.settings: set[str] = set()
        self.count = 0

    # -- small things ------------------------------------------------------------------------------

    def name(self, word: str) -> str:
        """A name that no other value has."""
        self.count += 1
        return f"{word}#{self.count}"

    def constant(self, values: Any, kind: Any) -> str:
        """An initializer of the main graph."""
        array = np.asarray(values, kind)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = self.name("constant")
            self.initializers.append(self.onnx.numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def add(self, operator: str, inputs: Sequence[str], word: str, into: list[Any] | None = None, **how: Any) -> str:
        """A node with one output; its name."""
        output = self.name(word)
        (self.nodes if into is None else into).append(self.helper.make_node(operator, list(inputs), [output], **how))
        return output

    # -- the program ---------------------------------------------------------------------------------

    def model(self) -> Any:
        """See `single_graph`."""
        image = self.manifest["image"]
        shape = [1, image["channels"], *edges_of(image)]
        self.inputs.append(self.helper.make_tensor_value_info(PIXELS, self.onnx.TensorProto.UINT8, shape))
        self.now[IMAGES] = self._normalised(image["normalisation"])
        self._settings()
        units = {unit["name"]: "" for unit in self.manifest["units"]}
        exit_taken = self.constant([0], np.int64)
        for step in self.manifest["program"]:
            flag = self._flag(step)
            self._step(step, flag)
            for unit in step.get("charges", ()):
                units[unit] = self._charged(step, flag, units[unit])
            for unit, register in step.get("shares", {}).items():
                units[unit] = self.now[register]
            if "exit" in step:
                taken = self.constant([step["exit"]], np.int64)
                exit_taken = taken if flag is None else self.add("Where", [flag, taken, exit_taken], EXIT)
        return self._finished(self._path(list(units.values())), exit_taken)

    def _normalised(self, record: Mapping[str, Any]) -> str:
        pixels = self.add("Cast", [PIXELS], "pixels", to=self.onnx.TensorProto.FLOAT)
        if not record["per_image"]:
            mean, std = (
                (np.array(record[name], np.float32) * np.float32(255)).reshape(1, -1, 1, 1) for name in ("mean", "std")
            )
            centred = self.add("Sub", [pixels, self.constant(mean, np.float32)], "centred")
            return self.add("Div", [centred, self.constant(std, np.float32)], IMAGES)
        image = self.manifest["image"]
        size = image["channels"] * math.prod(edges_of(image))
        wide, axes = self.add("Cast", [pixels], "wide", to=self.onnx.TensorProto.DOUBLE), [1, 2, 3]
        where = self.constant(axes, np.int64)
        count = self.constant(size, np.float64)
        mean = self.add("Div", [self._sum(wide, where), count], "mean")
        squares = self.add("Div", [self._sum(self.add("Mul", [wide, wide], "squares"), where), count], "squares")
        variance = self.add("Sub", [squares, self.add("Mul", [mean, mean], "mean")], "variance")
        least = self.constant(1 / size, np.float64)
        std = self.add("Sqrt", [self.add("Max", [variance, least], "variance")], "std")
        narrow = [self.add("Cast", [each], "narrow", to=self.onnx.TensorProto.FLOAT) for each in (mean, std)]
        return self.add("Div", [self.add("Sub", [pixels, narrow[0]], "centred"), narrow[1]], IMAGES)

    def _sum(self, value: str, axes: str) -> str:
        return self.add("ReduceSum", [value, axes], "sum", keepdims=1)

    def _settings(self) -> None:
        """Inputs with defaults for the values of settings that some step reads."""
        for name, value in self.manifest["promoted"]["values"].items():
            kinds = [
                each.type.tensor_type.elem_type
                for step in self.manifest["program"]
                for read, each in zip(step["reads"], self.graphs[step["part"]].graph.input, strict=True)
                if read == name
            ]
            kind = kinds[0] if kinds else self.onnx.TensorProto.BOOL
            array = np.asarray(value, self.helper.tensor_dtype_to_np_dtype(kind))
            self.inputs.append(self.helper.make_tensor_value_info(name, kind, list(array.shape)))
            self.initializers.append(self.onnx.numpy_helper.from_array(array, name))
            self.now[name] = name
            self.settings.add(name)

    def _flag(self, step: Mapping[str, Any]) -> str | None:
        """The value that is true where a step runs; None where it always does."""
        if "when" in step:
            return self.now[step["when"]]
        return self.add("Not", [self.now[step["unless"]]], "flag") if "unless" in step else None

    def _charged(self, step: Mapping[str, Any], flag: str | None, before: str) -> str:
        """When a unit is run: `_ALWAYS`, also where one of two complementary steps runs it, or a key of `flags`."""
        if flag is None:
            return _ALWAYS
        word, other, name = ("when", "unless", step["when"]) if "when" in step else ("unless", "when", step["unless"])
        if before in (_ALWAYS, f"{other} {name}"):
            return _ALWAYS
        self.flags[f"{word} {name}"] = flag
        return f"{word} {name}"

    def _path(self, units: Sequence[str]) -> str:
        """The path (1, U), from what `_charged` says of every unit or the register that holds its share."""
        one = self.constant([1], np.int64)
        rows, booleans = [], all(not said or said == _ALWAYS or said in self.flags for said in units)
        for said in units:
            if said in self.flags:
                flag = self.flags[said]
                if said.partition(" ")[2] in self.settings:  # a scalar
                    flag = self.add("Reshape", [flag, one], "charged")
                rows.append(flag if booleans else self.add("Cast", [flag], "charged", to=self.onnx.TensorProto.DOUBLE))
            elif said in ("", _ALWAYS):
                rows.append(self.constant([bool(said)], np.bool_ if booleans else np.float64))
            else:
                rows.append(said)
        path = self.add("Concat", rows, "units", axis=0)
        if booleans:
            path = self.add("Cast", [path], "units", to=self.onnx.TensorProto.DOUBLE)
        return self.add("Reshape", [path, self.constant([1, len(units)], np.int64)], "path")

    def _step(self, step: Mapping[str, Any], flag: str | None) -> None:
        graph = self.graphs[step["part"]].graph
        before = {name: self.now.get(name) for name in step["writes"]}
        written = self._typed(step, graph)
        if flag is None:
            results = self._inlined(step, graph, self.nodes, self.initializers)
            self.now.update(zip(step["writes"], results, strict=True))
            return
        runs: list[Any] = []
        weights: list[Any] = []
        results = self._inlined(step, graph, runs, self.initializers if step["part"] in self.shared else weights)
        rests: list[Any] = []
        kept = [self._kept(name, before[name], rests) for name in step["writes"]]
        branches = []
        for word, nodes, values, own in (("run", runs, results, weights), ("rest", rests, kept, [])):
            outputs = [
                self.helper.make_tensor_value_info(value, *written[name])
                for value, name in zip(values, step["writes"], strict=True)
            ]
            branches.append(self.helper.make_graph(nodes, self.name(f"{step['part']}-{word}"), [], outputs, own))
        after = [self.name(name) for name in step["writes"]]
        self.nodes.append(self.helper.make_node("If", [flag], after, then_branch=branches[0], else_branch=branches[1]))
        self.now.update(zip(step["writes"], after, strict=True))

    def _typed(self, step: Mapping[str, Any], graph: Any) -> dict[str, tuple[int, list[int]]]:
        """Type and shape, for one image, of what a step writes."""
        found = {}
        for name, output in zip(step["writes"], graph.output, strict=True):
            kind = output.type.tensor_type
            dims = [dim.dim_value for dim in kind.shape.dim]
            found[name] = (kind.elem_type, [1, *dims[1:]])
        self.shapes |= found
        return found

    def _kept(self, name: str, before: str | None, into: list[Any]) -> str:
        """What a register holds where its step does not run."""
        if before is not None:
            return self.add("Identity", [before], f"{name}-kept", into)
        kind, shape = self.shapes[name]
        zero = self.helper.make_tensor("value", kind, [1], [0])
        return self.add("ConstantOfShape", [self.constant(shape, np.int64)], f"{name}-none", into, value=zero)

    def _inlined(self, step: Mapping[str, Any], graph: Any, into: list[Any], weights: list[Any]) -> list[str]:
        """The nodes of a part under names of their own, its initializers in `weights`; the names of its results."""
        part = step["part"]
        if part not in self.weights:
            names = {}
            for each in graph.initializer:
                copied = self.onnx.TensorProto()
                copied.CopyFrom(each)
                copied.name = names[each.name] = self.name(f"{part}.{each.name}")
                weights.append(copied)
            self.weights[part] = names
        names = dict(self.weights[part])
        for read, value in zip(step["reads"], graph.input, strict=True):
            names[value.name] = self.now[read]
        for node in graph.node:
            copied = self.onnx.NodeProto()
            copied.CopyFrom(node)
            names |= {name: self.name(f"{part}.{name}") for name in node.output if name}
            copied.input[:] = [names[name] if name else "" for name in node.input]
            copied.output[:] = [names[name] if name else "" for name in node.output]
            copied.name = self.name(part)
            into.append(copied)
        results = []
        for output in graph.output:
            value = names[output.name]
            results.append(self.add("Identity", [value], part, into))  # a branch's results are its own nodes'
        return results

    def _finished(self, path: str, exit_taken: str) -> Any:
        helper, proto = self.helper, self.onnx.TensorProto
        classes, count = len(self.manifest["classes"]), len(self.manifest["units"])
        outputs = [
            ("logits", proto.FLOAT, [1, classes]),
            ("probabilities", proto.FLOAT, [1, classes]),
            ("macs", proto.DOUBLE, [1]),
            ("path", proto.DOUBLE, [1, count]),
        ]
        logits = self.now[LOGITS]
        macs = self.constant([unit["macs"] for unit in self.manifest["units"]], np.float64)
        spent = self.add("MatMul", [path, macs], "spent")
        total = self.add("Add", [spent, self.constant([self.manifest["fixed_macs"]], np.float64)], "spent")
        results = {
            "logits": logits,
            "probabilities": self.add("Softmax", [logits], "probabilities", axis=1),
            "macs": self.add("Round", [total], "macs"),
            "path": path,
        }
        if self.manifest["exits"]:
            outputs.append((EXIT, proto.INT64, [1]))
            results[EXIT] = exit_taken
        for name, value in results.items():
            self.nodes.append(helper.make_node("Identity", [value], [name]))
        infos = [helper.make_tensor_value_info(*each) for each in outputs]
        graph = helper.make_graph(self.nodes, "single", self.inputs, infos, self.initializers)
        opset = helper.make_opsetid("", self.manifest["opset"])
        version = max(each.ir_version for each in self.graphs.values())
        model = helper.make_model(graph, opset_imports=[opset], ir_version=version, producer_name="routefront")
        try:
            self.onnx.checker.check_model(model)
        except Exception as error:
            line = next(iter(str(error).splitlines()), type(error).__name__)
            raise ExportError(f"the file with If nodes: onnx's checker refuses it: {line[:200]}") from None
        return model
