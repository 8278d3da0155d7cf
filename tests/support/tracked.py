"""Studies told by hand and brought to a real MLflow, for tests and benchmarks of tracking."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from search.journal.database import Journal, sqlite_address
from search.journal.events import Event
from search.studies.folder import StudyFolder
from search.tracking.server import quiet
from search.tracking.tracker import Tracker
from search.tracking.uploader import Uploader
from tests.support.story import Story

T = TypeVar("T")


def told(story: Story, trials: int = 3) -> Story:
    """A study of which trial 0 was trained in full, 1 stopped, 2 failed; the others are running."""
    for number in range(trials):
        name = story.ask(number, "skipnet")
        story.report(name, 1, [(0.5 + number / 100, 1e6), (0.7, 4e6 + number)])
        if number == 0:
            story.report(name, 2, machine={"cpu_seconds": 1.5, "memory_megabytes": 300.0})
            story.report(name, 9, [(0.8, 2e6), (0.9, 5e6)])
            story.decide(name, 9, "finish", "trained in full")
        if number == 1:
            story.decide(name, 1, "stop", "place 2 of 2")
        if number == 2:
            story.add("failed", {"reason": "FloatingPointError: loss became nan", "traceback": "", "epoch": 1}, name)
    return story


class Place:
    """A study folder with a real journal of a story's events; `more`: one that is there goes on."""

    def __init__(self, path: Path, story: Story, *, more: bool = False) -> None:
        self.folder, self.story = StudyFolder(path / "story"), story
        self.folder.path.mkdir(parents=True, exist_ok=more)
        self.journal = Journal(sqlite_address(self.folder.control), "story", create=True)
        self.journal.acquire()
        for event in story.events[self.journal.last() :]:
            self.append(event)

    def append(self, event: Event) -> Event:
        """Append an event of the story."""
        return self.journal.append(event.kind, event.payload, event.trial)

    def tracker(self, uri: str) -> Tracker:
        return Tracker(uri, "routefront", self.folder, self.story.spec)

    def uploader(self, uri: str) -> Uploader:
        return Uploader(uri, "routefront", self.journal, self.folder.path)

    def upload(self, uri: str, *, final: bool = False) -> None:
        self.uploader(uri).deliver(final=final)

    @property
    def note(self) -> Path:
        """The one note of what has arrived."""
        (note,) = self.folder.path.glob("tracking/*.json")
        return note


# -- what MLflow holds -----------------------------------------------------------------------------


def runs_at(uri: str) -> list[Any]:
    """The runs of studies and trials; not the one that the metrics of logged models belong to."""
    client = quiet().MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("routefront")
    if experiment is None:
        return []
    runs = client.search_runs([experiment.experiment_id], max_results=5000)
    return [run for run in runs if run.data.tags.get("routefront.kind") != "frontier"]


def runs_by_key(uri: str) -> dict[str, Any]:
    return {run.data.tags.get("routefront.trial", ""): run for run in runs_at(uri)}


