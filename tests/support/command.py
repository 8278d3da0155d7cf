"""The command line, called in the process of the tests."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

Run = Callable[..., tuple[int, str, str]]


def runner(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """A function of a command's words: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        from search.__main__ import main

        monkeypatch.setattr(sys, "argv", ["routefront", *map(str, words)])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run
