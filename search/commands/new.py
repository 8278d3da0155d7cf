"""Commands that write something to begin with: a method of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.commands.terminal import Json, out, print_json

_new = typer.Typer(no_args_is_help=True, help="Begin something of your own.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(_new, name="new")


@_new.callback()
def _group() -> None:
    """Begin something of your own."""


@_new.command("method")
def method(
    name: Annotated[str, typer.Argument(help="The method's name, for example my-gate.")],
    folder: Annotated[Path, typer.Option(help="Where its folder is made.")] = Path("."),
    as_json: Json = False,
) -> None:
    """A package with a routing method that works: space, network, loss, tests, a study file.

    Example: routefront new method my-gate
    """
    from search.catalogue.scaffold import new_method

    files = new_method(name, folder)
    if as_json:
        print_json({"files": [str(path) for path in files]})
        return
    place, word = folder / name, name.replace("-", "_")
    out.print(f"{place} holds a method {word!r} with a toy gate, in {len(files)} files. Now:", soft_wrap=True)
    out.print(f"  cd {place}", soft_wrap=True)
    out.print("  pip install -e . --no-deps --no-build-isolation")
    out.print("  python -m pytest -q")
    out.print("  routefront search study.toml")
