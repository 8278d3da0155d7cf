"""Commands about promoted models: promote, rollback, history, predict."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from search.commands.common import Json, Studies, Tracking, out, print_json, progress
from search.errors import InputError
from search.units import parse_count, show_count, show_share

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
    min_accuracy: Annotated[float | None, typer.Option(help="At least this validation accuracy.")] = None,
    method: Annotated[str | None, typer.Option(help="Only points of this method.")] = None,
    alias: Annotated[str, typer.Option(help="The alias that will point to the new version.")] = "champion",
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Promote the most accurate operating point under a budget to the model registry.

    The point's validation figures are measured again, then the test split is evaluated, once.

    Example: routefront promote digits --max-macs 1M --model digits --alias champion
    """
    from search.study import Study

    found = Study.load(study, root=studies)
    if min_accuracy is not None and not 0 <= min_accuracy <= 1:
        raise InputError(f"--min-accuracy {min_accuracy}: accuracies lie in [0, 1], for example 0.95")
    with progress("measuring again and registering", as_json):
        record = found.promote(
            model=model,
            alias=alias,
            max_macs=parse_count(max_macs) if max_macs else None,
            min_accuracy=min_accuracy,
            method=method,
            uri=_uri(tracking, studies),
        )
    if as_json:
        print_json(record)
        return
    test, share = record["test"], record["test"]["macs"] / record["macs_full"]
    name = f"{record['model']} version {record['version']}"
    out.print(f"promoted {name}, alias [bold]{record['alias']}[/]", soft_wrap=True)
    out.print(f"  point       {record['point_id']}: {record['method']} {record['network']}, {record['knobs_text']}")
    out.print(
        f"  validation  {show_share(record['validation']['accuracy'])}"
        f" at {show_count(record['validation']['macs'])} MACs per image"
    )
    out.print(
        f"  test        {show_share(test['accuracy'])} ({test['correct']} of {test['count']}, 95 % interval"
        f" {show_share(test['low'])} to {show_share(test['high'])}) at {show_count(test['macs'])} MACs,"
        f" {show_share(share)} of the full network's {show_count(record['macs_full'])}",
        soft_wrap=True,
    )
    if record.get("previous"):
        out.print(f"  before      version {record['previous']}")


def _uri(tracking: str | None, studies: Path | None) -> str:
    from search.spec import studies_root
    from search.tracking import check_server, default_uri

    uri = tracking or default_uri(studies_root(studies))
    if uri == "off":
        raise InputError("the model registry needs a tracking address; leave --tracking out or give one")
    check_server(uri)
    return uri


def rollback(
    model: Annotated[str, typer.Option(help="The registered model's name.")],
    alias: Annotated[str, typer.Option(help="The alias to move back.")] = "champion",
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Point an alias to the version before its last promotion.

    Example: routefront rollback --model digits --alias champion
    """
    from search.registered import rollback as move_back

    with progress("moving the alias", as_json):
        record = move_back(model, alias, _uri(tracking, studies))
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
    """Which versions a model has had, newest first: when, from which study, on which evidence.

    Example: routefront history --model digits
    """
    from search.registered import history as versions_of

    with progress("asking the registry", as_json):
        versions = versions_of(model, _uri(tracking, studies))
    if as_json:
        print_json(versions)
        return
    table = Table("version", "aliases", "promoted", "study", "point", "test accuracy", "MACs", box=None, padding=(0, 2))
    for entry in versions:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry["time"]))
        table.add_row(
            entry["version"], ", ".join(entry["aliases"]), when, entry.get("study", ""), entry.get("point_id", ""),
            show_share(float(entry["test_accuracy"])), show_count(float(entry["macs"])),
        )  # fmt: skip
    out.print(table)


def predict(
    model: ModelName,
    images: Annotated[
        list[Path] | None, typer.Option("--images", help="Image files, or folders of class folders; repeatable.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Classify a split of the model's own data set: test.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most this many images.")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where data sets lie.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Classify images with a registered model, and say what each cost in MACs.

    Examples: routefront predict --model digits@champion --split test
    routefront predict --model digits@champion --images photo.png
    """
    from search.predict import predict_images, predict_split

    if (not images) == (split is None):
        raise InputError("give --images FILES or --split test, one of them")
    uri = _uri(tracking, studies)
    with progress(f"loading {model}", as_json):
        record = (
            predict_images(model, images, uri=uri, limit=limit)
            if images
            else predict_split(model, str(split), uri=uri, root=data_root, limit=limit)
        )
    if as_json:
        print_json(record)
        return
    _print(record)


def _print(record: dict[str, Any], rows: int = 10) -> None:
    table = Table("image", "class", "confidence", "MACs", "truth", box=None, padding=(0, 2))
    for row in record["predictions"][:rows]:
        truth = "" if row.get("truth") is None else str(row["truth"])
        table.add_row(row["image"], row["class"], show_share(row["confidence"]), show_count(row["macs"]), truth)
    out.print(table)
    hidden = len(record["predictions"]) - rows
    if hidden > 0:
        out.print(f"  and {hidden} more (--json prints all)")
    says = f"{record['model']}: {record['count']} images, {show_count(record['macs'])} MACs per image on average"
    if record["macs_full"]:
        says += f" ({show_share(record['macs'] / record['macs_full'])} of the full network)"
    if record.get("accuracy") is not None:
        says += f", accuracy {show_share(record['accuracy'])}"
    out.print(says, soft_wrap=True)
