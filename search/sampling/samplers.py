"""Samplers by name: what each proposes, given what the trials so far have taught.

Every sampler is a pure function of a `View` of the study and a seed. Optuna's are told the trials
anew at every ask (`search.sampling.optuna_storage`), so nothing of theirs can be lost.

========= ======================================================================================
surrogate Gaussian processes, and what should add most to the hypervolume (`search.sampling.surrogate`); the default
budgets   two densities of what is the most accurate within a drawn compute budget (`search.sampling.budgets`)
tpe       Optuna's multivariate TPE over one score a trial (`search.sampling.observations`)
nsga2     Optuna's NSGA-II over error and log10 MACs of the points that trials ended with
evolution a trial on the front, some of its parameters drawn anew or moved a little
qmc       scrambled Sobol points over all methods' parameters together
random    uniform draws
========= ======================================================================================

Those of Optuna are in `search.sampling.optuna_samplers`, which also takes any other by the name of its class.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from search.sampling.budgets import ask_budgets
from search.sampling.surrogate import ask_surrogate
from search.sampling.view import Proposal, View, ask_random
from search.spec.tables import SamplerSpec
from spaces.scale import at, moved
from spaces.space import Parameter


def ask_qmc(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """The point of a scrambled Sobol sequence whose number is that of the ask (Owen, 1998).

    Its first coordinate is the method, the others are parameters by their place in a space. The sequence
    belongs to the study's seed; `seed` only draws what is asked for behind a given first stage.
    """
    if given:
        return ask_random(view, seed, given)
    longest = max(len(space.parameters) for space in view.spaces.values())
    from scipy.stats import qmc  # seconds, which other samplers save

    sequence = qmc.Sobol(1 + longest, scramble=True, rng=view.spec.seed)
    if view.asked:
        sequence.fast_forward(view.asked)
    point = sequence.random(1)[0].tolist()
    names = list(view.spaces)
    method = names[min(int(point[0] * len(names)), len(names) - 1)]
    units = dict(zip(view.spaces[method], point[1:], strict=False))
    values = view.spaces[method].build(lambda name, parameter: at(parameter, units[name]))
    return Proposal({"method": method, **values}, f"point {view.asked} of a Sobol sequence")


def ask_evolution(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
    """A child of a trial on the front, which is drawn by its share of the front's members.

    Each parameter is moved with the chance 1/2; one in six children has another method's random ones.
    """
    rng = random.Random(seed)
    owners = [trial for trial in view.owners if not given or trial.method == given["method"]]
    if view.starting or not owners or rng.random() < 1 / 6:
        return ask_random(view, seed, given)
    parent = rng.choice(owners)

    def choose(name: str, parameter: Parameter) -> Any:
        if given and name in given:
            return given[name]
        if name not in parent.config:
            return parameter.sample(rng)
        old = parent.config[name]
        return moved(parameter, old, rng) if rng.random() < 0.5 else old

    values = view.spaces[parent.method].build(choose)
    return Proposal({"method": parent.method, **values}, f"a child of {parent.id}, which is on the front")


Ask = Callable[[View, int, Mapping[str, Any] | None], Proposal]


def _optunas(name: str) -> Ask:
    """A function of `search.sampling.optuna_samplers`, which is imported at the first ask: Optuna takes a while."""

    def ask(view: View, seed: int, given: Mapping[str, Any] | None = None) -> Proposal:
        from search.sampling import optuna_samplers

        return getattr(optuna_samplers, name)(view, seed, given)

    return ask


SAMPLERS: dict[str, Ask] = {
    "surrogate": ask_surrogate,
    "budgets": ask_budgets,
    "tpe": _optunas("ask_tpe"),
    "nsga2": _optunas("ask_nsga2"),
    "evolution": ask_evolution,
    "qmc": ask_qmc,
    "random": ask_random,
}


def sampler_of(spec: SamplerSpec) -> Ask:
    """The sampler that a study file names. Raises `InputError` where a class is none, or refuses its arguments."""
    if spec.name in SAMPLERS:
        return SAMPLERS[spec.name]
    from search.sampling.optuna_samplers import ask_named, made

    made(spec.name, spec.arguments, 0)
    return ask_named
