"""Commands about studies that a cluster drives itself: `routefront cluster submit`, `jobs`, `logs`, `cancel`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search.commands.streams import writing
from search.commands.terminal import Json, err, out, print_json
from search.errors import InputError, RunError
from search.units import show_seconds

if TYPE_CHECKING:
    from cluster.jobs import Jobs

Address = Annotated[
    str,
    typer.Option(
        "--address", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, for example http://HOST:8265."
    ),
]
Job = Annotated[str, typer.Argument(help="The job's id, as `submit` printed it.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add these commands to `routefront cluster`."""
    for command in (submit, jobs, logs, cancel):
        app.command()(command)


@contextmanager
def _answered() -> Iterator[None]:
    """Errors of a cluster as those of a command."""
    from cluster.jobs import JobError

    try:
        yield
    except JobError as error:
        raise RunError(str(error)) from None
    except (ConnectionError, ValueError) as error:
        raise InputError(str(error)) from None


def submit(
    file: Annotated[Path, typer.Argument(help="A study file (TOML).", show_default=False)],
    address: Address,
    studies: Annotated[
        str,
        typer.Option(
            "--studies", help="Folder of studies on a disk that all nodes share, or an address of object storage."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The study's name.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Show what it prints until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Let a cluster drive a study; a study of that name in the cluster's folder goes on where it was.

    The study file travels, data and results stay on the cluster; routefront must be installed there. Whoever
    submitted may go away: `routefront cluster logs` finds the job again, also after Ctrl-C here.

    Example: routefront cluster submit study.toml --address http://head:8265 --studies /mnt/studies --wait
    """
    from cluster.jobs import Jobs
    from search.spec.study import StudySpec
    from search.spec.toml import merge, read_toml, to_toml

    values = merge(read_toml(file), {"name": name})
    spec = StudySpec.parse(values, str(file))
    if "://" not in studies and not Path(studies).is_absolute():
        raise InputError(
            f"--studies {studies!r} must be a whole path on the cluster, for example /mnt/studies, or an address,"
            " for example s3://BUCKET/studies"
        )
    command = ["routefront", "search", "study.toml", "--address", "auto", "--studies", studies]
    with _answered():
        found = Jobs(address)
        job = found.submit(command, {"study.toml": to_toml(values)}, name=spec.name)
    if not wait:
        if as_json:
            print_json({"job": job, "study": spec.name, "address": found.address})
            return
        out.print(f"submitted {job}")
        for verb in ("logs", "cancel"):
            out.print(f"  routefront cluster {verb} {job} --address {found.address}", soft_wrap=True)
        return
    err.print(f"job {job} at {found.address}; it goes on without this terminal", soft_wrap=True)
    _follow(found, job, as_json)


def jobs(address: Address, as_json: Json = False) -> None:
    """List the studies that a cluster was asked to drive, the latest first.

    Example: routefront cluster jobs --address http://head:8265
    """
    from rich.table import Table

    from cluster.jobs import Jobs

    with _answered():
        found = Jobs(address).all()
    if as_json:
        print_json(found)
        return
    table = Table("job", "study", "status", "time", "message", box=None, padding=(0, 2))
    for job in found:
        taken = (job["ended"] or time.time()) - job["started"] if job["started"] else 0
        table.add_row(job["id"], job["name"], job["status"], show_seconds(taken), job["message"][:60])
    out.print(table) if found else out.print("no jobs of routefront on this cluster")


def logs(job: Job, address: Address, as_json: Json = False) -> None:
    """Show what a job prints until it ends. Exit code 1 where it did not succeed.

    Example: routefront cluster logs digits-8f3a01 --address http://head:8265
    """
    from cluster.jobs import Jobs

    with _answered():
        found = Jobs(address)
        found.info(job)
    _follow(found, job, as_json)


def cancel(job: Job, address: Address, as_json: Json = False) -> None:
    """End a job. The study keeps every checkpoint: submit it again, or `routefront resume` it, to go on.

    Example: routefront cluster cancel digits-8f3a01 --address http://head:8265
    """
    from cluster.jobs import Jobs

    with _answered():
        found = Jobs(address)
        asked = found.stop(job)
        record = found.wait(job)
    if as_json:
        print_json(record)
        return
    out.print(f"{job} {'was ended' if asked else 'had ended already'}: {record['status'].lower()}")


def _follow(found: Jobs, job: str, as_json: bool) -> None:
    """Print until the end; output of the job goes to stderr where stdout is one document."""
    try:
        with _answered():
            for text in found.follow(job):
                with writing(to_stderr=as_json):
                    typer.echo(text, nl=False, err=as_json)
            record = found.wait(job)
    except KeyboardInterrupt:
        err.print(f"\n{job} goes on; routefront cluster logs {job} --address {found.address}")
        raise typer.Exit(130) from None
    if as_json:
        print_json(record)
    if record["status"] != "SUCCEEDED":
        raise RunError(f"job {job} {record['status'].lower()}: {record['message'].strip().splitlines()[0]}")
