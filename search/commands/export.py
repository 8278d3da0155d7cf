"""Commands about models that leave the registry, and about those in use: export-model, drift, compare."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.promotion import registry_uri
from search.commands.promotion_tables import print_drift, print_gates
from search.commands.terminal import Json, Studies, Tracking, out, print_json, progress
from search.errors import InputError

Registered = Annotated[str, typer.Argument(help="A registered model: NAME@ALIAS or NAME/VERSION.")]


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("export-model")(export_model)
    app.command("drift")(drift)
    app.command("compare")(compare)


def export_model(
    model: Registered,
    folder: Annotated[Path, typer.Option("--out", help="A folder that does not exist yet.")],
    to: Annotated[str, typer.Option("--to", help="The form: onnx, or pt2 (parts of torch.export).")] = "onnx",
    opset: Annotated[int, typer.Option(help="The version of ONNX's operators, 17 to 20.")] = 18,
    int8: Annotated[bool, typer.Option("--int8", help="The parts in eight bits, too, and their accuracy.")] = False,
    limit: Annotated[int | None, typer.Option(help="Compare on at most this many validation images (1000).")] = None,
    data_root: Annotated[Path | None, typer.Option(help="Where data sets lie.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Write a registered model as static ONNX graphs with a runner that needs neither torch nor routefront.

    The folder is written only if its logits, paths and MACs are those of the registry's model.

    Examples: routefront export-model digits@champion --to onnx --out exported
    routefront export-model digits@champion --int8 --out small
    """
    from search.promotion.export import export_model as leave
    from search.promotion.export import lines_of

    uri = registry_uri(tracking, studies, reading=True)
    with progress(f"exporting {model}", as_json):
        record = leave(model, folder, uri=uri, to=to, root=data_root, limit=limit, opset=opset, int8=int8)
    if as_json:
        print_json(record)
        return
    for line in lines_of(record):
        out.print(line, soft_wrap=True)
    print_gates(record["gates"])


def drift(
    model: Registered,
    log: Annotated[Path, typer.Option("--log", help="The folder that a served model or a runner counts into.")],
    alpha: Annotated[float, typer.Option(help="The share of windows that may alarm without a cause.")] = 0.001,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Compare what a model answers in use with its validation split; exit code 3 where the newest window alarms.

    MACs, exits, units and confidence are compared by windows; no labels and no images are needed.

    Example: routefront drift digits@champion --log counts
    """
    from search.promotion.drift import drift as compare

    record = compare(model, log, uri=registry_uri(tracking, studies, reading=True), alpha=alpha)
    if as_json:
        print_json(record)
    else:
        print_drift(record)
    if record["alarm"]:
        raise typer.Exit(3)


def compare(
    first: Registered,
    second: Annotated[str, typer.Argument(help="The other one, for example NAME@challenger.")],
    data: Annotated[Path, typer.Option("--data", help="Labelled images: a folder of class folders.")],
    margin: Annotated[float, typer.Option(help="How much accuracy may be lost for 'not worse'.")] = 0.01,
    limit: Annotated[int | None, typer.Option(help="At most this many images.")] = None,
    tracking: Tracking = None,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Compare two registered models on the same labelled images: accuracy and MACs with paired intervals.

    Example: routefront compare digits@champion digits@challenger --data labelled
    """
    from search.promotion.compare import compare as both
    from search.promotion.compare import lines_of

    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: at least one image has to be compared")
    uri = registry_uri(tracking, studies, reading=True)
    with progress("classifying with both", as_json):
        record = both(first, second, data, uri=uri, margin=margin, limit=limit)
    if as_json:
        print_json(record)
        return
    for line in lines_of(record):
        out.print(line, soft_wrap=True)
