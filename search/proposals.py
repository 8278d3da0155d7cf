"""What to try next: a pure function of the study's seed, the number of the ask and the state.

Optuna's study is rebuilt in memory from the state at every ask, so nothing about it can be lost,
and what it is told is honest about fidelity: a trial that showed its curve at a rung is an
observation of that rung and never a final value (`observations`).
"""

from __future__ import annotations

import hashlib
import random
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from search.frontier import non_dominated, standings
from search.optuna_space import published, record, suggest
from search.spec import StudySpec
from search.state import StudyState
from search.trial import Trial
from spaces.space import Space
from trainables.registry import get_method

optuna.logging.set_verbosity(optuna.logging.ERROR)


def seed_of(*parts: Any) -> int:
    """A 32-bit seed from any parts, the same on every machine."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4], "big")


Papers = Mapping[str, Mapping[str, Any]]


def papers_of(names: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The published settings of methods by name."""
    return {name: get_method(name).published for name in names}


def propose(
    spec: StudySpec, spaces: Mapping[str, Space], state: StudyState, number: int, papers: Papers | None = None
) -> tuple[dict[str, Any], str]:
    """The configuration of ask `number` (0 is the first) and why it was proposed.

    `papers` are the methods' published settings, by default those of the registered methods.
    """
    seed = seed_of(spec.seed, number)
    methods = list(spaces)
    if spec.sampler.published and number < len(methods):
        name = methods[number]
        paper = papers_of([name])[name] if papers is None else papers[name]
        config = published(name, spaces[name], paper, random.Random(seed))
        return config, "the paper's own setting, as far as the space allows it"
    return asked(spec, spaces, state, seed)


def asked(
    spec: StudySpec, spaces: Mapping[str, Space], state: StudyState, seed: int, fixed: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """What the sampler proposes, and why; `fixed` holds Optuna's parameters that are not drawn, by name."""
    scored = spec.sampler.observe == "score"
    told = _tell_scores(spaces, state) if scored else _tell_objectives(spaces, state, spec.sampler.startup)
    study = optuna.create_study(
        directions=["maximize"] if scored else ["minimize", "minimize"], sampler=_sampler(spec, seed)
    )
    study.add_trials(told)
    if fixed:
        study.enqueue_trial(dict(fixed))
    config = suggest(study.ask(), spaces)
    done = sum(t.state is TrialState.COMPLETE for t in told)
    random_yet = spec.sampler.name == "random" or done < spec.sampler.startup
    return config, "random" if random_yet else f"{spec.sampler.name} after {done} observations"


def _sampler(spec: StudySpec, seed: int) -> optuna.samplers.BaseSampler:
    if spec.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # group is marked experimental
        return optuna.samplers.TPESampler(
            seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=spec.sampler.startup
        )


def observations(state: StudyState) -> dict[str, float]:
    """One score per trial that has shown a comparable curve: its standing at its highest rung plus
    the number of rungs below it. A failed trial scores -1; a trial without a curve has none.

    The standing is that of its curve among all curves at the same epoch, in [0, 1] (best 1), so a
    trial that was stopped early teaches what that epoch teaches and no more.
    """
    reference = state.created["reference"]
    epochs = state.rung_epochs()
    scores: dict[str, float] = {}
    for index, epoch in enumerate(epochs):
        trials = state.rung(epoch)
        ranks = standings([t.arrays(epoch) for t in trials], (reference["error"], reference["macs"]))
        for trial, rank in zip(trials, ranks, strict=True):
            scores[trial.id] = index + float(rank)
    scores.update({trial.id: -1.0 for trial in state.trials.values() if trial.state == "failed"})
    return scores


def _frozen(trial: Trial, spaces: Mapping[str, Space], values: list[float] | None) -> FrozenTrial:
    params, distributions = record(trial.config, spaces)
    return optuna.create_trial(
        state=TrialState.RUNNING if values is None else TrialState.COMPLETE,
        values=values,
        params=params,
        distributions=distributions,
    )


def _tell_scores(spaces: Mapping[str, Space], state: StudyState) -> list[FrozenTrial]:
    scores = observations(state)
    return [
        _frozen(trial, spaces, [scores[trial.id]] if trial.id in scores else None)
        for trial in state.trials.values()
        if trial.id in scores or not trial.over
    ]


def _tell_objectives(spaces: Mapping[str, Space], state: StudyState, enough: int) -> list[FrozenTrial]:
    """Error and log10 MACs at the highest epoch that `enough` trials have reached (else the lowest).

    A curve is told as its cheapest, middle and most accurate non-dominated points.
    """
    epochs = state.rung_epochs()
    if not epochs:
        return [_frozen(trial, spaces, None) for trial in state.live]
    full = [epoch for epoch in epochs if len(state.rung(epoch)) >= enough]
    epoch = full[-1] if full else epochs[0]
    told: list[FrozenTrial] = []
    for trial in state.rung(epoch):
        error, macs = trial.arrays(epoch)
        front = np.flatnonzero(non_dominated(error, macs))
        front = front[np.argsort(macs[front])]
        for index in sorted({0, len(front) // 2, len(front) - 1}):
            point = front[index]
            told.append(_frozen(trial, spaces, [float(error[point]), float(np.log10(macs[point]))]))
    shown = {trial.id for trial in state.rung(epoch)}
    told += [_frozen(trial, spaces, None) for trial in state.live if trial.id not in shown]
    return told
