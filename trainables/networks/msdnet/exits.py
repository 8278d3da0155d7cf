"""Networks with exits: an image leaves at the first classifier that is confident enough.

Shape legend: B images, C classes, K exits, S settings, U = 2 K units. Exits and stages are numbered
from 1 in names, as in the papers, and from 0 in tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from trainables.contracts.network import Exit, Inference, Knobs, Routed, RoutedNetwork, Task, Unit, evaluating
from trainables.execution.macs import counted
from trainables.execution.rows import take, thinned

TIE = 1e-4
"""Confidences whose log-odds are closer than this are the same confidence (see `leaves`)."""
NOBODY = 1e8
"""The threshold of an exit that nobody takes, as the papers' code has it (JSON has no infinity)."""

POSITIONS = 64 * 32 * 32
"""Pixels of the images that a CPU executes at once (see `ExitNetwork.at_once`)."""
_KEPT: MutableMapping[Tensor, tuple[int, Tensor]] = WeakTensorKeyDictionary()


def confidence(logits: Tensor) -> Tensor:
    """The largest softmax probability (..., C) -> (...), float64: near 1 float32 has many equal ones.

    What is not a number has no confidence: 0.
    """
    return torch.nan_to_num(logits.double().softmax(dim=-1).amax(dim=-1), nan=0.0)


def confidence_of(logits: Tensor) -> Tensor:
    """`confidence` of a tensor (K, n, C), kept while that tensor lives: all settings of a curve ask for it.

    What was written into the tensor since is seen, but for inference tensors, which have no versions:
    write nothing into those.
    """
    version = -1 if logits.is_inference() else logits._version
    kept = _KEPT.get(logits)
    if kept is None or kept[0] != version:
        kept = _KEPT[logits] = (version, confidence(logits))
    return kept[1]


def bar(threshold: float) -> float:
    """The confidence at which an image leaves: the threshold, or what rounding may have left of it.

    A calibrated threshold *is* the confidence of an image, and the same image executed in another
    batch differs in the last digits, so confidences within `TIE` in log-odds count as reached.
    """
    return threshold - TIE * max(0.0, threshold * (1 - threshold)) - 1e-12


def leaves(confidences: Tensor, threshold: float) -> Tensor:
    """Which images are confident enough to leave: confidence >= threshold (see `bar`)."""
    return confidences >= bar(threshold)


def thresholds_of(knobs: Knobs, exits: int) -> list[float]:
    """The K - 1 thresholds among the knobs and -inf for the last exit; nobody leaves early without any.

    Raises `ValueError` for another knob, a wrong number of thresholds, or one that is neither in
    [0, 1] nor `NOBODY` nor infinite (what everybody or nobody reaches).
    """
    for name in knobs:
        if name not in ("thresholds", "seed"):  # a seed may be stored with any knobs; nothing is drawn here
            raise ValueError(f"unknown knob {name!r}; networks with exits take thresholds")
    values = knobs.get("thresholds", [math.inf] * (exits - 1))
    if not isinstance(values, list | tuple) or len(values) != exits - 1:
        raise ValueError(f"thresholds = {values!r}: must be a list of {exits - 1} numbers, one per exit but the last")
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ValueError(f"thresholds = {values!r}: {value!r} is not a number")
        if not (0 <= value <= 1 or value == NOBODY or math.isinf(value)):
            raise ValueError(
                f"thresholds = {values!r}: {value!r} is no confidence; must be in [0, 1], or {NOBODY:g} for nobody"
            )
    return [*map(float, values), -math.inf]


