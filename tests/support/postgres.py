"""A real PostgreSQL for tests and benchmarks, from the system's package."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

INSTALLED = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))


class Postgres:
    """A fresh server on the loopback, run by an unprivileged user in a temporary folder; `address` is SQLAlchemy's."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="routefront-postgres-"))
        self._user: dict[str, object] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            shutil.chown(self._folder, "postgres")
            self._user = {"user": "postgres", "cwd": self._folder}
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"postgresql+psycopg://postgres@127.0.0.1:{self._port}/postgres"
        self._call("initdb", "-A", "trust", "-U", "postgres")
        self.start()

    def start(self) -> None:
        """It answers when this comes back."""
        options = f"-p {self._port} -k {self._folder} -c listen_addresses=127.0.0.1"
        self._call("pg_ctl", "-w", "-o", options, "-l", str(self._folder / "log"), "start")

    def stop(self) -> None:
        """At once, whoever is connected."""
        self._call("pg_ctl", "-m", "immediate", "stop")

    def close(self) -> None:
        """Stop it, where it runs, and remove its files."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _call(self, program: str, *words: str) -> None:
        command = [str(INSTALLED[-1].parent / program), "-D", str(self._folder / "data"), *words]
        subprocess.run(command, check=True, capture_output=True, **self._user)  # type: ignore[call-overload]


@contextlib.contextmanager
def postgresql() -> Iterator[str]:
    """The address of a fresh server."""
    server = Postgres()
    try:
        yield server.address
    finally:
        server.close()
