"""Commands that need no study: methods, describe, data, doctor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from search.commands.terminal import Json, err, out, print_json, progress
from search.errors import InputError
from search.units import parse_size

Set = Annotated[list[str] | None, typer.Option("--set", help="A configuration value, key=value; repeatable.")]

_MOST_CLASSES = 30
_SIGNS = {"ok": ("ok  ", "green"), "missing": ("--  ", "yellow"), "broken": ("bad ", "red")}
"""What `doctor` writes before a check, and in which colour."""


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("methods")(methods)
    app.command("describe")(describe)
    app.command("data")(data)
    app.command("doctor")(doctor)


def methods(
    name: Annotated[str | None, typer.Argument(help="Only this method, with its whole space.")] = None,
    as_json: Json = False,
) -> None:
    """Every method: variants, networks, knobs, search space, paper.

    Example: routefront methods codinet
    """
    from search.catalogue.records import records as records_of

    records = records_of(name)
    if as_json:
        print_json(records[0] if name else records)
        return
    for record in records:
        out.print(Text.assemble((record["name"], "bold"), f"  {record['title']}  ", (record["paper"], "dim")))
        out.print(f"  variants  {', '.join(v or 'default' for v in record['variants'])}")
        out.print(f"  networks  {', '.join(record['networks'])}")
        knobs = "; ".join(f"{k}: {v}" for k, v in record["knobs"].items()) or "none (one operating point)"
        out.print(f"  knobs     {knobs}")
        if name:
            table = Table("parameter", "takes", "stage", "published", box=None, padding=(0, 2))
            for key, parameter in record["space"].items():
                shown = record["published"].get(key, "")
                table.add_row(key, parameter["takes"], str(parameter["stage"]), str(shown))
            out.print(table)
        else:
            out.print(f"  space     {', '.join(record['space'])}")


def parse_sets(pairs: list[str] | None) -> dict[str, Any]:
    """``["k=v"]`` as values: numbers, true, false, [lists] and words as TOML reads them."""
    import tomllib

    values: dict[str, Any] = {}
    for pair in pairs or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair!r}: write key=value, for example --set gamma=0.02")
        try:
            values[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            values[key] = text
    return values


def describe(
    method: Annotated[str, typer.Argument(help="The method, for example codinet.")],
    variant: Annotated[str | None, typer.Option(help="A variant of the method.")] = None,
    network: Annotated[str | None, typer.Option(help="The body, for example resnet-110 or msdnet-5.")] = None,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 10,
    image_size: Annotated[
        Any, typer.Option(parser=parse_size, metavar="SIZE", help="Pixels along an edge, or HEIGHTxWIDTH.")
    ] = 32,
    channels: Annotated[int, typer.Option(help="Channels of an image.")] = 3,
    values: Set = None,
    as_json: Json = False,
) -> None:
    """One configured network: parameters, MACs, units, exits.

    Example: routefront describe skipnet --network resnet-110 --set gate=rnn
    """
    from search.catalogue.records import networks_written

    chosen = {**parse_sets(values)}
    if variant is not None:
        chosen["variant"] = variant
    if network is not None:
        chosen["network"] = network
    usual = not chosen and (classes, image_size, channels) == (10, 32, 3)
    record = networks_written().get(method) if usual else None
    if record is None:
        from search.catalogue.describe import network_description
        from spaces.own_networks import trust_network

        try:
            trust_network(chosen.get("network"))  # the person has typed its name
        except ValueError as error:
            raise InputError(str(error)) from None
        record = network_description(method, chosen, classes=classes, image_size=image_size, channels=channels)
    if as_json:
        print_json(record)
        return
    out.print(Text.assemble((record["method"], "bold"), f" {record['variant']} {record['network']}"))
    out.print(f"  parameters  {record['params']:,}")
    for part, count in record["params_by_part"].items():
        out.print(f"    {part:<12}{count:>12,}")
    out.print(f"  MACs        {record['macs_full']:,} with everything on, {record['macs_min']:,} on the cheapest path")
    table = Table("unit", "kind", "MACs", box=None, padding=(0, 2))
    table.columns[2].justify = "right"
    for unit in record["units"]:
        table.add_row(unit["name"], unit["kind"], f"{unit['macs']:,}")
    out.print(table)
    for leaving in record["exits"]:
        out.print(f"  leaving at {leaving['name']} costs {leaving['macs']:,} MACs in all")
    if record["paper_cost"]:
        cost = dict(record["paper_cost"])
        out.print(f"  in the paper's unit ({cost.pop('unit')}):")
        for name, value in cost.items():
            each = value if isinstance(value, list | tuple) else [value]
            out.print(f"    {name.replace('_', ' '):<20}{'  '.join(f'{one:,}' for one in each)}")


def data(
    name: Annotated[
        str | None, typer.Argument(help="Only this data set, or a folder of images, which is looked through.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Where data sets lie (default: $ROUTEFRONT_DATA or ./data).")
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Get it through torchvision.")] = False,
    as_json: Json = False,
) -> None:
    """Data sets: where they are, whether complete, how to get them; of a folder of images what it holds and lacks.

    Examples: routefront data cifar10 --download
    routefront data photos
    """
    from dataclasses import asdict

    from trainables.data import datasets

    base = root or datasets.default_root()
    if name is not None and not download and name not in datasets.NAMES and _is_folder(Path(name)):
        _surveyed(Path(name), as_json)
        return
    try:
        if download:
            if name is None:
                raise InputError(
                    "--download needs the name of a data set, for example: routefront data cifar10 --download"
                )
            with progress(f"downloading {name}", as_json):
                datasets.download(name, base)
        found = [asdict(entry) for entry in datasets.catalogue(base) if name is None or entry.name == name]
        if name is not None and not found:
            with progress(f"reading {name}", as_json):
                found = [_loaded(name, base)]
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    if as_json:
        print_json(found if name is None else found[0])
        return
    for entry in found:
        good = entry.pop("complete", True)
        title = entry.pop("name")
        out.print(Text.assemble((title, "bold"), "  ", ("here", "green") if good else ("not here", "yellow")))
        for key, value in entry.items():
            text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
            if text not in ("", None):
                out.print(f"  {key:<10}{text}", soft_wrap=True)


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder of image files, and none of Parquet or of a saved set."""
    from trainables.data.parquet import is_parquet
    from trainables.data.saved import is_saved

    try:
        return path.is_dir() and not is_parquet(path) and not is_saved(path)
    except ValueError:  # reading it says what is wrong
        return False


