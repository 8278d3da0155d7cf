"""Fronts and printed results as tables of a terminal; names are no markup there."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from search.frontier.answer import Front
from search.frontier.point import FrontPoint
from search.frontier.published import Published
from search.units import AxesText, knobs_text, printable, show_count, show_share


def front_table(front: Front, points: Sequence[FrontPoint], wide: bool = True) -> Table:
    """Points for a terminal, cheapest first; without `wide` for 80 columns: without knobs and share of the full."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    several, axes = len(front.studies) > 1, front.axes
    told = any(p.expected is not None for p in points if p.kind == "point")
    shown = [
        (axes.merit_title, "right", True, lambda p: axes.merit(p.accuracy)),
        ("95 %", "left", any(p.interval or p.kind == "cascade" for p in points), lambda p: _interval(axes, p)),
        ("expected", "right", told, lambda p: _expected(axes, p)),
        ("P(front)", "right", any(p.membership is not None for p in points), _membership),
        (axes.cost_title, "right", True, lambda p: axes.cost(p.macs)),
        ("MACs", "right", axes.objective.timing is not None, lambda p: show_count(p.counted_macs or 0)),
        ("of full", "right", wide and axes.usual, _of_full),
        ("ms", "right", any(p.latency_ms for p in points), lambda p: _ms(p.latency_ms)),
        ("quickest as", "left", any(p.latency_form for p in points), lambda p: p.latency_form),
        ("ms at 64", "right", any(p.latency_ms_64 for p in points), lambda p: _ms(p.latency_ms_64)),
        ("layer", "right", any(p.layer for p in points), lambda p: str(p.layer)),
        ("method", "left", True, lambda p: " ".join(filter(None, (p.method, p.variant)))),
        ("machine", "left", len({p.machine for p in points}) > 1, lambda p: p.machine),
        ("network", "left", axes.of_methods, lambda p: p.network),
        ("knobs", "left", wide, lambda p: knobs_text(p.knobs)),
        ("study", "left", several, lambda p: p.study),
        ("point", "left", True, lambda p: p.point_id),
    ]  # fmt: skip
    columns = [(name, justify, told) for name, justify, there, told in shown if there]
    for name, justify, _ in columns:
        table.add_column(name, justify=justify, no_wrap=name not in ("knobs", "study", "method"))  # type: ignore[arg-type]
    for point in points:
        table.add_row(*(Text(printable(told(point))) for _, _, told in columns))
    return table


def _interval(axes: AxesText, point: FrontPoint) -> str:
    if point.kind == "cascade" and point.expected_low is not None and point.expected_high is not None:
        return axes.between(point.expected_low, point.expected_high)
    return "-" if point.interval is None else axes.between(*point.interval)


def _expected(axes: AxesText, point: FrontPoint) -> str:
    if point.expected is None or point.expected_low is None or point.expected_high is None:
        return "-"
    return f"{axes.merit(point.expected)} ({axes.between(point.expected_low, point.expected_high)})"


def _membership(point: FrontPoint) -> str:
    if point.membership is None:
        return "-"
    return f"{point.membership:.2f}" + ("" if point.evidence == "images" else "*")


def _of_full(point: FrontPoint) -> str:
    return f"{100 * point.macs / point.macs_full:.0f} %" if point.macs_full else "-"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def published_table(points: Sequence[Published]) -> Table:
    """What papers printed for a data set."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    heads = (("accuracy", "right"), ("MACs", "right"), ("name", "left"), ("source", "left"), ("cost", "left"))
    for name, justify in heads:
        table.add_column(name, justify=justify, no_wrap=name in ("accuracy", "MACs"))  # type: ignore[arg-type]
    for point in points:
        macs = "-" if point.macs is None else show_count(point.macs)
        table.add_row(show_share(point.accuracy), macs, point.name, point.cited, point.cost)
    return table
