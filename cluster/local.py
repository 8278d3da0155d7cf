"""A Ray of this machine: lean, closed to others, and started beside other work.

`begin` starts it in a thread of its own, so that torch can be imported and images read meanwhile; `started` waits for
it. It listens on the loopback alone and keeps its files in a folder that nobody else may enter. Of Ray's processes
those are left out that only serve its dashboard, its autoscaler and the printing of workers' logs.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import shutil
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_LEFT_OUT = {"include_log_monitor": False, "no_monitor": True, "dashboard_agent_listen_port": 0}
"""What `ray.init` has no options for. A second Ray on a machine would wait four seconds for the agent's usual port."""
_PREFIX = "routefront-ray-"
_HOUR = 3600.0
_LONGEST = 20
"""Longest temporary folder in bytes below which Ray's sockets still have names that Linux takes (107 bytes)."""


class _Beginning:
    """A Ray on its way, or one that runs. Its thread stays alive: Linux ends Ray's processes with it."""

    def __init__(self, cpus: int | None) -> None:
        self._cpus = cpus
        self._ready = threading.Event()
        self._error: ConnectionError | None = None
        self.thread = threading.Thread(target=self._run, daemon=True, name="ray")
        self.thread.start()

    def _run(self) -> None:
        try:
            start(sys.modules["ray"], num_cpus=self._cpus)
        except ConnectionError as error:
            self._error = error
            return
        finally:
            self._ready.set()
        threading.Event().wait()

    def wait(self) -> None:
        """Return when Ray runs. Raises `ConnectionError` where it does not start."""
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Wait for it and end it: Ray that is interrupted on its way waits for its own processes for half a minute."""
        self._ready.wait()
        if self._error is None:
            sys.modules["ray"].shutdown()


_begun: _Beginning | None = None  # Ray itself is one for the process


def begin(cpus: int | None) -> None:
    """Let Ray start in a thread, with so many CPUs (None: all of the machine), unless it runs or starts already.

    `cluster.connect.prepare_environment` comes first, since Ray reads its settings when it is imported.
    """
    global _begun
    # read once at import: the address of this node is then that of the loopback
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    if not ray.is_initialized() and (_begun is None or not _begun.thread.is_alive()):
        _begun = _Beginning(cpus)


def started(cpus: int | None) -> Any:
    """The `ray` module with a Ray of this machine, begun here where it was not. Raises `ConnectionError`."""
    global _begun
    begin(cpus)
    import ray

    if _begun is not None:
        _begun.wait()
        if not ray.is_initialized():  # it had been shut down since
            _begun = _Beginning(cpus)
            _begun.wait()
    return ray


@contextlib.contextmanager
def beginning(cpus: int | None) -> Iterator[None]:
    """Ray starts beside what is within; an error within ends it."""
    begin(cpus)
    try:
        yield
    except BaseException:
        if _begun is not None and _begun.thread.is_alive():
            _begun.give_up()
        raise


def start(ray: Any, **options: Any) -> None:
    """Start a new Ray of this machine, never a stranger's cluster; raises `ConnectionError`.

    Ray gives its processes half a minute, which a busy machine may need for their imports alone: it is tried twice.
    """
    for left in (1, 0):
        try:
            with lean():
                ray.init(
                    address="local", include_dashboard=False, _temp_dir=str(scratch()), logging_level=logging.ERROR,
                    log_to_driver=False, **options,
                )  # fmt: skip
            return
        except Exception as error:  # Ray raises a bare one
            ray.shutdown()
            if not left:
                why = " ".join(str(error).split()) or type(error).__name__
                raise ConnectionError(f"Ray did not start on this machine, tried twice ({why[:200]})") from None


@contextlib.contextmanager
def lean(alone: bool = True) -> Iterator[None]:
    """Within, a Ray that starts has the processes that trials need and no others; `alone`, on the loopback only.

    Ray has no public options for it; where a later Ray has other names, it starts as it does by itself.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):
            from ray._private import node, parameter, ray_constants

            full = parameter.RayParams
            stack.callback(setattr, parameter, "RayParams", full)
            parameter.RayParams = functools.partial(full, **_LEFT_OUT)
            stack.callback(setattr, node.Node, "start_api_server", node.Node.start_api_server)
            node.Node.start_api_server = _nothing
            if alone:
                stack.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
                ray_constants.ENABLE_RAY_CLUSTER = False
        yield


def _nothing(self: Any, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
    """In place of the dashboard's server."""


def scratch() -> Path:
    """A fresh folder of this user's alone for Ray's files; those of ended sessions are removed but for the newest.

    Ray opens its own folder to everybody: it lies within the fresh one.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST:
        base = Path("/tmp")  # noqa: S108  what is made in it is a fresh folder of this user's alone
    ended = [path for path in base.glob(f"{_PREFIX}*") if _ended(path)]
    for path in sorted(ended, key=lambda path: path.lstat().st_mtime)[:-1]:
        shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base)) / "ray"


def _ended(path: Path) -> bool:
    """Whether a folder is this user's, no link, and of sessions whose processes are gone."""
    seen, sessions = path.lstat(), list(path.glob("ray/session_*_*"))
    ours = stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid()
    return ours and (not any(map(_alive, sessions)) if sessions else time.time() - seen.st_mtime > _HOUR)


def _alive(session: Path) -> bool:
    """Whether the process lives whose number Ray put at the end of a session's name."""
    try:
        os.kill(int(session.name.rpartition("_")[2]), 0)
    except (ProcessLookupError, ValueError):
        return False
    except PermissionError:  # another user's by now
        pass
    return True
