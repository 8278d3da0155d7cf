"""Pictures of how a study went: hypervolume against cost, timeline, importances, parallel coordinates.

Every figure stays small however long the study was: what would lie on one pixel is not drawn twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from search.report.importance import EPOCH, Importances
from search.report.style import STYLES, layout
from search.units import show_seconds

STATE_COLOURS = {
    "finished": "#2DB43C",
    "stopped": "#D25A00",
    "failed": "#C4314B",
    "running": "#0078B4",
    "paused": "#8A939E",
    "waiting": "#B4A05A",
}
_MOST_STEPS, _MOST_LINES, _MOST_BARS = 1_500, 300, 8
_BANDS = ("#0078B4", "#5AA5B4", "#B4A05A", "#D25A00")  # from the best quarter to the worst


def hypervolume_figure(history: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Hypervolume of the study against what it had cost, in epochs."""
    steps = [h for i, h in enumerate(history) if i == 0 or h["hypervolume"] != history[i - 1]["hypervolume"]]
    steps = steps[:: max(1, -(-len(steps) // _MOST_STEPS))]
    if history and steps[-1] is not history[-1]:
        steps.append(history[-1])
    texts = [
        f"<b>{h['hypervolume']:.4f}</b> after {h['epochs']:g} epochs<br>{h['trials']} trials over,"
        f" {show_seconds(h['seconds'])}"
        for h in steps
    ]
    figure = go.Figure()
    line = {"color": STYLES["skipnet"][0], "width": 2.5, "shape": "hv"}
    x, y = [float(h["epochs"]) for h in steps], [float(h["hypervolume"]) for h in steps]
    figure.add_scatter(x=x, y=y, mode="lines", line=line, text=texts, hovertemplate="%{text}<extra></extra>")
    layout(figure, 320, "cost (epochs trained)", "hypervolume", top=12)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(rangemode="tozero")
    return figure


def timeline_figure(trials: Sequence[Mapping[str, Any]]) -> go.Figure:
    """When trials were at work, in lanes as there were workers; rows need begin, end (seconds) and lane."""
    figure = go.Figure()
    timed = [row for row in trials if row.get("begin") is not None]
    seam = 0.003 * max((row["end"] for row in timed), default=0.0)  # so that bars in a row stay apart
    for state, color in STATE_COLOURS.items():
        mine = [row for row in timed if row["state"] == state]
        if not mine:
            continue
        # one path for all bars of a state: gaps are None
        x = [v for row in mine for v in (row["begin"] / 60, max(row["begin"], row["end"] - seam) / 60, None)]
        y = [v for row in mine for v in (row["lane"] + 1, row["lane"] + 1, None)]
        told = [_told(row) for row in mine]
        texts = [v for text in told for v in (text, text, "")]
        figure.add_scatter(
            x=x, y=y, mode="lines", name=state, line={"color": color, "width": 9}, text=texts,
            hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    count = 1 + max((row["lane"] for row in timed), default=0)
    layout(figure, min(150 + 26 * count, 620), "minutes of work", "trials at once", top=12)
    figure.update_xaxes(rangemode="tozero")
    figure.update_yaxes(range=[count + 0.6, 0.4], dtick=max(1, count // 8), showgrid=False)
    return figure


def _told(row: Mapping[str, Any]) -> str:
    why = f"<br>{escape(str(row['reason']))}" if row.get("reason") else ""
    return (
        f"<b>{escape(str(row['trial']))}</b> {escape(str(row['method']))}: {escape(str(row['state']))} after"
        f" {row['epoch']} epochs, {show_seconds(row['end'] - row['begin'])}{why}"
    )


def importance_figure(found: Importances) -> go.Figure:
    """Bars of the parameters that mattered most."""
    shares = list(found.shares.items())[:_MOST_BARS][::-1]
    colors = ["#8A939E" if name == EPOCH else STYLES["skipnet"][0] for name, _ in shares]
    figure = go.Figure()
    figure.add_bar(
        x=[share for _, share in shares], y=[escape(name) for name, _ in shares], orientation="h",
        marker={"color": colors}, hovertemplate="%{y}: %{x:.3f}<extra></extra>",
    )  # fmt: skip
    layout(figure, 90 + 26 * max(2, len(shares)), "variance lost when shuffled", "", top=8)
    figure.update_xaxes(rangemode="tozero", nticks=5)
    figure.update_yaxes(type="category")
    return figure


# -- parallel coordinates --------------------------------------------------------------------------


def parallel_figure(results: Sequence[tuple[Mapping[str, Any], float]], axes: Sequence[str]) -> go.Figure:
    """A line for every trial through the values of its parameters, coloured by the quarter that its result is in.

    `results`: (configuration, hypervolume); `axes`: parameters from left to right. Of more than
    `_MOST_LINES` trials the best half of so many is drawn, and as many others taken evenly.
    """
    ranked = sorted(results, key=lambda entry: -entry[1])
    if len(ranked) > _MOST_LINES:
        half = _MOST_LINES // 2
        rest = ranked[half:]
        ranked = ranked[:half] + rest[:: -(-len(rest) // half)]
    places = {name: _Axis([config.get(name) for config, _ in results]) for name in axes}
    volumes = np.array([volume for _, volume in results])
    figure = go.Figure()
    quarters = np.quantile(volumes, [0.75, 0.5, 0.25]) if len(volumes) else []
    band = [sum(volume < edge for edge in quarters) for _, volume in ranked]
    top = max(volumes.max(initial=0.0), 1e-12)
    for which, (color, name) in reversed(
        list(enumerate(zip(_BANDS, ("best quarter", "second", "third", "last quarter"), strict=True)))
    ):
        x: list[float | None] = []
        y: list[float | None] = []
        told: list[str] = []
        for (config, volume), quarter in zip(ranked, band, strict=True):
            if quarter == which:
                for place, axis in enumerate(axes):
                    x.append(place)
                    y.append(places[axis].place(config.get(axis)))
                    told.append(f"{escape(axis)}: {escape(_value(config.get(axis)))}<br>hypervolume {volume:.4f}")
                x += [len(axes), None]
                y += [volume / top, None]
                told += [f"hypervolume {volume:.4f}<br>{escape(str(config.get('method', '')))}", ""]
        figure.add_scatter(
            x=x, y=y, text=told, mode="lines", name=name, opacity=0.75 if which == 0 else 0.4,
            line={"color": color, "width": 1.8 if which == 0 else 1}, hovertemplate="%{text}<extra></extra>",
        )  # fmt: skip
    layout(figure, 400, "", "", top=8)
    for place, axis in enumerate([*axes, "hypervolume"]):
        marks = places[axis].marks() if axis in places else [(0.0, "0"), (1.0, f"{top:.3g}")]
        figure.add_shape(type="line", x0=place, x1=place, y0=-0.12, y1=1.04, line={"color": "#7C8591", "width": 1})
        figure.add_annotation(x=place, y=1.1, text=f"<b>{escape(axis)}</b>", showarrow=False, font={"size": 12})
        for height, text in marks:
            figure.add_annotation(
                x=place, y=height, text=escape(text), showarrow=False, font={"size": 11}, xanchor="left", xshift=4,
                yshift=8 if height < 1 else -8,
            )  # fmt: skip
    figure.update_xaxes(visible=False, range=[-0.3, len(axes) + 0.75])
    figure.update_yaxes(visible=False, range=[-0.16, 1.18])
    return figure


class _Axis:
    """Where values lie between 0 and 1: numbers on a line (or its logarithm), others one above the other."""

    def __init__(self, values: Sequence[Any]) -> None:
        there = [v for v in values if v is not None]
        self.numeric = bool(there) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in there)
        if self.numeric:
            low, high = float(min(there)), float(max(there))
            self.log = low > 0 and high / low > 20
            self.low, self.high = (np.log10(low), np.log10(high)) if self.log else (low, high)
            self.ends = (_value(low), _value(high))
        else:
            self.order = {text: place for place, text in enumerate(sorted({str(v) for v in there}))}

    def marks(self) -> list[tuple[float, str]]:
        """(height, text) of what stands beside the axis: its ends, or its values where these are few."""
        if self.numeric:
            return [(0.0, self.ends[0]), (1.0, self.ends[1])]
        texts = list(self.order)
        if len(texts) > 8:
            texts = [texts[0], texts[-1]]
        return [(self.place(text), text) for text in texts]

    def place(self, value: Any) -> float:
        if value is None:
            return -0.1  # trials of methods that do not have it
        if not self.numeric:
            return self.order[str(value)] / max(1, len(self.order) - 1)
        number = np.log10(value) if self.log else float(value)
        return float((number - self.low) / (self.high - self.low)) if self.high > self.low else 0.5


def _value(value: Any) -> str:
    if value is None:
        return "not a parameter of this method"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parallel_axes(results: Sequence[tuple[Mapping[str, Any], float]], importances: Sequence[Importances]) -> list[str]:
    """At most seven parameters that differ between trials: method and network, then by importance."""
    varying: dict[str, set[str]] = {}
    for config, _ in results:
        for name, value in config.items():
            varying.setdefault(name, set()).add(str(value))
    able = [name for name, values in varying.items() if len(values) > 1]
    weight = {name: 0.0 for name in able}
    for found in importances:
        for name, share in found.shares.items():
            if name in weight:
                weight[name] = max(weight[name], share if found.what == "all methods" else 0.5 * share)
    first = [name for name in ("method", "network") if name in weight]
    others = sorted((n for n in able if n not in first), key=lambda n: (-weight[n], able.index(n)))
    return [*first, *others][:7]
