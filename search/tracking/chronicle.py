"""What MLflow is told about a study: its events folded into changes of runs. Imports no MLflow.

One run for the study (key ``""``) and one for every trial (key: the trial's id). Everything here
follows from the events alone, time stamps included, so that sending a change twice changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from search.journal.events import Event
from search.pareto.front import Archive, hypervolume
from search.points.rows import point_id
from search.tracking.models import Member
from search.tracking.values import dataset_input, diagnostic_metrics, flat, plain_name
from trainables.contracts.objective import Objective

STUDY = ""  # the key of the study's own run

_LONGEST_TAG = 5000


@dataclass(slots=True)
class RunChange:
    """What is to be added to one run; a later change of the same run is merged into it.

    `metrics`: (name, value, milliseconds since 1970, step). `files`: JSON documents by artifact
    path. `status`: RUNNING, SCHEDULED, FINISHED, KILLED or FAILED; `ended` in milliseconds, which
    MLflow keeps when a run goes on. `data`: the images (`search.tracking.values.dataset_input`).
    """

    key: str
    begun: int
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    status: str | None = None
    ended: int | None = None
    data: dict[str, str] | None = None


@dataclass(slots=True)
class _TrialRun:
    """What is remembered of a trial."""

    method: str
    begun: int
    config: Mapping[str, Any]
    cost: float = 0.0
    state: str = "asked"


def study_id(created: Event) -> str:
    """The identity of a study in MLflow; a deleted study's name may be taken by another one."""
    identity = f"{created.payload['spec']['name']} {created.time!r}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


