"""Commands about studies: search, resume, list, status, stop, frontier, report."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from search.commands.common import Json, Studies, Tracking, err, out, print_json, progress
from search.errors import InputError, RunError
from search.units import parse_count, parse_seconds, show_seconds

if TYPE_CHECKING:
    from search.study import Study

Name = Annotated[str, typer.Argument(help="A study, by name or by its folder.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster, host:port or 'auto' [default: Ray on this machine].")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("search")(search)
    app.command("resume")(resume)
    app.command("list")(list_studies)
    app.command("status")(status)
    app.command("stop")(stop)
    app.command("frontier")(frontier)
    app.command("report")(report)


def search(
    file: Annotated[Path | None, typer.Argument(help="A study file (TOML).", show_default=False)] = None,
    preset: Annotated[
        str | None, typer.Option(help="A study file that ships with routefront: digits, cifar10.")
    ] = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many trials.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of one full training.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="Wall time, for example 20m or 2h.")] = None,
    name: Annotated[str | None, typer.Option(help="The study's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="The study's seed.")] = None,
    data: Annotated[str | None, typer.Option(help="A data set by name, or a path to images.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Resize images to this many pixels.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    address: Address = None,
    tracking: Tracking = None,
    studies: Studies = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.")] = False,
    as_json: Json = False,
) -> None:
    """Launch a study; a study of that name with the same spec goes on where it was.

    Examples: routefront search --preset digits
    routefront search study.toml --trials 100 --time 2h --name night
    """
    from search.spec import StudySpec
    from search.spec import preset as preset_file
    from search.study import Study, load_data

    if (file is None) == (preset is None):
        raise InputError("give one study file or one --preset, for example: routefront search --preset digits")
    path = file if file is not None else preset_file(preset or "")
    spec = StudySpec.read(
        path,
        {
            "name": name,
            "seed": seed,
            "budget.trials": trials,
            "budget.epochs": epochs,
            "budget.time": time_limit,
            "data.name": data,
            "data.image_size": image_size,
            "resources.workers": workers,
            "tracking.uri": tracking,
        },
    )
    if methods is not None:
        spec = _only(spec, [word.strip() for word in methods.split(",") if word.strip()])
    if dry_run:
        _dry_run(spec, as_json)
        return
    from search.tracking import check_server

    check_server(_tracking_uri(spec.tracking.uri, studies))
    with progress(f"reading {spec.data.name}", as_json):
        images = load_data(spec)
    with progress("preparing the study", as_json):
        study = Study.create(spec, root=studies, data=images)
    _launch(study, images, address, studies, as_json)


def _only(spec: Any, names: list[str]) -> Any:
    from search.spec import StudySpec
    from trainables.registry import get_method

    for word in names:
        try:
            get_method(word)
        except ValueError as error:
            raise InputError(f"--methods: {error}") from None
    dump = spec.model_dump()
    dump["methods"] = {word: spec.methods.get(word, {}) for word in names}
    return StudySpec.parse(dump, "--methods")


def _tracking_uri(given: str | None, studies: Path | None) -> str:
    from search.spec import studies_root
    from search.tracking import default_uri

    return given or default_uri(studies_root(studies))


def _dry_run(spec: Any, as_json: bool) -> None:
    record = {
        "spec": spec.model_dump(mode="json"),
        "rungs": spec.rung_epochs,
        "most_epochs": spec.budget.trials * spec.budget.epochs,
        "space": {m: {n: p.describe() for n, p in s.parameters.items()} for m, s in spec.spaces().items()},
    }
    if as_json:
        print_json(record)
        return
    out.print(
        f"[bold]{spec.name}[/]: {spec.budget.trials} trials of up to {spec.budget.epochs} epochs on {spec.data.name}"
    )
    out.print(
        f"  rungs at epochs {', '.join(map(str, spec.rung_epochs)) or 'none'}; at most {record['most_epochs']} epochs"
    )
    for method, space in record["space"].items():
        out.print(f"  [bold]{method}[/]")
        for parameter, takes in space.items():
            out.print(f"    {parameter:<16}{takes}")


def resume(
    study: Name,
    address: Address = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="A new limit of wall time in all.")] = None,
    trials: Annotated[int | None, typer.Option(help="A new number of trials in all.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Go on after any interruption; nothing finished is run again.

    Example: routefront resume digits
    """
    from search.spec import StudySpec, merge
    from search.study import Study, load_data

    found = Study.load(study, root=studies)
    changes = {
        "budget.time": parse_seconds(time_limit) if time_limit else None,
        "budget.trials": trials,
        "resources.workers": workers,
        "tracking.uri": tracking,
    }
    spec = StudySpec.parse(merge(found.spec.model_dump(exclude_none=True), changes), "resume")
    found = Study(spec, found.folder)
    with progress(f"reading {spec.data.name}", as_json):
        images = load_data(spec)
    _launch(found, images, address, studies, as_json)


