"""Cascades as they are executed: a network answers, images of which it is not sure go on to the next one.

Shape legend: B images, C classes, U units of all networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from trainables.contracts.network import Inference, Knobs, RoutedNetwork
from trainables.execution.arithmetic import ieee_float32
from trainables.inference.predictions import probabilities
from trainables.inference.rules import doubt, factor, mean_of, scaled, scores
from trainables.normalisation import Normalisation


@runtime_checkable
class Resuming(Protocol):
    """A network that goes on under other knobs where it stopped (`trainables.networks.msdnet.exits`)."""

    def infer_on(self, inputs: Tensor, knobs: Sequence[Knobs], goes_on: Any) -> tuple[Inference, Tensor, Tensor]:
        """See `trainables.networks.msdnet.exits.ExitNetwork.infer_on`."""
        ...


@dataclass(frozen=True, slots=True)
class Step:
    """A member of a cascade: its network, how pixels become its inputs, its knobs, its temperature."""

    network: RoutedNetwork
    normalisation: Normalisation
    knobs: Mapping[str, Any]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What a cascade answers: `probabilities` (B, C) float64, `macs` (B,) of all that was executed, `path` (B, U),
    and `member` (B,), the place of the last member that was executed.
    """

    probabilities: np.ndarray
    macs: np.ndarray
    path: np.ndarray
    member: np.ndarray


class Cascade:
    """Operating points in their order, with a rule (`trainables.inference.rules`).

    Neighbours that are settings of one network (the same object) which can go on where it stopped share what they both
    execute. Everything lies on one device.
    """

    def __init__(self, steps: Sequence[Step], kind: str, answer: str) -> None:
        if len(steps) < 2:
            raise ValueError(f"{len(steps)} member: a cascade has at least two")
        self.steps, self.kind, self.answer = list(steps), kind, answer
        self.runs: list[list[int]] = []
        for place, step in enumerate(self.steps):
            before = self.steps[self.runs[-1][-1]] if self.runs else None
            if before is not None and before.network is step.network and isinstance(step.network, Resuming):
                self.runs[-1].append(place)
            else:
                self.runs.append([place])

    @property
    def units(self) -> list[str]:
        """Names of all units, those of each run of members behind the other: ``2:stage-1``."""
        return [f"{run[0] + 1}:{unit.name}" for run in self.runs for unit in self.steps[run[0]].network.units]

    @torch.inference_mode()
    @ieee_float32()
    def infer(self, pixels: Tensor, thresholds: Sequence[float]) -> Answered:
        """Answer images (B, channels, size, size) with values in [0, 255].

        Behind each member but the last stands one of the `thresholds`. Raises `ValueError` for another number of them.
        """
        if len(thresholds) != len(self.steps) - 1:
            raise ValueError(f"{len(thresholds)} thresholds; {len(self.steps)} members take {len(self.steps) - 1}")
        count = len(pixels)
        widths = [len(self.steps[run[0]].network.units) for run in self.runs]
        ends = np.cumsum(widths)
        macs, member = np.zeros(count), np.zeros(count, dtype=np.int64)
        path = np.zeros((count, int(ends[-1])))
        shares: np.ndarray | None = None
        here = np.arange(count)
        for run, end, width in zip(self.runs, ends, widths, strict=True):
            if not len(here):
                break
            first = self.steps[run[0]]
            part = pixels if len(here) == count else pixels[torch.from_numpy(here).to(pixels.device)]
            done, logits, reached = self._execute(run, first.normalisation.apply(part), thresholds)
            macs[here] += done.macs.double().cpu().numpy()
            path[here, end - width : end] = done.path.double().cpu().numpy()
            member[here] = run[0] + reached
            going = np.zeros(len(here), dtype=bool)
            for place, answers in zip(run, logits, strict=True):
                came = np.flatnonzero(reached >= place - run[0])
                found = scaled(
                    probabilities(answers[torch.from_numpy(came).to(answers.device)]), self.steps[place].temperature
                )
                shares = self._taken(shares, here[came], found, count, place)
                if place == run[-1] and place < len(thresholds):
                    going[came] = doubt(found, self.kind) > thresholds[place]
            here = here[going]
        if shares is None:
            shares = np.zeros((0, self.steps[0].network.task.classes))
        if self.answer != "last":
            return Answered(mean_of(shares, 1), macs, path, member)
        return Answered(shares.astype(np.float64), macs, path, member)

    def _execute(
        self, run: Sequence[int], inputs: Tensor, thresholds: Sequence[float]
    ) -> tuple[Inference, Sequence[Tensor], np.ndarray]:
        """A run of members on inputs: what was executed, the logits of each, how many members more an image came to."""
        network, knobs = self.steps[run[0]].network, [self.steps[place].knobs for place in run]
        if len(run) == 1:
            generator = torch.Generator(inputs.device).manual_seed(int(knobs[0].get("seed", 0)))
            result = network.infer(inputs, knobs[0], generator=generator)
            return result, [result.logits], np.zeros(len(inputs), dtype=np.int64)
        assert isinstance(network, Resuming)

        def goes_on(m: int, logits: Tensor) -> Tensor:
            found = scaled(probabilities(logits), self.steps[run[m]].temperature)
            return torch.from_numpy(doubt(found, self.kind) > thresholds[run[m]]).to(logits.device)

        done, every, reached = network.infer_on(inputs, knobs, goes_on)
        return done, list(every), reached.cpu().numpy()

    def _taken(
        self, shares: np.ndarray | None, images: np.ndarray, found: np.ndarray, count: int, place: int
    ) -> np.ndarray:
        """What is answered so far, with the answers of one more member, that at a place, on some images."""
        if self.answer != "last":
            shares = np.zeros((count, found.shape[1]), dtype=np.int32) if shares is None else shares
            shares[images] += scores(found, factor(self.answer) ** place)
            return shares
        shares = np.zeros((count, found.shape[1]), dtype=np.float32) if shares is None else shares
        shares[images] = found
        return shares
