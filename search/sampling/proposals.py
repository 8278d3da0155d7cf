"""What to try next: a pure function of the study's seed, the number of the ask and a view of the state.

A `Proposer` keeps between asks only what it could compute again from the state (`search.sampling.observations`,
Optuna's form of trials), so nothing about it can be lost. Taking a view is quick and belongs to the thread
that folds events; computing a proposal from it may be done in another one.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from search.sampling.density import Rows
from search.sampling.observations import Observations
from search.sampling.samplers import sampler_of
from search.sampling.view import Proposal, View
from search.spec.study import StudySpec
from search.state.state import StudyState
from spaces.space import Parameter, Space
from trainables.external import first_of, load
from trainables.registry import get_method

Papers = Mapping[str, Mapping[str, Any]]


def seed_of(*parts: Any) -> int:
    """A 32-bit seed from any parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


def papers_of(names: Iterable[str], references: Mapping[str, str] | None = None) -> dict[str, Mapping[str, Any]]:
    """By name the published settings of methods, and what the trainables with these `references` want to run first."""
    own = references or {}
    return {
        name: first_of(load(own[name], name), name) if name in own else get_method(name).published for name in names
    }


class Proposer:
    """Proposes configurations of a study; `papers` are the methods' published settings.

    Raises `InputError` where the study names a sampler that is not there or refuses its arguments.
    """

    def __init__(self, spec: StudySpec, spaces: Mapping[str, Space], papers: Papers | None = None) -> None:
        self.spec, self.spaces = spec, spaces
        self.papers = papers_of(spaces, spec.references) if papers is None else papers
        self.observations = Observations()
        self._ask = sampler_of(spec.sampler)
        self._frozen: dict[tuple[str, int], Any] = {}
        self._rows: dict[str, Rows] = {}
        self._transfers: dict[str, Any] = {}
        self._one_at_a_time = threading.Lock()

    def view(self, state: StudyState) -> View:
        """What there is to see of a state now."""
        return View.of(self.spec, self.spaces, state, self.observations, self._frozen, self._rows, self._transfers)

    def propose(self, view: View, number: int) -> Proposal:
        """The configuration of ask `number` (0 is the first) and why it was proposed."""
        seed = seed_of(self.spec.seed, number)
        methods = list(self.spaces)
        if self.spec.sampler.published and number < len(methods) and self.papers[methods[number]]:
            name = methods[number]
            config = published(name, self.spaces[name], self.papers[name], random.Random(seed))
            own = "its class's first setting" if name in self.spec.trainables else "the paper's own setting"
            return Proposal(config, f"{own}, as far as the space allows it")
        return self.asked(view, seed)

    def asked(self, view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
        """What the sampler proposes, and why; `given` holds the method and parameters that are not drawn."""
        with self._one_at_a_time:
            return self._ask(view, seed, given)


def published(method: str, space: Space, paper: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """The paper's own setting as far as the space allows it; what it does not allow is drawn."""
    paper = {"donor": "", **paper}  # what began with a trained network elsewhere is a recipe of its own

    def choose(name: str, parameter: Parameter) -> Any:
        return paper[name] if name in paper and parameter.contains(paper[name]) else parameter.sample(rng)

    return {"method": method, **space.build(choose)}
