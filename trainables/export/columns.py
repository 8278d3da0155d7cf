"""Networks of columns as parts: each column with its router, and each classifier.

Shape legend: B images, C classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.export.program import IMAGES, LOGITS, Part, Program, Step
from trainables.networks.columns.network import ColumnNetwork

RULE = "an image takes the sink with the largest score, `margin` added to that of classifying; of equals the first"


class _Column(nn.Module):
    """A column and its router (the first one behind the pyramid).

    ``forward(scales ..., [margin], [price])`` returns one flag (B,) a sink where there is a junction, then the scales
    that are read further on.
    """

    def __init__(self, network: ColumnNetwork, n: int, kept: int) -> None:
        super().__init__()
        self.network, self.n, self.kept = network, n, kept
        self.sinks = network.nodes[n].sinks

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inputs, network = list(given), self.network
        junction = self.sinks > 1
        price = inputs.pop() if junction and network.priced else None
        margin = inputs.pop() if junction else None
        scales = network.pyramid(inputs[0]) if self.n == 0 else inputs
        features = network.columns[self.n](*scales)
        flags: list[Tensor] = []
        if junction:
            flat = features[-1].flatten(1)
            told = None if price is None else price.expand(flat.shape[0], 1)
            scores = network.routers[str(self.n)](flat, told)
            first, *others = scores.unbind(1)
            best = torch.stack([first + margin, *others], dim=1).argmax(dim=1)
            flags = [best == sink for sink in range(self.sinks)]
        return (*flags, *features[-self.kept :])


class _Classifier(nn.Module):
    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(features.flatten(1))


def program_of(network: ColumnNetwork) -> Program:
    """The program of a network of columns."""
    steps: list[Any] = []
    waiting: list[tuple[int, str, tuple[str, ...]]] = [(0, "", (IMAGES,))]
    junctions = False
    while waiting:
        n, flag, reads = waiting.pop(0)
        node = network.nodes[n]
        kept = max([1, *(network.scales_of[child] for child in node.children)])
        scales = tuple(f"column-{n}-{s}" for s in range(kept))
        flags = tuple(f"sink-{n}-{s}" for s in range(node.sinks)) if node.sinks > 1 else ()
        taken, charges = reads, [f"column-{node.name}"]
        if flags:
            junctions = True
            charges.append(f"router-{node.name}")
            taken = (*reads, "margin", *(["price"] if network.priced else []))
        part = Part(f"column-{node.name}", _Column(network, n, kept), taken, (*flags, *scales))
        steps.append(Step(part, when=flag, charges=tuple(charges)))
        if node.answers:
            answer = Part(f"exit-{node.name}", _Classifier(network.classifiers[str(n)]), scales[-1:], (LOGITS,))
            chosen = flags[0] if flags else flag
            steps.append(Step(answer, when=chosen, charges=(f"exit-{node.name}",), exit=network.exits_at[n]))
        for k, child in enumerate(node.children, start=int(node.answers)):
            waiting.append((child, flags[k] if flags else flag, scales[-network.scales_of[child] :]))
    examples = {"margin": torch.tensor(0.0)} if junctions else {}
    if junctions and network.priced:
        examples["price"] = torch.tensor(0.0)

    def settings(knobs: Knobs) -> dict[str, Any]:
        k_cpt, margin = network.asked(knobs)
        found = {"margin": margin} if junctions else {}
        if junctions and network.priced:
            found["price"] = float(network.price_read(torch.tensor([k_cpt]), torch.zeros(1))[0, 0])
        return found

    return Program("columns", RULE, steps, settings, examples)
