"""A tracking server on PostgreSQL with users, an artifact store and a model registry, without containers.

    python server.py FOLDER --port 5000

The first start makes FOLDER: the database's files, the artifacts, and `secrets.json` (readable by its owner alone)
with the passwords it made up. It runs until it is stopped (Ctrl-C or SIGTERM); the next start goes on with the same
records. It needs PostgreSQL's programs (Debian: the package postgresql), psycopg and mlflow[auth], and nothing else
of routefront. `--database` takes a PostgreSQL that runs already; its password is that of PGPASSWORD or ~/.pgpass, or
the whole address is the line of a file for its owner alone (`--database-file`). Started by root, PostgreSQL runs as
the user postgres.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

_START_SECONDS = 180


class Refusal(Exception):
    """Why the server cannot be started: one line that says what would be right."""


def known_secrets(folder: Path) -> dict[str, str]:
    """The passwords in ``secrets.json``, made up where they are not there."""
    path = folder / "secrets.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    missing = {name: secrets.token_hex(24) for name in ("database", "admin", "session") if name not in known}
    if missing:
        part = path.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_text(json.dumps({**known, **missing}, indent=1))
        os.replace(part, path)
    return {**known, **missing}


def given_database(address: str | None, file: Path | None) -> str | None:
    """The address of a PostgreSQL that runs, with its password where a file has it; None where none was given."""
    if address is not None and file is not None:
        raise Refusal("--database and --database-file name two databases; give one")
    if file is not None:
        try:
            with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)) as opened:
                seen = os.fstat(opened.fileno())
                if not stat.S_ISREG(seen.st_mode) or seen.st_mode & 0o077:
                    raise Refusal(f"{file} must be a file that nobody else can read: chmod 600 {file}")
                return opened.read().strip()
        except OSError as error:
            raise Refusal(f"{file} cannot be read: {error.strerror}") from None
    if address is not None:
        parts = urlsplit(address)
        if parts.password is not None or "password=" in parts.query:
            raise Refusal(
                "--database carries a password, which every user of this machine sees in `ps`: leave it out"
                " and set PGPASSWORD, or write the address into a file of mode 0600 for --database-file"
            )
    return address


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def programs() -> Path:
    """The folder of PostgreSQL's programs: that of PATH, else Debian's newest."""
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: float(p.parents[1].name))
    if not debian:
        raise Refusal("PostgreSQL is not installed (no initdb); install it, for example Debian's package postgresql,"
                      " or give one that runs: --database postgresql+psycopg://USER@HOST/NAME")  # fmt: skip
    return debian[-1].parent


@contextlib.contextmanager
def postgresql(folder: Path, password: str) -> Iterator[str]:
    """The address of a database of the user mlflow, on a free port of the loopback, while the context lasts."""
    data, port, at = folder / "postgresql", free_port(), programs()
    user: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user["user"] = "postgres"
    if not (data / "PG_VERSION").exists():
        _make_cluster(at, data, password, user)
    words = [str(at / "postgres"), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    words += ["-c", "unix_socket_directories="]
    with open(folder / "postgresql.log", "ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True, **user)
    try:
        address = f"postgresql+psycopg://mlflow:{quote(password)}@127.0.0.1:{port}/postgres"
        _wait_for_database(address, process, folder / "postgresql.log")
        yield address
    finally:
        process.send_signal(signal.SIGINT)  # "fast": ends the sessions and writes everything
        process.wait()


def _make_cluster(at: Path, data: Path, password: str, user: dict[str, Any]) -> None:
    data.mkdir(mode=0o700, exist_ok=True)
    if "user" in user:
        shutil.chown(data, user["user"])
    first = data.with_suffix(".password")
    first.touch(mode=0o600)
    first.write_text(password)
    if "user" in user:
        shutil.chown(first, user["user"])
    words = [at / "initdb", "-D", data, "-U", "mlflow", "-A", "scram-sha-256", "--pwfile", first, "-E", "UTF8"]
    made = subprocess.run(words, capture_output=True, text=True, **user)
    first.unlink()
    if made.returncode:
        why = (made.stderr.strip() or "no reason given").splitlines()[-1]
        hint = "; can the user postgres reach that folder? else start this as another user than root"
        hint = hint if "user" in user else ""
        raise Refusal(f"PostgreSQL cannot be set up in {data}: {why}{hint}")


def _wait_for_database(address: str, process: subprocess.Popen[Any], log: Path) -> None:
    import psycopg

    limit = time.monotonic() + _START_SECONDS
    while True:
        try:
            psycopg.connect(address.replace("+psycopg", ""), connect_timeout=5).close()
            return
        except psycopg.OperationalError as error:
            if process.poll() is not None or time.monotonic() > limit:
                raise Refusal(f"PostgreSQL does not start ({str(error).splitlines()[0]}); see {log}") from None
        time.sleep(0.1)


def authentication(folder: Path, database: str, known: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Options and environment of `mlflow server` with users; their passwords' hashes lie in the same database."""
    if importlib.util.find_spec("flask_wtf") is None:
        raise Refusal("users and passwords need Flask-WTF: pip install 'mlflow[auth]'; or --no-authentication, where"
                      " everyone who reaches the port may read and write")  # fmt: skip
    ini = folder / "basic_auth.ini"
    ini.touch(mode=0o600)
    lines = ["[mlflow]", "default_permission = READ", f"database_uri = {database.replace('%', '%%')}"]
    ini.write_text("\n".join([*lines, "admin_username = admin", ""]))
    return ["--app-name", "basic-auth"], {
        "MLFLOW_AUTH_CONFIG_PATH": str(ini),
        "MLFLOW_AUTH_ADMIN_PASSWORD": known["admin"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": known["session"],
    }


@contextlib.contextmanager
def tracking(folder: Path, database: str, given: argparse.Namespace, known: dict[str, str]) -> Iterator[Any]:
    """The process of `mlflow server`, answering, while the context lasts."""
    options = ["--host", given.host, "--port", str(given.port), "--workers", str(given.workers)]
    options += ["--artifacts-destination", given.artifacts or str(folder / "artifacts")]
    environment = {"MLFLOW_BACKEND_STORE_URI": database}  # not on the command line: it holds a password
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["PYTHONSAFEPATH"] = "1"  # nothing is imported out of the folder where it runs
    # A batch holds two connections: with too few, requests wait for one another. PostgreSQL has 100 by default.
    environment["MLFLOW_SQLALCHEMYSTORE_POOL_SIZE"] = str(max(5, 60 // given.workers - 10))
    if given.allowed_hosts:
        options += ["--allowed-hosts", given.allowed_hosts]
    if given.authentication:
        words, more = authentication(folder, database, known)
        options, environment = options + words, environment | more
    with open(folder / "mlflow.log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *options],
            cwd=folder, env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_for_answer(given, process, folder / "mlflow.log")
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_for_answer(given: argparse.Namespace, process: subprocess.Popen[Any], log: Path) -> None:
    host = "127.0.0.1" if given.host == "0.0.0.0" else given.host
    limit = time.monotonic() + _START_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"http://{host}:{given.port}/health", timeout=2).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > limit:
                raise Refusal(f"mlflow server does not start; see {log}") from None
        time.sleep(0.2)


def run(given: argparse.Namespace) -> int:
    """Start everything, say how to use it, wait for the end."""
    folder, database = given.folder.resolve(), given_database(given.database, given.database_file)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if folder.stat().st_uid == os.geteuid():
        # for its owner alone; of root's, the user postgres has to come through to his own
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((given.host, given.port))
        except OSError as error:
            raise Refusal(f"port {given.port} of {given.host}: {error.strerror}; choose another with --port") from None
    known = known_secrets(folder)
    if given.authentication:
        authentication(folder, "", known)  # refuses before anything is started
    with contextlib.ExitStack() as stack:
        database = database or stack.enter_context(postgresql(folder, known["database"]))
        process = stack.enter_context(tracking(folder, database, given, known))
        print(f"tracking server at http://{given.host}:{given.port}, records in {folder}")
        if given.authentication:
            print(f'  user admin, its password is "admin" in {folder / "secrets.json"}')
            print("  clients: export MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=...")
        print(f"  routefront search study.toml --tracking http://{given.host}:{given.port}", flush=True)
        return process.wait()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, nargs="?", default=Path("mlflow-server"), help="where it keeps everything")
    add("--host", default="127.0.0.1", help="the address to listen at (default: this machine alone)")
    add("--port", type=int, default=5000)
    add("--workers", type=int, default=2)
    add("--artifacts", help="another artifact store, for example s3://BUCKET/PATH (default: FOLDER/artifacts)")
    add("--database", help="a PostgreSQL that runs: postgresql+psycopg://USER@HOST/NAME; its password: PGPASSWORD")
    add("--database-file", type=Path, help="a file of mode 0600 with that address, password included")
    add("--allowed-hosts", help="names by which clients call it, with ports: mlflow:5000,localhost:*")
    add("--no-authentication", dest="authentication", action="store_false", help="without users")
    return parser.parse_args()


def main() -> None:
    """Run until a signal; exit code 2 where it cannot be started."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        sys.exit(run(arguments()))
    except KeyboardInterrupt:
        sys.exit(0)
    except Refusal as refusal:
        print(f"error: {refusal}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
