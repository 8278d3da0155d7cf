"""The runs of one study in MLflow: found by their tags, created once, written in batches.

Why sending again changes nothing, as MLflow's SQL store has it (3.17): a metric's row is its own primary key (run, key,
step, time stamp, value), and rows that are there are left out of a batch; tags, statuses and artifacts are
overwritten; a parameter may be sent again with its value; a data set is known by name and digest. Creating a
run is the one call that cannot be repeated, so runs are looked for before they are created, and of two with
one key (a request that outlived its sender) the emptier one is deleted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from search.tracking.chronicle import STUDY, RunChange
from search.tracking.models import FrontModels
from search.tracking.server import all_of, artifact_location, is_server, quiet

_log = logging.getLogger("routefront.tracking")

_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow's pages ask which kind it is
_PAGE = 500  # runs of one answer; each brings its parameters, tags and latest metrics
# Requests to a server at a time, each about another run; a database file takes one writer. Not more: MLflow holds two
# of its 15 database connections a batch, and requests that gave up waiting hold theirs for up to 30 s.
_CALLS = 4


class GoneError(Exception):
    """A run that was there is not there any more: all is to be looked up and sent again."""


@dataclass(slots=True)
class _Run:
    """A run as the server showed it last: `end` in milliseconds."""

    id: str
    status: str
    end: int | None


@dataclass(slots=True)
class Expected:
    """What a run should hold: the union of its changes, of each metric the latest value."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    latest: dict[str, tuple[int, int, float]] = field(default_factory=dict)
    status: str | None = None
    ended: int | None = None
    data: dict[str, str] | None = None

    def absorb(self, change: RunChange) -> None:
        """Add a change; MLflow's latest value of a metric is that of the largest (step, time, value)."""
        self.params |= change.params
        self.tags |= change.tags
        for name, value, at, step in change.metrics:
            known = self.latest.get(name)
            if known is None or (step, at, value) > known:
                self.latest[name] = (step, at, value)
        self.status, self.ended = change.status or self.status, change.ended or self.ended
        self.data = change.data or self.data

    def held_by(self, run: Any) -> bool:
        """Whether a run of MLflow's holds all this. Batches are transactions in order: the last proves the rest."""
        tags = {name: value for name, value in self.tags.items() if not name.startswith("mlflow.")}
        return (
            self.params.keys() <= run.data.params.keys()
            and tags.items() <= run.data.tags.items()
            and all(_same(run.data.metrics.get(name), value) for name, (_, _, value) in self.latest.items())
            and self.status in (None, run.info.status)
            and self.ended in (None, run.info.end_time)
            and (self.data is None or bool(run.inputs.dataset_inputs))
        )