def shown(uri: str) -> dict[str, Any]:
    """Everything MLflow holds, by run, without the names that it made up itself."""
    client, found = quiet().MlflowClient(tracking_uri=uri), {}
    for run in runs_at(uri):
        key = run.data.tags.get("routefront.trial", "")
        assert key not in found, f"two runs of {key!r}"
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        history = {
            name: [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        data = [(i.dataset.name, i.dataset.digest) for i in run.inputs.dataset_inputs]
        files = sorted(file.path for file in _files(client, run.info.run_id))
        figures = (run.info.status, run.info.start_time, run.info.end_time)
        found[key] = (dict(run.data.params), tags, history, figures, data, files)
    return found


def _files(client: Any, run: str, path: str | None = None) -> list[Any]:
    found = client.list_artifacts(run, path)
    return [file for item in found for file in (_files(client, run, item.path) if item.is_dir else [item])]


def document(uri: str, run: Any, path: str) -> Any:
    client = quiet().MlflowClient(tracking_uri=uri)
    return json.loads(Path(client.download_artifacts(run.info.run_id, path)).read_text())


def until(condition: Callable[[], T], seconds: float = 300.0) -> T:
    """What the condition says once it says something."""
    limit = time.monotonic() + seconds
    while not (said := condition()):
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)
    return said


# -- servers ---------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A real `mlflow server` on the loopback, with one worker, that can be killed and started again.

    `database`: an address, the file ``mlflow.db`` in `folder` by default.
    """

    def __init__(self, folder: Path, database: str = "") -> None:
        self.folder, self.port = folder, free_port()
        self.database = database or f"sqlite:///{folder / 'mlflow.db'}"
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        options = {
            "--backend-store-uri": self.database,
            "--artifacts-destination": str(self.folder / "artifacts"),
            "--host": "127.0.0.1",
            "--port": str(self.port),
            "--workers": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)],
            cwd=self.folder,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def wait(self) -> None:
        until(self.answers, 300)

    def answers(self) -> bool:
        assert self.process.poll() is None, "mlflow server ended"
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Proxy:
    """A TCP relay on the loopback that holds every request back for `delay` seconds; `dead`: it hangs up at once."""

    def __init__(self, port: int, delay: float = 0.0) -> None:
        self.target, self.delay, self.dead = port, delay, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client:
            if self.dead:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with server:
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                self._requests(client, server)
                back.join()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        quiet_since = 0.0
        try:
            while data := client.recv(65536):
                if time.monotonic() - quiet_since > 0.005:  # a new request, not the rest of one
                    time.sleep(self.delay)
                server.sendall(data)
                quiet_since = time.monotonic()
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self) -> None:
        self._listener.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        pass


# -- lost and doubled ------------------------------------------------------------------------------


def lost_and_doubled(database: str, journals: Sequence[Journal]) -> tuple[int, int, int]:
    """(records expected, lost, doubled) of the active runs in MLflow's own tables, against what the journals say.

    A record is a run, a parameter, a row of a metric or a data set of a run.
    """
    from collections import Counter

    import sqlalchemy as sa

    from search.tracking.chronicle import Chronicle, study_id

    expected: Counter[Any] = Counter()
    for journal in journals:
        chronicle, first = Chronicle(), next(journal.events(limit=1))
        for event in journal.events():
            chronicle.apply(event)
        for key, change in chronicle.changes.items():
            run = (study_id(first), key)
            expected[(*run, "run")] += 1
            expected[(*run, "data", first.payload["data"]["name"])] += 1
            expected.update((*run, "param", name, value) for name, value in change.params.items())
            expected.update({(*run, "metric", name, step, at, value) for name, value, at, step in change.metrics})
    engine, there = sa.create_engine(database), Counter[Any]()
    active = (
        "from {} join runs r on r.run_uuid = x.{} and r.lifecycle_stage = 'active'"
        " join tags s on s.run_uuid = r.run_uuid and s.key = 'routefront.study_id'"
        " left join tags t on t.run_uuid = r.run_uuid and t.key = 'routefront.trial'"
    )
    with engine.connect() as connection:

        def rows(columns: str, table: str, column: str = "run_uuid", more: str = "") -> Any:
            query = f"select s.value, coalesce(t.value, ''), {columns} {active.format(table, column)} {more}"
            return connection.execute(sa.text(query))

        there.update((*row[:2], "run") for row in rows("1", "runs x"))
        there.update((*row[:2], "param", *row[2:]) for row in rows("x.key, x.value", "params x"))
        metrics = rows("x.key, x.step, x.timestamp, x.value", "metrics x")
        there.update((*row[:2], "metric", *row[2:]) for row in metrics)
        inputs = rows("d.name", "inputs x", "destination_id", "join datasets d on d.dataset_uuid = x.source_id")
        there.update((*row[:2], "data", *row[2:]) for row in inputs)
    engine.dispose()
    return expected.total(), (expected - there).total(), (there - expected).total()
