"""Proposals computed ahead of a worker's request. Each sees the study at a fixed event, so that replays agree.

Ask n + `sampler.ahead` is proposed from the state right behind ask n, whoever waits for what: the same
events give the same proposals, after a restart too. How far a proposal is behind is thus bounded by
`ahead` asks, and its event says what it had seen (`seen`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from search.rungs.brackets import bracket_of, immune
from search.sampling.first_stages import propose_again
from search.sampling.proposals import Proposer, seed_of
from search.state.state import StudyState

Payload = dict[str, Any]


class Ahead:
    """Payloads of events `ask` to come; with `background` they are computed in a thread, else when they are taken."""

    def __init__(self, proposer: Proposer, state: StudyState, *, background: bool) -> None:
        self._proposer, self._state = proposer, state
        self._ready: dict[int, Callable[[], Payload]] = {}
        self._pool = ThreadPoolExecutor(1, "proposals") if background else None

    def prepare(self) -> None:
        """Right behind an ask: begin with what will be asked for `sampler.ahead` asks later."""
        asked = len(self._state.trials)
        number = asked - 1 + self._proposer.spec.sampler.ahead
        self._ready = {n: work for n, work in self._ready.items() if n >= asked}
        if number >= asked:
            work = self._work(number)
            self._ready[number] = self._pool.submit(work).result if self._pool else work

    @property
    def sooner(self) -> tuple[str, str] | None:
        """The trial that should go on before the next proposal is asked for, and why; None where none should."""
        number = len(self._state.trials)
        trial, why = self._next(number)().get("sooner") or ("", "")
        return (trial, why) if trial and self._state.trials[trial].state == "paused" else None

    def take(self) -> Payload:
        """What is asked for now; computed now where nothing was prepared."""
        trials = self._state.trials
        number = len(trials)
        payload = {name: value for name, value in self._next(number)().items() if name != "sooner"}
        self._ready.pop(number, None)
        behind = payload.get("stage")
        if behind and any(t.seed == payload["seed"] and t.config == payload["config"] for t in trials.values()):
            return self._work(number, share=False)()  # another one that was prepared with it came first
        return payload

    def prepared(self) -> dict[int, Payload]:
        """What is ready, by number of the ask."""
        return {number: work() for number, work in self._ready.items()}

    def _next(self, number: int) -> Callable[[], Payload]:
        return self._ready.get(number) or self._work(number)

    def close(self) -> None:
        """Compute no more."""
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, number: int, share: bool = True) -> Callable[[], Payload]:
        proposer, state, spec = self._proposer, self._state, self._proposer.spec
        view, seen, trials = proposer.view(state), state.seq, state.trials
        spared = immune(spec, state, seed_of(spec.seed, number, "immune"))
        again = propose_again(proposer, state, view, number) if share else None

        def work() -> Payload:
            found = again() if again else None
            config, why, model, sooner = found[0] if found else proposer.propose(view, number)
            seed = seed_of(spec.seed, number, "training")
            payload: Payload = {"number": number, "config": config, "seed": seed, "why": why, "seen": seen}
            bracket = bracket_of(spec, seed_of(spec.seed, number, "bracket"))
            if bracket:
                payload["bracket"] = bracket
            if spared:
                payload |= {"immune": True, "why": f"{why}; trained in full whatever its rungs show"}
            if model:
                payload["model"] = model
            if sooner:
                payload["sooner"] = sooner
            if found:
                trainer = trials[found[1].trial]
                payload |= {"seed": trainer.seed, "stage": asdict(found[1])}
                if trainer.donor:
                    payload["donor"] = asdict(trainer.donor)
            return payload

        return functools.cache(work)
