"""Prototypes of the search by name: `applied` puts them in the engine's place for a run.

A name is ``proto`` and words in any order. What proposes (without one of them: the project's own two densities):

=========== =========================================================================================================
gp          a Gaussian process per method (`surrogate.py`), the method drawn by votes as ever
gpall       the same, the method by the largest expected improvement; ``alike=SHARE`` of the asks one drawn from all
random      uniform draws
mix=SHARE   so many of a process's proposals come from the two densities
bridge=N    the two densities while a process has fewer than N trials
evo=SHARE   so many of the proposals are children of the front
uniform=SHARE, winsor=FACTOR, nopending  parts of the samplers, see `surrogate.OPTIONS`
=========== =========================================================================================================

What goes on:

=========== =========================================================================================================
immune=SHARE so many of the trials are trained to the end, whatever the rungs say
pass=SHARE  who is not among the best goes on with this chance
thaw=SHARE  with rungs that pause: at so many asks the one goes on that is foretold to be the best within a budget
foretold    rungs compare curves as they are foretold to end
red=FACTOR, rungs=EPOCH,EPOCH, brackets=N, norungs  parts of the study file
=========== =========================================================================================================

The one that was best so far: ``proto gp mix=0.4 immune=0.08``.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from search.engine import engine
from search.pareto.front import place_among
from search.rungs import decisions
from search.rungs.decisions import Decision
from search.sampling import budgets, samplers
from search.sampling.samplers import Ask, ask_evolution
from search.sampling.view import Config, View, ask_random
from search.spec import tables
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from tests.benchmarks.search.public.proto import surrogate

LATEST = 300
"""So many trials of a rung are looked at."""
_SAMPLER = {"mix": "mixed", "uniform": "uniform", "winsor": "winsor", "alike": "alike"}
"""Options of `surrogate.OPTIONS` by the words that set them."""

Decide = Callable[..., Decision]


@dataclass(slots=True)
class Prototype:
    """What a name asks for: parts of a study file, the sampler's options, rules of the rungs by word."""

    kind: str = "densities"
    parts: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    evolution: float = 0.0
    rules: dict[str, float] = field(default_factory=dict)


def parsed(name: str) -> Prototype:
    """The prototype of a name. Raises `ValueError` for a word that there is not, or a value that is no number."""
    found = Prototype()
    for word in name.split()[1:]:
        key, _, value = word.partition("=")
        try:
            _take(found, key, value)
        except (KeyError, ValueError):
            raise ValueError(f"contender {name!r}: no prototype knows the word {word!r}") from None
    useless = found.options.keys() - ({"uniform"} if found.kind == "densities" else set())
    if found.kind != "gp" and useless:
        raise ValueError(f"contender {name!r}: {sorted(useless)[0]} is of a Gaussian process; add gp or gpall")
    return found


def _take(found: Prototype, key: str, value: str) -> None:
    rungs = found.parts.setdefault("rungs", {})
    if key in ("gp", "gpall"):
        found.kind, found.options["method"] = "gp", "vote" if key == "gp" else "all"
    elif key == "random":
        found.kind = "random"
    elif key == "bridge":
        found.options |= {"bridge": True, "least": int(value)}
    elif key == "nopending":
        found.options["pending"] = False
    elif key == "evo":
        found.evolution = float(value)
    elif key in ("immune", "pass", "thaw", "foretold"):
        found.rules[key] = float(value or 1)
        rungs |= {"pause": True} if key == "thaw" else {}
    elif key == "red":
        rungs["reduction"] = float(value)
    elif key == "rungs":
        rungs["epochs"] = [int(epoch) for epoch in value.split(",")]
    elif key == "brackets":
        rungs["brackets"] = int(value)
    elif key == "norungs":
        rungs["enabled"] = False
    else:
        found.options[_SAMPLER[key]] = float(value)


@contextlib.contextmanager
def applied(name: str) -> Iterator[dict[str, Any]]:
    """The prototype in the engine's place; the parts of a study file that go with it."""
    asked = parsed(name)
    ask: Ask = budgets.ask_budgets
    changes: list[tuple[Any, str, Any]] = []
    if asked.kind == "gp":
        ask = surrogate.make(**asked.options)
    elif asked.kind == "random":
        ask = ask_random
    elif "uniform" in asked.options:
        changes.append((budgets, "_UNIFORM", asked.options["uniform"]))
    if asked.evolution:
        ask = with_evolution(ask, asked.evolution)
    decide: Decide = decisions.decide
    if "pass" in asked.rules:
        decide = passing(decide, asked.rules["pass"])
    if "immune" in asked.rules:
        decide = immune(decide, asked.rules["immune"])
    changes.append((engine, "decide", decide))
    if "thaw" in asked.rules:
        changes.append((engine, "promotable", thawing(asked.rules["thaw"])))
    if "foretold" in asked.rules:
        changes.append((decisions, "_place", foretold_place))
    changes.append((tables, "SAMPLERS", (*tables.SAMPLERS, "proto")))
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.dict(samplers.SAMPLERS, proto=ask))
        for owner, attribute, new in changes:
            stack.enter_context(patch.object(owner, attribute, new))
        yield {**asked.parts, "sampler": {"name": "proto"}}


