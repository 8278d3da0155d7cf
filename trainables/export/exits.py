"""Networks with exits as parts: each stage with the classifier behind it.

Shape legend: B images, C classes, K exits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainables.contracts.network import Knobs
from trainables.export.program import IMAGES, LOGITS, Part, Program, Step
from trainables.networks.msdnet.collaboration import Head
from trainables.networks.msdnet.exits import ExitNetwork, bar, thresholds_of

RULE = "an image leaves at exit i where its largest softmax probability, in float64, reaches `bar-i`"


class _Stage(nn.Module):
    """A stage and its exit.

    ``forward(features ..., [logits before], [bar])`` returns logits (B, C), whether the image goes on (B,), and what
    the next stage reads; the last stage returns logits alone.
    """

    def __init__(self, network: ExitNetwork, number: int, *, chained: bool) -> None:
        super().__init__()
        self.network, self.number = network, number
        self.last = number == len(network.stages) - 1
        self.before = chained

    def forward(self, *given: Tensor) -> Any:
        inputs = list(given)
        least = None if self.last else inputs.pop()
        before = inputs.pop() if self.before else None
        features = self.network.stages[self.number](*inputs)
        logits = self.network.answer(self.number, features[-1], before)
        if least is None:
            return logits
        sure = logits.double().softmax(dim=-1).amax(dim=-1)
        sure = torch.where(sure == sure, sure, torch.zeros_like(sure))  # what is not a number has no confidence
        return (logits, sure < least, *features)


def _chained(network: ExitNetwork, number: int) -> bool:
    """Whether an exit reads the logits of the one before it."""
    answers = network.answering(number)[-1]
    return isinstance(answers, Head) and bool(answers.isc)


def program_of(network: ExitNetwork) -> Program:
    """The program of a network with exits."""
    steps: list[Any] = []
    examples: dict[str, Tensor] = {}
    images: list[Tensor] = [torch.zeros(1, *network.task.image)]
    reads: tuple[str, ...] = (IMAGES,)
    flag, last = "", len(network.stages) - 1
    for i in range(len(network.stages)):
        module = _Stage(network, i, chained=_chained(network, i))
        with torch.no_grad():
            images = list(network.stages[i](*images))
        writes: tuple[str, ...] = (LOGITS,)
        taken = (*reads, LOGITS) if module.before else reads
        if i < last:
            name = f"bar-{i + 1}"
            examples[name] = torch.tensor(0.5, dtype=torch.float64)
            taken = (*taken, name)
            reads = tuple(f"scale-{i + 1}-{s}" for s in range(len(images)))
            writes = (LOGITS, f"on-{i + 1}", *reads)
        part = Part(f"stage-{i + 1}", module, taken, writes)
        steps.append(Step(part, when=flag, charges=(f"stage-{i + 1}", f"exit-{i + 1}"), exit=i))
        flag = f"on-{i + 1}"
    count = len(network.exits)

    def settings(knobs: Knobs) -> dict[str, Any]:
        limits = thresholds_of(knobs, count)[:-1]
        return {f"bar-{i + 1}": min(bar(limit), 1e300) for i, limit in enumerate(limits)}

    return Program("exits", RULE, steps, settings, examples)