class Chronicle:
    """Folds events, in order, into `changes` by run; the caller takes out what it has sent.

    `front_changed`: the front is another one than that of the last `add_frontier`; `members_changed` likewise, until
    the caller takes it back.
    """

    def __init__(self) -> None:
        self.changes: dict[str, RunChange] = {}
        self.front_changed = False
        self.members_changed = False
        self._trials: dict[str, _TrialRun] = {}
        self._composed: dict[str, int] = {}
        self._archive: Archive | None = None
        self._objective: Objective | None = None
        self._reference = (1.0, 1.0)
        self._cost = 0.0
        self._seconds = {"seconds": 0.0, "system/cpu_seconds": 0.0}
        self._begun = 0
        self._measured: dict[tuple[str, int], int] = {}
        self._data: dict[str, str] = {}
        self._code = ""

    @property
    def keys(self) -> set[str]:
        """The runs that the events so far have begun."""
        return {STUDY, *self._trials, *self._composed} if self._begun else set()

    def apply(self, event: Event) -> None:
        """Fold one event in; kinds of later versions and trials never asked for change nothing."""
        if event.trial is not None and event.kind != "ask" and event.trial not in self._trials:
            return
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event)

    def add_frontier(self) -> None:
        """Make the front as it stands an artifact of the study's run."""
        if self._archive is not None and self._begun:
            points = [{**item, "accuracy": 1.0 - error, "macs": macs} for error, macs, item in self._archive]
            error, macs = self._reference
            document = {"reference": {"error": error, "macs": macs}, "split": "validation", "points": points}
            if self._objective is not None:
                document["objective"] = self._objective.record()
            self._change(STUDY).files["frontier.json"] = document
            self.front_changed = False

    def members(self) -> list[Member]:
        """The front as it stands, as `search.tracking.models` shows it."""
        found = []
        for error, macs, item in self._archive or ():
            name, epoch = item["trial"], item["epoch"]
            axes = self._objective
            if axes is None or axes.usual:
                named = "accuracy" if axes is None else plain_name(axes.merit.name)
                metrics = {named: 1.0 - error, "macs": float(macs)}
            else:
                metrics = {plain_name(axes.merit.name): item["merit"], plain_name(axes.cost.name): item["cost"]}
            params = {**flat(self._trials[name].config), "trial": name, "epoch": str(epoch)}
            params |= flat(item["knobs"], "knobs.")
            at = self._measured[name, epoch]
            found.append(Member(point_id(name, epoch, item["index"]), name, params, metrics, float(macs), at))
        return found

    @property
    def images(self) -> dict[str, str]:
        """The images as the fields of MLflow's data set, empty before the first event."""
        return self._data

    @property
    def begun(self) -> int:
        """When the study was created, in milliseconds; 0 before the first event."""
        return self._begun

    def _change(self, key: str) -> RunChange:
        if key not in self.changes:
            begun = self._composed[key] if key in self._composed else self._trials[key].begun if key else self._begun
            self.changes[key] = RunChange(key, begun)
        return self.changes[key]

    # -- the kinds of events -----------------------------------------------------------------------

    def _on_created(self, event: Event) -> None:
        spec, data = event.payload["spec"], event.payload["data"]
        self._data, self._code = dataset_input(data), event.payload["code_version"]
        reference = event.payload["reference"]
        self._reference = (reference["error"], reference["macs"])
        self._archive = Archive(self._reference)
        axes = event.payload.get("objective")
        self._objective = Objective.of(axes) if axes else None
        self._begun = _milliseconds(event)
        change = self._change(STUDY)
        left_out = ("methods", "trainables", "resources", "tracking", "journal", "budget.trials", "budget.time")
        change.params = {k: v for k, v in flat(spec).items() if not k.startswith(left_out)}
        change.params["methods"] = ", ".join([*spec["methods"], *spec.get("trainables", {})])
        change.tags = {
            "mlflow.runName": spec["name"],
            "routefront.kind": "study",
            "routefront.study": spec["name"],
            "routefront.study_id": study_id(event),
            "routefront.dataset": data["name"],
            "routefront.data_hash": data["hash"],
            "routefront.code_version": self._code,
        }
        change.data = self._data

    def _on_session(self, event: Event) -> None:
        self._wait("its driver was interrupted")
        change = self._change(STUDY)
        change.status = "RUNNING"
        change.tags["routefront.reason"] = ""

    def _on_ask(self, event: Event) -> None:
        assert event.trial is not None
        p = event.payload
        self._trials[event.trial] = _TrialRun(p["config"]["method"], _milliseconds(event), p["config"])
        change = self._change(event.trial)
        change.params = {**flat(p["config"]), "seed": str(p["seed"])}
        change.tags = {
            "mlflow.runName": event.trial,
            "routefront.kind": "trial",
            "routefront.trial": event.trial,
            "routefront.method": p["config"]["method"],
            "routefront.why": p["why"][:_LONGEST_TAG],
            "routefront.code_version": self._code,
        }
        change.data = self._data
        if p.get("stage"):
            change.tags["routefront.first_stage_of"] = p["stage"]["trial"]
        if p.get("donor"):
            change.tags["routefront.donor"] = p["donor"]["checkpoint"]

    def _on_start(self, event: Event) -> None:
        assert event.trial is not None
        trial = self._trials[event.trial]
        if trial.state != "over":
            trial.state = "running"
            self._change(event.trial).status = "RUNNING"

    def _on_report(self, event: Event) -> None:
        assert event.trial is not None
        p, at = event.payload, _milliseconds(event)
        trial, change = self._trials[event.trial], self._change(event.trial)
        self._cost += p["cost_epochs"] - trial.cost
        trial.cost = p["cost_epochs"]
        values = {f"loss/{name}": value for name, value in p["losses"].items()}
        values |= {name: p[name] for name in ("lr", "seconds", "cost_epochs", "params", "macs_full") if name in p}
        values |= {f"system/{name}": value for name, value in p.get("machine", {}).items()}
        study = {"epochs": self._cost, **self._spent(values)}
        if "curve" in p:
            values |= self._curve(event.trial, p, at)
            change.files[f"curve/epoch-{p['epoch']:04d}.json"] = {
                "trial": event.trial, "epoch": p["epoch"], "split": "validation", **p["curve"]
            }  # fmt: skip
            assert self._archive is not None
            study |= {"hypervolume": float(self._archive.hypervolume), "front_points": len(self._archive)}
        if p.get("diagnostics"):
            values |= diagnostic_metrics(p["diagnostics"])
            change.files["diagnostics.json"] = {
                "trial": event.trial, "epoch": p["epoch"], "split": "validation", **p["diagnostics"]
            }  # fmt: skip
        if p.get("checkpoint"):
            change.tags["routefront.checkpoint"] = p["checkpoint"]
        change.metrics += [(plain_name(k), float(v), at, p["epoch"]) for k, v in values.items()]
        self._study_metrics(study, at)

    def _spent(self, values: Mapping[str, float]) -> dict[str, float]:
        """What the study has cost so far, in seconds of training and of processors."""
        known = {name: values[name] for name in self._seconds if name in values}
        for name, value in known.items():
            self._seconds[name] += value
        return {name: self._seconds[name] for name in known}

    def _curve(self, name: str, report: Mapping[str, Any], at: int) -> dict[str, float]:
        """Put a curve's points on the study's front; what is said of the curve as metrics."""
        assert self._archive is not None
        points = report["curve"]["points"]
        for index, point in enumerate(points):
            item = {
                "trial": name,
                "epoch": report["epoch"],
                "index": index,
                "method": self._trials[name].method,
                "setting": point.get("setting", {}),
                "knobs": point.get("knobs", {}),
                **{each: point[each] for each in ("merit", "cost") if each in point},
            }
            joined = self._archive.add(1.0 - point["accuracy"], point["macs"], item)
            if joined:
                self.members_changed = True
                self._measured[name, report["epoch"]] = at
            self.front_changed = self.front_changed or joined
        best = max(points, key=lambda point: (point["accuracy"], -point["macs"]))
        errors, macs = [1.0 - point["accuracy"] for point in points], [point["macs"] for point in points]
        volume = {"hypervolume": hypervolume(errors, macs, self._reference)}
        if self._objective is not None and not self._objective.usual:
            merit, cost = self._objective.merit.name, self._objective.cost.name
            return {merit: best["merit"], cost: best["cost"], **volume}
        named = "accuracy" if self._objective is None else self._objective.merit.name
        return {named: best["accuracy"], "macs": best["macs"], "macs_min": min(macs), **volume}

    def _on_decision(self, event: Event) -> None:
        assert event.trial is not None
        action, why = event.payload["action"], event.payload["why"]
        self._change(event.trial).tags["routefront.reason"] = why[:_LONGEST_TAG]
        if action in ("stop", "finish"):
            self._over(event, "KILLED" if action == "stop" else "FINISHED")

    def _on_failed(self, event: Event) -> None:
        assert event.trial is not None
        self._change(event.trial).tags["routefront.reason"] = event.payload["reason"][:_LONGEST_TAG]
        self._over(event, "FAILED")

    def _over(self, event: Event, status: str) -> None:
        assert event.trial is not None
        change = self._change(event.trial)
        change.status, change.ended = status, _milliseconds(event)
        self._trials[event.trial].state = "over"
        over = sum(trial.state == "over" for trial in self._trials.values())
        self._study_metrics({"trials_over": over}, _milliseconds(event))

    def _on_cascades(self, event: Event) -> None:
        """A composition is a run of its own below the study's, named as its cascades are (``c0001``)."""
        p, at = event.payload, _milliseconds(event)
        key = f"c{int(p['number']):04d}"
        self._composed[key] = at - round(1000 * p["seconds"])
        change = self._change(key)
        change.params = {
            "studies": ", ".join(p["studies"]), "rules": ", ".join(p["rules"]), "members": str(p["members"]),
            "splits": str(p["splits"]), "seed": str(p["seed"]), "images": str(p["images"]),
        }  # fmt: skip
        change.tags = {
            "mlflow.runName": key, "routefront.kind": "cascades", "routefront.trial": key,
            "routefront.code_version": self._code,
        }  # fmt: skip
        change.data, change.status, change.ended = self._data, "FINISHED", at
        points = p["points"]
        best = max(points, key=lambda point: (point["expected"], -point["macs"]))
        values = {
            "cascades": len(points), "compared": p["compared"], "seconds": p["seconds"],
            "accuracy": best["expected"], "accuracy_measured": best["accuracy"], "macs": best["macs"],
            "macs_min": min(point["macs"] for point in points), "median_fewer_macs": p["gains"]["median_fewer"],
        }  # fmt: skip
        change.metrics = [(name, float(value), at, 0) for name, value in values.items()]
        change.files["cascades.json"] = {"split": "validation", **p}

    def _on_promotion(self, event: Event) -> None:
        p = event.payload
        said = f"{p['model']} version {p['version']}"
        self._change(STUDY).tags["routefront.promoted"] = said
        if p["point"]["trial"] in self._trials or p["point"]["trial"] in self._composed:
            self._change(p["point"]["trial"]).tags["routefront.promoted"] = said

    def _on_ended(self, event: Event) -> None:
        why = event.payload["why"]
        self._wait(f"the study was {why}")
        change = self._change(STUDY)
        change.status, change.ended = (
            {"finished": "FINISHED", "failed": "FAILED"}.get(why, "KILLED"),
            _milliseconds(event),
        )
        change.tags["routefront.reason"] = why
        self.add_frontier()

    def _wait(self, why: str) -> None:
        """Trials that ran wait for the next session: MLflow's word for it is SCHEDULED."""
        for name, trial in self._trials.items():
            if trial.state == "running":
                trial.state = "asked"
                change = self._change(name)
                change.status = "SCHEDULED"
                change.tags["routefront.reason"] = f"{why}; `routefront resume` continues it"

    def _study_metrics(self, values: Mapping[str, float], at: int) -> None:
        step = round(self._cost)  # every report costs at least one epoch, so steps do not repeat
        self._change(STUDY).metrics += [(name, float(value), at, step) for name, value in values.items()]


def _milliseconds(event: Event) -> int:
    return round(event.time * 1000)
