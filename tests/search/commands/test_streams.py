"""Standard streams that are closed, full, or read by nobody: no traceback, and a fitting exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kept_study import keep

# Every command in one process, each with stdout (or stderr) anew as the test has it; exit codes go to a file.
_ALL = """
import json, os, sys
which, kind, answers, commands = int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
from search.__main__ import main
codes = []
for words in commands:
    if kind == "full":
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    os.dup2(number, which)
    sys.argv = ["routefront", *words]
    code = 0
    try:
        main()
    except SystemExit as end:
        code = int(end.code or 0)
    codes.append(code)
    with open(answers, "w") as file:
        json.dump(codes, file)
"""


def _commands(root: Path) -> list[list[str]]:
    at = ["--studies", str(root)]
    plain = [["list"], ["status", "told"], ["frontier", "told"], ["status", "told", "--trial", "t0000"], ["gc"]]
    alone = [["methods"], ["data"], ["describe", "resnet-8"], ["stop", "told", *at]]
    documents = [[*words, "--json", *at] for words in plain]
    tried = [["search", "--preset", "digits", "--dry-run", *at]]
    return [[*words, *at] for words in plain] + documents + tried + alone + [["--help"], ["search", "--help"]]


@pytest.fixture
def root(tmp_path: Path, story: type) -> Path:
    told = story()
    told.report(told.ask(0), 9, [(0.9, 1e6)])
    keep(told, tmp_path / "studies", "told")
    return tmp_path / "studies"


@pytest.mark.parametrize(("kind", "expected"), [("full", 1), ("pipe", 141)])
def test_a_stdout_that_takes_nothing(root: Path, tmp_path: Path, kind: str, expected: int) -> None:
    commands = _commands(root)
    words = ["1", kind, str(tmp_path / "codes"), json.dumps(commands)]
    done = subprocess.run([sys.executable, "-c", _ALL, *words], stderr=subprocess.PIPE, text=True, timeout=400)
    assert done.returncode == 0 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    got = json.loads((tmp_path / "codes").read_text())
    codes = {" ".join(words[:2]): code for words, code in zip(commands, got, strict=True)}
    assert {name: code for name, code in codes.items() if code not in (expected, 2)} in (
        {}, {"--help": 1, "search --help": 1}  # typer's own page of help says 1 for a pipe
    )  # fmt: skip
    assert codes["stop told"] == 2  # it failed for another reason, which is what it says
    lines = [line for line in done.stderr.splitlines() if "No space left on device" in line]
    assert len(lines) >= (len(commands) - 3 if kind == "full" else 0)
    assert all(line == "error: stdout cannot be written: No space left on device" for line in lines[:10])


@pytest.mark.parametrize("kind", ["full", "pipe"])
def test_a_stderr_that_takes_nothing_changes_no_exit_code(root: Path, tmp_path: Path, kind: str) -> None:
    commands = [["list", "--studies", str(root)], ["status", "nobody", "--studies", str(root)]]
    words = ["2", kind, str(tmp_path / "codes"), json.dumps(commands)]
    done = subprocess.run([sys.executable, "-c", _ALL, *words], stdout=subprocess.PIPE, text=True, timeout=400)
    assert done.returncode == 0 and "told" in done.stdout
    assert json.loads((tmp_path / "codes").read_text()) == [0, 2]


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_discard_what_is_said(root: Path, closed: str) -> None:
    line = f'"{sys.executable}" -m search list --json --studies "{root}" {closed}'
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_printed_into_a_file_that_has_taken_the_number(tmp_path: Path) -> None:
    code = (
        "import search.commands.terminal, os, sys\n"
        f"file = open({str(tmp_path / 'precious')!r}, 'w')\n"
        "os.write(1, b'of a library written in C')\n"
        "print('of Python')\n"
    )
    assert subprocess.run(["sh", "-c", f'"{sys.executable}" -c "$0" >&-', code], timeout=200).returncode == 0
    assert (tmp_path / "precious").read_text() == ""
