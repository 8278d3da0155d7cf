"""The steps of a phase: as they are written, and on a GPU captured as one CUDA graph that checks itself.

A step of a small network is thousands of launches of a few microseconds each, which Python cannot hand out as fast as a
GPU works them off. A CUDA graph repeats them all by one call: gather, augmentation, normalisation, objective, backward,
optimiser. It repeats the same launches on the same memory, so that whatever changes from step to step must lie in
tensors that stay: the images' indices, the learning rate, what `Method.anneal` sets; and the state of the generator,
which CUDA advances as the written step does.

Whether a graph does what the step does cannot be read off the code. Therefore the first captured steps of every phase
are compared with the written step from the same state (`CHECKS`), and the first error or deviation ends capturing for
the training, which goes on as it is written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from trainables import constants
from trainables.contracts.method import Method
from trainables.contracts.network import RoutedNetwork
from trainables.contracts.recipe import Phase
from trainables.data.augment import Drawn
from trainables.data.encoded import Images
from trainables.data.splits import Data

_log = logging.getLogger(__name__)
CAPTURES = ("auto", "off")
CHECKS = 2
"""Captured steps of a phase that are compared with written ones; each costs two of them."""
NOISE, MOST_NOISE = 8.0, 0.05
"""A captured step may differ from a written one by so many times what two written ones differ by. Their losses in turn
may differ by such a share of the largest at most: above it nothing could be said."""
ROUNDING = {False: 1e-5, True: 1e-3}
"""A captured step may differ by this share of the largest value besides, in float32 and with bfloat16. Where steps are
deterministic it may not."""


class Training(Protocol):
    """What steps need of a `trainables.training.training.Training`."""

    method: Method
    network: RoutedNetwork
    optimiser: torch.optim.Optimizer | None
    generator: torch.Generator
    device: torch.device
    images: Images
    data: Data
    bfloat16: bool
    deterministic: bool
    capture: str
    uncaptured: str


class Steps:
    """The steps of a phase of a training, as they are written.

    `names` are those of the loss terms. `captured` counts the steps that were replayed; here none are.
    """

    captured = 0

    def __init__(self, training: Training, phase: Phase) -> None:
        self.training, self.phase = training, phase
        self.names: list[str] = []

    def __call__(self, drawn: Drawn, *, share: float, steps: int) -> Tensor:
        """One step behind `share` of the phase's `steps`: its loss terms, a new tensor (terms,)."""
        self._prepare(share, steps)
        return self._written(drawn, share, steps)

    def _prepare(self, share: float, steps: int) -> None:
        """Set what the host decides for a step."""
        training, rate = self.training, self.phase.optimiser.lr_at(share, steps)
        assert training.optimiser is not None
        if training.device.type != "cpu":
            rate = float(np.float32(rate))  # as the tensor of a captured step holds it
        for group in training.optimiser.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        if training.method.anneal is not None:
            training.method.anneal(training.network, share, steps)

    def _written(self, drawn: Drawn, share: float, steps: int, *, capturing: bool = False) -> Tensor:
        training, method = self.training, self.training.method
        assert training.optimiser is not None
        batch = drawn.make(*drawn.indices)
        batch.share, batch.steps = share, steps
        if batch.images.dim() == 4:
            batch.images = batch.images.contiguous(memory_format=torch.channels_last)
        cast = {"enabled": training.bfloat16, "cache_enabled": not capturing}
        with torch.autocast(training.device.type, torch.bfloat16, **cast):
            terms = method.objective(training.network, batch, self.phase)
        training.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()
        if method.adjust_gradients is not None:
            method.adjust_gradients(training.network, batch)
        training.optimiser.step()
        self.names = list(terms)
        return torch.stack([term.detach() for term in terms.values()])


