"""The runs of one study in MLflow: found by their tags, created once, written in batches."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.chronicle import STUDY, RunChange
from search.mlflow_client import artifact_location, quiet

_log = logging.getLogger("routefront.tracking")


class GoneError(Exception):
    """A run that was there is not there any more: all is to be looked up and sent again."""


@dataclass(slots=True)
class _Run:
    id: str
    status: str


class StudyRuns:
    """A study's run and its trials' runs, by key, in one experiment of one tracking address.

    Opening asks the server: any exception of MLflow may come out of every method.
    """

    def __init__(self, uri: str, experiment: str, study: str, identity: str, studies_root: Path) -> None:
        self._study, self._identity = study, identity
        self._client: Any = quiet().MlflowClient(tracking_uri=uri, registry_uri=uri)
        self.experiment_id = self._find_experiment(experiment, artifact_location(uri, studies_root, experiment))
        self._runs = self._find_runs()

    @property
    def keys(self) -> set[str]:
        """The runs that exist."""
        return set(self._runs)

    def run_id(self, key: str) -> str | None:
        """MLflow's name of a run, or None where it does not exist."""
        return self._runs[key].id if key in self._runs else None

    def _find_experiment(self, name: str, location: str | None) -> str:
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return self._client.create_experiment(name, artifact_location=location)
            except MlflowException:  # another driver was faster
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RuntimeError(f"experiment {name!r} was deleted; restore it or set another experiment")
        return found.experiment_id

    def _find_runs(self) -> dict[str, _Run]:
        """The study's runs by key. Of two with one key the emptier one is an orphan of an outage."""
        found: dict[str, Any] = {}
        token = None
        while True:
            page = self._client.search_runs(
                [self.experiment_id],
                filter_string=f"tags.`routefront.study_id` = '{self._identity}'",
                max_results=1000,
                page_token=token,
            )
            for run in page:
                tags = run.data.tags
                if tags.get("routefront.kind") not in ("study", "trial"):
                    continue
                key = tags.get("routefront.trial", STUDY)
                orphan = run
                if key not in found or len(run.data.metrics) > len(found[key].data.metrics):
                    found[key], orphan = run, found.get(key)
                if orphan is not None:
                    self._client.delete_run(orphan.info.run_id)
            token = page.token
            if not token:
                return {key: _Run(run.info.run_id, run.info.status) for key, run in found.items()}

    def send(self, changes: dict[str, RunChange]) -> None:
        """Send changes and take out what has arrived: figures first, documents after them."""
        from mlflow.exceptions import MlflowException

        for part in (self._send_values, self._send_files):
            for key in sorted(changes):  # the study's run comes first
                try:
                    part(changes[key])
                except MlflowException as error:
                    if _gone(error):
                        raise GoneError(f"a run of the study is gone ({error.message})") from None
                    if error.error_code != "INVALID_PARAMETER_VALUE":
                        raise
                    _log.warning("MLflow refuses a part of run %s: %s", key or self._study, error.message)
        changes.clear()

    def _send_values(self, change: RunChange) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run = self._runs.get(change.key) or self._create(change)
        self._client.log_batch(
            run.id,
            metrics=[Metric(name, value, at, step) for name, value, at, step in change.metrics],
            params=[Param(name, value) for name, value in change.params.items()],
            tags=[RunTag(name, value) for name, value in change.tags.items()],
        )
        change.metrics, change.params, change.tags = [], {}, {}
        if change.status and change.status != run.status:
            if change.ended is not None:
                self._client.set_terminated(run.id, change.status, end_time=change.ended)
            else:
                self._client.update_run(run.id, status=change.status)
            run.status = change.status

    def _create(self, change: RunChange) -> _Run:
        tags = {**change.tags, "routefront.study": self._study, "routefront.study_id": self._identity}
        if change.key:
            tags["mlflow.parentRunId"] = self._runs[STUDY].id
        run = self._client.create_run(self.experiment_id, start_time=change.begun, tags=tags)
        change.tags = {}
        self._runs[change.key] = _Run(run.info.run_id, run.info.status)
        return self._runs[change.key]

    def _send_files(self, change: RunChange) -> None:
        for path in list(change.files):
            self._client.log_dict(self._runs[change.key].id, change.files[path], path)
            del change.files[path]


def _gone(error: Any) -> bool:
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or "'active' state" in str(error.message)
