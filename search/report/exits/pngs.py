"""The pictures of networks with exits as matplotlib figures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Wedge
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from search.report.exits import figures as exit_figures
from search.report.exits import flow as flow_plots
from search.report.exits.data import AGREE, budget, exit_labels, is_chain, ranks, routing
from search.report.exits.flow import Flow
from search.report.halting import halting_pictures, ponder_picture
from search.report.paths.data import Paths, TrialPaths
from search.report.paths.figures import looks
from search.report.png import DASHES, GREY, plain, titled, white
from search.report.style import ACCURACY_SCALE, CLASS_COLOURS, log_ticks, mixed, style
from search.units import show_count


def exit_pictures(paths: Paths) -> dict[str, Figure | None]:
    """Figures by the names of their files, None for what there is nothing of."""
    trials = [trial for trial in paths.trials if "exit_frac" in trial.record]
    if not trials:
        return {"ponder.png": ponder_picture(paths), "halting.png": halting_pictures(paths)}
    return {
        "exits.png": _exits(trials, paths.classes),
        "dataflow.png": _flow(trials, paths.classes),
        "budget.png": _budgets([trial for trial in trials if budget(trial).points]),
        "exit-training.png": _training(trials),
        "routing-training.png": _routing([trial for trial in trials if len(routing(trial)[0]) > 1]),
        "confidence.png": _confidence(trials),
        "ponder.png": ponder_picture(paths),
        "halting.png": halting_pictures(paths),
    }


def _exits(trials: Sequence[TrialPaths], classes: Sequence[str]) -> Figure:
    figure = white(3.8 * len(trials))
    panels = figure.subplots(len(trials), 2, squeeze=False)
    for (left, right), trial in zip(panels, trials, strict=True):
        record, color = trial.record, style(trial.method)[0]
        exits = exit_labels(record)
        line = "-" if is_chain(record) else ""
        left.bar(exits, record["exit_frac"], color=color, alpha=0.45, label="leave here")
        left.plot(exits, record["exit_acc"], f"o{line}", color=color, label="accuracy, all images")
        given = [np.nan if share is None else share for share in record["exit_acc_given_exit"]]
        dots = ":" if line else ""
        left.plot(exits, given, f"o{dots}", color=color, mfc="white", label="accuracy, those that leave")
        left.set_xticks(range(len(exits))[:: -(-len(exits) // 12)])
        left.set(ylim=(0, 1.03), xlabel="exit", ylabel="share of images")
        left.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        left.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.16))
        plain(left)
        titled(left, trial.label)
        if len(exits) > exit_figures.MOST_EXITS:
            right.set_axis_off()
            continue
        names, shares = exit_figures.exit_shares(trial, classes)
        begin = np.zeros(len(names))
        for i, colour in enumerate(exit_figures.exit_colours(shares.shape[1])):
            right.barh(range(len(names)), shares[:, i], left=begin, color=colour, label=f"exit {exits[i]}")
            begin += shares[:, i]
        short = [name if len(name) <= 16 else name[:15] + "…" for name in names]
        right.set_yticks(range(len(names)), short, fontsize=8, parse_math=False)
        right.set(xlim=(0, 1), xlabel="share of the class")
        right.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        small = {"fontsize": 7, "handlelength": 1.0, "columnspacing": 0.9}
        right.legend(ncols=min(len(exits), 5), loc="upper left", bbox_to_anchor=(-0.1, -0.16), **small)
        plain(right)
    return figure


def _flow(trials: Sequence[TrialPaths], classes: Sequence[str]) -> Figure:
    """A row a trial: circles by accuracy, circles by class."""
    flows = [Flow.of(trial) for trial in trials]
    heights = [1.6 if flow.rows == 1 else 0.5 + 0.42 * flow.rows for flow in flows]
    figure = white(sum(heights) + 0.9)
    several = len(classes) <= len(CLASS_COLOURS)
    panels = figure.subplots(len(trials), 1 + several, squeeze=False, height_ratios=heights)
    largest, (low, high) = flow_plots.largest_shares(trials), flow_plots.accuracy_range(trials)
    for row, trial, flow in zip(panels, trials, flows, strict=True):
        counts = np.array(trial.record["class_by_exit"]).T
        given = trial.record["exit_acc_given_exit"]
        for axes, by_class in zip(row, (False, True), strict=False):
            radii = _lines(axes, flow, given, largest[trial.trial])
            for i, (x, y) in enumerate(flow.places):
                at, radius = (x, y), radii[i]
                if not flow.left[i] or not counts[i].any():
                    axes.add_patch(Circle(at, 0.04, facecolor=GREY, zorder=3))
                elif not by_class:
                    color = mixed(((given[i] or 0.0) - low) / (high - low))
                    axes.add_patch(Circle(at, radius, facecolor=color, zorder=3))
                else:
                    ends = 90 - 360 * np.concatenate([[0], np.cumsum(counts[i]) / counts[i].sum()])
                    for label in np.flatnonzero(counts[i]):
                        wedge = {"facecolor": CLASS_COLOURS[label], "linewidth": 0, "zorder": 3}
                        axes.add_patch(Wedge(at, radius, ends[label + 1], ends[label], **wedge))
            titled(axes, trial.label if not by_class else "by class")
    bar = ScalarMappable(Normalize(low, high), LinearSegmentedColormap.from_list("right", ACCURACY_SCALE))
    where = {"location": "bottom", "shrink": 0.7, "pad": 0.02, "aspect": 30}
    drawn = figure.colorbar(bar, ax=list(panels[:, 0]), label="accuracy on those that leave (in brackets)", **where)
    drawn.ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if several:
        marks = [
            Line2D([], [], color=c, marker="o", linestyle="") for _, c in zip(classes, CLASS_COLOURS, strict=False)
        ]
        short = [name if len(name) <= 16 else name[:15] + "…" for name in map(str, classes)]
        _legend(figure, marks, short, columns=10 if sum(map(len, short)) <= 70 else 5)
    return figure


def _lines(axes: Axes, flow: Flow, given: Sequence[float | None], largest: float) -> np.ndarray:
    """The lines of a drawing and, below a chain, its words; the radii of its circles."""
    x, y = flow.places.T
    for i, parent in enumerate(flow.parents):
        begin = (x[parent], y[parent]) if parent >= 0 else (x[i] - 0.5, y[i])
        look = {"linewidth": 0.6 + 5 * flow.through[i], "linestyle": "-" if flow.through[i] else ":"}
        axes.plot([begin[0], x[i]], [begin[1], y[i]], color=GREY, alpha=0.6, solid_capstyle="butt", **look)
    radii = flow.diameters(0.94, largest) / 2
    if flow.chain:
        for i, label in enumerate(flow.labels):
            word = f"exit {label}" if flow.columns <= 7 else label
            right = given[i]
            text = f"{word}\n{100 * flow.left[i]:.0f} %" + ("" if right is None else f"\n({100 * right:.0f} %)")
            axes.text(x[i], 0.55, text, ha="center", va="top", fontsize=7.5, linespacing=1.1)
    low = 1.3 if flow.chain else flow.rows - 0.45
    axes.set(xlim=(-0.55, flow.columns - 0.45), ylim=(low, -0.55), aspect="equal", anchor="W")
    axes.set_axis_off()
    return radii


def _legend(figure: Figure, marks: Sequence[Line2D], labels: Sequence[str], columns: int) -> None:
    legend = figure.legend(
        marks, [str(label) for label in labels], loc="outside lower left", ncols=columns, fontsize=8,
        columnspacing=0.9, handletextpad=0.3,
    )  # fmt: skip
    for text in legend.get_texts():  # a class may be called "$"
        text.set_parse_math(False)


def _key(figure: Figure, trials: Sequence[TrialPaths]) -> None:
    marks = [Line2D([], [], color=color, linestyle=DASHES[dash]) for color, dash in looks(trials).values()]
    _legend(figure, marks, [trial.label for trial in trials], columns=3)


def _budgets(trials: Sequence[TrialPaths]) -> Figure | None:
    if not trials:
        return None
    figure = white(4.2)
    left, right = figure.subplots(1, 2)
    for trial, (color, dash) in zip(trials, looks(trials).values(), strict=True):
        found = budget(trial)
        left.plot(*np.array(found.points).T, color=color, linestyle=DASHES[dash], marker="o", markersize=3)
        if found.anytime:
            left.plot(*np.array(found.anytime).T, "o", color=color, mfc="none", markersize=7, markeredgewidth=1.4)
        if is_chain(trial.record):
            exits = trial.record["exit_acc"]
            right.plot(range(1, len(exits) + 1), exits, color=color, linestyle=DASHES[dash], marker="o", markersize=4)
    low, high, floor, top = exit_figures.budget_window(trials)
    left.set(xscale="log", xlim=(low, high), ylim=(floor, top), ylabel="validation accuracy")
    left.set_xlabel("MACs per image (log scale)")
    left.xaxis.set_major_locator(FixedLocator(log_ticks(low, high, 5)))
    left.xaxis.set_minor_locator(NullLocator())
    left.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show_count(value)))
    right.set_xlabel("exit")
    right.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    for axes, title in (
        (left, "average budget; circles: one exit alone"),
        (right, "every exit of chains on all images"),
    ):
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g} %"))
        plain(axes)
        titled(axes, title)
    _key(figure, trials)
    return figure


def _training(trials: Sequence[TrialPaths]) -> Figure | None:
    found = exit_figures.epochs_by_exit(trials)
    if not found:
        return None
    drawn = [trial for trial in trials if any(trial.trial in lines for lines in found.values())]
    columns = min(3, len(found))
    rows = -(-len(found) // columns)
    figure = white(2.1 * rows + 0.5)
    across, up = exit_figures.epochs_window(found)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for axes, (i, lines) in zip(panels, found.items(), strict=False):
        for trial, (color, dash) in zip(drawn, looks(drawn).values(), strict=True):
            if line := lines.get(trial.trial):
                axes.plot(*np.array(line).T, color=color, linestyle=DASHES[dash], marker="o", markersize=3)
        axes.set(xlim=across, ylim=up, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plain(axes)
        titled(axes, f"accuracy of exit {i}")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    _key(figure, drawn)
    return figure


def _routing(trials: Sequence[TrialPaths]) -> Figure | None:
    if not trials:
        return None
    rows = -(-len(trials) // 2)
    figure = white(2.6 * rows)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    blues = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#2C7BE5"])
    for axes, trial in zip(panels, trials, strict=False):
        epochs, shares = routing(trial)
        labels = exit_labels(trial.record)
        drawn = axes.imshow(shares.T, aspect="auto", cmap=blues, vmin=0, interpolation="nearest")
        figure.colorbar(drawn, ax=axes, format=PercentFormatter(1, decimals=0), shrink=0.9)
        across, down = -(-len(epochs) // 10), -(-len(labels) // 12)
        axes.set_xticks(range(0, len(epochs), across), [str(epoch) for epoch in epochs[::across]])
        axes.set_yticks(range(0, len(labels), down), labels[::down])
        axes.set(xlabel="epoch", ylabel="exit")
        titled(axes, trial.label.replace(", ", "\n", 1))
    for axes in panels[len(trials) :]:
        axes.set_axis_off()
    return figure


def _confidence(trials: Sequence[TrialPaths]) -> Figure | None:
    found = [(trial, rank) for trial in trials if (rank := ranks(trial)) is not None]
    if not found:
        return None
    rows = -(-len(found) // 2)
    figure = white(3.9 * rows + 0.3)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    marks = []
    for axes, (trial, rank) in zip(panels, found, strict=False):
        axes.plot([0, 1], [0, 1], ":", color=GREY, linewidth=1)
        marks = []
        for i, (color, _, marker) in enumerate(exit_figures.AGREE_STYLES):
            mine = rank.right == i
            look = {"color": color, "marker": marker, "alpha": 0.5 if i == 0 else 0.9, "linewidths": 0}
            marks.append(axes.scatter(rank.x[mine], rank.y[mine], s=8 if i == 0 else 16, **look))
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set(xlabel=f"rank at exit {rank.names[0]}", ylabel=f"rank at exit {rank.names[1]}")
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        plain(axes)
        titled(axes, f"{trial.label}\nrank correlation {rank.correlation:.2f}")
    for axes in panels[len(found) :]:
        axes.set_axis_off()
    _legend(figure, marks, AGREE, columns=4)
    return figure
