"""The front of a study as logged models of MLflow: asked by `search_logged_models`, compared by its page of models.

Each member is one logged model with its configuration as parameters and two metrics, linked to the images that they
were measured on. So the most accurate under 2M MACs is::

    mlflow.search_logged_models(
        experiment_ids=[...], filter_string="metrics.macs < 2000000",
        order_by=[{"field_name": "metrics.accuracy", "ascending": False}],
    )

It has no files: weights stay in the study's folder until a point is promoted. Metrics of logged models belong to a
run; theirs is one beside the trials' runs, called ``frontier``, whose metrics have MACs as their step, so that its
chart is the frontier.

Sending again changes nothing: models are looked up by the point that they stand for, and what is no longer on the
front is deleted, as MLflow deletes: it can be restored.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from search.pareto.front import spread
from search.tracking.server import all_of

_log = logging.getLogger("routefront.tracking")

MOST = 60
"""Members that are shown; a larger front is thinned evenly over the logarithm of the cost."""
_PAGE = 100
_STEPS = 2**62  # MLflow keeps steps as 64 bit


@dataclass(frozen=True, slots=True)
class Member:
    """A point of the front: its id in the study, its trial, what is said of it, and when it was measured (ms)."""

    point: str
    trial: str
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    cost: float
    at: int


def thinned(members: Sequence[Member], most: int = MOST) -> list[Member]:
    """At most `most` members, rising in cost (`search.pareto.front.spread`)."""
    rising = sorted(members, key=lambda member: member.cost)
    return [rising[place] for place in spread([member.cost for member in rising], most).tolist()]


class FrontModels:
    """The logged models of a study in an experiment. `show` raises whatever MLflow raises, and may be called again."""

    def __init__(self, client: Any, experiment_id: str, study: str, identity: str) -> None:
        self._client, self._experiment, self._study, self._identity = client, experiment_id, study, identity
        self._run: str | None = None
        self._there: dict[str, str] | None = None
        self._unknown = False

    def show(self, members: Sequence[Member], runs: Mapping[str, str], data: Mapping[str, str], begun: int) -> None:
        """Make the logged models those of `members` (at most `MOST` of them).

        `runs`: MLflow's ids of the trials' runs and, by ``""``, the study's; `data`: the images as
        `search.tracking.values.dataset_input` says them; `begun`: when the study was created, in ms.
        """
        if self._unknown:
            return
        from mlflow.exceptions import MlflowException

        try:
            self._show(thinned([each for each in members if each.trial in runs]), runs, data, begun)
        except MlflowException as error:
            self._there = None  # looked up again
            if error.error_code not in ("ENDPOINT_NOT_FOUND", "NOT_IMPLEMENTED"):
                raise
            self._unknown = True
            _log.warning("this MLflow server knows no logged models: the front is there as frontier.json only")

    def _show(self, members: Sequence[Member], runs: Mapping[str, str], data: Mapping[str, str], begun: int) -> None:
        if self._there is None:
            self._there = self._find()
        wanted = {member.point: member for member in members}
        for point in self._there.keys() - wanted.keys():
            self._client.delete_logged_model(self._there[point])
            del self._there[point]
        fresh = [member for point, member in wanted.items() if point not in self._there]
        if not fresh:
            return
        run = self._frontier_run(runs[""], begun)
        made = {member.point: self._create(member, runs) for member in fresh}
        self._measure(run, fresh, made, data)
        for member in fresh:  # only now are they whole, and found again
            self._client.finalize_logged_model(made[member.point], "READY")
            self._there[member.point] = made[member.point]

    def _create(self, member: Member, runs: Mapping[str, str]) -> str:
        tags = {
            "routefront.study": self._study,
            "routefront.study_id": self._identity,
            "routefront.point": member.point,
            "routefront.promote": f"routefront promote {self._study} --point {member.point} --model NAME",
        }
        name = f"{self._study}-{member.point}".translate(str.maketrans("/:.%\"'", "______"))
        found = self._client.create_logged_model(
            self._experiment, name=name, source_run_id=runs[member.trial], tags=tags, params=dict(member.params),
            model_type="operating point",
        )  # fmt: skip
        return found.model_id

    def _measure(self, run: str, fresh: Sequence[Member], made: Mapping[str, str], data: Mapping[str, str]) -> None:
        from mlflow.entities import LoggedModelOutput, Metric

        metrics = [
            Metric(name, value, member.at, min(round(member.cost), _STEPS), model_id=made[member.point],
                   dataset_name=data["name"], dataset_digest=data["digest"], run_id=run)
            for member in fresh
            for name, value in member.metrics.items()
        ]  # fmt: skip
        self._client.log_batch(run, metrics=metrics)
        self._client.log_outputs(run, [LoggedModelOutput(made[member.point], 0) for member in fresh])

    def _find(self) -> dict[str, str]:
        """The models that are there, by point; unfinished ones and those that are there twice are deleted."""
        found: dict[str, str] = {}
        idle = []
        for model in all_of(self._client.search_logged_models, self._experiment, self._identity, _PAGE):
            point = model.tags.get("routefront.point", "")
            if str(model.status) != "READY" or not model.metrics or point in found:
                idle.append(model.model_id)
            else:
                found[point] = model.model_id
        for model_id in idle:
            self._client.delete_logged_model(model_id)
        return found

    def _frontier_run(self, parent: str, begun: int) -> str:
        """The run that the models' metrics belong to; made where it is missing."""
        run = self._run
        if run is None:
            found = self._client.search_runs(
                [self._experiment], filter_string=f"tags.`routefront.front_of` = '{self._identity}'", max_results=1
            )
            if found:
                run = found[0].info.run_id
            else:
                tags = {
                    "mlflow.runName": "frontier",
                    "mlflow.parentRunId": parent,
                    "routefront.kind": "frontier",
                    "routefront.study": self._study,
                    "routefront.front_of": self._identity,
                }
                run = self._client.create_run(self._experiment, start_time=begun, tags=tags).info.run_id
                self._client.set_terminated(run, "FINISHED", end_time=begun)
            self._run = run
        return run
