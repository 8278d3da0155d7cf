"""Ray Jobs: the driver runs on the cluster itself, so that the machine that submitted it may be switched off.

The REST interface of a cluster's dashboard takes a command and the files that it reads; the token of a guarded
cluster comes from RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) with RAY_AUTH_MODE=token, as for every Ray client.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.connect import prepare_environment

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_KNOCK_SECONDS = 5.0
_AGENT_SECONDS = 60.0
_LOST_SECONDS = 120.0  # how long a dashboard may be away while logs are followed


class JobError(RuntimeError):
    """A cluster did not do what it was asked to; one line."""


class Jobs:
    """The jobs of a cluster, by its dashboard's address ``http://HOST:8265``.

    Raises `ConnectionError` with one line, within seconds, where no cluster answers there or it refuses the
    token, `ValueError` for an address of another form.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{address!r} is no address for jobs; give the dashboard's, for example http://HOST:8265")
        self.address = address.rstrip("/")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname, port), timeout=_KNOCK_SECONDS).close()
        except OSError as error:
            raise ConnectionError(
                f"no Ray dashboard answers at {address!r} ({error.strerror or error});"
                " is it the dashboard's port (8265 by default), and is ray[default] installed on the head?"
            ) from None
        prepare_environment(local=False)
        from ray.exceptions import RayError
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every file that it packs
        try:
            self._client = JobSubmissionClient(self.address)
        except (RayError, RuntimeError, OSError, ValueError) as error:
            raise ConnectionError(f"the Ray cluster at {address!r} refuses: {_first(error)}") from None

    def submit(self, command: list[str], files: Mapping[str, str], *, name: str) -> str:
        """Start a command in a folder of its own that holds `files`; the job's id, which begins with `name`."""
        job = f"{name}-{secrets.token_hex(3)}"
        with tempfile.TemporaryDirectory(prefix="routefront-job-") as folder:
            for path, text in files.items():
                (Path(folder) / path).write_text(text)
            limit = time.monotonic() + _AGENT_SECONDS
            while True:
                try:
                    return self._client.submit_job(
                        entrypoint=shlex.join(command),
                        submission_id=job,
                        runtime_env={"working_dir": folder},
                        metadata={"routefront": name},
                    )
                except (RuntimeError, OSError) as error:
                    if "No available agent" not in str(error) or time.monotonic() > limit:
                        raise JobError(f"the job was not taken: {_first(error)}") from None
                time.sleep(1.0)  # the dashboard of a new cluster answers before it can take a job

    def info(self, job: str) -> dict[str, Any]:
        """{id, name, status, message, exit_code, started, ended (seconds since 1970), command} of a job."""
        try:
            return _record(self._client.get_job_info(job))
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                raise ValueError(f"no job {job!r} at {self.address}; routefront cluster jobs lists them") from None
            raise JobError(f"{self.address}: {_first(error)}") from None

    def all(self) -> list[dict[str, Any]]:
        """The jobs that this program submitted, the latest first."""
        try:
            found = [job for job in self._client.list_jobs() if (job.metadata or {}).get("routefront")]
        except RuntimeError as error:
            raise JobError(f"{self.address}: {_first(error)}") from None
        return sorted(map(_record, found), key=lambda job: -(job["started"] or 0))

    def stop(self, job: str) -> bool:
        """Ask a job to end; False where it had ended already."""
        if self.info(job)["status"] in ENDED:
            return False
        return bool(self._client.stop_job(job))

    def follow(self, job: str) -> Iterator[str]:
        """What a job prints, from its beginning until it ends; a dashboard that goes away for a while is waited for."""
        shown, lost = 0, 0.0
        while True:
            seen = 0
            try:
                for text in self._tail(job):
                    seen += len(text)
                    if seen > shown:
                        yield text[-(seen - shown) :]
                        shown, lost = seen, 0.0
                if self.info(job)["status"] in ENDED:
                    return
            except (JobError, OSError, RuntimeError) as error:
                lost = lost or time.monotonic()
                if time.monotonic() - lost > _LOST_SECONDS:
                    raise JobError(f"{self.address} does not answer any more ({_first(error)})") from None
            time.sleep(1.0)

    def wait(self, job: str) -> dict[str, Any]:
        """The record of a job when it has ended."""
        while (record := self.info(job))["status"] not in ENDED:
            time.sleep(1.0)
        return record

    def _tail(self, job: str) -> Iterator[str]:
        """Ray's asynchronous stream of a job's output, as a plain iterator."""
        import aiohttp

        loop = asyncio.new_event_loop()
        stream = self._client.tail_job_logs(job)
        try:
            while True:
                try:
                    yield loop.run_until_complete(anext(stream))
                except StopAsyncIteration:
                    return
                except aiohttp.ClientError as error:
                    raise JobError(str(error)) from None
        finally:
            loop.run_until_complete(stream.aclose())  # type: ignore[attr-defined]
            loop.close()


def _record(job: Any) -> dict[str, Any]:
    started, ended = (None if t is None else t / 1000 for t in (job.start_time, job.end_time))
    return {
        "id": job.submission_id,
        "name": (job.metadata or {}).get("routefront", ""),
        "status": str(job.status),
        "message": job.message or "",
        "exit_code": job.driver_exit_code,
        "started": started,
        "ended": ended,
        "command": job.entrypoint,
    }


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
