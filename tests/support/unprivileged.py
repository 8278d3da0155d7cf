"""Commands run by who may not write: another user's folders, mounts that are read-only."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_RUN = """
import contextlib, io, json, sys
from search.__main__ import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["routefront", *words]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""
_BOUND = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'


def without_write_permission() -> list[str]:
    """Words before a command so that permissions count for it, which root otherwise passes over."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("the tests run as root and there is no setpriv to run a command without root's powers")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search,-fowner"]


@functools.cache
def _mounter() -> tuple[list[str], str]:
    """Words before a command that may mount; or what hinders it."""
    reason = "there is no unshare"
    for words in (["unshare", "-m"], ["unshare", "-rm"]) if shutil.which("unshare") else ():
        done = subprocess.run([*words, "sh", "-c", "mount --bind /tmp /tmp"], capture_output=True, text=True)
        if done.returncode == 0:
            return words, ""
        reason = done.stderr.strip()
    return [], reason


def on_read_only_mount(folder: Path) -> list[str]:
    """Words before a command so that a folder is on a mount that is read-only."""
    words, reason = _mounter()
    if not words:
        pytest.skip(f"a file system cannot be mounted here: {reason}")
    return [*words, "sh", "-c", _BOUND, str(folder)]


def run(before: list[str], *commands: list[object]) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of each command of the command line, all run by one process."""
    words = json.dumps([[str(word) for word in command] for command in commands])
    done = subprocess.run([*before, sys.executable, "-c", _RUN, words], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def forbid_writing(folder: Path) -> None:
    """Take the permission to write from a folder and all in it."""
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def allow_writing(folder: Path) -> None:
    """Give it back, so that the folder can be removed."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
