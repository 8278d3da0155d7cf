"""Cascades in a report: the front of single points and the one with cascades, how many images go on, what it gains."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from html import escape
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from search.cascades.compose import identity
from search.report.html import section, table
from search.report.png import plain, titled, white
from search.report.style import log_ticks
from search.units import show_count, show_share

_SINGLE, _CASCADE, _GOING = "#5A695A", "#D9480F", ("#2C7BE5", "#D9480F", "#780FFF")


def cascades_picture(composition: Mapping[str, Any]) -> Figure:
    """Both fronts over MACs (log), and below them the share of images that go on to each later member."""
    single = sorted(composition["single"], key=lambda point: point["macs"])
    points = sorted(composition["points"], key=lambda point: point["macs"])
    macs = [point["macs"] for point in (*single, *points)]
    left, right = min(macs) / 1.1, max(macs) * 1.1
    figure = white(6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    x, y = [*(p["macs"] for p in single), right], [p["accuracy"] for p in single]
    upper.plot(x, [*y, y[-1]], drawstyle="steps-post", color=_SINGLE, linewidth=1.6)
    upper.plot(x[:-1], y, "o", color=_SINGLE, markersize=5, label="single points, as measured")
    x, y = [p["macs"] for p in points], [p["expected"] for p in points]
    upper.fill_between(
        x, [p["low"] for p in points], [p["high"] for p in points], color=_CASCADE, alpha=0.12, linewidth=0
    )
    upper.plot([*x, right], [*y, y[-1]], drawstyle="steps-post", color=_CASCADE, linewidth=1.6)
    upper.plot(x, y, "D", color=_CASCADE, markersize=4, label="cascades, as expected elsewhere (band: 95 %)")
    measured = [p["accuracy"] for p in points]
    upper.plot(x, measured, color=_CASCADE, linewidth=0.8, linestyle=":", label="cascades, as measured")
    upper.set_ylabel("validation accuracy")
    upper.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    upper.legend(loc="lower right", fontsize=9, framealpha=0.9)
    for place in range(1, max(len(point["going"]) for point in points)):
        mine = [point for point in points if len(point["going"]) > place]
        share = [point["going"][place] for point in mine]
        colour, label = _GOING[place - 1], f"to member {place + 1}"
        lower.plot([point["macs"] for point in mine], share, "o", color=colour, markersize=3.5, label=label)
    lower.set(xscale="log", xlim=(left, right), ylim=(0, 1.03), xlabel="MACs per image (log scale)")
    lower.set_ylabel("images going on")
    lower.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    lower.xaxis.set_major_locator(FixedLocator(log_ticks(left, right)))
    lower.xaxis.set_minor_locator(NullLocator())
    lower.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    lower.legend(loc="upper left", fontsize=8, framealpha=0.9)
    for axes in (upper, lower):
        plain(axes)
    titled(upper, f"Cascades of {', '.join(composition['studies'])}")
    return figure


def cascades_section(composition: Mapping[str, Any] | None) -> str:
    """The section of a page; empty where nothing was composed."""
    if not composition:
        return ""
    file = io.BytesIO()
    figure = cascades_picture(composition)
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png", dpi=140, metadata={"Software": "routefront"})
    label = f"Accuracy against MACs of single points and of {len(composition['points'])} cascades, listed in the table"
    picture = base64.b64encode(file.getvalue()).decode()
    image = f'<figure><img alt="{escape(label)}" src="data:image/png;base64,{picture}" style="max-width:100%"></figure>'
    rows = [
        (
            escape(identity(composition["number"], point)),
            show_count(point["macs"]),
            f"{show_share(point['expected'])} <small>({100 * point['low']:.1f} to {100 * point['high']:.1f})</small>",
            show_share(point["accuracy"]),
            f"{point['membership']:.2f}",
            escape(" > ".join(f"{m['method']} {m['network']}" for m in point["members"])),
            escape(", ".join(show_share(share) for share in point["going"][1:])),
            escape(f"{point['kind']}, {point['answer']}"),
        )
        for point in composition["points"]
    ]
    passing = "" if composition["number"] else " These are of the networks so far, and recorded nowhere."
    heads = ("Cascade", "#MACs", "#Expected", "#Measured", "#P(front)", "Members", "Images going on", "Rule, answer")
    gains = [
        (
            show_count(row["budget"]),
            "-" if row["single"] is None else show_share(row["single"]),
            "-" if row["cascade"] is None else show_share(row["cascade"]),
        )
        for row in composition["gains"]["budgets"]
    ]
    fewer = [
        (show_share(point["accuracy"]), show_count(point["macs"]), f"{point['fewer']:.2f}")
        for point in composition["gains"]["macs"]
    ]
    about = (
        f"A cheap point answers, and images of which it is not sure go on to the next one. {len(composition['points'])}"
        f" cascades are on the front out of {composition['compared']:,} that were compared, of"
        f" {composition['members']} operating points on {composition['images']} validation images. Expected is what is"
        " left of the measured accuracy when the luck of the choice is taken off, which was measured by choosing on one"
        " half of the images and scoring on the other; accuracies of single points are as they were measured." + passing
    )
    body = image + table("Cascades on the front, cheapest first", heads, rows)
    body += table("The best within a budget of MACs", ("#At most", "#Single", "#Cascade"), gains)
    body += table(
        "How many times fewer MACs the cheapest cascade takes that is expected to be as accurate as a single point",
        ("#Accuracy", "#MACs of the single point", "#Times fewer"),
        fewer,
    )
    return section("Cascades", about, body)
