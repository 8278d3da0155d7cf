r"""What inference costs along the ways through a network of columns: the actor's loss, the critics' targets.

M. McGill, P. Perona, "Deciding how to decide", ICML 2017, arXiv 1703.06217, sections 3.2 and 4.2 to 4.4:
:math:`c_{inf} = c_{err} + k_{cpt} n_{ops}`.

Shape legend: B images, C classes, N columns, E classifiers (exits), D sinks of all junctions, U units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainables.constants import constant
from trainables.networks.columns.network import ColumnNetwork
from trainables.networks.columns.tree import Node, exits_at, sinks_at


def classification_costs(logits: Tensor, labels: Tensor, epsilon: float, smoothing: float = 0.0) -> Tensor:
    r"""Cross entropy (B,) of :math:`\epsilon / C + (1 - \epsilon)\, softmax(z)`; logits (B, C), labels (B,).

    `smoothing` is the share of the target that is spread over all classes.
    """
    every = logits.log_softmax(dim=1)
    floor = constant((math.log(epsilon / logits.shape[1]),), every.dtype, every.device)
    if smoothing:
        every = torch.logaddexp(every + math.log1p(-epsilon), floor)
        return -(1 - smoothing) * every.gather(1, labels[:, None]).squeeze(1) - smoothing * every.mean(dim=1)
    likely = every.gather(1, labels[:, None]).squeeze(1)
    return -torch.logaddexp(likely + math.log1p(-epsilon), floor)


def sink_costs(
    nodes: Sequence[Node], errors: Tensor, columns: Tensor, exits: Tensor, scores: Tensor | None = None
) -> Tensor:
    r"""The cost (B, D) of going on to every sink of every junction.

    `errors` (B, E) are c_err of the classifiers, `columns` (B, N) and `exits` (B, E) the price of the
    operations of each column (with its router) and classifier. A sink's cost is

    .. math:: c(x) = c_{err}(x) + k_{cpt} n_{ops}(x) + c(\text{the sink of x that is taken}),

    taken by the largest of the `scores` (B, D) (pragmatic), or, without scores, the cheapest one
    (optimistic).
    """
    slices, numbers = sinks_at(nodes), exits_at(nodes)
    answer = errors + exits
    total: dict[int, Tensor] = {}
    costs: list[Tensor] = []
    for n, node in reversed(list(enumerate(nodes))):
        own = [answer[:, numbers[n]]] if node.answers else []
        ways = torch.stack([*own, *(total.pop(child) for child in node.children)], dim=1)
        if node.sinks > 1:
            costs.insert(0, ways)
        if node.sinks > 1 and scores is not None:
            taken = ways.gather(1, scores[:, slices[n]].argmax(dim=1, keepdim=True)).squeeze(1)
        else:
            taken = ways.amin(dim=1)
        total[n] = columns[:, n] + taken
    return torch.cat(costs, dim=1) if costs else errors.new_zeros(len(errors), 0)


def targets(network: ColumnNetwork, errors: Tensor, price: Tensor, scores: Tensor | None = None) -> Tensor:
    """What a critic's scores regress, (B, D): the negative costs of the sinks.

    `errors` (B, E), `price` (B,) of macs / macs_full. With the routers' `scores` (B, D) the critic is
    pragmatic (eq. 7), without them optimistic (eq. 8).
    """
    macs = network.unit_macs.to(errors.device, errors.dtype) / network.macs_full
    columns = torch.stack([macs[u["column"]] + (macs[u["router"]] if "router" in u else 0) for u in network.unit_of])
    exits = torch.stack([macs[u["exit"]] for u in network.unit_of if "exit" in u])
    of = price.to(errors.dtype)[:, None]
    return -sink_costs(network.nodes, errors, of * columns, of * exits, scores)


def squared_weights(network: ColumnNetwork) -> Tensor:
    """The sum of the squared weights of every unit (U,), without biases and batch norm."""
    sums = []
    for part in network.parts():
        layers = [m for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        sums.append(torch.stack([layer.weight.square().sum() for layer in layers]).sum())
    return torch.stack(sums)


def throughput(path: Tensor) -> Tensor:
    r"""The root mean square over a batch of the shares that reach each unit: (B, U) to (U,).

    TALR divides gradients by it: with :math:`\alpha_\ell = \sqrt{n} / \lVert p_\ell \rVert` their variance
    does not depend on how much of the batch a layer sees (section 4.5, eq. 15).
    """
    return path.detach().square().mean(dim=0).sqrt()
