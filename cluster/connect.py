"""Connecting to Ray: a local one, or a cluster by its address."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from typing import Any

# Ray's own files are scratch here (the journal is the truth), so what only feeds them is off.
QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_process_group_cleanup_enabled": "1",  # what a worker started dies with it
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_THRESHOLD_S": "10",
}


def prepare_environment(*, local: bool, preload: Sequence[str] = ()) -> None:
    """Set what Ray reads when it is imported; values that the user set stay.

    The idle workers of a Ray that is started here import the modules `preload` ahead of their
    first trial, while the driver is still busy.

    A local Ray is guarded by a token that lives in this process's environment and nowhere else
    (Ray's own default writes one to the home folder, readable by everybody). The mode is left to
    Ray, which turns it on for a Ray it starts, also where it had been imported before.
    """
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    if preload:
        os.environ.setdefault("RAY_preload_python_modules", ",".join(preload))
    if local and "RAY_AUTH_MODE" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def connect(address: str | None = None, *, cpus: int | None = None, preload: Sequence[str] = ()) -> Any:
    """The `ray` module, connected: to `address` (``"auto"``, ``"host:port"``) or to a new local Ray.

    Raises `ConnectionError` with one line where no cluster answers at the address.
    """
    prepare_environment(local=address is None, preload=preload)
    import ray

    if ray.is_initialized():
        return ray
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)  # never a stranger's cluster
        return _hushed(ray)
    try:
        _knock(address)
        ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConnectionError(
            f"no Ray cluster answers at {address!r} ({str(error).splitlines()[0]}); "
            "start one with `ray start --head`, or leave --address out to run here"
        ) from None
    return _hushed(ray)


def _hushed(ray: Any) -> Any:
    """`ray` without its many lines about every worker and node that dies: a study's journal tells of them."""
    ray._private.worker._worker_logs_enabled = False
    return ray


def _knock(address: str) -> None:
    """Raise `OSError` where nothing listens: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
