"""Commands that change studies beside searching: confirm, delete, gc, export."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from search.commands.consent import Trust, opened
from search.commands.launch import Address, start
from search.commands.terminal import Json, Name, Studies, Tracking, err, left_out, out, print_json, progress, said
from search.errors import InputError
from search.units import knobs_text, show_bytes, show_count, show_share

if TYPE_CHECKING:
    from search.sampling.optuna_export import OptunaFile
    from search.studies.stored import StoredStudy

_FOLLOW_SECONDS = 1.0


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("confirm")(confirm)
    app.command("export")(export)
    app.command("delete")(delete)
    app.command("gc")(gc)


def confirm(
    study: Name,
    point: Annotated[
        list[str] | None, typer.Option(help="This point or trial, may be given again (default: the front).")
    ] = None,
    seeds: Annotated[int, typer.Option(help="New seeds for each configuration.")] = 2,
    top: Annotated[int | None, typer.Option(help="Only the configurations with the most points on the front.")] = None,
    address: Address = None,
    time_limit: Annotated[str | None, typer.Option("--time", help="A new limit of wall time in all.")] = None,
    workers: Annotated[int | None, typer.Option(help="Trials at once.")] = None,
    tracking: Tracking = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Train front members again, in full, on new seeds; say how far their seeds lie apart.

    Repeats run beside the budget of trials, rungs do not stop them, and the sampler learns nothing from
    them. An interrupted confirmation is continued by `routefront resume`.

    Examples: routefront confirm digits --seeds 3
    routefront confirm digits --point t0019-9-4
    """
    from search.planning.repeats import plan_repeats, spreads

    found = opened(study, studies, trust)
    plans = plan_repeats(found.state(), found.spec, points=point or (), seeds=seeds, top=top)
    configurations = len({plan["repeats"] for plan in plans})
    err.print(f"{len(plans)} trainings of {configurations} configuration(s), {found.spec.budget.epochs} epochs each")
    state = start(
        found, address=address, time_limit=time_limit, trials=None, workers=workers, tracking=tracking,
        studies=studies, as_json=as_json, plans=plans, quiet=True,
    )  # fmt: skip
    rows = spreads(state, found.spec.budget.epochs)
    if as_json:
        print_json(
            [
                {
                    "trial": row.trial, "method": row.method, "setting": row.setting, "on_front": row.on_front,
                    "macs": row.macs, "accuracies": row.accuracies, "mean": row.mean, "deviation": row.deviation,
                }
                for row in rows
            ]
        )  # fmt: skip
        return
    table = Table("accuracy", "+-", "seeds", "MACs", "trial", "method", "setting", "front", box=None, padding=(0, 2))
    for row in rows:
        table.add_row(
            show_share(row.mean),
            "" if row.deviation is None else show_share(row.deviation),
            str(len(row.accuracies)),
            show_count(sum(row.macs) / len(row.macs)),
            row.trial,
            row.method,
            knobs_text(row.setting),
            "yes" if row.on_front else "",
        )
    out.print(table)


