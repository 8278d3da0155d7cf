"""The command line: `routefront`, also `python -m search`."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from search.commands import (
    catalogue,
    cluster,
    compose,
    export,
    frontier,
    launch,
    manage,
    new,
    promotion,
    report,
    study,
    track,
)
from search.commands.streams import BROKEN_PIPE, OutputError, flushed
from search.commands.terminal import err, said
from search.errors import InputError, RunError
from search.redaction import guard, redacted

_SPEAKING = ("sqlalchemy.", "mlflow.", "alembic.")
app = typer.Typer(
    name="routefront",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Search over dynamically routed networks: for every compute budget, which routing method, with which"
    " hyperparameters, checkpoint and inference setting, is the most accurate?",
)


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks instead of one-line errors.")] = False,
) -> None:
    """Options before the command."""


for module in (catalogue, launch, study, frontier, compose, report, manage, promotion, export, track, new, cluster):
    module.register(app)


def main() -> None:
    """Run the command line: exit code 2 for bad input, 1 for a failed run, 130 for Ctrl-C.

    Where nobody reads the output any more it is 141, where stdout cannot be written 1.
    """
    guard()
    try:
        with flushed():
            _run()
    except OutputError as error:
        if error.code != BROKEN_PIPE:
            _say(error)
        sys.exit(error.code)


def _run() -> None:
    debug = "--debug" in sys.argv
    if debug:  # accepted anywhere on the line
        sys.argv.remove("--debug")
    if "_ROUTEFRONT_COMPLETE" in os.environ:  # a shell asks what words can follow (`routefront completion`)
        from typer.completion import completion_init

        completion_init()
    try:
        app(standalone_mode=True)
    except OutputError:
        raise
    except InputError as error:
        if debug:
            raise
        _say(error)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("interrupted; `routefront resume STUDY` goes on from here")
        sys.exit(130)
    except Exception as error:
        # databases and MLflow say in words of their own what fails; they need not be imported to be known
        known = isinstance(error, RunError | OSError | RuntimeError) or type(error).__module__.startswith(_SPEAKING)
        if debug:
            raise
        _say(error if known else RuntimeError(unexpected(error)))
        sys.exit(1)


def unexpected(error: Exception) -> str:
    """One line for what nobody foresaw: a study's folder may hold anything, and this code may be wrong."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__} {error}"[:300]
    return (
        f"{what} ({Path(where.filename).name}, line {where.lineno}): a damaged study, or a mistake of routefront;"
        " --debug shows the traceback, which a report of a mistake needs"
    )


def _say(error: BaseException) -> None:
    text = redacted(said(error))  # before lines are broken, which could hide a secret's ends
    err.print(Text.assemble(("error:", "bold red"), f" {text}"), soft_wrap=True)


if __name__ == "__main__":
    main()
