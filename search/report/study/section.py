"""The sections of a report about how a study went: cost, parameters, timeline, trials, what papers printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.frontier.published import Published
from search.report.html import method_name, slot, table
from search.report.importance import Importances
from search.status.cluster import facts
from search.units import AxesText, show_count, show_share

_TRIAL_ROWS = 2_000


def papers_section(published: Sequence[Published]) -> str:
    """What papers printed for the data set."""
    rows = [
        (
            escape(point.name),
            show_share(point.accuracy),
            "-" if point.macs is None else show_count(point.macs),
            escape(point.cited),
            escape(point.cost),
        )
        for point in published
    ]
    if not rows:
        return ""
    about = "Of the papers' test splits, by their recipes. Nothing of it was measured here, and none is on the front."
    body = table("Printed in the papers", ("Network", "#Accuracy", "#MACs", "Source", "~Cost as printed"), rows)
    return f'<section><h2>Printed in the papers</h2><p class="note">{about}</p>{body}</section>'


def history_section(history: Sequence[Mapping[str, Any]]) -> str:
    """Hypervolume against cost."""
    if not history:
        return ""
    last = history[-1]
    label = f"Hypervolume against cost: {last['hypervolume']:.4f} after {last['epochs']:g} epochs"
    return (
        '<section><h2>Hypervolume against cost</h2><p class="note">The area that the front covers up to the'
        " study's fixed reference, in error times decades of MACs. More is better.</p>"
        f"{slot('hypervolume', label)}</section>"
    )


def importances_section(found: Sequence[Importances], told: Sequence[Importances]) -> str:
    """What mattered: `found` are all forests, `told` those that explain anything."""
    if not found:
        return ""
    panels = []
    for i, each in enumerate(told):
        caption = f"{each.what}: {each.trials} trials, {show_share(each.explained)} of the variance explained"
        panels.append(slot(f"importance-{i}", f"Importance of parameters, {caption}", caption))
    silent = [each.what for each in found if each.explained <= 0]
    more = (
        f"<p>Nothing can be said of {escape(', '.join(silent))}: a forest predicts no unseen trial.</p>"
        if silent
        else ""
    )
    about = (
        "How much of the variance of the trials' hypervolume a random forest no longer explains when the values of one"
        " parameter are shuffled. The epochs that a trial was given are a parameter too, since trials are stopped."
    )
    body = f'<div class="panels">{"".join(panels)}</div>{more}'
    return f'<section><h2>What mattered</h2><p class="note">{about}</p>{body}</section>'


def parallel_section(results: Sequence[tuple[Mapping[str, Any], float]], axes: Sequence[str]) -> str:
    """Parallel coordinates over some axes."""
    about = (
        "A line is a trial, from its parameters to the hypervolume of its last curve. A line that runs below an axis is"
        " of a method without that parameter."
    )
    label = f"Parallel coordinates of {len(results)} trials over {', '.join(axes)} and hypervolume"
    figure = slot("parallel", label, wide=True)
    body = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{figure}</div>'
    return f'<section><h2>Parallel coordinates</h2><p class="note">{about}</p>{body}</section>'


def timeline_section(trials: Sequence[Mapping[str, Any]]) -> str:
    """When trials were at work."""
    counts: dict[str, int] = {}
    for row in trials:
        counts[str(row["state"])] = counts.get(str(row["state"]), 0) + 1
    label = "Timeline of the trials: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
    about = "A bar is a trial at work; why it ended is in its hover text and in the table of trials."
    return f'<section><h2>Timeline</h2><p class="note">{about}</p>{slot("timeline", label)}</section>'


def trials_section(trials: Sequence[Mapping[str, Any]], axes: AxesText) -> str:
    """All trials, or the first of very many, and why they ended."""
    rows = [
        (
            escape(str(row["trial"])),
            method_name(row),
            escape(str(row.get("network") or "-")),
            escape(str(row["state"])),
            str(row.get("epoch", "-")),
            "-" if row.get("best_accuracy") is None else axes.merit(row["best_accuracy"]),
            "-" if row.get("min_macs") is None else axes.cost(row["min_macs"]),
            escape(str(row.get("reason") or "")),
        )
        for row in trials[:_TRIAL_ROWS]
    ]
    merit, cost = (axes.merit_title, "MACs") if axes.usual else (axes.objective.merit.name, axes.objective.cost.name)
    best, least = f"#Best {escape(merit)}", f"#Least {escape(cost)}" if axes.usual else f"#Cheapest {escape(cost)}"
    heads = ("Trial", "Method", "Network", "State", "#Epoch", best, least, "~Why it ended")
    hidden = len(trials) - len(rows)
    note = f'<p class="note">The first {len(rows):,} of {len(trials):,} trials.</p>' if hidden else ""
    return f"<section><h2>Trials</h2>{note}{table('Trials', heads, rows)}</section>"


def cluster_section(cluster: Mapping[str, Any]) -> str:
    """Nodes and what runs on them, what it has cost, which trials lost their workers and why."""
    if not cluster:
        return ""
    cells = [f"<div><dt>{escape(name)}</dt><dd>{escape(said)}</dd></div>" for name, said in facts(cluster).items()]
    nodes = [
        (
            escape(node["id"][:8]), escape(node["host"]), f"{node['cpus']:g}", f"{node['gpus']:g}",
            escape(node["state"]), f"{len(node['trials'])} of {node['holds']}",
            escape(", ".join(node["trials"]) or "-"),
        )
        for node in cluster["nodes"]
    ]  # fmt: skip
    heads = ("Node", "Host", "#CPUs", "#GPUs", "State", "#Trials", "~Running")
    body = table("Nodes as the driver saw them last", heads, nodes) if nodes else ""
    lost = [
        (escape(each["trial"]), escape(each["kind"]), str(each["epoch"]), escape(each["why"]))
        for each in reversed(cluster["setbacks"]["latest"])
    ]
    if lost:
        body += "<h3>Trials that lost their workers last</h3>"
        body += table("Trials that lost their workers last", ("Trial", "What", "#Epoch", "~Why"), lost)
    about = "Nodes as the driver saw them last. A trial that lost its worker goes on behind its last whole epoch."
    return f'<section><h2>Cluster</h2><p class="note">{about}</p><dl>{"".join(cells)}</dl>{body}</section>'
