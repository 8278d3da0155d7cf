"""What strangers wrote reaches a terminal as text: no control characters, no markup, no links."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from search.commands.terminal import Terminal
from tests.support.command import Run
from tests.support.kept_study import keep

EVIL = "\x1b]0;owned\x07\x1b[2J[bold red]x[/] [link=http://evil]here[/link]\u202egnp.exe\r\x9b1A"
TEXT = "[bold red]x[/] [link=http://evil]here[/link]?gnp.exe"


def _clean(said: str) -> bool:
    return all(c.isprintable() or c == "\n" for c in said)


def test_every_command_that_looks_at_a_study_cleans_it(cli: Run, story: Any, tmp_path: Path) -> None:
    s = story()
    name = s.ask(0, "static", variant=EVIL)
    s.report(name, 1, [(0.9, 1e6)])
    s.decide(name, 1, "stop", EVIL)
    failed = s.ask(1, "static")
    s.add("failed", {"reason": EVIL, "traceback": EVIL, "epoch": 1}, failed)
    keep(s, tmp_path, "evil")
    at = ("--studies", tmp_path)
    told = ""
    for words in (
        ("list",), ("status", "evil"), ("status", "evil", "--trial", name), ("status", "evil", "--trial", failed),
        ("frontier", "evil"), ("frontier", "evil", "--wide"),
    ):  # fmt: skip
        code, out, err = cli(*words, *at)
        assert _clean(out) and _clean(err), (words, out, err)
        told += out + err if code == 0 else ""
    assert TEXT in told
    code, out, err = cli("status", EVIL, *at)
    assert code == 2 and _clean(err)


def test_colours_are_still_colours() -> None:
    file = io.StringIO()
    Terminal(file=file, force_terminal=True, color_system="standard", width=200).print(
        f"[red]{EVIL}[/red]", markup=True
    )
    assert file.getvalue().startswith("\x1b[31m") and "\x1b]0" not in file.getvalue() and "\x9b" not in file.getvalue()
