"""Cuts networks that others wrote: the graph of their calls, where one tensor carries everything, residual blocks.

torch.fx (J. Reed et al., "torch.fx: Practical program capture and transformation for deep learning in Python", MLSys
2022, arXiv 2112.08429) follows the calls of a module. A *cut* is a place in that graph that one tensor alone passes:
what is computed behind it reads nothing else from before. Between two cuts lies a `Part`, which is a module of its own;
parts one behind the other compute what the network did. Residual blocks are found as additions of two tensors that
come, apart from each other, from the same cut.

Shape legend: B images, c channels, h height, w width, n tokens.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from trainables.execution.macs import COUNTED, counted

Shape = tuple[int, ...]
ADDITIONS = (operator.add, operator.iadd, torch.add)
_LEAST_ROWS = 2


class Dropped(nn.Module):
    """Dropout and stochastic depth that draw from a generator of the training, so that it can be repeated.

    `mode`: ``element``, or ``row``: whole images (stochastic depth, Huang et al., arXiv 1603.09382). What stays is
    divided by 1 - p. `generator` is set by whoever runs the network.
    """

    def __init__(self, p: float, mode: str = "element") -> None:
        super().__init__()
        self.p, self.mode = float(p), mode
        self.generator: torch.Generator | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs in eval mode; in training a share p of them is zero."""
        if not self.training or self.p <= 0:
            return inputs
        shape = inputs.shape if self.mode == "element" else (len(inputs), *(1,) * (inputs.dim() - 1))
        if self.p >= 1:
            return torch.zeros_like(inputs)
        stays = torch.rand(shape, generator=self.generator, device=inputs.device) >= self.p
        return inputs * (stays.to(inputs.dtype) / (1 - self.p))


class Part(nn.Module):
    """A piece of a graph as a module: reads tensors (one a cut), answers the tensor at its end.

    Its layers keep the names that they have in the network that was cut, below ``body``.
    """

    functional = True
    """Functions that are called in it are counted (`trainables.execution.macs`)."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def forward(self, *inputs: Tensor) -> Tensor:
        """Tensors at the beginning to the tensor at the end."""
        return self.body(*inputs)


class _Tracer(fx.Tracer):
    """Follows calls into all modules but PyTorch's own layers and those that were found not to be followed."""

    def __init__(self, whole: set[str]) -> None:
        super().__init__()
        self.whole, self.inside = whole, [""]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return (
            isinstance(m, (*COUNTED, Dropped))
            or module_qualified_name in self.whole
            or super().is_leaf_module(m, module_qualified_name)
        )

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.inside.append(self.path_of_module(m))
        result = super().call_module(m, forward, args, kwargs)
        self.inside.pop()  # not where it fails: then the last one is the culprit
        return result


def _replace_noise(model: nn.Module) -> None:
    """Dropouts and stochastic depths become `Dropped`; nothing overwrites what it reads."""
    for parent in list(model.modules()):
        if getattr(parent, "inplace", False):
            parent.inplace = False  # pyright: ignore[reportArgumentType]
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Dropout):
                setattr(parent, name, Dropped(child.p))
            elif isinstance(child, nn.Dropout2d):
                setattr(parent, name, Dropped(child.p))
            elif type(child).__name__ in ("StochasticDepth", "DropPath"):
                p = getattr(child, "p", None)
                p = getattr(child, "drop_prob", 0.0) if p is None else p
                setattr(
                    parent, name, Dropped(p or 0.0, "element" if getattr(child, "mode", "row") == "batch" else "row")
                )


@dataclass(slots=True)
class Cut:
    """A node that everything behind it reads alone: its index in the graph, shape without B, MACs up to it."""

    node: fx.Node
    index: int
    shape: Shape
    macs: int


@dataclass(slots=True)
class Residual:
    """A residual block: from the cut `start` to the addition at `end`; the last nodes of branch and shortcut."""

    start: Cut
    end: Cut
    branch: fx.Node
    shortcut: fx.Node