def _launch(study: Study, images: Any, address: str | None, studies: Path | None, as_json: bool) -> None:
    from search.live import watching
    from search.tracking import check_server

    uri = _tracking_uri(study.spec.tracking.uri, studies)
    check_server(uri)
    err.print(f"study [bold]{study.spec.name}[/] in {study.folder.path}", soft_wrap=True)
    why = study.launch(
        address=address,
        data=images,
        watch=watching(err),
        tracking=uri,
        say=lambda text: err.print(text, soft_wrap=True),
    )
    state = study.state()
    record = _status_record(study, state)
    if as_json:
        print_json(record)
    else:
        counts = record["trials"]
        out.print(
            f"{why}: {counts['finished']} trials finished, {counts['stopped']} stopped, {counts['failed']} failed;"
            f" {record['front_points']} points on the front, hypervolume {record['hypervolume']:.4f},"
            f" {record['epochs']:g} epochs in {show_seconds(record['seconds'])}"
        )
        _failures(state)
    if why == "interrupted":
        err.print(f"interrupted; go on with: routefront resume {study.spec.name}")
        raise typer.Exit(130)
    if counts_all_failed(record):
        raise RunError("every trial failed; `routefront status STUDY` says why")


def counts_all_failed(record: dict[str, Any]) -> bool:
    """Whether a study ended without a single trial that worked."""
    counts = record["trials"]
    return counts["total"] > 0 and counts["failed"] == counts["total"]


def _failures(state: Any) -> None:
    failed = [trial for trial in state.trials.values() if trial.state == "failed"]
    for trial in failed[:5]:
        err.print(f"  {trial.id} ({trial.method}) failed: {trial.reason}", markup=False, soft_wrap=True)
    if len(failed) > 5:
        err.print(f"  and {len(failed) - 5} more: routefront status STUDY")


def list_studies(studies: Studies = None, as_json: Json = False) -> None:
    """Studies here.

    Example: routefront list
    """
    from search.spec import studies_root
    from search.study import all_studies

    records = [_status_record(study, study.state()) for study in all_studies(studies)]
    if as_json:
        print_json(records)
        return
    if not records:
        out.print(f"no studies in {studies_root(studies)}; start one with: routefront search --preset digits")
        return
    table = Table("study", "state", "trials", "epochs", "hypervolume", "front", box=None, padding=(0, 2))
    for r in records:
        table.add_row(
            r["study"], r["state"], str(r["trials"]["total"]), f"{r['epochs']:g}", f"{r['hypervolume']:.4f}",
            str(r["front_points"]),
        )  # fmt: skip
    out.print(table)


def _status_record(study: Study, state: Any) -> dict[str, Any]:
    return {
        "study": study.spec.name,
        "state": study.status(),
        "trials": state.count(),
        "epochs": state.cost_epochs,
        "seconds": state.elapsed,
        "hypervolume": state.hypervolume,
        "front_points": len(state.front()),
        "budget": study.spec.budget.model_dump(),
        "dataset": state.created["data"]["name"],
        "folder": str(study.folder.path),
    }


