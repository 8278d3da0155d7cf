"""Warm starts: what a new study learns from earlier ones (``warm_start``, ``search --fork``).

Configurations that stand on an earlier study's front run first, as far as the new space allows them.
Where both studies have the same images and the same length of a full training, the sampler is told
what the earlier trials showed at the epochs that are rungs here as well, as if it had been seen here;
rungs compare nobody with them. Of other images, or at another length, it is told what they showed last: how
configurations compare there is where a model of theirs begins here (`search.sampling.transfer`).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.sampling.observations import Observations
from search.sampling.proposals import published, seed_of
from search.sampling.view import View
from search.spec.study import StudySpec
from search.units import AxesText

if TYPE_CHECKING:
    from search.state.state import StudyState
    from search.state.trial import Trial
    from search.studies.stored import StoredStudy

ELSEWHERE = 80
"""Trials of a method that a study on other images learns from."""

Told = list[tuple[str, dict[str, Any]]]


def taught(spec: StudySpec, data_hash: str, root: Path | None) -> Told:
    """(kind, payload) of the events that a new study begins with. `InputError` for a study that is not there."""
    from search.studies.stored import StoredStudy

    told: Told = []
    first: list[dict[str, Any]] = []
    for name in spec.warm_start.studies:
        study = StoredStudy.load(name, root=root)
        state = study.state()
        if state.created.get("objective") != (None if spec.axes.usual else spec.axes.record()):
            said = [f"{t.merit_title} and {t.cost_title}" for t in (AxesText.of(state.created), AxesText(spec.axes))]
            raise InputError(f"warm_start.studies: study {name!r} has other axes ({said[0]}, not {said[1]})")
        same = state.created["data"]["hash"] == data_hash and study.spec.budget.epochs == spec.budget.epochs
        same = same and study.spec.axes == spec.axes  # figures of another accuracy compare configurations, and no more
        seen = known(study, state, spec) if same else elsewhere(study, state, spec)
        if seen:
            told.append(("known" if same else "elsewhere", {"study": study.spec.name, "trials": seen}))
        first += leaders(study, state, spec)
    planned: list[dict[str, Any]] = []
    for plan in first:
        if len(planned) < spec.warm_start.first and all(plan["config"] != other["config"] for other in planned):
            planned.append({**plan, "seed": seed_of(spec.seed, len(planned), "warm start")})
    if planned:
        told.append(("plan", {"trials": planned}))
    if spec.warm_start.studies and not told:
        names = ", ".join(spec.warm_start.studies)
        raise InputError(f"warm_start.studies: {names} teach nothing: no trial of a method of this study")
    return told


def known(study: StoredStudy, state: StudyState, spec: StudySpec) -> list[dict[str, Any]]:
    """What a sampler that knew the earlier study would be told of it, at the epochs that are rungs of the new one."""
    view, spaces = View.of(study.spec, {}, state, Observations()), spec.spaces()
    epochs = {*spec.rung_epochs, spec.budget.epochs}
    found = []
    for trial in view.told():
        if trial.method not in spec.methods:
            continue
        curves = {e: trial.arrays(e) for e, comparable in trial.comparable.items() if comparable and e in epochs}
        if curves:
            shown = {str(e): [error.tolist(), macs.tolist()] for e, (error, macs) in curves.items()}
            values = _values(state, trial)
            active = {name: values[name] for name in spaces[trial.method].active(values) if name in values}
            found.append({"id": f"{study.spec.name}/{trial.id}", "config": active | trial.config, "curves": shown})
    return found


def elsewhere(study: StoredStudy, state: StudyState, spec: StudySpec) -> list[dict[str, Any]]:
    """The last comparable curve of trials on other images: of every method the `ELSEWHERE` of the highest score.

    The score grows with the rung that a trial reached and with its standing there (`search.sampling.observations`).
    """
    spaces, scores = spec.spaces(), Observations().scores(state)
    by_method: dict[str, list[tuple[float, int, Trial, int]]] = {}
    for trial in state.trials.values():
        epochs = [epoch for epoch, comparable in trial.comparable.items() if comparable]
        if epochs and trial.method in spaces:
            entry = (-scores.get(trial.id, 0.0), trial.number, trial, max(epochs))
            by_method.setdefault(trial.method, []).append(entry)
    found = []
    for entries in by_method.values():
        for _, _, trial, epoch in sorted(entries, key=lambda entry: entry[:2])[:ELSEWHERE]:
            error, macs = trial.arrays(epoch)
            values = _values(state, trial)
            active = {name: values[name] for name in spaces[trial.method].active(values) if name in values}
            curve = [error.tolist(), macs.tolist()]
            found.append({"id": f"{study.spec.name}/{trial.id}", "config": active | trial.config, "curve": curve})
    return found


def _values(state: StudyState, trial: Trial) -> dict[str, Any]:
    """A trial's configuration and, of what its study's space did not have, the values that stood instead."""
    drawn = state.kept.spaces[trial.method]
    return {name: v for name, v in state.kept.values(trial.config).items() if name not in drawn} | trial.config


def leaders(study: StoredStudy, state: StudyState, spec: StudySpec) -> list[dict[str, Any]]:
    """Plans of the configurations on the earlier study's front, most points first."""
    spaces = spec.spaces()
    owners = [name for name, _, _ in state.front()]
    plans = []
    for name in sorted(set(owners), key=lambda name: (-owners.count(name), name)):
        trial = state.trials[name]
        if trial.method not in spaces:
            continue
        rng = random.Random(seed_of(spec.seed, name, "warm start"))
        config = published(trial.method, spaces[trial.method], _values(state, trial), rng)
        plans.append({"config": config, "why": f"on the front of {study.spec.name} ({name})"})
    return plans
