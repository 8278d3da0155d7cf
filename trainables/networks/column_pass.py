"""The hard pass through a network of columns: an image is computed as far as its routers send it.

Shape legend: B images, C classes, S settings, R images that reached a column.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainables.execution import take
from trainables.networks.column_layers import Router

if TYPE_CHECKING:
    from trainables.networks.junctions import ColumnNetwork


@torch.no_grad()
def alone(network: ColumnNetwork, image: Tensor, k_cpt: float, margin: float) -> tuple[Tensor, Tensor]:
    """Logits (1, C) and exit (1,) of one image (1, c, h, h), which needs no gathering."""
    told = network.price_read(torch.tensor([k_cpt]), image) if network.priced else None
    features, n = network.pyramid(image), 0
    while True:
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat, sink = features[-1].flatten(1), 0
        if node.sinks > 1:
            router = network.routers[str(n)]
            assert isinstance(router, Router)
            scores = router.tell(flat, told)
            scores[0] += margin
            sink = scores.index(max(scores))  # the first of equal ones
        if sink == 0 and node.answers:
            logits = network.classifiers[str(n)](flat).to(image.dtype)
            return logits, torch.tensor([network.exits_at[n]], device=image.device)
        n = node.children[sink - node.answers]
        features = features[-network.scales_of[n] :]


@torch.no_grad()
def together(network: ColumnNetwork, inputs: Tensor, k_cpt: float, margin: float) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and exits (B,) under one setting: `swept` with little to do beside the columns.

    Who goes where is kept in lists: the device is waited for once a junction.
    """
    told = network.price_read(torch.tensor([k_cpt]), inputs) if network.priced else None
    device, exits = inputs.device, [0] * len(inputs)
    logits = inputs.new_empty(len(inputs), network.task.classes)
    waiting = [(0, list(range(len(inputs))), network.pyramid(inputs))]
    while waiting:
        n, rows, features = waiting.pop()
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat = features[-1].flatten(1)
        places: list[list[int]] = [[] for _ in range(node.sinks)]
        if node.sinks > 1:
            scores = network.routers[str(n)](flat, told)
            scores[:, 0] += margin
            for place, sink in enumerate(scores.argmax(dim=1).tolist()):
                places[sink].append(place)
        else:
            places[0] = list(range(len(rows)))
        for sink, some in enumerate(places):
            if not some:
                continue
            whole = len(some) == len(rows)
            left = rows if whole else [rows[place] for place in some]
            at = None if whole else torch.tensor(some, device=device)
            if sink == 0 and node.answers:
                answers = network.classifiers[str(n)](flat if at is None else flat.index_select(0, at))
                logits.index_copy_(0, torch.tensor(left, device=device), answers.to(logits.dtype))
                for row in left:
                    exits[row] = network.exits_at[n]
                continue
            child = node.children[sink - node.answers]
            read = features[-network.scales_of[child] :]
            waiting.append((child, left, read if at is None else [take(each, at) for each in read]))
    return logits, torch.tensor(exits, dtype=torch.long, device=device)


@torch.no_grad()
def swept(network: ColumnNetwork, inputs: Tensor, asked: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    """Logits (S, B, C) and exits (S, B) under settings of (k_cpt, margin).

    A column sees an image once, however many settings bring it there, and only the rows that some
    setting sends on are gathered.
    """
    k_cpts, margins = torch.tensor(asked, device=inputs.device).T
    count, settings = len(inputs), len(asked)
    logits = inputs.new_zeros(settings, count, network.task.classes)
    exits = torch.zeros(settings, count, dtype=torch.long, device=inputs.device)
    rows = torch.arange(count, device=inputs.device)
    here = torch.ones(settings, count, dtype=torch.bool, device=inputs.device)
    waiting = [(0, rows, here, network.pyramid(inputs))]
    while waiting:
        n, rows, here, features = waiting.pop()
        node = network.nodes[n]
        features = network.columns[n](*features)
        flat = features[-1].flatten(1)
        chosen = _choose(network, n, flat, here, k_cpts, margins) if node.sinks > 1 else None
        for sink in range(node.sinks):
            goes = here if chosen is None else here & (chosen == sink)
            some = (goes[0] if settings == 1 else goes.any(dim=0)).nonzero().squeeze(1)
            if not len(some):
                continue
            whole = len(some) == len(rows)
            left, going = (rows, goes) if whole else (rows.index_select(0, some), goes.index_select(1, some))
            if sink == 0 and node.answers:
                answers = network.classifiers[str(n)](flat if whole else flat.index_select(0, some))
                s, r = going.nonzero(as_tuple=True)
                logits[s, left[r]] = answers[r].to(logits.dtype)
                exits[s, left[r]] = network.exits_at[n]
                continue
            child = node.children[sink - node.answers]
            read = features[-network.scales_of[child] :]
            waiting.append((child, left, going, read if whole else [take(each, some) for each in read]))
    return logits, exits


def _choose(network: ColumnNetwork, n: int, flat: Tensor, here: Tensor, k_cpts: Tensor, margins: Tensor) -> Tensor:
    """The sink of column n (S, R) that every setting chooses for every image; the first of equal scores."""
    router = network.routers[str(n)]
    assert isinstance(router, Router)
    sums = router.read(flat)
    if network.priced:
        s, r = here.nonzero(as_tuple=True)
        found = router.score(sums.index_select(0, r), network.price_read(k_cpts[s], flat))
        scores = found.new_zeros(*here.shape, found.shape[1])
        scores[s, r] = found
    else:
        scores = router.score(sums).expand(len(here), -1, -1).clone()
    scores[..., 0] += margins[:, None].to(scores.dtype)
    return scores.argmax(dim=-1)