class CapturedSteps(Steps):
    """The steps of a phase on a GPU: the first as written, then captured, the short last batch of an epoch as written.

    `size`: different images of a whole batch.
    """

    def __init__(self, training: Training, phase: Phase, size: int) -> None:
        super().__init__(training, phase)
        self._size = size
        self._begun = False
        self._checked = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._indices: tuple[Tensor, ...] = ()
        self._terms: Tensor | None = None
        self._held: object = None  # whose memory the graph reads and that nobody else may keep
        assert training.optimiser is not None
        for group in training.optimiser.param_groups:
            group["lr"] = torch.full((), float(group["lr"]), device=training.device)
            if "capturable" in group:
                group["capturable"] = True

    def __call__(self, drawn: Drawn, *, share: float, steps: int) -> Tensor:
        """See `Steps`."""
        self._prepare(share, steps)
        whole = bool(drawn.indices) and len(drawn.indices[0]) == self._size
        if self.training.uncaptured or not whole:
            return self._written(drawn, share, steps)
        if not self._begun:  # brings what later steps find: the optimiser's moments, constants, choices by time
            return self._begin(drawn, share, steps)
        if self._checked < CHECKS:
            return self._compared(drawn, share, steps)
        self.captured += 1
        return self._replayed(drawn)

    def _begin(self, drawn: Drawn, share: float, steps: int) -> Tensor:
        with self._aside():
            terms = self._written(drawn, share, steps)
        self._begun = True
        return terms

    def _state(self) -> list[tuple[str, Tensor]]:
        """The tensors that a step changes, by kind: what is trained, moments by name, statistics and counts."""
        network, optimiser = self.training.network, self.training.optimiser
        assert optimiser is not None
        state = [("weights", parameter) for parameter in network.parameters() if parameter.requires_grad]
        state += [("", buffer) for part in network.modules() if part.training for buffer in part.buffers(recurse=False)]
        for kept in optimiser.state.values():
            state += [(name if each.dim() else "", each) for name, each in kept.items() if isinstance(each, Tensor)]
        return list({id(each): (kind, each) for kind, each in state if each.numel()}.values())

    @torch.no_grad()
    def _compared(self, drawn: Drawn, share: float, steps: int) -> Tensor:
        """A captured step, and twice the written one from the same state; what it ends with is the captured one's."""
        kinds, state = zip(*self._state(), strict=True)
        draws, terms = self.training.generator.get_state(), None
        before = [each.clone() for each in state]

        def back() -> None:
            for each, was in zip(state, before, strict=True):
                each.copy_(was)
            self.training.generator.set_state(draws)

        def written() -> list[Tensor]:
            with self._aside(), torch.enable_grad():
                terms = self._written(drawn, share, steps)
            return [terms, *(each.clone() for each in state)]

        one = written()
        back()
        two = written()
        back()
        try:
            if self._graph is None:
                self._capture(drawn, share, steps)
            terms = self._replayed(drawn)
            off = self._deviation(["losses", *kinds], one, two, [terms, *state])
        except RuntimeError as error:  # what capture refuses, and what CUDA says behind it
            self._renew_generator(draws)
            off = f"{type(error).__name__}: {error}".splitlines()[0]
        if terms is not None and not off:
            self._checked += 1
            self.captured += 1
            return terms
        self._graph, self._terms, self._held = None, None, None
        self.training.uncaptured = off
        _log.warning("steps of phase %s are no longer captured, and run as they are written: %s", self.phase.name, off)
        back()
        with torch.enable_grad():
            return self._written(drawn, share, steps)

    def _capture(self, drawn: Drawn, share: float, steps: int) -> None:
        """Record a step without running it: indices, terms and gradients keep their memory from here on."""
        self._indices = tuple(index.clone() for index in drawn.indices)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.training.generator)
        static = Drawn(self._indices, drawn.make)
        with constants.held() as held, torch.enable_grad(), torch.cuda.graph(graph):
            self._terms = self._written(static, share, steps, capturing=True)
        self._graph, self._held = graph, (static, held)

    def _replayed(self, drawn: Drawn) -> Tensor:
        assert self._graph is not None and self._terms is not None
        for static, given in zip(self._indices, drawn.indices, strict=True):
            static.copy_(given)
        self._graph.replay()
        return self._terms.clone()

    def _deviation(
        self, kinds: Sequence[str], one: Sequence[Tensor], two: Sequence[Tensor], found: Sequence[Tensor]
    ) -> str:
        """What is wrong with what a captured step left, in words; empty where it is as one of two written ones.

        The share of rounding is of the largest value of a kind: the gradient of a bias that a batch norm takes away
        again is nothing but rounding.
        """
        rounding = 0.0 if self.training.deterministic else ROUNDING[self.training.bfloat16]
        noise, off, own = (
            torch.stack([each.double().abs().max() for each in tensors]).tolist()
            for tensors in (
                [a.double() - b.double() for a, b in zip(one, two, strict=True)],
                [a.double() - b.double() for a, b in zip(one, found, strict=True)],
                one,
            )
        )
        if noise[0] > MOST_NOISE * own[0]:
            return f"the losses of two written steps from one state differ by {noise[0]:.3g} of {own[0]:.3g}"
        largest: dict[str, float] = {}
        for kind, most in zip(kinds, own, strict=True):
            largest[kind] = max(largest.get(kind, 0.0), most)
        for kind, between, by, most in zip(kinds, noise, off, own, strict=True):
            most = largest[kind] if kind else most
            if not by <= NOISE * between + rounding * most:
                return f"a captured step differs from a written one: {kind or 'statistics'} by {by:.3g} of {most:.3g}"
        return ""

    def _renew_generator(self, draws: Tensor) -> None:
        """A capture that broke off leaves the generator in it: give it a state of its own again."""
        fresh = torch.Generator(self.training.device)
        fresh.set_state(draws)
        self.training.generator.graphsafe_set_state(fresh.graphsafe_get_state())

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """On a stream of its own, as CUDA graphs want what comes before a capture."""
        side, main = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            yield
        main.wait_stream(side)


def steps_of(training: Training, phase: Phase, size: int) -> Steps:
    """How a training takes the steps of a phase; where a GPU does not capture them, the log says once why.

    `size`: different images of a whole batch.
    """
    if training.device.type != "cuda":
        return Steps(training, phase)
    why = training.uncaptured
    if not why and training.capture == "off":
        why = "capture = off"
    elif not why and not phase.capturable:
        why = f"phase {phase.name} of {training.method.name} needs the host in its steps"
    elif not why and phase.source == "images" and training.data.policy != "none":
        why = "its images are augmented by the host"
    elif not why and phase.source == "images" and not isinstance(training.images, Tensor):
        why = "its images are decoded by the host"
    if not why:
        return CapturedSteps(training, phase, size)
    if not training.uncaptured:
        _log.info("steps of phase %s are not captured: %s", phase.name, why)
    return Steps(training, phase)
