"""Cascades as members of a study's frontier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from search.cascades.compose import identity
from search.errors import InputError
from search.frontier.point import FrontPoint
from search.frontier.query import Query
from search.pareto.front import non_dominated
from search.state.state import StudyState
from search.units import show_count


def cascade_points(state: StudyState) -> list[FrontPoint]:
    """The cascades of a study's last composition as points, cheapest first.

    Their `accuracy` is the expected one: what was measured, less the optimism of the choice; ``config`` has both.
    """
    if not state.cascades:
        return []
    last = state.cascades[-1]
    return [point_of(state.created["spec"]["name"], last, record) for record in last["points"]]


def point_of(study: str, composition: dict[str, Any], record: dict[str, Any]) -> FrontPoint:
    """A recorded cascade as a point."""
    members = record["members"]
    networks = {(m["study"], m["checkpoint"]): m for m in members}
    trial, size, index = identity(composition["number"], record).split("-")
    return FrontPoint(
        trial=trial, epoch=int(size), index=int(index), method="cascade",
        variant=f"{record['kind']}-{record['answer']}",
        network=" > ".join(m["method"] for m in members), accuracy=record["expected"],
        macs=record["macs"], macs_std=record["macs_std"], macs_full=sum(m["macs_full"] for m in networks.values()),
        params=sum(m["params"] for m in networks.values()), setting={}, knobs={"thresholds": record["thresholds"]},
        checkpoint="", config={
            "members": [f"{m['study']}:{m['point_id']}" for m in members],
            "networks": [m["network"] for m in members], "kind": record["kind"],
            "answer": record["answer"], "temperatures": [m["temperature"] for m in members],
            "measured": record["accuracy"], "going": record["going"], "compared": composition["compared"],
        }, config_id="", study=study, count=record["count"], membership=record["membership"], evidence="images",
        expected=record["expected"], expected_low=record["low"], expected_high=record["high"], kind="cascade",
    )  # fmt: skip


def is_cascade(point_id: str) -> bool:
    """Whether an identity is that of a cascade: ``c0001-2-7``."""
    return re.fullmatch(r"c\d+-\d+-\d+", point_id) is not None


def find_cascade(state: StudyState, point_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The composition and the record of a cascade by its identity ``c0001-2-7``. Raises `InputError` for another."""
    for composition in reversed(state.cascades):
        for record in composition["points"]:
            if identity(composition["number"], record) == point_id:
                return composition, record
    known = [identity(c["number"], r) for c in state.cascades[-1:] for r in c["points"][:3]]
    hint = f"there are {', '.join(known)} ..." if known else "compose the study first: routefront compose STUDY"
    raise InputError(f"no cascade {point_id!r} in study {state.created['spec']['name']!r}; {hint}")


def joined(points: Sequence[FrontPoint], cascades: Sequence[FrontPoint], query: Query) -> list[FrontPoint]:
    """The front of points (of the first layer) and cascades together, within the question's budget, cheapest first.

    Cascades take part where the question names no variants, networks or knobs, and no methods but ``cascade``.
    """
    named = query.variants or query.networks or query.knobs or (query.methods and "cascade" not in query.methods)
    able = [] if named else [c for c in cascades if query.max_params is None or c.params <= query.max_params]
    every = [*points, *able]
    if not every:
        return []
    first = [p for p in every if p.layer == 0]
    keep = non_dominated(np.array([1 - p.accuracy for p in first]), np.array([p.macs for p in first]))
    front = [p for p, on in zip(first, keep, strict=True) if on]
    front = [p for p in front if query.max_macs is None or p.macs <= query.max_macs]
    front = [p for p in front if query.min_accuracy is None or p.accuracy >= query.min_accuracy - 1e-12]
    return sorted(front, key=lambda p: p.macs) + [p for p in points if p.layer]


def within(cascades: Sequence[FrontPoint], max_macs: float | None, min_accuracy: float | None) -> FrontPoint:
    """The cascade of the highest expected accuracy under a budget, or the cheapest above an accuracy.

    Raises `InputError` naming what there is where none fits.
    """
    fitting = [c for c in cascades if max_macs is None or c.macs <= max_macs]
    fitting = [c for c in fitting if min_accuracy is None or c.accuracy >= min_accuracy]
    if not fitting:
        if not cascades:
            raise InputError("there is no cascade yet: routefront compose STUDY")
        cheapest, best = min(cascades, key=lambda c: c.macs), max(cascades, key=lambda c: c.accuracy)
        raise InputError(
            f"no cascade meets the budget; the cheapest costs {show_count(cheapest.macs)} MACs"
            f" ({100 * cheapest.accuracy:.1f} %), the most accurate has {100 * best.accuracy:.1f} %"
            f" ({show_count(best.macs)} MACs)"
        )
    if max_macs is None and min_accuracy is not None:
        return min(fitting, key=lambda c: (c.macs, -c.accuracy))
    return max(fitting, key=lambda c: (c.accuracy, -c.macs))
