"""A study and a front as HTML for notebooks: a table and a drawing without scripts.

Names come from study files and folders that somebody else made: every text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from search.frontier.point import FrontPoint
from search.units import AxesText, dataset_name, knobs_text, printable

_WIDTH, _HEIGHT, _LEFT, _BELOW = 460, 240, 52, 34
_MOST_ROWS = 20


def front_html(
    members: Sequence[FrontPoint],
    dataset: str,
    title: str,
    *,
    more: str = "",
    empty: str = "",
    axes: AxesText | None = None,
) -> str:
    """A front: its title, what is said beside it, the stairs of accuracy over MACs, and its points in a table.

    `empty`: why it has no point, where it has none. `axes`: what accuracies and MACs stand for.
    """
    told = axes or AxesText()
    points = [point for point in members if point.layer == 0]
    head = f"<p><b>{_text(title)}</b> on {_text(dataset_name(dataset))}{_text(more)}</p>"
    if not points:
        return f"<div>{head}<p>{_text(empty or 'no operating point yet')}</p></div>"
    shown = points if len(points) <= _MOST_ROWS else [*points[: _MOST_ROWS // 2], *points[-_MOST_ROWS // 2 :]]
    left = len(points) - len(shown)
    note = f"<p>{left} points in the middle are left out</p>" if left else ""
    rows = "".join(f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in _row(point, told))}</tr>" for point in shown)
    names = (told.merit_title, "95 %", told.cost_title, "method", "network", "knobs", "point")
    heads = "".join(f"<th>{_text(name)}</th>" for name in names)
    table = f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    return f"<div>{head}{_stairs(points, told)}{table}{note}</div>"


def _text(value: str) -> str:
    return escape(printable(value))


def _row(point: FrontPoint, axes: AxesText) -> tuple[str, ...]:
    interval = "-" if point.interval is None else axes.between(*point.interval)
    method = f"{point.method} {point.variant}".strip()
    knobs = knobs_text(point.knobs)
    return axes.merit(point.accuracy), interval, axes.cost(point.macs), method, point.network, knobs, point.point_id


def _stairs(points: Sequence[FrontPoint], told: AxesText) -> str:
    """Accuracy against log MACs as an SVG, in the text's own colour so that it shows on light and on dark."""
    x = [math.log10(point.macs) for point in points]
    y = [point.accuracy for point in points]
    (left, right), (low, high) = _bounds(x, 0.1), _bounds(y, 0.02)

    def at(macs: float, accuracy: float) -> tuple[float, float]:
        across = _LEFT + (macs - left) / (right - left) * (_WIDTH - _LEFT - 10)
        return round(across, 1), round((high - accuracy) / (high - low) * (_HEIGHT - _BELOW - 10) + 10, 1)

    placed = [at(macs, accuracy) for macs, accuracy in zip(x, y, strict=True)]
    path = f"M{placed[0][0]} {placed[0][1]}" + "".join(f"H{a}V{b}" for a, b in placed[1:]) + f"H{_WIDTH - 10}"
    dots = "".join(
        f'<circle cx="{a}" cy="{b}" r="4" fill="currentColor">'
        f"<title>{_text(' '.join(_row(point, told)))}</title></circle>"
        for (a, b), point in zip(placed, points, strict=True)
    )
    base = _HEIGHT - _BELOW
    title = "MACs per image (log scale)" if told.usual else told.cost_title
    words = [
        (_LEFT, base + 16, "start", told.cost(10**left)),
        (_WIDTH - 10, base + 16, "end", told.cost(10**right)),
        ((_LEFT + _WIDTH) / 2, base + 28, "middle", title),
        (_LEFT - 6, 16, "end", told.merit(high)),
        (_LEFT - 6, base, "end", told.merit(low)),
    ]
    texts = "".join(
        f'<text x="{a:g}" y="{b:g}" text-anchor="{anchor}" font-size="11" fill="currentColor">{_text(word)}</text>'
        for a, b, anchor, word in words
    )
    axes = f'<path d="M{_LEFT} 10V{base}H{_WIDTH - 10}" fill="none" stroke="currentColor" opacity=".4"/>'
    line = f'<path d="{path}" fill="none" stroke="currentColor" stroke-width="1.5"/>'
    label = f"Frontier of {len(points)} operating points"
    return f'<svg role="img" aria-label="{label}" width="{_WIDTH}" height="{_HEIGHT}">{axes}{line}{dots}{texts}</svg>'


def _bounds(values: Sequence[float], least: float) -> tuple[float, float]:
    """A range with some air around values, at least so wide."""
    low, high = min(values), max(values)
    air = max((high - low) * 0.06, least / 2)
    return low - air, high + air