def export(
    study: Name,
    optuna: Annotated[Path, typer.Option(help="The SQLite file to write.", show_default=False)],
    follow: Annotated[bool, typer.Option("--follow", help="Keep it up to date until the search ends.")] = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Write a study as Optuna studies that Optuna's own tools read.

    NAME has one trial a training: its value is the hypervolume of the curve of a full training; what was
    stopped is PRUNED, with what it showed at each rung as intermediate values. NAME (points) has one
    trial for every operating point of a full training: error and log10 MACs.

    With --follow a dashboard that has the file open shows the search while it runs:
    optuna-dashboard sqlite:///digits.db

    Examples: routefront export digits --optuna digits.db
    routefront export digits --optuna digits.db --follow
    """
    from search.sampling.optuna_export import OptunaFile

    found = opened(study, studies)
    if optuna.exists():
        raise InputError(f"{optuna} exists; choose another file, or remove it first")
    with progress("following" if follow else "writing", as_json) as shows:
        written = OptunaFile(found.spec, optuna, live=follow)
        counts = _followed(found, written, shows.update) if follow else written.update(found.state())
    if as_json:
        print_json({"file": optuna, "studies": counts})
    else:
        for name, count in counts.items():
            out.print(f"wrote {count} trials of study {name!r} into {optuna}", soft_wrap=True)


def _followed(found: StoredStudy, file: OptunaFile, say: Callable[[str], None]) -> dict[str, int]:
    """Keep a file up to date until nobody drives the study any more, or until Ctrl-C."""
    from search.studies.follow import Followed

    known = Followed()
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            running = found.status() == "running"  # asked first: what its last moments brought is read below
            known.update(found)
            counts = file.update(known.state)
            say(", ".join(f"{count} trials of {name!r}" for name, count in counts.items()))
            if not running:
                break
            time.sleep(_FOLLOW_SECONDS)
    return file.update(known.state)


def delete(
    study: Name,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Remove a study: its folder with all checkpoints, and its journal. Registered models stay.

    Example: routefront delete digits --yes
    """
    found = opened(study, studies)
    if found.status() == "running":
        raise InputError(f"study {found.spec.name!r} is running; stop it first: routefront stop {found.spec.name}")
    own, others = found.folder.written()
    _same_study(found, own)
    size = sum(map(found.folder.size, own))
    if not yes:
        for line in _listed(own):
            err.print(f"  {line}", soft_wrap=True)
        if not typer.confirm(f"remove these of {found.folder.path} ({show_bytes(size)}) and the journal?", err=True):
            raise InputError("nothing was removed")
    if found.spec.journal:
        journal = found.journal()
        try:
            journal.acquire()  # refuses where a driver began in between
            journal.delete()
        finally:
            journal.close()
    others = found.folder.remove_written()
    record = {"study": found.spec.name, "removed": str(found.folder.path), "bytes": size, "left": others}
    if as_json:
        print_json(record)
        return
    out.print(f"removed {found.spec.name} ({show_bytes(size)})", soft_wrap=True)
    if others:
        left = ", ".join(others[:8]) + (f" and {len(others) - 8} more" if len(others) > 8 else "")
        out.print(f"left in {found.folder.path}, for no study writes it: {left}", soft_wrap=True)


def _same_study(study: Any, own: list[str]) -> None:
    """Raise `InputError` unless folder and journal are of one study, so that nothing else is removed."""
    journal = study.journal()
    try:
        first = journal.first()
    finally:
        journal.close()
    name, folder = study.spec.name, study.folder.path
    told = first.payload.get("spec", {}).get("name") if first is not None and first.kind == "created" else None
    if told != name:
        raise InputError(f"nothing was removed: the journal of {folder} tells of no study {name!r}")
    if study.spec.journal and (folder.name != name or own == ["study.toml"]):
        raise InputError(
            f"nothing was removed: {folder} holds the study file of {name!r} but is not the folder that the study wrote"
        )


def _listed(names: list[str]) -> list[str]:
    """Lines that sum up names relative to a study's folder: files by name, folders by their number of entries."""
    folders = Counter(name.partition("/")[0] for name in names if "/" in name)
    files = [name for name in names if "/" not in name]
    return files + [f"{folder}/ ({count} entries)" for folder, count in folders.items()]


def gc(
    study: Annotated[str | None, typer.Argument(help="A study (default: all that are not running).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Reclaim what no front needs: checkpoints behind the fronts, lost first stages, Ray's scratch.

    Example: routefront gc --dry-run
    """
    from search.studies.stored import all_studies

    chosen = [opened(study, studies)] if study else all_studies(studies, left_out)
    records: list[dict[str, Any]] = []
    for found in chosen:
        if not study and found.untrusted("journal"):
            left_out(found.folder.path, "its journal is elsewhere and this study was not made here; nothing was done")
            continue
        try:
            if found.status() != "running":
                records.append(_reclaim(found, dry_run))
            elif study:
                raise InputError(f"study {found.spec.name!r} is running; it reclaims by itself what it no longer needs")
        except (InputError, OSError) as error:
            if study:
                raise
            left_out(found.folder.path, said(error))
    if as_json:
        print_json(records)
        return
    word = "would go" if dry_run else "removed"
    for record in records:
        out.print(f"{record['study']}: {record['folders']} folders, {show_bytes(record['bytes'])} {word}")


def _reclaim(study: StoredStudy, dry_run: bool) -> dict[str, Any]:
    from search.engine.driver import driving

    with contextlib.nullcontext() if dry_run else driving(study) as driver:  # refuses where one began in between
        names = study.reclaimable(study.state() if driver is None else driver.state)
        size = sum(map(study.folder.size, names))
        if driver is not None:
            driver.folder.remove(names)
            driver.flush()
    return {"study": study.spec.name, "folders": len(names), "bytes": size}