class ExitNetwork(RoutedNetwork):
    """Stages one behind the other, each followed by a classifier that may end the computation.

    A stage takes the list of feature maps that the one before it returned (the image, for the
    first); a classifier reads the last of them. Decisions are one-hot (B, K), the exit taken. Units
    are stage 1, exit 1, stage 2, ...: an image that leaves at exit i has executed the first i of
    each. Knob: ``thresholds``, the K - 1 confidences that suffice.
    """

    def __init__(self, config: Any, task: Task, stages: Sequence[nn.Module], classifiers: Sequence[nn.Module]) -> None:
        super().__init__(config, task)
        self.stages = nn.ModuleList(stages)
        self.classifiers = nn.ModuleList(classifiers)
        self._describe()

    def _describe(self) -> None:
        """Count what every stage and exit costs, by one pass over an image of zeros in eval mode."""
        units, exits, total = [], [], 0
        features: list[Tensor] = [torch.zeros((1, *self.task.image), device=next(self.parameters()).device)]
        logits = None
        with evaluating(self), counted(self) as tally, torch.no_grad():
            for i, stage in enumerate(self.stages):
                features = stage(*features)
                in_stage = sum(tally.values()) - total
                logits = self.answer(i, features[-1], logits)
                in_exit = sum(tally.values()) - total - in_stage
                total += in_stage + in_exit
                units += [Unit(f"stage-{i + 1}", "block", in_stage), Unit(f"exit-{i + 1}", "exit", in_exit)]
                exits.append(Exit(f"exit-{i + 1}", total))
        self.describe_units(units, fixed=0, full=total, least=exits[0].macs, exits=exits)

    def _path(self, decisions: Tensor) -> Tensor:
        """Executed share of every unit (B, U): the chance of leaving at its exit or behind it."""
        reached = decisions.flip(1).cumsum(1).flip(1)
        return reached.repeat_interleave(2, dim=1)

    def answer(self, exit: int, read: Tensor, before: Tensor | None) -> Tensor:
        """Logits (B, C) of exit 0, 1, ... from the coarsest features and the logits of the exit before.

        Networks whose exits build on one another override this; the first exit has none before it.
        """
        return self.classifiers[exit](read)

    def answering(self, exit: int) -> list[nn.Module]:
        """The modules of `answer`."""
        return [self.classifiers[exit]]

    def hand_over(self, stage: int, features: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """What the classifier and the next stage read of what stage 0, 1, ... computed.

        Methods that shape gradients between the two override this; the values must stay.
        """
        return features[-1], features

    def forward(
        self,
        inputs: Tensor,
        *,
        decisions: Tensor | None = None,
        price: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Routed:
        """Logits of all exits; injected `decisions` (B, K) weigh them into the output and its MACs.

        These networks take no price and draw nothing.
        """
        features, logits = [inputs], []
        for i, stage in enumerate(self.stages):
            read, features = self.hand_over(i, stage(*features))
            logits.append(self.answer(i, read, logits[-1] if logits else None))
        if decisions is None:
            output = logits[-1]
            last: Tensor = output.new_zeros(len(inputs), len(logits))
            last[:, -1] = 1
            decisions = last
        else:
            output = torch.einsum("bk,kbc->bc", decisions.to(logits[-1].dtype), torch.stack(logits))
        return Routed(tuple(logits), output, decisions, self.path_macs(self._path(decisions)))

    @torch.no_grad()
    def sweep(
        self, inputs: Tensor, knobs: Sequence[Knobs], *, generator: torch.Generator | None = None
    ) -> list[Inference]:
        """The hard pass under several thresholds: an image leaves the batch when all of them let it go."""
        limits = [[bar(limit) for limit in thresholds_of(k, len(self.exits))] for k in knobs]
        if len(inputs) == len(knobs) == 1:
            return [self._alone(inputs, limits[0])]
        most = self.at_once(inputs)
        if len(inputs) > most:
            parts = [self._swept(part, limits) for part in inputs.split(most)]
            return [_joined(each) for each in zip(*parts, strict=True)]
        return self._swept(inputs, limits)

    def at_once(self, inputs: Tensor) -> int:
        """Images that are executed together: on CPUs large batches leave the caches and are slower an image."""
        return max(1, POSITIONS // inputs.shape[2:].numel()) if inputs.device.type == "cpu" else max(1, len(inputs))

    def _swept(self, inputs: Tensor, limits: Sequence[Sequence[float]]) -> list[Inference]:
        bars = torch.tensor(limits, dtype=torch.float64, device=inputs.device).reshape(-1, len(self.exits))
        rows = torch.arange(len(inputs), device=inputs.device)
        taken = rows.new_zeros(len(limits), len(inputs))
        staying = torch.ones_like(taken, dtype=torch.bool)
        logits = inputs.new_zeros(len(self.exits), len(inputs), self.task.classes)
        features, answers = [inputs], None
        for i, stage in enumerate(self.stages):
            features = stage(*features)
            answers = self.answer(i, features[-1], answers)
            logits[i, rows] = answers.to(logits.dtype)
            staying &= confidence(answers) < bars[:, i, None]
            stays = staying.any(dim=0)
            left = len(rows) - int(stays.sum())
            taken[:, rows] += staying.long()  # one exit further
            if left == len(rows):
                break
            if left:
                # what a stage returns is ours to overwrite, unless it is what it was given
                own = [each if not _shared(each, inputs) else each.clone() for each in (*features, answers)]
                *features, answers, rows, across = thinned([*own, rows, staying.t().contiguous()], stays)
                staying = across.t()
        return [self._answered(logits, exits) for exits in taken]

    def _alone(self, inputs: Tensor, bars: Sequence[float]) -> Inference:
        """The hard pass of one image under one setting, without masks."""
        features, answers, leaving = [inputs], None, 0
        for leaving, (stage, least) in enumerate(zip(self.stages, bars, strict=True)):
            features = stage(*features)
            answers = self.answer(leaving, features[-1], answers)
            if confidence(answers).item() >= least:
                break
        assert answers is not None
        exits = torch.full((1,), leaving, device=inputs.device)
        decisions = _one_hot(exits, len(self.exits), inputs.dtype)
        path = self._path(decisions)
        return Inference(answers.to(inputs.dtype), path, self.path_macs(path), decisions, exits)

    def infer(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """The hard pass under one list of thresholds: a sweep of one setting."""
        return self.sweep(inputs, [knobs], generator=generator)[0]

    @torch.no_grad()
    def infer_on(
        self, inputs: Tensor, knobs: Sequence[Knobs], goes_on: Callable[[int, Tensor], Tensor]
    ) -> tuple[Inference, Tensor, Tensor]:
        """The hard pass under the first knobs, and for images that are not sure enough under the next ones, and so on.

        `goes_on(m, logits)` says of images that left under knobs m with `logits` (k, C) which go on under knobs m + 1:
        a mask (k,). No stage is computed twice for an image. Returns what was executed (logits of the last knobs that
        an image came to, the path and the MACs of all of it), the logits under every knobs (M, B, C), and the number of
        the last ones (B,).
        """
        limits = [[bar(limit) for limit in thresholds_of(each, len(self.exits))] for each in knobs]
        bars = torch.tensor(limits, dtype=torch.float64, device=inputs.device).reshape(-1, len(self.exits))
        rows = torch.arange(len(inputs), device=inputs.device)
        taken = rows.new_zeros(len(knobs), len(inputs))
        staying = torch.ones_like(taken, dtype=torch.bool)
        reached, deepest = torch.zeros_like(rows), torch.zeros_like(rows)
        logits = inputs.new_zeros(len(self.exits), len(inputs), self.task.classes)
        features, answers = [inputs], None
        for i, stage in enumerate(self.stages):
            features = stage(*features)
            answers = self.answer(i, features[-1], answers)
            logits[i, rows], deepest[rows] = answers.to(logits.dtype), i
            staying &= confidence(answers) < bars[:, i, None]
            taken[:, rows] += staying.long()  # one exit further
            over = torch.zeros_like(rows, dtype=torch.bool)
            for m in range(len(knobs)):
                left = ((reached[rows] == m) & ~staying[m] & ~over).nonzero().squeeze(1)
                if m == len(knobs) - 1 or not len(left):
                    over[left] = True
                    continue
                images = rows[left]
                further = goes_on(m, logits[taken[m, images], images])
                reached[images[further]] += 1
                over[left[~further]] = True
            stays = ~over
            if not bool(stays.any()):
                break
            features = [take(each, stays.nonzero().squeeze(1)) for each in features]
            answers = answers[stays]
            rows, staying = rows[stays], staying[:, stays]
        places = torch.arange(len(inputs), device=inputs.device)
        every = torch.stack([logits[exits, places] for exits in taken])
        decisions = _one_hot(deepest, len(self.exits), inputs.dtype)
        path = self._path(decisions)
        done = Inference(every[reached, places], path, self.path_macs(path), decisions, deepest)
        return done, every, reached

    @torch.no_grad()
    def replay(self, logits: Tensor, knobs: Knobs) -> Inference:
        """The hard pass by arithmetic, from the logits of all exits (K, B, C)."""
        count = len(self.exits)
        if len(logits) != count:
            raise ValueError(f"logits of {len(logits)} exits do not belong to a network with {count}")
        limits = thresholds_of(knobs, count)
        sure = confidence_of(logits)
        leaving = torch.stack([leaves(each, limit) for each, limit in zip(sure, limits, strict=True)])
        return self._answered(logits, leaving.int().argmax(dim=0))  # the first of the largest

    @torch.no_grad()
    def dense(self, inputs: Tensor, knobs: Knobs, *, generator: torch.Generator | None = None) -> Inference:
        """See `RoutedNetwork`: all stages and exits for all images; each gets the answer of its exit."""
        return self.all_charged(self.replay(torch.stack(self(inputs).logits), knobs))

    def _answered(self, logits: Tensor, exits: Tensor) -> Inference:
        """What images get that leave at exits (B,): logits (K, B, C)."""
        decisions = _one_hot(exits, len(self.exits), logits.dtype)
        path = self._path(decisions)
        chosen = logits[exits, torch.arange(logits.shape[1], device=logits.device)]
        return Inference(chosen, path, self.path_macs(path), decisions, exits)


def _joined(parts: Sequence[Inference]) -> Inference:
    """Results of one setting on parts of a batch."""
    names = ("logits", "path", "macs", "decisions", "exits")
    return Inference(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def _one_hot(exits: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """(B,) to (B, `count`). PyTorch's own reads the largest value back."""
    return (exits[:, None] == torch.arange(count, device=exits.device)).to(dtype)


def _shared(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
