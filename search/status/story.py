"""Everything that the journal tells of one trial."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.units import AxesText
from spaces.space import nearest

if TYPE_CHECKING:
    from search.studies.stored import StoredStudy


def trial_story(study: StoredStudy, name: str) -> dict[str, Any]:
    """Everything the journal says of one trial."""
    state = study.state()
    if name not in state.trials:
        raise InputError(f"study {study.spec.name!r} has no trial {name!r}{nearest(name, list(state.trials))}")
    trial, axes = state.trials[name], AxesText.of(state.created)
    journal = study.journal()
    try:
        events = [event for event in journal.events() if event.trial == name]
    finally:
        journal.close()
    return {
        "trial": name,
        "state": trial.state,
        "reason": trial.reason,
        "why": trial.why,
        "config": trial.config,
        "seed": trial.seed,
        "events": [
            {
                "at": time.strftime("%H:%M:%S", time.localtime(e.time)),
                "kind": e.kind,
                "says": _says(e.kind, e.payload, axes),
            }
            for e in events
        ],
    }


def _says(kind: str, payload: dict[str, Any], axes: AxesText) -> str:
    if kind == "ask":
        stage = payload.get("stage")
        behind = f", to begin behind epoch {stage['epoch']} of {stage['trial']}" if stage else ""
        donor = payload.get("donor")
        begins = f", begins from {donor['trial']}'s epoch {donor['epoch']}" if donor else ""
        return f"asked for, knowing events up to {payload['seen']}{behind}{begins}"
    if kind == "start":
        return f"a worker took it up on node {payload['node'][:8]}" if payload.get("node") else "a worker took it up"
    if kind == "setback":
        return f"lost its worker at epoch {payload['epoch']}, {payload['kind']}: {payload['why']}"
    if kind == "report":
        losses = ", ".join(f"{name} {value:.4g}" for name, value in payload["losses"].items())
        text = f"epoch {payload['epoch']} ({payload['phase']}, {payload['seconds']:.1f} s)"
        text += f": {losses}" if losses else ""
        if payload.get("donor"):
            text += f"; began as {payload['donor']['from']}: {payload['donor']['tensors']} tensors"
        if payload.get("uncaptured"):
            text += f"; its steps are no longer captured: {payload['uncaptured']}"
        if payload.get("stage"):
            text += f"; first stage {payload['stage'][:12]} stored"
        if "curve" in payload:
            points = payload["curve"]["points"]
            best = max(points, key=lambda p: p["accuracy"])
            text += f"; curve of {len(points)} points, best {axes.point(best['accuracy'], best['macs'])}"
        return text
    if kind == "stage":
        what = "has to be trained again" if payload["action"] == "lost" else "is not kept"
        return f"first stage {payload['key'][:12]} {what}: {payload['why']}"
    if kind == "donor":
        return f"no trial begins with {payload['checkpoint']} any more: {payload['why']}"
    if kind == "decision":
        return f"epoch {payload['epoch']}: {payload['action']} ({payload['why']})"
    if kind == "failed":
        return f"failed: {payload['reason']}"
    return kind
