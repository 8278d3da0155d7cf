"""Diagnostics of soft routing: gates, the sizes of the tensors that they weigh, weights of parallel layers.

The figures 8 to 11 of D. Tissera et al., "End-to-end data-dependent routing in multi-path neural networks",
arXiv 2107.02450, are drawn from this, by `search.report.gates.figures`. Measured with `trainables.diagnostics.measure`,
with all paths.

Shape legend: n images, D gates of all routing layers, T tensors before and behind them, X paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainables.contracts.network import RoutedNetwork
from trainables.networks.multipath.layers import PathConv, PathLinear
from trainables.networks.multipath.network import MultiPathNetwork

MOST_LAYERS = 4
"""Weights are shown of so many layers, taken evenly; the paper shows four."""
BINS = 40


@contextmanager
def measuring(network: RoutedNetwork) -> Iterator[None]:
    """Have a multi-path network's forward measure the sizes of its tensors."""
    if not isinstance(network, MultiPathNetwork):
        yield
        return
    network.measures = True
    try:
        yield
    finally:
        network.measures = False


def routes(network: RoutedNetwork, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Means over the images of ``relaxed`` (n, D) and ``strengths`` (n, T), layer by layer, and the weights.

    Empty for networks without parallel paths, or without gates.
    """
    if not isinstance(network, MultiPathNetwork) or not network.gated or "strengths" not in tensors:
        return {}
    gates, strengths = tensors["relaxed"].double().mean(dim=0), tensors["strengths"].double().mean(dim=0)
    layers, first, tensor = [], 0, 0
    for segment, count in zip(network.segments, network.gate_counts, strict=True):
        m, n = segment.router.inputs, segment.router.outputs
        layers.append(
            {
                "place": segment.place,
                "inputs": m,
                "outputs": n,
                "gates": _rounded(gates[first : first + count]),
                "strengths": _rounded(strengths[tensor : tensor + m + n]),
            }
        )
        first, tensor = first + count, tensor + m + n
    return {"routes": {"layers": layers, "weights": weight_histograms(network)}}


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]


def weight_histograms(network: MultiPathNetwork) -> list[dict[str, Any]]:
    """Of some layers, from the image to the classifier: how many weights of each path lie in each of `BINS` bins.

    ``low`` and ``high`` hold all but the outermost thousandth of the layer's weights; the first and the last bin
    take the rest. ``layer`` counts convolutions and linear layers from 1.
    """
    kinds = PathConv | PathLinear
    layers = [module for stage in network.stages for module in stage.modules() if isinstance(module, kinds)]
    if network.paths < 2 or not layers:
        return []
    count = min(MOST_LAYERS, len(layers))
    chosen = [round(i * (len(layers) - 1) / max(1, count - 1)) for i in range(count)]
    found = []
    for index in sorted(set(chosen)):
        weights = layers[index].weight.detach().float().cpu()  # pyright: ignore[reportCallIssue]
        edge = float(weights.abs().flatten().sort().values[int(0.999 * (weights.numel() - 1))]) or 1.0
        counts = [
            torch.histc(part.clamp(-edge, edge), bins=BINS, min=-edge, max=edge).long().tolist()
            for part in weights.chunk(network.paths)
        ]
        kind = "convolution" if isinstance(layers[index], PathConv) else "linear"
        found.append({"layer": index + 1, "kind": kind, "low": -edge, "high": edge, "counts": counts})
    return found
