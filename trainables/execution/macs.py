"""The only MACs counter: multiply-accumulates of convolutions, linear layers and LSTMs.

A convolution of an output with e elements costs e * (in_channels / groups) * kernel area, a linear
layer in * out per row, an LSTM step 4 * hidden * (input + hidden) per layer and direction. Biases,
batch-norm, activations, pooling, softmax and additions are not counted. The papers print the same
quantity as "FLOPs" (some of them doubled: `DECISIONS.md`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import evaluating


def macs_of_call(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    """MACs of one call of one leaf module, over the whole batch.

    A convolution that is told, by a whole number as its second argument, at how many positions its output
    is used, is charged for those: masked convolutions (`networks.halting.positions`) may compute the others in vain.
    """
    if isinstance(module, nn.Conv2d | nn.Conv1d):
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
    return 0


@contextmanager
def counted(network: nn.Module) -> Iterator[dict[str, int]]:
    """Count the MACs of every call inside the block, by the name of the leaf module."""
    tally: dict[str, int] = defaultdict(int)

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            result = output[0] if isinstance(output, tuple) else output
            tally[name] += macs_of_call(module, inputs, result)

        return add

    kinds = nn.Conv2d | nn.Conv1d | nn.Linear | nn.LSTM | nn.LSTMCell
    handles = [m.register_forward_hook(hook(n)) for n, m in network.named_modules() if isinstance(m, kinds)]
    try:
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