def with_evolution(ask: Ask, share: float) -> Ask:
    """A share of the proposals are children of the front."""

    def mixed(view: View, seed: int, given: Mapping[str, Any] | None = None) -> tuple[Config, str]:
        if random.Random(seed ^ 0x5EED).random() < share:
            return ask_evolution(view, seed, given)
        return ask(view, seed, given)

    return mixed


# -- rungs ------------------------------------------------------------------------------------------------------------


def gains_to_end(spec: StudySpec, state: StudyState, epoch: int) -> Callable[[str], float]:
    """By method how much the logarithm of a curve's least error still changes behind a rung, step by step."""
    steps = [*spec.rung_epochs, spec.budget.epochs]
    steps = steps[steps.index(epoch) :]
    total = []
    for before, after in itertools.pairwise(steps):
        pairs = []
        for trial in state.rung(after)[-LATEST:]:
            if trial.comparable.get(before):
                first, last = trial.ends(before)[0], trial.ends(after)[0]
                if math.isfinite(first) and math.isfinite(last):
                    pairs.append((trial.method, math.log(max(last, 1e-6)) - math.log(max(first, 1e-6))))
        total.append(budgets._gains(pairs))
    return lambda method: sum(gain(method) for gain in total)


def foretold_place(
    spec: StudySpec, state: StudyState, rivals: Sequence[Trial], trial: Trial, epoch: int
) -> tuple[int, int]:
    """See `search.rungs.decisions._place`, with every curve moved by what its method still gains."""
    reference = state.created["reference"]
    gain = gains_to_end(spec, state, epoch)
    curves = []
    for rival in rivals:
        error, macs = rival.arrays(epoch)
        curves.append((error * math.exp(min(0.0, gain(rival.method))), macs))
    missed = [rival.missed.get(epoch, 0.0) for rival in rivals]
    own = next(i for i, rival in enumerate(rivals) if rival is trial)
    place = place_among(curves, own, (reference["error"], reference["macs"]), missed)
    return place, decisions.room(spec, len(rivals))


def thawing(share: float) -> Callable[[StudySpec, StudyState], tuple[Trial, str] | None]:
    """Instead of `promotable`: at a share of the asks the best foretold of those that wait goes on.

    The best within a budget that is drawn anew.
    """

    def promotable(spec: StudySpec, state: StudyState) -> tuple[Trial, str] | None:
        if not state.paused:
            return None
        digest = hashlib.sha256(repr((spec.seed, state.seq)).encode()).digest()
        rng = random.Random(int.from_bytes(digest[:4], "big"))
        if rng.random() >= share:
            return None
        shown = {epoch: trials for epoch in state.rung_epochs() if (trials := state.rung(epoch)[-LATEST:])}
        budget = math.exp(rng.uniform(*budgets._range(shown)))
        values = budgets.foretold(shown, budget)
        waiting = [trial for trial in state.paused if trial.id in values]
        if not waiting:
            return None
        best = min(waiting, key=lambda trial: (values[trial.id], trial.number))
        return best, "the best foretold of those that wait"

    return promotable


def passing(plain: Decide, chance: float) -> Decide:
    """Who is not among the best goes on all the same with a chance."""

    def decide(spec: StudySpec, state: StudyState, trial: Trial, epoch: int, spent: str = "") -> Decision:
        found = plain(spec, state, trial, epoch, spent)
        stopped = found.action == "stop" and "among the best" in found.why
        if stopped and random.Random(f"{trial.seed} {epoch}").random() < chance:
            return Decision("continue", f"{found.why}, by chance")
        return found

    return decide


def immune(plain: Decide, share: float) -> Decide:
    """A share of the trials is trained to the end whatever the rungs say."""

    def decide(spec: StudySpec, state: StudyState, trial: Trial, epoch: int, spent: str = "") -> Decision:
        inside = epoch < spec.budget.epochs and not spent and epoch in spec.rung_epochs
        if inside and random.Random(f"immune {trial.seed}").random() < share:
            return Decision("continue", "one of those that are trained to the end")
        return plain(spec, state, trial, epoch, spent)

    return decide
