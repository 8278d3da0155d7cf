"""Connecting to Ray: a local one, or a cluster by its address."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import queue
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cluster import local
from cluster.processors import usable_cpus

# Ray's own files are scratch here (the journal is the truth), so what only feeds them is off.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",  # trials cannot use such workers: Tune gives its own other variables
    "RAY_process_group_cleanup_enabled": "1",  # what a worker started dies with it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "10",
}

_ANSWER_SECONDS = 20.0
HEAD_SECONDS = 45.0
"""Ray itself ends a process whose head was away for a minute, with a screenful of its own words."""


def prepare_environment(*, local: bool) -> None:
    """Set what Ray reads when it is imported; values that the user set stay.

    A local Ray collects no metrics, unless its variable is set, and is guarded by a token that lives in this
    process's environment and nowhere else (Ray's own default writes one to the home folder, readable by everybody).
    The mode is left to Ray, which turns it on for a Ray it starts, also where it had been imported before.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if local:
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
    if local and "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextlib.contextmanager
def beginning() -> Iterator[None]:
    """A Ray of this machine starts beside what is within, for a `connect` to come; an error within ends it."""
    prepare_environment(local=True)
    with local.beginning(usable_cpus()):
        yield


def connect(address: str | None = None, *, cpus: int | None = None) -> Any:
    """The `ray` module, connected: to `address` (``"auto"``, ``"host:port"``) or to a new local Ray.

    A local one has `cpus` CPUs (None: those of the machine).
    Raises `ConnectionError` with one line where no cluster answers at the address.
    """
    prepare_environment(local=address is None)
    if address is None:
        return _hushed(local.started(cpus))
    import ray

    _knock(address)
    if ray.is_initialized():
        return ray
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(_nobody(address, str(error).splitlines()[0])) from None
    return _hushed(ray)


def _hushed(ray: Any) -> Any:
    """`ray` without its many lines about every worker and node that dies: a study's journal tells of them."""
    ray._private.worker._worker_logs_enabled = False
    return ray


@contextlib.contextmanager
def watched_head(ray: Any, lost: Callable[[str], None], *, every: float = 5.0) -> Iterator[None]:
    """Tell `lost` in one line, from a thread, when nobody has listened at the head's address for `HEAD_SECONDS`.

    A head that comes back sooner (one that keeps its tables elsewhere) is forgiven, by Ray as well.
    """
    over = threading.Event()
    address = str(ray.get_runtime_context().gcs_address)
    host, _, port = address.rpartition(":")

    def look() -> None:
        heard = time.monotonic()
        while not over.wait(every):
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
                heard = time.monotonic()
            except OSError as error:
                away = time.monotonic() - heard
                if away > HEAD_SECONDS:
                    why = error.strerror or error
                    lost(f"the head of the cluster at {address} has been away for {away:.0f} s ({why})")
                    return

    threading.Thread(target=look, daemon=True, name="head").start()
    try:
        yield
    finally:
        over.set()


def _nobody(address: str, why: str) -> str:
    return (
        f"no Ray cluster answers at {address!r} ({why}); start one with `ray start --head`,"
        " or leave --address out to run here"
    )


def _knock(address: str) -> None:
    """Raise `ConnectionError` where `ray.init` would try for long, end the process, or say much.

    That is: nothing listens at host:port, what listens is no head of a cluster, it wants another token,
    it runs another version of Ray or Python. Addresses of other forms are left to Ray.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "//" in address:
        return
    if os.environ.get("RAY_AUTH_MODE") == "token" and not _token():
        raise ConnectionError(
            "RAY_AUTH_MODE is token and there is no token: set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, a file)"
            f" to that of the cluster at {address!r}"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        raise ConnectionError(_nobody(address, str(error))) from None
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with _silence():
        threading.Thread(target=lambda: answer.put(_asked(address)), daemon=True).start()
        try:
            told = answer.get(timeout=_ANSWER_SECONDS)
        except queue.Empty:
            told = TimeoutError("what listens there does not answer as one")
    if isinstance(told, Exception):
        if type(told).__name__ == "AuthenticationError":
            raise ConnectionError(
                f"the cluster at {address!r} wants a token, and "
                + ("RAY_AUTH_TOKEN holds another one" if _token() else "there is none here: set RAY_AUTH_TOKEN")
                + " (with RAY_AUTH_MODE=token)"
            )
        raise ConnectionError(_nobody(address, str(told).splitlines()[0]))
    import ray

    here = {"ray": ray.__version__, "python": platform.python_version()}
    there = {"ray": told["ray_version"], "python": told["python_version"]}
    if here != there:
        raise ConnectionError(
            f"the cluster at {address!r} runs Ray {there['ray']} on Python {there['python']}, this is Ray"
            f" {here['ray']} on Python {here['python']}: install the same here (or there)"
        )


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Nothing is written to stderr: Ray's client logs there, past Python, what becomes one line here."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _asked(address: str) -> Any:
    """What a cluster's head says of itself, or the error on the way."""
    from ray._common.usage.usage_lib import get_cluster_metadata
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    try:
        return get_cluster_metadata(GcsClient(address=address))
    except Exception as error:
        return error


def unguarded(address: str) -> str:
    """A warning where this process gave a cluster no token and was let in; empty where it gave one."""
    if os.environ.get("RAY_AUTH_MODE") == "token" and _token():
        return ""
    return (
        f"warning: the Ray cluster at {address} asks for no token: whoever reaches its ports runs code as its user"
        " (docs/deployment.md tells how to guard it)"
    )


def _token() -> str:
    """The token that Ray would use; empty where it finds none."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return os.environ["RAY_AUTH_TOKEN"]
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text().strip()
    except OSError:
        return ""
