"""Commands that draw a study's report: `report` writes it, `watch` shows it live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.consent import Trust, opened
from search.commands.terminal import Json, Name, Studies, err, out, print_json, progress


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("report")(report)
    app.command("watch")(watch)


def report(
    study: Name,
    folder: Annotated[Path | None, typer.Option("--out", help="Where to write (default: the study's folder).")] = None,
    trust: Trust = False,
    studies: Studies = None,
    as_json: Json = False,
) -> None:
    """A self-contained HTML page and PNGs: the frontier, how it was found, and the paths of the best trials.

    The page needs no network. Points tell their configuration, and a click shows the trial's curves over its epochs;
    then hypervolume against cost, which parameters mattered, a timeline of the trials. For the best trials skip ratio
    per block, computation by class, t-SNE of paths, KL between images and augmented copies, easy and hard images
    (they need the study's data set); of exits their dataflow, budgets, training and confidences; of halting its cost
    and maps. Figures were measured during the search on the validation split; nothing is run again.

    Example: routefront report digits --out .
    """
    from search.report.build import write_report

    found = opened(study, studies, trust)
    with progress("drawing the report", as_json):
        files = write_report(found, folder or found.folder.path)
    if as_json:
        print_json(files)
    else:
        for path in files.values():
            out.print(f"wrote {path}", soft_wrap=True)


def watch(
    study: Name,
    port: Annotated[int, typer.Option(help="A port of this machine [0: a free one].", min=0, max=65535)] = 0,
    trust: Trust = False,
    studies: Studies = None,
) -> None:
    """The report's page, live, on this machine only (127.0.0.1) and read-only; Ctrl-C ends it.

    It follows the study's journal and shows for every point the command that promotes it.

    Example: routefront watch digits --port 8000
    """
    from search.report.watch import Watch

    found = opened(study, studies, trust)
    with progress("drawing the page", False):
        server = Watch(found, port)
    err.print(f"watching {found.spec.name} at {server.address} (this machine only; Ctrl-C ends it)")
    server.serve()
