"""Commands about promoted models: promote, rollback, history, predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.consent import Trust, consent, opened, to_build
from search.commands.promotion_tables import print_family, print_history, print_predictions, print_promotion
from search.commands.terminal import Json, Studies, Tracking, out, print_json, progress
from search.errors import InputError
from search.units import parse_count, parse_seconds

ModelName = Annotated[str, typer.Option("--model", help="A registered model: NAME@ALIAS or NAME/VERSION.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("promote")(promote)
    app.command("rollback")(rollback)
    app.command("history")(history)
    app.command("predict")(predict)


def promote(
    study: Annotated[str, typer.Argument(help="A study, by name or by its folder.")],
    model: Annotated[str, typer.Option(help="The registered model's name.")],
    max_macs: Annotated[str | None, typer.Option(help="The budget: at most this many MACs per image.")] = None,
    budgets: Annotated[
        str | None, typer.Option(help="A champion for every budget: 5M,10M,20M sets champion-5M, ...")
    ] = None,
    min_accuracy: Annotated[float | None, typer.Option(help="At least this validation accuracy.")] = None,
    cost: Annotated[
        float | None,
        typer.Option(
            help="The budget in the study's own cost: as cheap as this (milliseconds of a latency).", metavar="FIGURE"
        ),
    ] = None,
    merit: Annotated[
        float | None, typer.Option(help="In the study's own figure of merit: as good as this.", metavar="FIGURE")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only points of this method.")] = None,
    point: Annotated[str | None, typer.Option(help="This operating point or cascade, for example t0003-9-2.")] = None,
    cascade: Annotated[
        bool, typer.Option("--cascade", help="The best cascade under the budget (after `routefront compose`).")
    ] = False,
    alias: Annotated[str, typer.Option(help="The alias that will point to the new version.")] = "champion",
    calibrate_on: Annotated[
        Path | None, typer.Option(help="Find thresholds on the images in this folder (class folders, or unlabelled).")
    ] = None,
    max_latency: Annotated[
        str | None, typer.Option(help="At most this long for one image alone, measured here: 5ms, 0.01.")
    ] = None,
    compare_on: Annotated[
        Path | None, typer.Option(help="Labelled class folders on which it must not be worse than the champion.")
    ] = None,
    margin: Annotated[float, typer.Option(help="With --compare-on: how much accuracy may be lost.")] = 0.01,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the gates and what would happen.")] = False,
    tracking: Tracking = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Promote the most accurate operating point under a budget to the model registry.

    Its gates are measured again here; the alias moves only when all pass, the present champion's included.

    Examples: routefront promote digits --max-macs 1M --model digits --alias champion
    routefront promote digits --budgets 500k,1M,2M --model digits
    routefront promote trees --cost 50 --model trees
    """
    found = opened(study, studies, trust)
    to_build(found)
    if found.spec.references:
        consent(found, "code")
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise InputError(f"--min-accuracy {min_accuracy}: accuracies lie in [0, 1], for example 0.95")
    given = {
        "--max-macs": max_macs, "--min-accuracy": min_accuracy, "--cost": cost, "--merit": merit, "--point": point,
        "--method": method,
    }  # fmt: skip
    single = [name for name, value in given.items() if value is not None and name != "--method"]
    if budgets is not None and single:
        raise InputError(f"--budgets asks for a champion each; {single[0]} does not go with it")
    if point is not None and method is not None:
        raise InputError("--point names one point; --method does not go with it")
    if cascade and (budgets is not None or method is not None or point is not None):
        raise InputError("--cascade goes with --max-macs or --min-accuracy; a single cascade is named by --point")
    options = {
        "calibrate_on": calibrate_on,
        "max_latency": _latency(max_latency) if max_latency else None,
        "compare_on": compare_on,
        "margin": margin,
        "dry_run": dry_run,
        "uri": registry_uri(tracking, studies, reading=dry_run),
        "model": model,
        "alias": alias,
        "method": method,
    }
    with progress("measuring again and registering", as_json):
        if budgets is not None:
            records = found.promote_family(budgets=[part for part in budgets.split(",") if part.strip()], **options)
        else:
            budget = parse_count(max_macs) if max_macs else None
            wishes = {"max_macs": budget, "min_accuracy": min_accuracy, "cost": cost, "merit": merit}
            records = [found.promote(**wishes, point=point, cascades=cascade, **options)]
    if as_json:
        print_json(records if budgets is not None else records[0])
    elif budgets is not None:
        print_family(records, dry_run)
    else:
        print_promotion(records[0], dry_run)
    if dry_run and all(record["why"] for record in records):
        raise typer.Exit(1)


def _latency(text: str) -> float:
    try:
        seconds = float(text[:-2]) / 1000 if text.endswith("ms") else parse_seconds(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise InputError(f"--max-latency {text!r} is not a time; write 5ms or 0.01")
    return seconds


def registry_uri(tracking: str | None, studies: Path | None, *, reading: bool = False) -> str:
    """The address of the model registry; `InputError` where tracking is off or nothing answers."""
    from search.studies.roots import studies_root
    from search.tracking.server import check_server, chosen_uri

    uri = chosen_uri(tracking, studies_root(studies))
    if uri == "off":
        raise InputError("the model registry needs a tracking address; leave --tracking out or give one")
    check_server(uri, reading=reading)
    return uri


def rollback(
    model: Annotated[str, typer.Option(help="The registered model's name.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = "champion",
    to: Annotated[str | None, typer.Option(help="To this version instead of the one before.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Point an alias to the version before the present one; a second time one further back.

    Examples: routefront rollback --model digits --alias champion
    routefront rollback --model digits --to 3
    """
    from search.promotion.history import rollback as move_back

    if to is not None and not to.isdigit():
        raise InputError(f"--to {to!r}: versions are whole numbers, for example 3")
    with progress("moving the alias", as_json):
        record = move_back(model, alias, registry_uri(tracking, studies), to=to)
    if as_json:
        print_json(record)
    else:
        out.print(f"{model}@{alias} is version {record['version']} again (it was {record['previous']})")


def history(
    model: Annotated[str, typer.Option(help="The registered model's name.")],
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Which versions a model has had, newest first: when, from which study, on which evidence, under which alias.

    Example: routefront history --model digits
    """
    from search.promotion.history import history as versions_of

    with progress("asking the registry", as_json):
        versions = versions_of(model, registry_uri(tracking, studies, reading=True))
    if as_json:
        print_json(versions)
    else:
        print_history(versions)


def predict(
    model: ModelName,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Image files, or folders of class folders; repeatable.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Classify a split of the model's own data set: test.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images.")] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="Answer with the model's best setting under this many MACs per image.")
    ] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where data sets lie.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Classify images with a registered model, and say what each cost in MACs.

    Examples: routefront predict --model digits@champion --split test
    routefront predict --model digits@champion --images photo.png
    """
    from search.promotion.models import predict_images, predict_split

    if (not images) == (split is None):
        raise InputError("give --images FILES or --split test, one of them")
    uri = registry_uri(tracking, studies, reading=True)
    budget = parse_count(max_macs) if max_macs else None
    with progress(f"loading {model}", as_json):
        record = (
            predict_images(model, images, uri=uri, limit=limit, max_macs=budget)
            if images
            else predict_split(model, str(split), uri=uri, root=data_root, limit=limit, max_macs=budget)
        )
    if as_json:
        print_json(record)
    else:
        print_predictions(record)
