"""`routefront cluster plan`: how many trials share a device, and how many an hour come of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from search.commands.terminal import Json, Preset, err, out, print_json, progress
from search.errors import InputError
from search.spec.toml import to_toml
from search.units import show_bytes, show_count, show_seconds

if TYPE_CHECKING:
    from cluster.resources import Node


def register(app: typer.Typer) -> None:
    """Add the command to `routefront cluster`."""
    app.command("plan")(plan)


def plan(
    file: Annotated[Path | None, typer.Argument(help="A study file (TOML).", show_default=False)] = None,
    preset: Preset = None,
    data: Annotated[str | None, typer.Option(help="A data set by name, or a path to images.")] = None,
    description: Annotated[
        Path | None, typer.Option(help="Plan for the nodes of this description of a cluster (TOML).")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Plan for this Ray cluster, host:port or 'auto'.")] = None,
    seconds: Annotated[float, typer.Option(help="How long each probe trains.", min=0.2, max=600)] = 3.0,
    as_json: Json = False,
) -> None:
    """Train three networks of a study for a moment, alone and together: what to ask for, and what comes of it.

    The probe runs here; without --description or --address this machine is also what is planned for.

    Examples: routefront cluster plan study.toml
    routefront cluster plan --preset cifar10 --description cluster.toml
    """
    from search.planning.sharing import here
    from search.planning.sharing import plan as planned
    from search.spec.study import StudySpec
    from search.spec.toml import merge, read_toml
    from search.spec.toml import preset as preset_file
    from search.studies.stored import load_data

    if (file is None) == (preset is None):
        raise InputError("give one study file or one --preset, for example: routefront cluster plan --preset digits")
    if description is not None and address is not None:
        raise InputError("give --description or --address, not both")
    path = file if file is not None else preset_file(preset or "")
    spec = StudySpec.parse(merge(read_toml(path), {"data.name": data}), str(path))
    nodes = _described(description) if description else _connected(address) if address else [here()]
    with progress(f"reading {spec.data.name}", as_json):
        images = load_data(spec)
    with progress("starting the probe", as_json) as shown:
        record = planned(spec, images, nodes, seconds=seconds, say=shown.update)
    if as_json:
        print_json(record)
        return
    _show(record)


def _described(path: Path) -> list[Node]:
    from cluster.manifests.description import Description
    from cluster.resources import Node

    try:
        cluster = Description.read(path)
    except ValueError as error:
        raise InputError(str(error)) from None
    nodes = [
        Node(f"{name}-{number}", name, group.cpus, group.gpus, group.memory)
        for name, group in cluster.workers.items()
        for number in range(group.max)
    ]
    if cluster.slurm:
        slurm = cluster.slurm
        nodes += [Node(f"slurm-{i}", "slurm", slurm.cpus, slurm.gpus, slurm.memory) for i in range(slurm.nodes)]
    return nodes


def _connected(address: str) -> list[Node]:
    from cluster.connect import connect
    from cluster.resources import nodes_of

    try:
        return [node for node in nodes_of(connect(address)) if node.cpus]
    except ConnectionError as error:
        raise InputError(str(error)) from None


def _show(record: dict[str, Any]) -> None:
    levels = sorted({level for size in record["sizes"] for level in size["throughput"]})
    table = Table(
        "network", "method", "parameters", "MACs", "memory", *(["GPU memory"] if _gpu(record) else []),
        *(f"img/s, {level}" for level in levels), "epoch alone", box=None, padding=(0, 2),
    )  # fmt: skip
    for size in record["sizes"]:
        table.add_row(
            size["name"], f"{size['config']['method']} {size['config'].get('network', '')}".strip(),
            show_count(size["params"]), show_count(size["macs_full"]), show_bytes(size["memory"]),
            *([show_bytes(size["device_memory"])] if _gpu(record) else []),
            *(f"{size['throughput'][level]:.0f}" if level in size["throughput"] else "-" for level in levels),
            show_seconds(size["epoch_seconds"]),
        )  # fmt: skip
    for name, words in record["gpu"].items():
        out.print(f"{name}: {words}", soft_wrap=True)
    out.print(f"probed on {record['device']}: training images per second, views counted, by trainings at once")
    out.print(table)
    packing, nodes = record["packing"], record["nodes"]
    if packing["per_device"]:
        out.print(f"{packing['per_device']} trials share a GPU, each {100 * packing['rate']:.0f} % as fast as alone")
    else:
        cores = f"{packing['cpus_per_trial']:g} core{'s' if packing['cpus_per_trial'] > 1 else ''}"
        out.print(f"a trial gets {cores} and is {100 * packing['rate']:.0f} % as fast as alone where all are busy")
    out.print(f"{record['slots']} trials at once on {len(nodes)} node{'s' if len(nodes) > 1 else ''}")
    if record["estimated"]:
        err.print("note: there is no GPU here: GPU memory is estimated, and nothing is known of its speed")
    else:
        out.print(
            f"about {_rounded(record['trials_an_hour'])} trials an hour,"
            f" of {record['epochs_a_trial']:.3g} epochs each with the study's rungs"
        )
    out.print(f"limit: {record['limit']}")
    out.print("\nfor the study file:\n")
    out.print(to_toml({"resources": record["resources"]}).strip())


def _gpu(record: dict[str, Any]) -> bool:
    return any(size["device_memory"] for size in record["sizes"])


def _rounded(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
