"""The command `frontier`: the operating points of studies that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from search.commands.consent import Trust, opened
from search.commands.start import without_pandas
from search.commands.terminal import Json, Names, Studies, out, print_json, progress
from search.errors import InputError
from search.units import parse_count

if TYPE_CHECKING:
    from search.frontier.answer import Front
    from search.frontier.compared import Comparison
    from search.frontier.point import FrontPoint
    from search.study import Study

_ONE = "best, cheapest, knee"
_STYLES = ("screen", "paper", "paper-wide")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("frontier")(frontier)


def frontier(
    study: Names,
    max_macs: Annotated[str | None, typer.Option(help="At most this many MACs per image, for example 20M.")] = None,
    max_params: Annotated[str | None, typer.Option(help="At most this many parameters, for example 1M.")] = None,
    max_latency: Annotated[
        float | None, typer.Option(help="At most so many milliseconds per image, measured here one by one.")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="At least this accuracy, in [0, 1].")] = None,
    cost: Annotated[
        float | None, typer.Option(help="At least as cheap as this, on the axis of cost that the study file names.")
    ] = None,
    merit: Annotated[
        float | None, typer.Option(help="At least as good as this, in the figure of merit that the study file names.")
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Only the most accurate point under the budget.")] = False,
    cheapest: Annotated[bool, typer.Option("--cheapest", help="Only the cheapest point over the accuracy.")] = False,
    knee: Annotated[bool, typer.Option("--knee", help="Only the knee: most gain per MACs.")] = False,
    layers: Annotated[int, typer.Option(help="How many fronts: 2 adds the front of what the first leaves.")] = 1,
    method: Annotated[list[str] | None, typer.Option(help="The front of this method; may be repeated.")] = None,
    variant: Annotated[list[str] | None, typer.Option(help="The front of this variant; may be repeated.")] = None,
    network: Annotated[list[str] | None, typer.Option(help="The front of this network; may be repeated.")] = None,
    knob: Annotated[
        list[str] | None, typer.Option(help="threshold=0.5 or threshold=0.3..0.6; may be repeated.")
    ] = None,
    by_method: Annotated[bool, typer.Option("--by-method", help="Each method's own front, too.")] = False,
    expected: Annotated[
        bool, typer.Option("--expected", help="The accuracy to expect on other images, and the front by it, too.")
    ] = False,
    latency: Annotated[
        bool, typer.Option("--latency", help="Measure the points on this machine, alone and by 64.")
    ] = False,
    axis: Annotated[str, typer.Option(help="The cost: macs, or the measured latency or latency-64.")] = "macs",
    runtime: Annotated[
        str, typer.Option(help="What is timed: torch (our own execution), or onnxruntime (the exported member).")
    ] = "torch",
    threads: Annotated[int | None, typer.Option(help="Threads of the runtime that is timed.", min=1)] = None,
    batch: Annotated[int | None, typer.Option(help="Time batches of this size alone: 1 or 64.")] = None,
    int8: Annotated[
        bool, typer.Option("--int8/--no-int8", help="With onnxruntime: members in eight bits, too, as further points.")
    ] = True,
    cascades: Annotated[
        bool | None,
        typer.Option(
            "--with-cascades/--no-cascades",
            help="Cascades on the front, too (default: where the study was composed).",
            show_default=False,
        ),
    ] = None,
    papers: Annotated[bool, typer.Option("--papers", help="What papers printed for this data set, too.")] = False,
    history: Annotated[bool, typer.Option("--history", help="Hypervolume over time instead of the front.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap behind P(front).")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png, .pdf or .svg file.")] = None,
    style: Annotated[
        str, typer.Option(help="How the plot looks: screen, paper (one column) or paper-wide (a page).")
    ] = "screen",
    table: Annotated[Path | None, typer.Option(help="Write it into this .tex or .md file, as a table.")] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Two studies against each other: MACs at equal accuracy, and the reverse.")
    ] = False,
    csv: Annotated[Path | None, typer.Option(help="Write it into this CSV file.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Write it into this Parquet file.")] = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """The non-dominated operating points, cheapest first (accuracy on the validation split).

    Several studies of the same images have one front together. The table has a 95 % interval for every accuracy and
    the probability that the point is on the front, by bootstrap over images and seeds.

    Examples: routefront frontier digits --max-macs 2M --best
    routefront frontier night morning --by-method --plot both.png
    routefront frontier digits --latency --axis latency --layers 2
    routefront frontier digits --axis latency --runtime onnxruntime --threads 1 --batch 1
    routefront frontier ours theirs --compare --plot both.pdf --style paper --table both.tex
    """  # fmt: skip
    without_pandas()
    from search.frontier.answer import ask

    found = [opened(name, studies, trust) for name in study]
    if axis not in ("macs", "latency", "latency-64"):
        raise InputError(f"--axis {axis!r}: the cost is macs, latency or latency-64")
    timing = _timing(axis, runtime, threads, batch, int8)
    latency = latency or bool(timing)
    if best + cheapest + knee > 1:
        raise InputError(f"give one of --{_ONE.replace(', ', ', --')}: each tells one point")
    if style not in _STYLES:
        raise InputError(f"--style {style!r}: a plot looks like {', '.join(_STYLES)}")
    if style != "screen" and plot is None:
        raise InputError(f"--style {style}: give --plot FILE, too")
    if compare and len(found) != 2:
        raise InputError(f"--compare takes two studies, not {len(found)}: routefront frontier ONE OTHER --compare")
    if history:
        _tell_history(found, as_json)
        return
    wishes = {
        "max_macs": parse_count(max_macs) if max_macs else None,
        "max_params": parse_count(max_params) if max_params else None,
        "min_accuracy": min_accuracy,
        "cost": cost,
        "merit": merit,
        "methods": method or (),
        "variants": variant or (),
        "networks": network or (),
        "knobs": dict(_knob(text) for text in knob or ()),
        "layers": layers,
    }
    front = ask(
        found, by_method=by_method or plot is not None or as_json, sure=True, expected=expected, seed=seed, **wishes
    )
    timed = front.axes.objective.timing is not None
    if timed and cascades:
        raise InputError("--with-cascades: cascades have MACs; the cost of this study is latency")
    if not timed and cascades is not False and axis == "macs" and not latency and max_latency is None:
        front = _with_cascades(found, front, wishes, bool(cascades))
    points = _chosen(found, front, axis, latency, max_latency, as_json, timing)
    if points and (best or cheapest or knee):
        points = [_one(points, axis, best, cheapest)]
    compared = _compared(found, wishes, seed) if compare else None
    _write(front, points, plot, csv, parquet, as_json, style, table)
    if as_json:
        _print_front(front, points, papers, compared)
        return
    _show(front, points, by_method, papers)
    for line in compared.words() if compared is not None else ():
        out.print()
        out.print(Text(line), soft_wrap=True)


def _compared(studies: Sequence[Study], wishes: dict[str, Any], seed: int) -> Comparison:
    """Each study's own front under the same wishes, against the other's."""
    from search.frontier.answer import ask
    from search.frontier.compared import compare

    fronts = [ask([study], **{**wishes, "layers": 1}) for study in studies]
    one, other = (study.spec.name for study in studies)
    if not fronts[0].axes.usual:
        axes = fronts[0].axes
        raise InputError(
            f"--compare counts MACs at equal accuracy; the axes of study {one!r} are {axes.merit_title} and"
            f" {axes.cost_title}"
        )
    return compare(fronts[0].points, fronts[1].points, (one, other), seed)


def _with_cascades(studies: Sequence[Study], front: Front, wishes: dict[str, Any], asked: bool) -> Front:
    """The front with the cascades of the studies' last compositions; those that were `asked` for have to be there."""
    from dataclasses import replace

    from search.cascades.front import cascade_points, joined
    from search.frontier.query import Query

    composed = [point for study in studies for point in cascade_points(study.state())]
    if asked and not composed:
        name = studies[0].spec.name
        raise InputError(f"study {name!r} has no cascades yet; compose it first: routefront compose {name}")
    points = joined(front.points, composed, Query(**wishes).on_axes(front.axes.objective)) if composed else front.points
    return replace(front, points=points, empty="" if points else front.empty)


