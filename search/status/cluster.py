"""The cluster of a running study: nodes and what runs on them, queue, stragglers, setbacks, cost.

All of it is folded from the journal, so that it can be read on any machine.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping
from textwrap import shorten
from typing import Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from cluster.resources import Node
from search.rungs.decisions import cost_of
from search.spec.study import StudySpec
from search.state.state import StudyState
from search.state.trial import Trial
from search.units import show_seconds

_SLOW = 3.0
"""A trial is a straggler when its epoch takes so many times the usual one of its method."""
_LATEST = 5


def cluster_record(spec: StudySpec, state: StudyState, now: float) -> dict[str, Any]:
    """Plain values of a moment (seconds since 1970).

    Keys: nodes, workers, running, waiting, alone, stragglers, setbacks, uncaptured, cost, seconds, time_budget.
    """
    share = spec.resources.cpus_per_trial, spec.resources.gpus_per_trial
    live = state.live
    running = [trial for trial in live if trial.state == "running"]
    nodes = []
    for record in state.nodes:
        trials = [trial.id for trial in running if trial.node == record["id"]]
        nodes.append({**record, "holds": Node(**record).holds(*share), "trials": trials})
    latest = sorted(
        ({"trial": trial.id, **each} for trial in state.trials.values() for each in trial.setbacks),
        key=lambda each: each["time"],
    )
    unit = "GPU-hours" if spec.resources.gpus_per_trial else "CPU-hours"
    return {
        "nodes": nodes,
        "workers": state.workers,
        "running": len(running),
        "waiting": len(live) - len(running),
        "alone": sum(trial.alone for trial in live),
        "stragglers": _stragglers(state, running, now),
        "setbacks": {"counts": dict(Counter(each["kind"] for each in latest)), "latest": latest[-_LATEST:]},
        "uncaptured": [
            {"trial": trial.id, "why": trial.uncaptured} for trial in state.trials.values() if trial.uncaptured
        ],
        "cost": {
            "spent": cost_of(spec, state),
            "budget": spec.budget.cost,
            "unit": unit if spec.resources.price == 1 else f"{unit} x {spec.resources.price:g}",
        },
        "seconds": state.elapsed_at(now),
        "time_budget": spec.budget.time,
    }


def _stragglers(state: StudyState, running: list[Trial], now: float) -> list[dict[str, Any]]:
    """Running trials that have been silent for much longer than an epoch of their method usually takes."""
    epochs: dict[str, list[float]] = {}
    for trial in state.trials.values():
        if trial.losses:
            epochs.setdefault(trial.method, []).append(trial.seconds / len(trial.losses))
    found = []
    for trial in running:
        usual = statistics.median(epochs[trial.method]) if trial.method in epochs else None
        if usual is not None and trial.epoch and now - trial.heard > _SLOW * max(1.0, usual):
            found.append(
                {
                    "trial": trial.id,
                    "method": trial.method,
                    "node": trial.node,
                    "silent": now - trial.heard,
                    "usual": usual,
                }
            )
    return found


def facts(record: Mapping[str, Any]) -> dict[str, str]:
    """The record in words, a line a fact; what there is nothing to say of is left out."""
    cost, counts = record["cost"], record["setbacks"]["counts"]
    of = "" if cost["budget"] is None else f" of {cost['budget']:.3g}"
    waits = "1 trial waits" if record["waiting"] == 1 else f"{record['waiting']} trials wait"
    said = {
        "cost": f"{cost['spent']:.3g}{of} {cost['unit']}",
        "workers": f"{record['running']} of {record['workers']} busy, {waits}",
    }
    if record["alone"]:
        said["workers"] += f", {record['alone']} of them for a node of their own (memory)"
    if record["stragglers"]:
        said["stragglers"] = ", ".join(
            f"{each['trial']} silent for {show_seconds(each['silent'])} (an epoch of {each['method']}:"
            f" {show_seconds(each['usual'])})"
            for each in record["stragglers"][:_LATEST]
        )
    if counts:
        said["setbacks"] = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    if ended := record["uncaptured"]:
        trials = "1 trial" if len(ended) == 1 else f"{len(ended)} trials"
        said["CUDA graphs"] = (
            f"{trials} went on without ({ended[-1]['trial']}: {shorten(ended[-1]['why'], 160, placeholder=' ...')})"
        )
    return said


def cluster_table(record: dict[str, Any]) -> list[RenderableType]:
    """Lines and a table for a terminal."""
    lines: list[RenderableType] = [Text(f"{name}: {words}") for name, words in facts(record).items()]
    for each in record["setbacks"]["latest"]:
        lines.append(Text(f"  {each['trial']} {each['kind']} at epoch {each['epoch']}: {each['why']}", style="dim"))
    if len(record["nodes"]) > 1:
        table = Table("node", "host", "CPU", "GPU", "state", "trials", box=None, padding=(0, 2))
        for node in record["nodes"]:
            running = f"{len(node['trials'])} of {node['holds']}"
            named = f"  {', '.join(node['trials'])}" if node["trials"] else ""
            table.add_row(
                node["id"][:8], node["host"], f"{node['cpus']:g}", f"{node['gpus']:g}", node["state"], running + named
            )  # fmt: skip
        lines.append(table)
    return lines
