"""Commands that run studies: search, resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from search.commands.consent import Trust, consent, of_a_folder, opened, to_build
from search.commands.study import failures
from search.commands.terminal import Json, Name, Preset, Studies, Tracking, err, out, print_json, progress
from search.errors import InputError, RunError
from search.units import dataset_name, parse_seconds, parse_size, show_seconds

_CODES = {"interrupted": 130, "terminated": 143}
"""Exit codes of a search that a signal has ended."""

if TYPE_CHECKING:
    from search.spec.study import StudySpec
    from search.state.state import StudyState
    from search.study import Study

Address = Annotated[str | None, typer.Option(help="A Ray cluster, host:port or 'auto' (default: Ray on this machine).")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("search")(search)
    app.command("resume")(resume)


def search(
    file: Annotated[Path | None, typer.Argument(help="A study file (TOML).", show_default=False)] = None,
    preset: Preset = None,
    methods: Annotated[str | None, typer.Option(help="Only these methods, comma-separated.")] = None,
    trials: Annotated[int | None, typer.Option(help="How many trials.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of one full training.")] = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="Wall time, for example 20m or 2h.")] = None,
    cost: Annotated[float | None, typer.Option(help="GPU-hours (without GPUs: CPU-hours) times their price.")] = None,
    name: Annotated[str | None, typer.Option(help="The study's name.")] = None,
    seed: Annotated[int | None, typer.Option(help="The study's seed.")] = None,
    fork: Annotated[
        list[str] | None, typer.Option(help="Learn from this earlier study (may be given again): its front runs first.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="A data set by name, or a path to images.")] = None,
    image_size: Annotated[
        Any,
        typer.Option(parser=parse_size, metavar="SIZE", help="Resize images to this many pixels, or HEIGHTxWIDTH."),
    ] = None,
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
    from search.spec.study import StudySpec
    from search.spec.toml import merge, read_toml
    from search.spec.toml import preset as preset_file
    from search.studies.stored import load_subject
    from search.study import Study

    if (file is None) == (preset is None):
        raise InputError("give one study file or one --preset, for example: routefront search --preset digits")
    path = file if file is not None else preset_file(preset or "")
    if file is not None:
        of_a_folder(file, [] if tracking is None else ["tracking.uri"])
    values = merge(
        read_toml(path),
        {
            "name": name,
            "seed": seed,
            "budget.trials": trials,
            "budget.epochs": epochs,
            "budget.time": time_limit,
            "budget.cost": cost,
            "data.name": data,
            "data.image_size": image_size,
            "resources.workers": workers,
            "tracking.uri": tracking,
            "warm_start.studies": fork or None,
        },
    )
    if epochs is not None:
        _fewer_rungs(values, epochs)
    if methods is not None:
        words = [word.strip() for word in methods.split(",") if word.strip()]
        values["methods"] = {word: values.get("methods", {}).get(word, {}) for word in words}
    if dry_run:
        from search.planning.fitting import fitting

        _dry_run(fitting(StudySpec.parse(values, str(path))), studies, as_json)
        return
    from search.studies.roots import studies_root
    from search.tracking.server import check_server

    spec = Study.spec_of(values, str(path), root=studies)
    check_server(_tracking_uri(spec.tracking.uri, studies))
    with progress(f"reading {spec.subject}", as_json):
        images = load_subject(spec)
    known = (studies_root(studies) / spec.name / "study.toml").exists()
    with _ray_beside(address is None and not known):
        with progress("preparing the study", as_json):
            study = Study.create(spec, root=studies, data=images)
        _launch(study, images, address, studies, as_json)


def _ray_beside(wanted: bool) -> AbstractContextManager[None]:
    """Ray of this machine starts while the study is prepared, if `wanted`."""
    from cluster.connect import beginning

    return beginning() if wanted else nullcontext()


def _fewer_rungs(values: dict[str, Any], epochs: int) -> None:
    """Leave out rungs of a study file that --epochs has left behind: no option could change them."""
    rungs = values.get("rungs")
    if not isinstance(rungs, dict):
        return
    written = rungs.get("epochs")
    if not isinstance(written, list) or not all(isinstance(each, int) for each in written):
        return  # the spec says what is wrong
    kept = [each for each in written if each < epochs]
    if kept != written:
        left = ", ".join(str(each) for each in written if each >= epochs)
        err.print(f"rungs at epochs {left} are left out: a full training has {epochs} (--epochs)", soft_wrap=True)
        rungs = {name: value for name, value in rungs.items() if name != "epochs"}
        values["rungs"] = {**rungs, "epochs": kept} if kept else rungs


def _tracking_uri(given: str | None, studies: Path | None) -> str:
    from search.studies.roots import studies_root
    from search.tracking.server import chosen_uri

    return chosen_uri(given, studies_root(studies))


def _dry_run(spec: StudySpec, studies: Path | None, as_json: bool) -> None:
    from search.planning.forecast import forecast

    record = forecast(spec, studies)
    if as_json:
        print_json(record)
        return
    out.print(f"{spec.name}: {spec.budget.trials} trials of up to {spec.budget.epochs} epochs on {spec.subject}")
    likely = f"about {record['likely_epochs']:g} where one of {spec.rungs.reduction:g} goes on, "
    out.print(
        f"  rungs at epochs {', '.join(map(str, spec.rung_epochs)) or 'none'}:"
        f" {likely if spec.rung_epochs else ''}at most {record['most_epochs']} epochs"
    )
    if record["seconds"] is not None:
        out.print(
            f"  about {show_seconds(record['seconds'])} of training in all, by the median epoch of"
            f" {record['seconds_from']} ({record['epoch_seconds']:.1f} s), shared by the workers"
        )
    if spec.stages.enabled:
        out.print(f"  {spec.stages.share:.0%} of the proposals begin behind a finished first stage, where there is one")
    if record["constraints"]:
        out.print(f"  points count with {record['constraints']}")
    for first in record["first"]:
        out.print(f"  first: {first['why']}: {first['config']}", soft_wrap=True)
    for method, space in record["space"].items():
        out.print(Text(f"  {method}", style="bold"))
        width = max(map(len, space), default=0) + 2
        for parameter, takes in space.items():
            out.print(f"    {parameter:<{width}}{takes}")


def resume(
    study: Name,
    address: Address = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="A new limit of wall time in all.")] = None,
    cost: Annotated[float | None, typer.Option(help="A new limit of cost in all.")] = None,
    trials: Annotated[int | None, typer.Option(help="A new number of trials in all.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    tracking: Tracking = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Go on after any interruption, or with a larger budget; nothing finished is run again.

    Examples: routefront resume digits
    routefront resume digits --trials 100
    """
    start(
        opened(study, studies, trust), address=address, time_limit=time_limit, trials=trials, workers=workers,
        cost=cost, tracking=tracking, studies=studies, as_json=as_json,
    )  # fmt: skip