def _chosen(
    studies: Sequence[Study],
    front: Front,
    axis: str,
    latency: bool,
    most: float | None,
    as_json: bool,
    timing: dict[str, Any],
) -> Sequence[FrontPoint]:
    """The front's points, measured and cut by latency where that was asked for."""
    from search.frontier.latency import by_latency, measured

    if front.empty:
        raise InputError(front.empty)
    points = front.points
    if not points or not (latency or most is not None or axis != "macs"):
        return points
    with progress("measuring latency", as_json) as spinner:
        points = measured(studies, points, spinner.update, **timing)
    if axis != "macs":
        points = by_latency(points, 1 if axis == "latency" else 64)
    if most is not None:
        timed = [p for p in points if p.latency_ms is not None]
        quickest = min(timed, key=lambda p: p.latency_ms or 0.0)
        points = [p for p in timed if (p.latency_ms or 0.0) <= most]
        if not points:
            raise InputError(
                f"no measured point takes at most {most:g} ms per image; the quickest, {quickest.point_id}, takes"
                f" {quickest.latency_ms:.3g} ms ({100 * quickest.accuracy:.1f} %)"
            )
    return points


def _timing(axis: str, runtime: str, threads: int | None, batch: int | None, int8: bool) -> dict[str, Any]:
    """What `--runtime`, `--threads` and `--batch` ask of a measurement; empty where none of them is given."""
    from search.frontier.latency import BATCHES, ONNXRUNTIME, RUNTIMES

    if runtime not in RUNTIMES:
        raise InputError(f"--runtime {runtime!r}: what runs a point is {' or '.join(RUNTIMES)}")
    if batch is not None and batch not in BATCHES:
        raise InputError(f"--batch {batch}: images are timed alone (1) or by 64")
    if batch is not None and axis != "macs" and (axis == "latency") != (batch == 1):
        raise InputError(f"--axis {axis} needs batches of {1 if axis == 'latency' else 64}, not --batch {batch}")
    if runtime == ONNXRUNTIME:
        from trainables.export.graphs import tool

        try:
            for name in ("onnx", "onnxruntime"):
                tool(name)
        except ValueError as error:
            raise InputError(str(error)) from None
    if runtime == RUNTIMES[0] and threads is None and batch is None:
        return {}
    batches = BATCHES if batch is None else (batch,)
    return {"runtime": runtime, "threads": threads, "batches": batches, "int8": int8}


