"""What every command shares: options, output as a table or as one JSON document."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from search.commands.streams import open_missing, writing
from search.errors import RunError
from search.redaction import known, redacted, redacted_values
from search.spec.toml import presets
from search.units import printable


def _begun(incomplete: str) -> list[str]:
    """Names of the studies here that begin so, for a shell that completes them."""
    from search.studies.roots import studies_root

    base = studies_root(None)
    try:
        return sorted(path.parent.name for path in base.glob("*/study.toml") if path.parent.name.startswith(incomplete))
    except OSError:
        return []


Name = Annotated[str, typer.Argument(help="A study, by name or by its folder.", autocompletion=_begun)]
Names = Annotated[
    list[str],
    typer.Argument(help="One study or several of the same images, by name or by folder.", autocompletion=_begun),
]


def _width(stream: TextIO) -> int | None:
    return None if stream.isatty() else 120  # a pipe has no width; 80 columns would break the tables apart


class Terminal(Console):
    """Shows what strangers wrote (names, messages, reasons) as text and nothing else.

    Square brackets are no markup unless a call asks for it. Control and format characters, which move the cursor,
    change the title or turn the writing round, become question marks; what rich itself adds for colours is not text.
    Secrets become ``***`` (`search.redaction`).
    """

    def __init__(self, **options: Any) -> None:
        self._secrets: list[str] | None = None
        super().__init__(highlight=False, emoji=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich prints it; see `search.commands.streams.writing` for a stream that takes nothing."""
        self._secrets = known()  # once a print: a table renders every cell
        try:
            with writing(self.stderr):
                super().print(*objects, **options)
        finally:
            self._secrets = None

    def on_broken_pipe(self) -> None:
        """Nobody reads any more."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich renders it, the text of every segment cleaned."""
        secrets = known() if self._secrets is None else self._secrets
        for segment in super().render(renderable, options):
            if segment.control is None and (clean := redacted(segment.text, secrets)) != segment.text:
                segment = Segment(clean, segment.style)
            if segment.control is None and not segment.text.isprintable():
                lines = segment.text.split("\n")
                segment = Segment("\n".join(map(printable, lines)), segment.style)
            yield segment


open_missing()
out = Terminal(width=_width(sys.stdout))
err = Terminal(width=_width(sys.stderr), stderr=True)


def _root(text: str) -> Path:
    from search.studies.roots import root_of

    return root_of(text)


Studies = Annotated[
    Path | None,
    typer.Option(
        "--studies",
        parser=_root,
        metavar="PLACE",
        help="Folder of studies, or an address of object storage (default: $ROUTEFRONT_STUDIES or ./studies).",
        show_default=False,
    ),
]
Preset = Annotated[str | None, typer.Option(help=f"A study file that ships with routefront: {', '.join(presets())}.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout; logs go to stderr.")]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking",
        help="MLflow address, or 'off' (default: the study's, $MLFLOW_TRACKING_URI, or SQLite beside the studies).",
        show_default=False,
    ),
]


def print_json(document: Any) -> None:
    """One JSON document on stdout (infinities and NaN as null, so that any reader takes it)."""
    with writing():
        sys.stdout.write(json.dumps(redacted_values(_plain(document)), indent=2) + "\n")
        sys.stdout.flush()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def said(error: BaseException) -> str:
    """An error in one line; of a full disk also how to go on."""
    text = " ".join(str(getattr(error, "orig", None) or error).split()) or type(error).__name__
    if not isinstance(error, RunError) and ("No space left" in text or "disk is full" in text):
        return f"{text}: free some space; `routefront resume STUDY` then goes on, nothing that was recorded is lost"
    return text


def left_out(study: Path, why: str) -> None:
    """Say on stderr that one of all studies cannot be read, or not be written."""
    err.print(f"{study.name} is left out: {why}", soft_wrap=True)


def progress(text: str, json_output: bool) -> Any:
    """A spinner on stderr around what takes over two seconds."""
    return err.status(text) if not json_output and err.is_terminal else _Silent()


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, text: str) -> None:
        """Nothing is shown."""
