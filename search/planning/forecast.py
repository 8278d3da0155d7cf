"""What a study would do before it is launched: its space, what runs first, what it may cost."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from search.errors import InputError
from search.planning.creation import phases_fit
from search.rungs.brackets import epochs_to_come
from search.sampling.proposals import Proposer
from search.spec.study import StudySpec
from search.state.constraints import Constraints
from search.state.state import StudyState


def forecast(spec: StudySpec, studies: Path | None = None) -> dict[str, Any]:
    """Plain values: spec, rungs, space, first trials, epochs (likely and at most), seconds where they can be guessed.

    Likely epochs: of the trials that come to a rung one in `reduction` goes on. Seconds: the median epoch
    of trials of the same data set in the latest study under `studies` that has any, whatever its
    networks were. Raises `InputError` where a full training has fewer epochs than a method has phases.
    """
    phases_fit(spec)
    spaces = spec.spaces()
    budget = spec.budget
    epoch, origin = _epoch_seconds(spec, studies)
    proposer = Proposer(spec, spaces)
    nothing = StudyState()
    first = []
    if spec.sampler.published:
        for number in range(min(len(spaces), budget.trials)):
            config, why, *_ = proposer.propose(proposer.view(nothing), number)
            first.append({"config": config, "why": why})
    likely = round(budget.trials * epochs_to_come(spec), 1)
    return {
        "spec": spec.model_dump(mode="json"),
        "rungs": spec.rung_epochs,
        "likely_epochs": likely,
        "most_epochs": budget.trials * budget.epochs,
        "epoch_seconds": epoch,
        "seconds": None if epoch is None else likely * epoch,
        "seconds_from": origin,
        "constraints": str(Constraints.of(spec.constraints.model_dump(), spec.axes)),
        "first": first,
        "space": {m: {n: p.describe() for n, p in s.parameters.items()} for m, s in spaces.items()},
    }


def _epoch_seconds(spec: StudySpec, studies: Path | None) -> tuple[float | None, str]:
    from search.studies.stored import all_studies

    for study in reversed(all_studies(studies)):
        if study.spec.data == spec.data:
            try:
                trials = study.state().trials.values()
            except (InputError, OSError):  # another study, which this one does not need
                continue
            seconds = [trial.seconds / len(trial.losses) for trial in trials if trial.losses]
            if seconds:
                return statistics.median(seconds), f"study {study.spec.name}"
    return None, ""