def status(
    study: Name,
    trial: Annotated[str | None, typer.Option(help="Tell one trial's whole story.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until it ends.")] = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Running, stopped, finished and failed trials; hypervolume and cost so far.

    Examples: routefront status digits --watch
    routefront status digits --trial t0003
    """
    from search.live import status_table, trial_story
    from search.study import Study

    found = Study.load(study, root=studies)
    if trial is not None:
        story = trial_story(found, trial)
        print_json(story) if as_json else _print_story(story)
        return
    while True:
        state = found.state()
        record = _status_record(found, state)
        if as_json:
            print_json(record)
        else:
            if watch and out.is_terminal:
                out.clear()
            out.print(status_table(found.spec, state, record["state"]))
            _failures(state)
        if not watch or record["state"] != "running":
            return
        time.sleep(2)


def _print_story(story: dict[str, Any]) -> None:
    out.print(f"[bold]{story['trial']}[/]  {story['state']}  {story['reason']}", soft_wrap=True)
    out.print(f"  proposed: {story['why']}", soft_wrap=True)
    out.print(f"  config:   {story['config']}", soft_wrap=True, markup=False)
    for step in story["events"]:
        out.print(f"  {step['at']:>8}  {step['says']}", soft_wrap=True, markup=False)


def stop(study: Name, studies: Studies = None, as_json: Json = False) -> None:
    """Stop gently: what runs is checkpointed; `resume` goes on.

    Example: routefront stop digits
    """
    from search.study import Study

    found = Study.load(study, root=studies)
    if found.status() != "running":
        raise InputError(f"study {found.spec.name!r} is not running; `routefront status {found.spec.name}` shows it")
    found.folder.stop.touch()
    if as_json:
        print_json({"study": found.spec.name, "stopping": True})
    else:
        out.print(
            f"study {found.spec.name} stops after the epochs that run; go on with: routefront resume {found.spec.name}"
        )


def frontier(
    study: Name,
    max_macs: Annotated[str | None, typer.Option(help="At most this many MACs per image, for example 20M.")] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="At least this accuracy, in [0, 1].")] = None,
    method: Annotated[str | None, typer.Option(help="The front of one method.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="Only the knee: most gain per MACs.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this PNG file.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Write it into this CSV file.")] = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """The non-dominated operating points, cheapest first (accuracy on the validation split).

    Examples: routefront frontier digits --max-macs 2M
    routefront frontier digits --json
    """
    from search.front import unmet
    from search.pages import front_table, knee_of, write_csv, write_png
    from search.study import Study

    found = Study.load(study, root=studies)
    budget = parse_count(max_macs) if max_macs else None
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise InputError(f"--min-accuracy {min_accuracy}: accuracies lie in [0, 1], for example 0.95")
    state = found.state()
    points = found.frontier(max_macs=budget, min_accuracy=min_accuracy, method=method)
    if not points and (budget is not None or min_accuracy is not None):
        raise InputError(unmet(state, budget, min_accuracy))
    if knee and points:
        points = [knee_of(points)]
    if csv:
        write_csv(points, csv)
    if plot:
        with progress("drawing", as_json):
            write_png(found, plot)
    if as_json:
        print_json(
            {
                "study": found.spec.name,
                "objectives": {"error": "1 - validation accuracy, in [0, 1]", "macs": "MACs per image, mean"},
                "reference": state.created["reference"],
                "hypervolume": state.hypervolume,
                "points": [point.record() for point in points],
            }
        )
    else:
        out.print(front_table(points, state.created["data"]["name"]))


def report(
    study: Name,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to write [default: the study's folder].")] = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """A self-contained HTML page and a PNG of the frontier.

    Example: routefront report digits --out .
    """
    from search.pages import write_report
    from search.study import Study

    found = Study.load(study, root=studies)
    with progress("drawing the report", as_json):
        files = write_report(found, folder or found.folder.path)
    if as_json:
        print_json(files)
    else:
        for path in files.values():
            out.print(f"wrote {path}", soft_wrap=True)
