"""What happens to a study, as its journal tells it.

Kinds of events and their payloads:

========== =====================================================================================
created    spec, reference {error, macs}, data {name, hash, classes, task, ...}, code_version,
           methods: by name the space, defaults and published setting that it keeps (`search.state.kept`), donors: by
           the name in the study file what trials may begin with {checkpoint, digest, from} (`search.state.donors`),
           trainables: by name {path, digest of its file}; objective: its axes, where they are no accuracy and MACs
session    host, pid, workers: a driver began to work
known      study, trials: what an earlier study of these images showed (`search.planning.warm_start`): id, config,
           curves {epoch: [errors, MACs]}
elsewhere  study, trials: what an earlier study of other images showed: id, config, curve [errors, MACs]
plan       trials that are to be asked for before others: a list of {config, seed, why, repeats}
ask        number, config {method, ...}, seed, why, seen (last event that the proposal knew of), and where
           the trial begins behind a finished first stage: stage {key, trial, epoch, cost_epochs, seconds};
           bracket (rungs that it passes unseen), immune (it passes all), planned (it was), repeats (of which trial);
           donor {trial, epoch, checkpoint}: the trial of this study whose network it begins with;
           model {method, ...}: hyperparameters that the sampler fitted for it, and begins with from here on
start      node: a worker took the trial up
setback    kind, why, epoch, node: a trial lost its worker and is tried again (`search.state.setbacks`)
nodes      nodes {id, host, cpus, gpus, memory, state}, workers: the cluster is another one from here on
budget     trials, time, cost: the study's limits are others from here on
report     what `fit` reports (epoch, losses, curve ...), checkpoint (name of its folder), stage (the
           key of the first stage that this epoch ended and that is stored now); together: what cascades of this
           network with those of other trials reach, [[error, MACs, trial], ...] (`search.cascades.worth`)
stage      key, action (lost: the trial trains it again; dropped: its checkpoint was removed), why
donor      checkpoint, action (lost: no trial can begin with it), why
decision   epoch, action (continue, stop, finish; pause, and promote when it goes on after that), why
failed     reason, infeasible (memory ran out although nothing else ran)
ended      why: a driver stopped working in good order
promoting  id and what `promotion` will hold: appended before the registry is touched
promotion  id, model, version, alias, point, gates, validation and test figures: the alias has moved
cascades   number, studies, images, members, rules, compared, splits, points: the front of cascades that were composed
           (`search.cascades.compose`), each with its members, thresholds and figures; single, gains, seconds
abandoned  id, why: the alias of that `promoting` did not move and will not
========== =====================================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from search.errors import InputError

REPORT_KEYS = (
    "epoch", "phase", "comparable", "losses", "lr", "images", "cost_epochs", "seconds", "curve", "checkpoint",
    "params", "macs_full", "worker", "stage", "diagnostics", "machine", "precision", "donor",
    "captured_steps", "uncaptured",
)  # fmt: skip
"""What a `report` keeps of what a worker says."""


WITHOUT_A_DRIVER = frozenset({"session", "plan", "promoting", "promotion", "abandoned", "cascades"})
"""Kinds of events that may be the first ones behind the death of a driver: the time before them was nobody's work."""


TOLD = frozenset({"setback", "failed", "ended", "stage", "donor", "abandoned", "decision", "promoting", "promotion"})
"""Kinds of events with words of other programs in them (reasons, tracebacks, addresses): secrets are blotted out."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `seq` counts from 1 without gaps, `time` is seconds since 1970."""

    seq: int
    time: float
    kind: str
    trial: str | None
    payload: dict[str, Any]


_STUDY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_TRIAL = r"t\d{4,}"
_SHAPES = {
    "trial": re.compile(_TRIAL),
    "checkpoint": re.compile(rf"{_TRIAL}/epoch-\d{{4,}}(-\d{{6,}})?|donors/[0-9a-f]{{1,64}}"),
    "stage": re.compile(r"[0-9a-f]{64}"),
    "key": re.compile(r"[0-9a-f]{64}"),
}
"""Shapes of what an event's payload says that becomes the name of a file."""


def check_names(event: Event) -> None:
    """Raise `InputError` where an event names a trial, a checkpoint or a stage as no study names them.

    A journal may come from a stranger, and these names become names of files: ``../..`` would lead out of the study.
    """
    payload = event.payload
    if not isinstance(payload, dict):
        raise InputError(f"the journal is damaged: the payload of event {event.seq} is no table")
    begun = payload.get("donors") if event.kind == "created" else None
    named = [*begun.values()] if isinstance(begun, dict) else []
    if event.kind == "cascades":
        named += _members(event)
    for table in ({"trial": event.trial}, payload, payload.get("stage"), payload.get("donor"), *named):
        if isinstance(table, dict):
            for name, shape in _SHAPES.items():
                value = table.get(name)
                if value and not isinstance(value, dict) and not (isinstance(value, str) and shape.fullmatch(value)):
                    raise InputError(f"the journal is damaged: event {event.seq} says {name} = {str(value)[:80]!r}")


def _members(event: Event) -> list[dict[str, Any]]:
    """The members of all cascades that an event tells of; they name trials, checkpoints and studies."""
    try:
        found = [dict(member) for point in event.payload["points"] for member in point["members"]]
        for member in found:
            if not re.fullmatch(_STUDY, member["study"]) or not member["checkpoint"]:
                raise ValueError(str(member["study"])[:40])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the journal is damaged: event {event.seq} tells of no cascades ({error})") from None
    return found


class Events(Protocol):
    """Where events are appended: a `search.journal.database.Journal`, or a list in a simulation."""

    def append(self, kind: str, payload: dict[str, Any], trial: str | None = None) -> Event:
        """Append one event and return it, numbered and timed."""
        ...