def start(
    found: Study,
    *,
    address: str | None,
    time_limit: str | None,
    trials: int | None,
    workers: int | None,
    tracking: str | None,
    studies: Path | None,
    as_json: bool,
    plans: Sequence[Mapping[str, Any]] = (),
    quiet: bool = False,
    cost: float | None = None,
) -> StudyState:
    """Go on with a study, its budget or workers changed; `plans` run first. With `quiet` no summary on stdout."""
    from search.studies.stored import load_subject
    from search.tracking.server import check_server

    changes = {
        "budget.time": parse_seconds(time_limit) if time_limit else None,
        "budget.trials": trials,
        "budget.cost": cost,
        "resources.workers": workers,
        "tracking.uri": tracking,
    }
    consent(found, "code", *(["tracking.uri"] if tracking is None else []))
    to_build(found)
    found = found.changed(changes, "resume")
    if tracking is not None:
        found.agree()  # its journal may be used already, and this address was given
    check_server(_tracking_uri(found.spec.tracking.uri, studies))
    with progress(f"reading {found.spec.subject}", as_json):
        images = load_subject(found.spec)
    return _launch(found, images, address, studies, as_json, plans, quiet)


def _launch(
    study: Study,
    images: Any,
    address: str | None,
    studies: Path | None,
    as_json: bool,
    plans: Sequence[Mapping[str, Any]] = (),
    quiet: bool = False,
) -> StudyState:
    from search.status.display import watching
    from search.studies.summary import record_of

    uri = _tracking_uri(study.spec.tracking.uri, studies)
    err.print(f"{dataset_name(study.spec.subject)}: {images.summary()}", soft_wrap=True)
    err.print(Text.assemble("study ", (study.spec.name, "bold"), f" in {study.folder.path}"), soft_wrap=True)
    why = study.launch(
        address=address,
        data=images,
        watch=watching(err),
        tracking=uri,
        say=lambda text: err.print(text, soft_wrap=True),
        plans=plans,
    )
    state = study.left
    assert state is not None, "a launch leaves a state"
    record = record_of(study, state)
    if as_json and not quiet:
        print_json(record)
    elif not quiet:
        counts = record["trials"]
        out.print(
            f"{why}: {counts['finished']} trials finished, {counts['stopped']} stopped, {counts['failed']} failed;"
            f" {record['front_points']} points on the front, hypervolume {record['hypervolume']:.4f},"
            f" {record['epochs']:g} epochs in {show_seconds(record['seconds'])}"
        )
        failures(state)
    if why in _CODES:
        err.print(f"{why}; go on with: routefront resume {study.spec.name}", soft_wrap=True)
        raise typer.Exit(_CODES[why])
    if counts_all_failed(record):
        raise RunError("every trial failed; `routefront status STUDY` says why")
    if why == "failed":
        raise RunError(
            f"the budget ended before any trial had an operating point ({record['epochs']:g} epochs in"
            f" {show_seconds(record['seconds'])}); with a larger one: routefront resume {study.spec.name} --time ..."
        )
    if not state.front() and state.constraints:
        from search.status.table import unmet_constraints

        raise RunError(unmet_constraints(state))
    return state


def counts_all_failed(record: dict[str, Any]) -> bool:
    """Whether a study ended without a single trial that worked."""
    counts = record["trials"]
    return counts["total"] > 0 and counts["failed"] == counts["total"]