class StudyRuns:
    """A study's run and its trials' runs, by key, in one experiment of one tracking address.

    Opening asks the server: any exception of MLflow may come out of every method.
    """

    def __init__(self, uri: str, experiment: str, study: str, identity: str, studies_root: Path) -> None:
        self._study, self._identity = study, identity
        self._client: Any = quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._most = self._calls = _CALLS if is_server(uri) else 1
        self.created = 0
        self.experiment_id = self._find_experiment(experiment, artifact_location(uri, studies_root, experiment))
        self._runs = {key: _known(run) for key, run in self._find_runs().items()}
        self.front = FrontModels(self._client, self.experiment_id, study, identity)

    def hurry(self, yes: bool) -> None:
        """Send several runs at a time, or, to a server that has just failed, one."""
        self._calls = self._most if yes else 1

    @property
    def keys(self) -> set[str]:
        """The runs that exist."""
        return set(self._runs)

    def run_id(self, key: str) -> str | None:
        """MLflow's name of a run, or None where it does not exist."""
        return self._runs[key].id if key in self._runs else None

    @property
    def ids(self) -> dict[str, str]:
        """MLflow's names of the runs, by key."""
        return {key: run.id for key, run in self._runs.items()}

    def lacking(self, expected: dict[str, Expected]) -> set[str]:
        """Keys of the runs that do not hold what they should, asked anew."""
        found = self._find_runs()
        self._runs = {key: _known(run) for key, run in found.items()}
        return {key for key, wanted in expected.items() if key not in found or not wanted.held_by(found[key])}

    # -- finding -----------------------------------------------------------------------------------

    def _find_experiment(self, name: str, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=location, tags=_KIND)
            except MlflowException:  # another driver was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RuntimeError(f"experiment {name!r} was deleted; restore it or set another experiment")
        return found.experiment_id

    def _find_runs(self) -> dict[str, Any]:
        """The study's runs by key; what is there twice is an orphan of an outage and is deleted."""
        found: dict[str, Any] = {}
        for run in all_of(self._client.search_runs, self.experiment_id, self._identity, _PAGE):
            tags = run.data.tags
            if tags.get("routefront.kind") not in ("study", "trial", "cascades"):
                continue
            key = tags.get("routefront.trial", STUDY)
            if key in found:
                orphan, found[key] = sorted((run, found[key]), key=_fullness)
                self._client.delete_run(orphan.info.run_id)
            else:
                found[key] = run
        return found

    # -- sending -----------------------------------------------------------------------------------

    def send(self, changes: dict[str, RunChange]) -> None:
        """Send changes and take out what has arrived: figures first, documents after them.

        Of one run everything goes in order; a server is sent several runs at a time.
        """
        rest = [key for key in sorted(changes) if key != STUDY]
        with ThreadPoolExecutor(self._calls, thread_name_prefix="mlflow") as pool:
            for part in (self._send_values, self._send_files):
                if STUDY in changes:  # first: the trials' runs name it as their parent
                    part(changes[STUDY])
                _together(pool, part, [changes[key] for key in rest])
        changes.clear()

    def _send_values(self, change: RunChange) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        run = self._runs.get(change.key) or self._create(change)
        self._log(run, change)
        if change.data is not None:
            given = DatasetInput(Dataset(**change.data), [InputTag("mlflow.data.context", "training")])
            self._try(change, self._client.log_inputs, run.id, [given])
            change.data = None
        status, end = change.status or run.status, change.ended or run.end
        if (status, end) != (run.status, run.end):
            if end is not None:
                self._try(change, self._client.set_terminated, run.id, status, end_time=end)  # it takes any status
            else:
                self._try(change, self._client.update_run, run.id, status=status)
            run.status, run.end = status, end

    def _create(self, change: RunChange) -> _Run:
        tags = {**change.tags, "routefront.study": self._study, "routefront.study_id": self._identity}
        if change.key:
            tags["mlflow.parentRunId"] = self._runs[STUDY].id
        run = self._client.create_run(self.experiment_id, start_time=change.begun, tags=tags)
        self.created += 1
        change.tags = {}
        self._runs[change.key] = _known(run)
        return self._runs[change.key]

    def _log(self, run: _Run, change: RunChange) -> None:
        """Metrics, parameters and tags in one call; where it is refused, each by itself, so that one alone is lost."""
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(name, value, at, step) for name, value, at, step in change.metrics]
        params = [Param(name, value) for name, value in change.params.items()]
        tags = [RunTag(name, value) for name, value in change.tags.items()]
        if _refusal(self._client.log_batch, run.id, metrics=metrics, params=params, tags=tags):
            parts = [{"metrics": metrics}, {"tags": tags}, *({"params": [param]} for param in params)]
            for part in parts:
                self._try(change, self._client.log_batch, run.id, **part)
        change.metrics, change.params, change.tags = [], {}, {}

    def _send_files(self, change: RunChange) -> None:
        for path in list(change.files):
            self._try(change, self._client.log_dict, self._runs[change.key].id, change.files[path], path)
            del change.files[path]

    def _try(self, change: RunChange, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        reason = _refusal(call, *args, **kwargs)
        if reason:
            _log.warning("MLflow refuses a part of run %s: %s", change.key or self._study, reason)


def _refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Why MLflow will never take a call, empty where it took it; raises where another attempt may do."""
    from mlflow.exceptions import MlflowException

    try:
        call(*args, **kwargs)
    except MlflowException as error:
        reason = str(error.message)
        if error.error_code == "RESOURCE_DOES_NOT_EXIST" or "'active' state" in reason:
            raise GoneError(f"a run of the study is gone ({reason})") from None
        if error.error_code != "INVALID_PARAMETER_VALUE":
            raise
        return reason
    return ""


def _known(run: Any) -> _Run:
    return _Run(run.info.run_id, run.info.status, run.info.end_time)


def _fullness(run: Any) -> tuple[int, int, str]:
    return len(run.data.metrics), len(run.data.params), run.info.run_id


def _same(there: float | None, wanted: float) -> bool:
    """Whether a stored value is the one that was sent; MLflow keeps infinities as the largest number."""
    if there is None or not math.isfinite(wanted):
        return there is not None
    return there == wanted


def _together(pool: ThreadPoolExecutor, part: Callable[[RunChange], None], changes: Iterable[RunChange]) -> None:
    """Call `part` for every change; the first exception is raised when all have ended."""
    errors = [error for error in pool.map(lambda change: _caught(part, change), changes) if error is not None]
    if errors:
        raise next((error for error in errors if isinstance(error, GoneError)), errors[0])


def _caught(part: Callable[[RunChange], None], change: RunChange) -> Exception | None:
    try:
        part(change)
    except Exception as error:
        return error
    return None
