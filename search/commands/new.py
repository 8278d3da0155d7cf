"""Commands that write something to begin with: a study file, a method of one's own, what completes in a shell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from search.commands.consent import terminal
from search.commands.terminal import Json, err, out, print_json
from search.errors import InputError

_SHELLS = ("bash", "zsh", "fish")
_new = typer.Typer(no_args_is_help=True, help="Begin something of your own.")


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command("init")(init)
    app.add_typer(_new, name="new")
    app.command("completion")(completion)


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


def init(
    file: Annotated[Path, typer.Argument(help="The study file to write.")] = Path("study.toml"),
    data: Annotated[str | None, typer.Option(help="A folder of images, or a known data set.")] = None,
    network: Annotated[
        str | None, typer.Option(help="torchvision:MODEL, FILE.py:FUNCTION, or none for our networks.")
    ] = None,
    time_limit: Annotated[
        str | None, typer.Option("--time", help="How long a search may take, for example 1h.")
    ] = None,
    max_macs: Annotated[
        str | None, typer.Option(help="At most so many MACs per image, for example 20M, or none.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a study file with comments; what no option answers is asked.

    Examples: routefront init
    routefront init photos.toml --data photos --network none --time 1h --max-macs 20M
    """
    from search.catalogue import beginning

    if file.exists():
        raise InputError(f"{file} is there already; give another file")
    questions: tuple[tuple[str, str | None, str, str | None, Callable[[str], str]], ...] = (
        ("--data", data, "Which images? A folder with a folder a class, or a known data set", None,
         beginning.checked_data),
        ("--network", network, "Your own network? torchvision:MODEL, FILE.py:FUNCTION, or none", "none",
         beginning.checked_network),
        ("--time", time_limit, "How long may the search take?", "1h", beginning.checked_time),
        ("--max-macs", max_macs, "At most how many MACs per image? For example 20M, or none", "none",
         beginning.checked_macs),
    )  # fmt: skip
    missing = [option for option, given, *_ in questions if given is None]
    if missing and not terminal():
        raise InputError(f"nobody can be asked here: give {', '.join(missing)}")
    told = [
        check(given) if given is not None else _asked(text, usual, check) for _, given, text, usual, check in questions
    ]
    answers = beginning.Answers(data=told[0], network=told[1], time=told[2], max_macs=told[3])
    beginning.write_study_file(answers, file)
    if as_json:
        print_json({"file": str(file)})
        return
    out.print(f"wrote {file}; what it would do: routefront search {file} --dry-run", soft_wrap=True)


def _asked(text: str, usual: str | None, check: Callable[[str], str]) -> str:
    """An answer that holds; who answers otherwise is told why and asked again."""
    while True:
        try:
            return check(str(typer.prompt(text, default=usual, err=True)).strip())
        except InputError as error:
            err.print(str(error), soft_wrap=True)


def completion(
    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")],
) -> None:
    """Print what completes commands, options and names of studies in a shell.

    Examples: routefront completion bash >> ~/.bashrc
    routefront completion zsh > ~/.zfunc/_routefront
    routefront completion fish > ~/.config/fish/completions/routefront.fish
    """
    from typer.completion import get_completion_script

    if shell not in _SHELLS:
        raise InputError(f"shell {shell!r}: it completes in {', '.join(_SHELLS)}")
    script = get_completion_script(prog_name="routefront", complete_var="_ROUTEFRONT_COMPLETE", shell=shell)
    print(script)
