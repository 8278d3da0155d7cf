"""The command that brings a study's records to a tracking server once more: track."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from search.commands.consent import Trust, opened
from search.commands.terminal import Json, Name, Studies, err, out, print_json, progress
from search.errors import InputError


def register(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command("track")(track)


def track(
    study: Name,
    to: Annotated[str, typer.Option("--to", help="MLflow address: http://HOST:PORT or sqlite:///FILE.")],
    experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment (default: the study's).", show_default=False)
    ] = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """Bring a study's records to MLflow from its folder: to a new server, or to one that lost them.

    What is there already is not doubled. Users and passwords: MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD.
    Example: routefront track digits --to http://127.0.0.1:5000
    """
    from search.tracking.process import rebuild
    from search.tracking.server import check_server, shown

    if to == "off":
        raise InputError("--to off records nothing; give http://HOST:PORT or sqlite:///FILE")
    found = opened(study, studies, trust)
    name = experiment or found.spec.tracking.experiment
    check_server(to, instead="")
    began = time.monotonic()
    with progress(f"bringing {found.spec.name} to {shown(to)}", as_json) as shows:
        journal = found.journal()
        try:
            record = rebuild(to, name, journal, found.folder.path, say=shows.update)
        finally:
            journal.close()
    seconds = time.monotonic() - began
    if as_json:
        print_json({"study": found.spec.name, "address": shown(to), "experiment": name, **record, "seconds": seconds})
        return
    out.print(
        f"{record['events']:,} events of {found.spec.name} are at {shown(to)}, experiment {name}:"
        f" {record['runs']:,} runs, {record['created']:,} of them new, in {seconds:.1f} s",
        soft_wrap=True,
    )
    if found.status() == "running":
        err.print("the study runs on; what comes later is brought by its driver, or by this command again")
