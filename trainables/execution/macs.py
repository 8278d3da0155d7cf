"""The only MACs counter: multiply-accumulates of convolutions, linear layers, LSTMs and attention.

A convolution of an output with e elements costs e * (in_channels / groups) * kernel area, which covers depthwise
and grouped ones, a linear layer in * out per row, an LSTM step 4 * hidden * (input + hidden) per layer and direction.
Attention of L queries to S keys, E wide, costs its projections, L * S * E for the scores and as many for their mean of
the values. Biases, batch-norm, activations, pooling, softmax and additions are not counted. The papers print the same
quantity as "FLOPs" (some of them doubled: `DECISIONS.md`).

Modules are counted by what they are. Graphs that others wrote also call functions: a module that says
``functional = True`` (`networks.backbones.cutting.Part`) has the matrix products, convolutions and attention among
these counted, too, but for those inside a module that is counted itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from trainables.contracts.network import evaluating

COUNTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.LSTM, nn.LSTMCell, nn.MultiheadAttention)
"""Kinds of modules that are counted whole."""


def macs_of_call(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """MACs of one call of one leaf module, over the whole batch.

    A convolution that is told, by a whole number as its second argument, at how many positions its output
    is used, is charged for those: masked convolutions (`networks.halting.positions`) may compute the others in vain.
    """
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        area = 1
        for extent in module.kernel_size:
            area *= extent
        wanted = next(iter(inputs[1:]), None)
        elements = wanted * module.out_channels if isinstance(wanted, int) else output.numel()
        return elements * (module.in_channels // module.groups) * area
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        rows = inputs[0].numel() // module.input_size
        if isinstance(module, nn.LSTMCell):
            return rows * 4 * module.hidden_size * (module.input_size + module.hidden_size)
        directions = 2 if module.bidirectional else 1
        first = 4 * module.hidden_size * (module.input_size + module.hidden_size)
        later = 4 * module.hidden_size * (directions * module.hidden_size + module.hidden_size)
        return rows * directions * (first + (module.num_layers - 1) * later)
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module, *inputs[:3])
    return 0


def _attention(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> int:
    """Projections of queries, keys and values, scores, their mean of the values, and the projection behind it."""
    width = module.embed_dim
    batched = query.dim() == 3
    rows = query.shape[0 if module.batch_first else 1] if batched else 1
    length = query.shape[1 if module.batch_first else 0] if batched else query.shape[0]
    keys = key.shape[1 if module.batch_first else 0] if batched else key.shape[0]
    projected = length * width * width + keys * width * ((module.kdim or width) + (module.vdim or width))
    return rows * (projected + 2 * length * keys * width + length * width * width)


def _of_linear(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * weight.shape[-1]


def _of_convolution(output: Tensor, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * weight[0].numel()


def _of_product(output: Tensor, one: Tensor, other: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * one.shape[-1]


def _of_added_product(output: Tensor, added: Tensor, one: Tensor, other: Tensor, *_: Any, **__: Any) -> int:
    return output.numel() * one.shape[-1]


def _of_einsum(output: Tensor, equation: str, *operands: Any) -> int:
    """One multiplication for every value of all indices, of two operands; of one there is nothing to multiply."""
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    if len(tensors) < 2:
        return 0
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, tensors, strict=True):
        letters = term.replace("...", "")
        before = term.partition("...")[0] if "..." in term else term
        wide = tensor.dim() - len(letters)
        sizes |= dict(zip(before, tensor.shape, strict=False))
        if "..." in term:
            sizes |= {f"...{i}": n for i, n in enumerate(tensor.shape[len(before) : len(before) + wide])}
            sizes |= dict(zip(letters[len(before) :], tensor.shape[len(before) + wide :], strict=True))
    return prod(sizes.values()) * (len(tensors) - 1)


def _of_scaled_attention(output: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return query.shape[:-1].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])


def _of_multi_head(
    output: Any, query: Tensor, key: Tensor, value: Tensor, width: int, *_: Any, **__: Any
) -> int:  # (length, batch, width), as the function takes them
    length, rows, keys = query.shape[0], query.shape[1], key.shape[0]
    return rows * width * (2 * length * width + keys * (key.shape[-1] + value.shape[-1]) + 2 * length * keys)


_FUNCTIONS: dict[Any, Callable[..., int]] = {
    F.linear: _of_linear,
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d), _of_convolution),
    **dict.fromkeys((torch.matmul, torch.mm, torch.bmm, torch.mv, torch.dot), _of_product),
    **dict.fromkeys((Tensor.matmul, Tensor.__matmul__, Tensor.mm, Tensor.bmm, Tensor.mv, Tensor.dot), _of_product),
    **dict.fromkeys((torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm), _of_added_product),
    torch.einsum: _of_einsum,
    F.scaled_dot_product_attention: _of_scaled_attention,
    F.multi_head_attention_forward: _of_multi_head,
}


class _Functions(TorchFunctionMode):
    """Counts functions while a module runs that wants its functions counted, and none that is counted itself."""

    def __init__(self, tally: dict[str, int]) -> None:
        super().__init__()
        self.tally = tally
        self.inside: list[str] = []
        self.whole = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        count = _FUNCTIONS.get(func)
        if count is not None and self.inside and not self.whole:
            result = output[0] if isinstance(output, tuple) else output
            self.tally[self.inside[-1]] += count(result, *args, **kwargs)
        return output

    def watch(self, name: str, module: nn.Module) -> list[Any]:
        """Hooks that tell when a module that wants its functions counted begins and ends."""
        return [
            module.register_forward_pre_hook(lambda *_: self.inside.append(name)),
            module.register_forward_hook(lambda *_: (self.inside.pop(), None)[1]),
        ]

    def leave_out(self, module: nn.Module) -> list[Any]:
        """Hooks that tell when a module that is counted itself begins and ends."""

        def step(by: int) -> None:
            self.whole += by

        return [
            module.register_forward_pre_hook(lambda *_: step(1)),
            module.register_forward_hook(lambda *_: step(-1)),
        ]


@contextmanager
def counted(network: nn.Module) -> Iterator[dict[str, int]]:
    """Count the MACs of every call inside the block, by the name of the leaf module."""
    tally: dict[str, int] = defaultdict(int)

    def hook(name: str) -> Callable[..., None]:
        def add(module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else output
            if isinstance(module, nn.MultiheadAttention):
                inputs = (*inputs, *(named[word] for word in ("query", "key", "value") if word in named))
            tally[name] += macs_of_call(module, inputs, result)

        return add

    modules = list(network.named_modules())
    handles: list[Any] = [
        m.register_forward_hook(hook(n), with_kwargs=True) for n, m in modules if isinstance(m, COUNTED)
    ]
    functional = [(n, m) for n, m in modules if getattr(m, "functional", False)]
    functions = _Functions(tally)
    for name, module in functional:
        handles += functions.watch(name, module)
        handles += [each for m in module.modules() if isinstance(m, COUNTED) for each in functions.leave_out(m)]
    try:
        if functional:
            with functions:
                yield tally
        else:
            yield tally
    finally:
        for handle in handles:
            handle.remove()


def macs_of(module: nn.Module, *shapes: tuple[int, ...]) -> tuple[int, Any]:
    """MACs per image of one module on inputs of these shapes (without the batch), and its output's shape.

    The module runs once, in eval mode, on one image of zeros where its parameters are: its weights
    and statistics are not touched. (The meta device would compute nothing, but costs every process
    some four seconds of imports.)
    """
    parameter = next(module.parameters(), None)
    device = parameter.device if parameter is not None else torch.get_default_device()
    inputs = tuple(torch.zeros((1, *shape), device=device) for shape in shapes)
    with evaluating(module), counted(module) as tally, torch.no_grad():
        output = module(*inputs)
    return sum(tally.values()), _shape(output)


def _shape(output: Any) -> Any:
    if isinstance(output, Tensor):
        return tuple(output.shape[1:])
    if isinstance(output, list | tuple):
        return [_shape(part) for part in output]
    return None
