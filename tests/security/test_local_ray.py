"""The Ray that we start on a machine of many users: who can reach it, who can read its files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local import scratch

LISTENING = """
import json, os, sys
from pathlib import Path
from cluster.connect import beginning, connect

def children(of):
    parents = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(each.parent.name)] = int(each.read_text().rpartition(")")[2].split()[1])
        except OSError:
            pass
    found, more = set(), {of}
    while more:
        found |= more
        more = {pid for pid, parent in parents.items() if parent in more} - found
    return found

def sockets(pids):
    inodes = set()
    for pid in pids:
        try:
            inodes |= {os.readlink(each) for each in Path(f"/proc/{pid}/fd").iterdir() if each.is_symlink()}
        except OSError:
            pass
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                yield words[1].partition(":")[0]

with beginning():
    pass
ray = connect(cpus=1)
assert ray.get(ray.remote(lambda: 42).remote()) == 42
session = ray._private.worker._global_node.get_session_dir_path()
print(json.dumps({"addresses": sorted(set(sockets(children(os.getpid())))), "session": session}))
"""
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
"""127.0.0.1, the same in IPv6, and ::1, as Linux writes them on machines of this byte order."""


def _run(code: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = {**kept, "TMPDIR": str(tmp_path)}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A temporary folder whose name is short enough for Ray's sockets."""
    import tempfile

    return Path(tempfile.mkdtemp(dir="/tmp", prefix="rf"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/net")
def test_it_listens_on_the_loopback_alone_and_nobody_else_enters_its_folder(short: Path) -> None:
    done = _run(LISTENING, short)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["addresses"] and set(told["addresses"]) <= LOOPBACK
    (ours,) = short.iterdir()
    assert Path(told["session"]).is_relative_to(ours) and stat.S_IMODE(ours.stat().st_mode) == 0o700


def test_what_ended_sessions_left_is_removed_but_for_the_newest(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    folders = []
    for number, pid in enumerate((os.getpid(), int(gone.stdout), int(gone.stdout))):
        folders.append(scratch().parent)
        (folders[-1] / "ray" / f"session_then_{pid}").mkdir(parents=True)
        os.utime(folders[-1], (number, number))
    elsewhere = short / "elsewhere"
    elsewhere.mkdir()
    (short / "routefront-ray-link").symlink_to(elsewhere)
    last = scratch().parent
    assert sorted(short.iterdir()) == sorted([folders[0], folders[2], elsewhere, short / "routefront-ray-link", last])


def test_an_error_while_it_starts_is_told_and_leaves_no_process(short: Path) -> None:
    code = "from cluster.connect import beginning\nwith beginning():\n    raise SystemExit('wrong input')"
    done = _run(code, short)
    assert done.returncode == 1 and done.stderr == "wrong input\n" and not done.stdout
    running = [line for line in Path("/proc").glob("[0-9]*/cmdline") if str(short).encode() in _read(line)]
    assert not running


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