def _surveyed(folder: Path, as_json: bool) -> None:
    """Print what a folder of images holds, and what should be done before a training."""
    from trainables.data.survey import SHOWN, survey

    try:
        with progress(f"looking through {folder}", as_json):
            found = survey(folder)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None
    record = found.record()
    if as_json:
        print_json(record)
        return
    splits = ", ".join(f"{sum(counts.values()):,} {split}" for split, counts in found.counts.items())
    out.print(Text.assemble((str(folder), "bold"), f"  {found.images:,} images: {splits}"), soft_wrap=True)
    table = Table("class", *found.counts, box=None, padding=(0, 2))
    for column in table.columns[1:]:
        column.justify = "right"
    names = sorted({name for counts in found.counts.values() for name in counts})
    for name in names[:_MOST_CLASSES]:
        table.add_row(Text(name), *(f"{counts.get(name, 0):,}" for counts in found.counts.values()))
    out.print(table)
    if len(names) > _MOST_CLASSES:
        out.print(f"  and {len(names) - _MOST_CLASSES} classes more (--json has all)")
    if found.ratio is not None:
        out.print(f"  balance     the largest class has {found.ratio:.1f} times the training images of the smallest")
    for edge in ("shorter_edge", "longer_edge"):
        if record[edge]:
            least, median, most = record[edge]
            out.print(f"  {edge.replace('_', ' '):<14}{least} to {most} pixels, median {median}")
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in found.kinds.most_common())
    out.print(f"  pixels      {kinds or 'none'}; {found.rotated:,} turned by EXIF when they are read", soft_wrap=True)
    for title, several in (("two splits", found.between), ("two classes", found.contrary), ("once more", found.twins)):
        for files in several[:SHOWN]:
            out.print(Text(f"  same picture in {title}: {' = '.join(files)}"), soft_wrap=True)
        if len(several) > SHOWN:
            out.print(f"  and {len(several) - SHOWN} pictures more in {title} (--json has all)")
    for file, why in found.broken[:SHOWN]:
        out.print(Text(f"  broken      {file} {why}"), soft_wrap=True)
    if len(found.broken) > SHOWN:
        out.print(f"  and {len(found.broken) - SHOWN} files more (--json has all)")
    for line in found.advice():
        out.print(Text.assemble(("  ! ", "yellow"), line), soft_wrap=True)


def _loaded(name: str, root: Path) -> dict[str, Any]:
    from trainables.data import datasets

    loaded = datasets.load(name, root=root)
    return {
        "name": loaded.name,
        "complete": True,
        "classes": list(loaded.classes),
        "size": f"{loaded.task.pixels}, {loaded.task.channels} channels",
        "images": f"{len(loaded.train.labels)} train, {len(loaded.validation.labels)} validation,"
        f" {len(loaded.test.labels)} test",
        "hash": loaded.hash,
    }


def _report_gpu(path: Path, as_json: bool) -> None:
    from trainables.worker.gpu_report import report
    from trainables.worker.gpus import seen

    if not path.parent.is_dir():
        raise InputError(f"--gpu-report {path}: there is no folder {path.parent}")
    try:
        seen()
    except ValueError as error:
        raise InputError(f"--gpu-report {path}: {error}") from None
    with progress("measuring the GPU, 8 minutes at most", as_json):
        found = report()
    path.write_text(json.dumps(found, indent=1) + "\n")
    if as_json:
        print_json(found)
        return
    rows = [row for part in found["parts"].values() for row in part]
    failed = sum("error" in row for row in rows)
    left = f", {len(found['left_out'])} left out for lack of time" if found["left_out"] else ""
    out.print(f"{len(rows)} measurements in {found['seconds']:.0f} s, {failed} failed{left}; the figures are in {path}")


def doctor(
    gpu_report: Annotated[
        Path | None,
        typer.Option(help="Measure this machine's GPU (8 minutes at most) and write the figures there, as JSON."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Versions, devices, Ray, databases, MLflow, dataset folders: what works, what does not.

    Examples: routefront doctor --json
    routefront doctor --gpu-report gpu.json
    """
    from search.catalogue.doctor import checks

    if gpu_report is not None:
        _report_gpu(gpu_report, as_json)
        return
    found = []
    for check in checks():
        with progress(f"checking {check.name}", as_json):
            found.append(check.run())
        if not as_json:
            out.print(
                Text.assemble(_SIGNS[found[-1]["state"]], f" {found[-1]['name']:<14} {found[-1]['says']}"),
                soft_wrap=True,
            )
    if as_json:
        print_json(found)
    broken = [entry["name"] for entry in found if entry["state"] == "broken"]
    if broken:
        err.print(f"not working: {', '.join(broken)}")
        raise typer.Exit(1)
