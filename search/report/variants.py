"""Accuracy against a cost, one line for every method and variant, as a figure and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from search.pareto.front import non_dominated
from search.report.png import DASHES, plain, white
from search.report.style import STYLES, distinct, layout, log_ticks, style
from search.units import show_count, show_share

Front = tuple[str, str, np.ndarray, np.ndarray]
"""Method, variant, costs in rising order, accuracies."""


def variant_fronts(points: pa.Table, cost: str = "macs") -> list[Front]:
    """The points of every method and variant that none of its own with less of the column `cost` beats."""
    points = points.filter(pc.field("split") != "test")
    method, variant = (points[name].to_numpy(zero_copy_only=False).astype(str) for name in ("method", "variant"))
    costs, accuracy = points[cost].to_numpy().astype(float), points["accuracy"].to_numpy()
    order = {name: i for i, name in enumerate(STYLES)}
    found = []
    for name, kind in sorted({*zip(method, variant, strict=True)}, key=lambda pair: (order.get(pair[0], 99), pair)):
        rows = np.flatnonzero((method == name) & (variant == kind))
        rows = rows[non_dominated(1 - accuracy[rows], costs[rows])]
        if len(rows):
            rows = rows[np.argsort(costs[rows])]
            found.append((str(name), str(kind), costs[rows], accuracy[rows]))
    return found


def variant_styles(fronts: Sequence[Front]) -> list[tuple[str, str, str]]:
    """(label, colour, dash) of every line."""
    names = [" ".join(filter(None, (method, variant))) for method, variant, _, _ in fronts]
    styles = distinct([method for method, _, _, _ in fronts])
    return [(name, *look) for name, look in zip(names, styles, strict=True)]


def variants_figure(points: pa.Table) -> go.Figure:
    """Accuracy against MACs, one line for every method and variant: the best that its trials reached."""
    return fronts_figure(variant_fronts(points), "MACs per image (log scale)", "at {} MACs")


def fronts_figure(fronts: Sequence[Front], title: str, words: str) -> go.Figure:
    """Accuracy against a cost with this title, one line for each of these; `words` tell the cost of one point."""
    figure = go.Figure()
    for (method, _, costs, accuracy), (label, colour, dash) in zip(fronts, variant_styles(fronts), strict=True):
        figure.add_scatter(
            x=costs.tolist(),
            y=accuracy.tolist(),
            mode="lines+markers",
            name=escape(label),
            line={"color": colour, "dash": dash, "width": 2},
            marker={"symbol": style(method)[2], "size": 7},
            text=[f"{show_share(a)} {words.format(show_count(c))}" for c, a in zip(costs, accuracy, strict=True)],
            hovertemplate=f"{escape(label)}<br>%{{text}}<extra></extra>",
        )
    layout(figure, 460, title, "validation accuracy")
    low, high, floor, top = variants_window(fronts)
    ticks = log_ticks(low, high, 6)
    texts = [show_count(tick) for tick in ticks]
    figure.update_xaxes(type="log", range=np.log10([low, high]).tolist(), tickvals=ticks, ticktext=texts)
    figure.update_yaxes(range=[floor, top], tickformat=".3~p")
    figure.update_layout(showlegend=True)
    return figure


def variants_window(fronts: Sequence[Front]) -> tuple[float, float, float, float]:
    """Limits of MACs and accuracy: all lines, without the tail that lies far below the best of every line."""
    macs = np.concatenate([front[2] for front in fronts])
    accuracy = np.concatenate([front[3] for front in fronts])
    best = [float(front[3].max()) for front in fronts]
    floor = max(float(accuracy.min()), min(best) - 4 * max(max(best) - min(best), 0.02))
    shown = macs[accuracy >= floor]
    margin = max(0.05 * (float(accuracy.max()) - floor), 0.004)
    # a marker at 100 % is to be seen whole
    top = min(1.0 + margin / 2, float(accuracy.max()) + margin)
    return shown.min() / 1.15, shown.max() * 1.15, max(0.0, floor - margin), top


def parameters_figure(points: pa.Table) -> go.Figure:
    """Figure 7: accuracy against parameters, one line for every method and variant."""
    return fronts_figure(variant_fronts(points, "params"), "parameters (log scale)", "with {} parameters")


def fronts_picture(fronts: Sequence[Front], title: str) -> Figure:
    """See `search.report.variants.fronts_figure`."""
    figure = white(5)
    axes = figure.add_subplot()
    styles = variant_styles(fronts)
    for (method, _, costs, accuracy), (label, colour, dash) in zip(fronts, styles, strict=True):
        axes.plot(costs, accuracy, DASHES[dash], color=colour, marker=style(method)[1], markersize=5, label=label)
    low, high, floor, top = variants_window(fronts)
    axes.set(xscale="log", xlim=(low, high), ylim=(floor, top), xlabel=title, ylabel="validation accuracy")
    axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    plain(axes)
    axes.legend(loc="lower right", fontsize=9)
    return figure