def _one(points: Sequence[FrontPoint], axis: str, best: bool, cheapest: bool) -> FrontPoint:
    from search.frontier import query

    if axis == "macs":
        return query.most_accurate(points) if best else query.cheapest(points) if cheapest else query.knee_of(points)
    if best or cheapest:
        return points[-1] if best else points[0]  # by rising latency, hence by rising accuracy
    return query.knee_of(points)


def _knob(text: str) -> tuple[str, Any]:
    """``threshold=0.5`` or ``threshold=0.3..0.6``."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise InputError(f"--knob {text!r}: write name=value or name=low..high, for example threshold=0.3..0.6")
    low, dots, high = value.partition("..")
    try:
        return name.strip(), (float(low), float(high)) if dots else float(value)
    except ValueError:
        if dots:
            raise InputError(f"--knob {text!r}: {value!r} is no range of numbers such as 0.3..0.6") from None
        return name.strip(), value.strip()


def _write(
    front: Front,
    points: Sequence[FrontPoint],
    plot: Path | None,
    csv: Path | None,
    parquet: Path | None,
    as_json: bool,
    style: str = "screen",
    table: Path | None = None,
) -> None:
    from search.frontier.files import write_csv, write_parquet
    from search.frontier.tables import write_table

    if csv:
        write_csv(points, csv)
    if parquet:
        write_parquet(points, parquet)
    if table:
        write_table(points, table, front.axes)
    if plot:
        from search.report.frontier_png import draw_front

        with progress("drawing", as_json):
            draw_front(front, points, plot, style)


def _print_front(front: Front, points: Sequence[FrontPoint], papers: bool, compared: Comparison | None = None) -> None:
    from dataclasses import asdict

    record = front.record() | {"points": [point.record() for point in points]}
    if papers:
        record["published"] = [asdict(point) for point in front.published]
    if compared is not None:
        record["comparison"] = compared.record() | {"words": compared.words()}
    print_json(record)


def _show(front: Front, points: Sequence[FrontPoint], by_method: bool, papers: bool) -> None:
    from search.commands.frontier_tables import front_table, published_table
    from search.units import dataset_name, machines_text, printable

    wide = out.width >= 110
    images = f"on {printable(dataset_name(front.dataset))}"
    timing = front.axes.objective.timing
    told = (
        f"validation {front.axes.merit_title}, MACs per image"
        if front.axes.usual
        else f"validation accuracy, measured milliseconds per image ({timing})"
        if timing is not None
        else f"{front.axes.merit_title} against {front.axes.cost_title}"
    )
    out.print(f"frontier {images}: {told}")
    out.print(front_table(front, points, wide))
    if front.machines:
        out.print(
            Text(machines_text(front.machines), style="yellow" if len(front.machines) > 1 else "dim"), soft_wrap=True
        )
    if any(p.kind == "cascade" for p in points):
        out.print("accuracies of cascades are what is expected of them on other images", style="dim")
    if any(p.membership is not None and p.evidence == "counts" for p in points):
        of = (
            "images alone: the checkpoint with each image's result is gone"
            if front.axes.of_methods
            else "answers alone"
        )
        of = "images of every class" if front.axes.objective.balanced else of
        out.print(f"* from the number of right {of}", style="dim")
    if any(p.expected is not None for p in front.expected):
        out.print()
        out.print("the front by the accuracy to expect on other images, by what neighbours in the space reached")
        out.print(front_table(front, front.expected, wide))
    elif front.expected:
        out.print("what to expect on other images: no method on the front has enough trials to tell")
    if by_method:
        for name, own in front.methods.items():
            out.print()
            volumes = f"hypervolume {front.hypervolumes[name]:.4f} of {front.hypervolume:.4f} together"
            out.print(f"{printable(name)} alone: {volumes}")
            out.print(front_table(front, own, wide) if own else "  no point in the budget")
    if papers:
        out.print()
        if front.published:
            out.print("printed in the papers (test split, their recipes; not measured here, on no front)")
            out.print(published_table(front.published))
        else:
            out.print(f"no paper here printed results {images}")


def _tell_history(studies: Sequence[Study], as_json: bool) -> None:
    """Hypervolume against each study's fixed reference, over time."""
    from rich.table import Table

    from search.units import show_seconds

    records = []
    for study in studies:
        state = study.state()
        steps = [
            {"seconds": h.seconds, "epochs": h.epochs, "trials": h.trials, "hypervolume": h.hypervolume}
            for h in state.history
        ]
        records.append({"study": study.spec.name, "reference": state.created["reference"], "history": steps})
    if as_json:
        print_json(records)
        return
    for record in records:
        steps = record["history"]
        table = Table("time", "epochs", "trials over", "hypervolume", box=None, padding=(0, 2))
        for step in steps[:: max(1, len(steps) // 20)] + steps[-1:]:
            row = (show_seconds(step["seconds"]), f"{step['epochs']:g}", str(step["trials"]))
            table.add_row(*row, f"{step['hypervolume']:.4f}")
        out.print(f"{record['study']}: hypervolume over time")
        out.print(table)
