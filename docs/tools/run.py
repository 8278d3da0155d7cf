"""Runs pages of the documentation, block by block, in a folder of their own:  python docs/tools/run.py PAGE.md ...

Blocks of `bash` and `python` are executed in their order, in one shell a page; a block whose first line is a comment
with a file's name (`# study.toml`, `# mine.py`) is written there instead. Everything is printed. The first command that
fails ends the page.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

_BLOCK = re.compile(r"^```(bash|python|toml)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# ([\w.-]+(?:/[\w.-]+)*\.\w+)\n")
_COMMANDS = ("routefront", "ray", "mlflow", "uvicorn")
_LIMIT = 1200


def script(page: str) -> str:
    """A page as one script of bash, which shows every block before it runs it."""
    lines = ["set -euo pipefail"]
    for number, (kind, text) in enumerate(_BLOCK.findall(page), start=1):
        end = f"END_OF_BLOCK_{number}"
        shown = "".join(f"$ {line}\n" for line in text.splitlines())
        lines.append(f"cat <<'{end}'\n\n-- block {number}, {kind}\n{shown}{end}")
        named = _FILE.match(text)
        if named and kind != "bash":
            parent = os.path.dirname(named[1])
            lines += [f"mkdir -p {shlex.quote(parent)}"] if parent else []
            lines.append(f"cat > {shlex.quote(named[1])} <<'{end}'\n{text[named.end() :]}{end}")
        elif kind == "python":
            lines.append(f"python - <<'{end}'\n{text}{end}")
        elif kind == "bash":
            lines.append(text)
    return "\n".join(lines) + "\n"


def environment(folder: Path) -> dict[str, str]:
    """An environment of Python that sees what is installed here; what a page installs goes with it."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    inside = next(folder.glob("lib/python*/site-packages"))
    (inside / "here.pth").write_text(f"import site; site.addsitedir({sysconfig.get_paths()['purelib']!r})\n")
    for name in _COMMANDS:
        command = folder / "bin" / name
        command.write_text(
            f"#!{python}\nimport sys\nfrom importlib.metadata import entry_points\n"
            f"sys.exit(next(iter(entry_points(group='console_scripts', name={name!r}))).load()())\n"
        )
        command.chmod(0o755)
    ours = ("ROUTEFRONT_", "MLFLOW_", "RAY_AUTH", "RAY_ADDRESS")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    path = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    return kept | {"PATH": path, "VIRTUAL_ENV": str(folder), "COLUMNS": "120"}


def run(page: Path) -> tuple[int, float]:
    """Run one page; its exit status and seconds."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tutorial-") as place:
        work = Path(place) / "work"
        work.mkdir()
        process = subprocess.Popen(
            [shutil.which("bash") or "/bin/bash", "-c", script(page.read_text(encoding="utf-8"))],
            cwd=work, env=environment(Path(place) / "environment"), stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(_LIMIT)
        except subprocess.TimeoutExpired:
            status = 124
        finally:
            with contextlib.suppress(ProcessLookupError):  # servers that a page left running
                os.killpg(process.pid, signal.SIGKILL)
    return status, time.monotonic() - began


def main() -> None:
    """Run the pages; exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path)
    told = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # servers of a page end with it
    for page in parser.parse_args().pages:
        if not _BLOCK.search(page.read_text(encoding="utf-8")):
            continue
        print(f"\n==== {page}", flush=True)
        status, seconds = run(page)
        told.append((page, status, seconds))
        print(
            f"\n==== {page}: {'done' if status == 0 else f'FAILED with status {status}'} in {seconds:.0f} s", flush=True
        )
    for page, status, seconds in told:
        print(f"{'ok    ' if status == 0 else 'FAILED'} {seconds:5.0f} s  {page}")
    sys.exit(any(status for _, status, _ in told))


if __name__ == "__main__":
    main()