@dataclass(slots=True)
class Network:
    """A traced network: its module, graph, shapes by node, and where it may be cut, from the images to the logits."""

    name: str
    model: nn.Module
    graph: fx.Graph
    nodes: list[fx.Node]
    shapes: dict[fx.Node, Shape | None]
    spent: dict[fx.Node, int]
    cuts: list[Cut] = field(default_factory=list)

    @property
    def total(self) -> int:
        """MACs of an image."""
        return self.cuts[-1].macs


def trace(name: str, model: nn.Module, image: Shape, classes: int) -> Network:
    """The graph of a module that maps images of a shape (channels, h, w) to logits of so many classes.

    Raises `ValueError` with one line naming the layer and the reason where it cannot be followed, run or cut.
    """
    _replace_noise(model)
    model.eval()
    graph = _followed(name, model)
    root = fx.GraphModule(model, graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)
    _nothing_in_place(graph)
    _noise_of_functions(root)
    graph.eliminate_dead_code()
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for extra in [node for node in placeholders[1:] if not node.users]:
        graph.erase_node(extra)
        placeholders.remove(extra)
    if len(placeholders) != 1:
        raise ValueError(f"network = {name!r}: reads {len(placeholders)} inputs; it must read images alone")
    root.recompile()
    root.eval()
    run = _run(name, root, image)
    output = next(node for node in graph.nodes if node.op == "output").args[0]
    shape = run.shapes.get(output) if isinstance(output, fx.Node) else None
    if shape != (classes,):
        got = "several values" if shape is None else f"(B, {', '.join(map(str, shape))})"
        raise ValueError(f"network = {name!r}: answers {got}; logits of {classes} classes are (B, {classes})")
    nodes = list(graph.nodes)
    found = Network(name, root, graph, nodes, run.shapes, run.spent)
    found.cuts = _cuts(found)
    return found


def _usual(model: nn.Module) -> dict[str, Any] | None:
    """What a network reads beside images keeps its default: None, False and the like decide branches of its forward."""
    takes = list(inspect.signature(model.forward).parameters.values())[1:]
    empty = inspect.Parameter.empty
    return {each.name: each.default for each in takes if each.default is not empty} or None


def _followed(name: str, model: nn.Module) -> fx.Graph:
    whole: set[str] = set()
    while True:
        tracer = _Tracer(whole)
        try:
            return tracer.trace(model, concrete_args=_usual(model))
        except Exception as error:  # whatever the strangers' code raises
            at = tracer.inside[-1]
            if at and at not in whole:
                whole.add(at)  # followed no further: it is computed as one layer
                continue
            layer = f"layer {at}" if at else f"{type(model).__name__}.forward"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ValueError(
                f"network = {name!r}: cannot be cut: torch.fx cannot follow {layer} ({reason[:120]}); write it without"
                " branches and loops over values of tensors, or put these into a layer of its own"
            ) from None


def _noise_of_functions(root: fx.GraphModule) -> None:
    """Calls of dropout and of stochastic depth become modules, too: traced in eval mode, they would do nothing."""
    count = 0
    for node in list(root.graph.nodes):
        word = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if word not in ("dropout", "stochastic_depth"):
            continue
        p = node.kwargs.get("p", node.args[1] if len(node.args) > 1 else 0.5)
        mode = node.kwargs.get("mode", node.args[2] if word == "stochastic_depth" and len(node.args) > 2 else "")
        target, count = f"dropped_{count}", count + 1
        root.add_submodule(target, Dropped(p, "row" if mode == "row" else "element"))
        with root.graph.inserting_before(node):
            made = root.graph.call_module(target, (node.args[0] if node.args else node.kwargs["input"],))
        node.replace_all_uses_with(made)
        root.graph.erase_node(node)


def _nothing_in_place(graph: fx.Graph) -> None:
    """Calls that overwrite what they read become those that do not: a cut's tensor may be read by an exit, too."""
    plain = {operator.iadd: operator.add, operator.imul: operator.mul, operator.isub: operator.sub}
    for node in graph.nodes:
        if node.op == "call_function":
            node.target = plain.get(node.target, node.target)
        elif node.op == "call_method" and node.target in ("add_", "mul_", "sub_", "div_", "relu_", "clamp_"):
            node.target = str(node.target)[:-1]
        if node.kwargs.get("inplace"):
            node.kwargs = {**node.kwargs, "inplace": False}


class _Run(fx.Interpreter):
    """One pass over an image of zeros, which keeps the shape of every node and the MACs spent so far."""

    def __init__(self, root: fx.GraphModule, tally: dict[str, int]) -> None:
        super().__init__(root)
        self.tally = tally
        self.shapes: dict[fx.Node, Shape | None] = {}
        self.spent: dict[fx.Node, int] = {}
        self.at: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.at = n
        result = super().run_node(n)
        whole = isinstance(result, Tensor) and result.dim() >= 1 and len(result) == 1 and n.op != "get_attr"
        self.shapes[n] = tuple(result.shape[1:]) if whole and result.is_floating_point() else None
        self.spent[n] = sum(self.tally.values())
        return result


def _run(name: str, root: fx.GraphModule, image: Shape) -> _Run:
    parameter = next(root.parameters(), None)
    if parameter is None:
        raise ValueError(f"network = {name!r}: has no weights to train")
    holder = _Counting(root)
    with counted(holder) as tally, torch.no_grad():
        run = _Run(root, tally)
        holder.run = run
        try:
            holder(torch.zeros(1, *image, device=parameter.device))
        except Exception as error:
            at = "" if run.at is None else f" at {run.at.target}"
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            shape = " x ".join(map(str, image))
            raise ValueError(
                f"network = {name!r}: cannot read images of {shape} (channels x pixels){at}: {reason[:160]}"
            ) from None
    return run


class _Counting(nn.Module):
    """Runs an interpreter where functions are counted."""

    functional = True

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self.root = root
        self.run: _Run | None = None

    def forward(self, images: Tensor) -> Any:
        assert self.run is not None
        return self.run.run(images)


def _cuts(network: Network) -> list[Cut]:
    """The nodes that everything behind reads alone, the images first, the logits last."""
    nodes = network.nodes
    place = {node: i for i, node in enumerate(nodes)}
    last = {node: max((place[user] for user in node.users), default=-1) for node in nodes}
    called: dict[Any, list[int]] = {}
    for i, node in enumerate(nodes):
        if node.op == "get_attr" or (node.op == "call_module" and has_weights(network.model, node)):
            called.setdefault(node.target, []).append(i)
    spans = [(min(at), max(at)) for at in called.values() if len(at) > 1]  # weights that are used twice stay together
    found: list[Cut] = []
    alive: set[fx.Node] = set()
    for i, node in enumerate(nodes):
        if node.op == "output":
            break
        alive = {each for each in alive if last[each] > i}
        if node.op != "get_attr" and last[node] > i:
            alive.add(node)
        shape = network.shapes[node]
        if alive == {node} and shape is not None and not any(first <= i < end for first, end in spans):
            found.append(Cut(node, i, shape, network.spent[node]))
    return found


def has_weights(model: nn.Module, node: fx.Node) -> bool:
    """Whether the layer that a node calls has parameters or buffers."""
    module = model.get_submodule(str(node.target))
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def part(network: Network, begins: Sequence[fx.Node], end: fx.Node) -> Part:
    """The piece of a graph that computes `end` from the nodes where it `begins`.

    Raises `ValueError` where it needs another one.
    """
    needed: set[fx.Node] = set()
    stack = [end]
    while stack:
        node = stack.pop()
        if node in needed or node in begins:
            continue
        if node.op == "placeholder":
            raise ValueError(f"network = {network.name!r}: cannot be cut at {begins[0]}: {end} reads {node}, too")
        needed.add(node)
        stack += node.all_input_nodes
    graph, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for number, node in enumerate(begins):
        made[node] = graph.placeholder(f"at_{number}")
    for node in network.nodes:
        if node in needed:
            made[node] = graph.node_copy(node, lambda old: made[old])
    graph.output(made[end])
    return Part(fx.GraphModule(network.model, graph, class_name="Part"))


# -- residual blocks -------------------------------------------------------------------------------


def residuals(network: Network) -> list[Residual]:
    """The residual blocks, from the images to the logits: additions of two tensors that come apart from one cut."""
    place = {cut.node: i for i, cut in enumerate(network.cuts)}
    found = []
    for node in network.nodes:
        adds = node.target in ADDITIONS if node.op == "call_function" else node.target in ("add", "add_")
        if not adds or node.op not in ("call_function", "call_method") or node not in place or place[node] == 0:
            continue
        if len(node.args) != 2 or node.kwargs or not all(isinstance(each, fx.Node) for each in node.args):
            continue
        start, end = network.cuts[place[node] - 1], network.cuts[place[node]]
        one, two = node.args
        assert isinstance(one, fx.Node) and isinstance(two, fx.Node)
        if network.shapes[one] is None or network.shapes[one] != network.shapes[two]:
            continue
        first, second = _between(network, start.node, one), _between(network, start.node, two)
        if first is None or second is None or first & second:
            continue
        costs = [_weight(network, each) for each in (first, second)]
        branch, shortcut = (one, two) if costs[0] > costs[1] else (two, one)
        if max(costs) > 0:
            found.append(Residual(start, end, branch, shortcut))
    return found


def _between(network: Network, start: fx.Node, end: fx.Node) -> set[fx.Node] | None:
    """The nodes that compute `end` from `start`, without that; None where they read something else."""
    found, stack = set[fx.Node](), [end]
    while stack:
        node = stack.pop()
        if node is start or node in found or node.op == "get_attr":
            continue
        if node.op == "placeholder":
            return None
        found.add(node)
        stack += node.all_input_nodes
    return found


def _weight(network: Network, nodes: set[fx.Node]) -> int:
    """Weights of the layers that some nodes call."""
    modules = [network.model.get_submodule(str(node.target)) for node in nodes if node.op == "call_module"]
    weights = sum(p.numel() for module in modules for p in module.parameters())
    read = {each for node in nodes for each in node.all_input_nodes if each.op == "get_attr"}
    for each in read:
        value: Any = network.model
        for step in str(each.target).split("."):
            value = getattr(value, step)
        weights += value.numel() if isinstance(value, Tensor) else 0
    return weights


# -- shapes ----------------------------------------------------------------------------------------


def layout(shape: Shape) -> str:
    """``maps`` (c, h, w), ``last`` (h, w, c), ``tokens`` (n, c) or, of anything else, nothing."""
    if len(shape) == 2:
        return "tokens"
    if len(shape) != 3:
        return ""
    return "maps" if shape[1] == shape[2] or shape[0] != shape[1] else "last"


def as_maps(features: Tensor, kind: str) -> Tensor:
    """Features of a `layout` as (B, c, h, w); tokens are a column of positions."""
    if kind == "last":
        return features.permute(0, 3, 1, 2)
    if kind == "tokens":
        return features.transpose(1, 2).unsqueeze(-1)
    return features


def maps_shape(shape: Shape) -> tuple[int, int, int]:
    """The shape (c, h, w) that `as_maps` makes of a shape."""
    kind = layout(shape)
    if kind == "last":
        return shape[2], shape[0], shape[1]
    if kind == "tokens":
        return shape[1], shape[0], 1
    return shape[0], shape[1], shape[2]


def same(model: nn.Module, parts: Sequence[nn.Module], image: Shape) -> bool:
    """Whether parts one behind the other compute what the whole did, on two random images in eval mode."""
    device = next(model.parameters()).device
    if device.type == "meta":
        return True
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(_LEAST_ROWS, *image, generator=draw).to(device)
    with torch.no_grad():
        expected, features = model(images), images
        for each in parts:
            features = each(features)
    scale = expected.abs().max().clamp(min=1e-6)
    return bool(((features - expected).abs().max() <= 1e-4 * scale).item())


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, c, h, w) at another height and width, antialiased as torchvision's presets are."""
    if images.shape[-2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
