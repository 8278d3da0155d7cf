"""The state of a study: a fold over its journal, equal by construction after every restart.

The kinds of events are those of `search.journal.events`.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from search.errors import InputError
from search.journal.events import WITHOUT_A_DRIVER, Event, check_names
from search.pareto.front import Archive
from search.state.constraints import Constraints
from search.state.kept import Kept
from search.state.setbacks import DIED, MEMORY, NODE, NODE_SECONDS
from search.state.trial import Donor, History, Stage, Together, Trial
from trainables.contracts.objective import Objective

_DAMAGE = (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError, AssertionError, RecursionError)
"""What a handler of an event raises where a payload is not what this code, or any earlier one, has written."""
_MOST = 10**18
PARTNERS = 12
"""With so many networks at most a new one is tried in cascades while a study searches."""


def _counted(report: dict[str, Any]) -> int:
    """The epoch of a report, whose numbers may come from a stranger; ValueError where one is impossible."""
    epoch = report["epoch"]
    if type(epoch) is not int or not 1 <= epoch <= _MOST:
        raise ValueError(f"epoch = {str(epoch)[:40]}")
    for name in ("cost_epochs", "seconds", "params", "macs_full"):
        value = report.get(name, 0)
        if not isinstance(value, int | float) or not 0 <= value <= _MOST:
            raise ValueError(f"{name} = {str(value)[:40]}")
    return epoch


class StudyState:
    """Trials, rung records, the front so far and the budget spent. `apply` folds one event in.

    `known`: trials of earlier studies; `elsewhere`: those of other images, each with its last curve as that of
    epoch 0. `planned`: what is asked for before anything new. `proposed`: how many trials repeat none. `models`: by
    method the hyperparameters that its sampler fitted last. `failed`: failed trials in the order in which they
    failed. `over`: how many trials nothing more will come of. `scored`: how many showed a comparable curve or
    failed. `cost_epochs`: epochs of training spent, views counted; `work_seconds`: seconds that trials worked.
    `nodes`: the cluster as it was last. A fold costs the same however long the study is. `lost_donors`: checkpoints
    that no trial can begin with any more. `cascades`: what was composed, oldest
    first. `partners`: by epoch the trials whose networks later ones are tried with in cascades, where the objective has
    fronts with cascades (`search.cascades.worth`). `agreements` keeps what `search.rungs.foretelling` computed, by
    epoch.
    """

    def __init__(self) -> None:
        self.seq = 0
        self.created: dict[str, Any] = {}
        self._kept: Kept | None = None
        self.trials: dict[str, Trial] = {}
        self.stages: dict[str, Stage] = {}
        self.lost_donors: set[str] = set()
        self.promotions: list[dict[str, Any]] = []
        self.promoting: dict[str, dict[str, Any]] = {}
        self.cascades: list[dict[str, Any]] = []
        self.partners: dict[int, list[Trial]] = {}
        self._joint: dict[int, Archive] = {}
        self._promoted: set[str] = set()
        self.history: list[History] = []
        self.archive: Archive | None = None
        self.elapsed = 0.0
        self.ended = ""
        self.workers = 0
        self.constraints = Constraints()
        self.machines: dict[str, int] = {}  # what measured latencies, where they are the cost, by points
        self.known: list[Trial] = []
        self.elsewhere: list[Trial] = []
        self.planned: deque[dict[str, Any]] = deque()
        self.proposed = 0
        self.models: dict[str, dict[str, Any]] = {}
        self.agreements: dict[int, tuple[int, float | None]] = {}
        self.failed: list[Trial] = []
        self.over = 0
        self.scored = 0
        self.cost_epochs = 0.0
        self.work_seconds = 0.0
        self.nodes: list[dict[str, Any]] = []
        self._live: dict[str, Trial] = {}
        self._paused: dict[str, Trial] = {}
        self._rungs: dict[int, list[Trial]] = {}
        self._session: float | None = None
        self._before = 0.0

    @classmethod
    def of(cls, events: Iterable[Event]) -> StudyState:
        """The state after these events."""
        state = cls()
        for event in events:
            state.apply(event)
        return state

    def apply(self, event: Event) -> None:
        """Fold one event in; events must come in order."""
        assert event.seq == self.seq + 1, (event.seq, self.seq)
        check_names(event)
        self.seq = event.seq
        if self._session is not None and event.kind not in WITHOUT_A_DRIVER:
            self.elapsed = self._before + max(0.0, event.time - self._session)
        try:
            getattr(self, f"_on_{event.kind}", self._ignore)(event)
        except _DAMAGE as error:
            if isinstance(error, InputError):
                raise
            what = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise InputError(f"the journal is damaged: event {event.seq} ({event.kind}): {what}") from error

    def _ignore(self, event: Event) -> None:
        """Kinds of later versions change nothing here."""

    def _on_created(self, event: Event) -> None:
        self.created, self._kept = event.payload, None
        axes = event.payload.get("objective")
        objective = Objective.of(axes) if axes else None
        self.constraints = Constraints.of(event.payload["spec"].get("constraints"), objective)
        reference = event.payload["reference"]
        self.archive = Archive((reference["error"], reference["macs"]))

    def rest(self) -> None:
        """No driver is at work: time stands still, and what was running waits, since its worker is gone too."""
        self._before, self._session = self.elapsed, None
        for trial in self._live.values():
            if trial.state == "running":
                trial.state = "asked"

    def _on_session(self, event: Event) -> None:
        self.rest()
        self._session, self.ended = event.time, ""
        self.workers = event.payload.get("workers", 0)

    def _on_ended(self, event: Event) -> None:
        self.rest()
        self.ended = event.payload["why"]

    def _on_ask(self, event: Event) -> None:
        p = event.payload
        assert event.trial is not None
        trial = Trial(event.trial, p["number"], p["config"], p["seed"], p["why"], event.time)
        trial.bracket, trial.repeats, trial.immune = p.get("bracket", 0), p.get("repeats"), bool(p.get("immune"))
        if p.get("planned"):
            self.planned.popleft()
        self.proposed += trial.repeats is None
        self.trials[event.trial] = self._live[event.trial] = trial
        if p.get("stage"):
            trial.behind = Stage(**p["stage"])
        if p.get("donor"):
            trial.donor = Donor(**p["donor"])
        if p.get("model"):
            self.models[p["model"]["method"]] = p["model"]

    def _on_known(self, event: Event) -> None:
        for told in event.payload["trials"]:
            trial = Trial(told["id"], -1 - len(self.known), told["config"], 0, "", event.time, state="finished")
            for epoch, (error, macs) in told["curves"].items():
                trial.take_arrays(int(epoch), np.array(error), np.array(macs))
            self.known.append(trial)

    def _on_elsewhere(self, event: Event) -> None:
        for told in event.payload["trials"]:
            trial = Trial(told["id"], -1 - len(self.elsewhere), told["config"], 0, "", event.time, state="finished")
            trial.take_arrays(0, *(np.array(column, dtype=float) for column in told["curve"]))
            self.elsewhere.append(trial)

    def _on_plan(self, event: Event) -> None:
        self.planned.extend(event.payload["trials"])

    def _on_start(self, event: Event) -> None:
        trial = self._trial(event)
        if not trial.over:
            trial.state = "running"
            trial.starts += 1
            trial.node, trial.heard = event.payload.get("node", ""), event.time

    def _on_setback(self, event: Event) -> None:
        trial = self._trial(event)
        trial.setbacks.append({**event.payload, "time": event.time})
        trial.state = "asked"
        trial.alone = trial.alone or event.payload["kind"] == MEMORY

    def _on_nodes(self, event: Event) -> None:
        before, self.nodes, self.workers = self.nodes, event.payload["nodes"], event.payload["workers"]
        left = {node["id"] for node in before} - {node["id"] for node in self.nodes}
        for trial in self._live.values() if left else ():  # Ray tells of a worker's death before its node's
            for each in trial.setbacks:
                if each["kind"] == DIED and each["node"] in left and event.time - each["time"] < NODE_SECONDS:
                    each["kind"] = NODE

    def _on_report(self, event: Event) -> None:
        trial, p = self._trial(event), event.payload
        epoch = _counted(p)
        if trial.behind is not None and trial.epoch == 0:
            trial.shared = not trial.stage_lost and epoch > trial.behind.epoch
        trial.epoch = epoch
        self.cost_epochs += p["cost_epochs"] - trial.cost_epochs
        trial.cost_epochs, trial.seconds = p["cost_epochs"], trial.seconds + p["seconds"]
        trial.heard = event.time
        self.work_seconds += p["seconds"]
        trial.params, trial.macs_full = p.get("params", 0), p.get("macs_full", 0)
        trial.losses[epoch], trial.phases[epoch] = p["losses"], p["phase"]
        trial.diagnostics = p.get("diagnostics")
        trial.uncaptured = str(p.get("uncaptured", ""))
        if p.get("checkpoint"):
            trial.checkpoint = p["checkpoint"]
        if "curve" in p:
            trial.shown[epoch] = {
                name: getattr(trial, name) for name in ("cost_epochs", "seconds", "params", "macs_full")
            }
            trial.take_curve(epoch, p["curve"]["points"], *self._misses(trial, epoch, p["curve"]["points"]))
            if (timed := p["curve"].get("timing")) is not None:
                self.machines[timed["machine"]] = self.machines.get(timed["machine"], 0) + len(p["curve"]["points"])
            if p["comparable"] and not trial.repeats:
                self.scored += not any(trial.comparable.values())
                self._rungs.setdefault(epoch, []).append(trial)
            trial.comparable[epoch] = p["comparable"]
            if p.get("checkpoint"):
                trial.checkpoints[epoch] = p["checkpoint"]
            self._extend_front(trial, epoch)
            if "together" in p:
                self._join(trial, epoch, p["together"])
        if p.get("stage"):
            self.stages[p["stage"]] = Stage(p["stage"], trial.id, epoch, trial.cost_epochs, trial.seconds)
        self._log()

    def _misses(
        self, trial: Trial, epoch: int, points: list[dict[str, Any]]
    ) -> tuple[np.ndarray, np.ndarray] | tuple[()]:
        """How far points are from all that is asked, and from what is asked besides an accuracy."""
        if not self.constraints:
            return ()
        begun = trial.behind.epoch if trial.shared and trial.behind else 0
        whole = trial.seconds / max(1, epoch - begun) * self.created["spec"]["budget"]["epochs"]
        besides = self.constraints.besides_accuracy()
        return self.constraints.misses(points, trial.params, whole), besides.misses(points, trial.params, whole)

    def _extend_front(self, trial: Trial, epoch: int) -> None:
        assert self.archive is not None
        error, macs = trial.arrays(epoch)
        for index, (e, m) in enumerate(zip(error.tolist(), macs.tolist(), strict=True)):
            self.archive.add(e, m, (trial.id, epoch, index))

    def _join(self, trial: Trial, epoch: int, together: list[Any]) -> None:
        """Take cascades of a trial's network with those of other trials in, for all of them, and choose the partners.

        Partners at an epoch are the trials that own points of its front with cascades: at most `PARTNERS`, the others
        of fewest points (the oldest of equals) leave. Who has left comes back never, since its checkpoint may be gone.
        """
        found = [Together(float(error), float(macs), self.trials[other].id) for error, macs, other in together]
        if not all(0 <= each.error <= 1 and 0 < each.macs < _MOST for each in found):
            raise ValueError("cascades with errors beyond [0, 1], or impossible MACs")
        if found:
            trial.take_together(epoch, found)
        for other in dict.fromkeys(each.other for each in found if each.other != trial.id):
            mine = [each._replace(other=trial.id) for each in found if each.other == other]
            self.trials[other].take_together(epoch, mine)
        front = self.joint_front(epoch)
        error, macs = trial.arrays(epoch)
        front.extend(error, macs, [(trial.id, trial.id)] * len(error))
        for each in found:
            front.add(each.error, each.macs, (trial.id, each.other))
        points = Counter(name for _, _, owners in front for name in dict.fromkeys(owners))
        before = [*self.partners.get(epoch, ()), *([trial] if epoch in trial.checkpoints else [])]
        able = [each for each in before if points[each.id]]
        kept = sorted(able, key=lambda each: (-points[each.id], -each.number))[:PARTNERS]
        self.partners[epoch] = [each for each in able if each in kept]

    def joint_front(self, epoch: int) -> Archive:
        """The front of single networks and cascades that was seen at an epoch."""
        reference = self.created["reference"]
        return self._joint.setdefault(epoch, Archive((reference["error"], reference["macs"])))

    def _on_stage(self, event: Event) -> None:
        self.stages.pop(event.payload["key"], None)
        if event.payload["action"] == "lost":
            self._trial(event).stage_lost = True

    def _on_donor(self, event: Event) -> None:
        self.lost_donors.add(event.payload["checkpoint"])

    def _on_decision(self, event: Event) -> None:
        trial, p = self._trial(event), event.payload
        trial.decided[p["epoch"]] = p["action"]
        if p["action"] == "pause":
            trial.state = "paused"
            self._paused[trial.id] = self._live.pop(trial.id)
        elif p["action"] == "promote":
            trial.state, trial.decided[p["epoch"]] = "asked", "continue"
            self._live[trial.id] = self._paused.pop(trial.id)
        elif p["action"] in ("stop", "finish"):
            self._over(trial, "stopped" if p["action"] == "stop" else "finished", p["why"])

    def _on_failed(self, event: Event) -> None:
        trial = self._trial(event)
        trial.infeasible = event.payload.get("infeasible", False)
        self.scored += not any(trial.comparable.values())
        self._over(trial, "failed", event.payload["reason"])
        self.failed.append(trial)

    def _over(self, trial: Trial, how: str, why: str) -> None:
        if self._live.pop(trial.id, None) is not None or self._paused.pop(trial.id, None) is not None:
            self.over += 1
        trial.state, trial.reason = how, why
        self._log()

    def _on_promotion(self, event: Event) -> None:
        self.promotions.append({**event.payload, "time": event.time})
        self._promoted.add(event.payload.get("id", ""))

    def _on_cascades(self, event: Event) -> None:
        payload = event.payload
        figures = [point[name] for point in payload["points"] for name in ("expected", "low", "high", "accuracy")]
        work = [float(point["macs"]) for point in payload["points"]]
        if not (all(0 <= share <= 1 for share in figures) and all(0 < macs < _MOST for macs in work)):
            raise ValueError("cascades with accuracies beyond [0, 1], or impossible MACs")
        self.cascades.append({**payload, "number": int(payload["number"]), "time": event.time})

    def _on_promoting(self, event: Event) -> None:
        self.promoting[event.payload["id"]] = event.payload

    def _on_abandoned(self, event: Event) -> None:
        self._promoted.add(event.payload["id"])

    def _trial(self, event: Event) -> Trial:
        assert event.trial is not None
        return self.trials[event.trial]

    def _log(self) -> None:
        self.history.append(History(self.elapsed, self.cost_epochs, self.over, self.hypervolume))

    # -- what is asked of the state ------------------------------------------------------------

    @property
    def kept(self) -> Kept:
        """What the study keeps from its creation: spaces, defaults and published settings of its methods."""
        if self._kept is None:
            self._kept = Kept.of(self.created)
        return self._kept

    @property
    def hypervolume(self) -> float:
        """Hypervolume of the front so far against the study's fixed reference."""
        return 0.0 if self.archive is None else float(self.archive.hypervolume)

    def saved(self) -> dict[str, Any]:
        """What shared first stages saved: trials that began behind one, epochs of cost, seconds."""
        begun = [trial.behind for trial in self.trials.values() if trial.shared and trial.behind]
        return {
            "finished": len(self.stages),
            "shared": len(begun),
            "epochs_saved": sum(stage.cost_epochs for stage in begun),
            "seconds_saved": sum(stage.seconds for stage in begun),
            "trained_again": sum(trial.stage_lost for trial in self.trials.values()),
        }

    def donor_of(self, trial: Trial) -> str:
        """The name among the study's checkpoints of what a trial begins with; empty where that is nothing."""
        if trial.donor is not None:
            return trial.donor.checkpoint
        named = self.created.get("donors", {}).get(trial.config.get("donor", ""), {})
        return named.get("checkpoint", "")

    @property
    def live(self) -> list[Trial]:
        """Trials that are asked for, not over and not paused, oldest first."""
        return list(self._live.values())

    @property
    def paused(self) -> list[Trial]:
        """Trials that wait at a rung, oldest first."""
        return list(self._paused.values())

    def elapsed_at(self, now: float | None = None) -> float:
        """Seconds of work, while a session runs up to `now` (this moment)."""
        if self._session is None:
            return self.elapsed
        return self._before + max(0.0, (time.time() if now is None else now) - self._session)

    @property
    def has_points(self) -> bool:
        """Whether any trial has an operating point."""
        return any(trial.curves for trial in self.trials.values())

    def count(self) -> dict[str, int]:
        """Trials by state."""
        counts = {"running": 0, "stopped": 0, "finished": 0, "failed": 0, "waiting": 0, "paused": 0}
        for trial in self.trials.values():
            counts["waiting" if trial.state == "asked" else trial.state] += 1
        return {**counts, "total": len(self.trials)}

    def half_promoted(self) -> list[dict[str, Any]]:
        """Promotions that were begun and of which nobody wrote what became of them, oldest first."""
        return [payload for name, payload in self.promoting.items() if name not in self._promoted]

    def front(self) -> list[tuple[str, int, int]]:
        """(trial, epoch, index of the point in its curve) of the front, cheapest first."""
        return [] if self.archive is None else [key for _, _, key in self.archive]

    def rung(self, epoch: int) -> list[Trial]:
        """Trials with a comparable curve at an epoch, in the order in which they came."""
        return self._rungs.get(epoch, [])

    def rung_epochs(self) -> list[int]:
        """Epochs at which any trial has a comparable curve, rising."""
        return sorted(self._rungs)

    def digest(self) -> str:
        """SHA-256 over everything that later decisions depend on."""
        trials = {name: trial.record() for name, trial in sorted(self.trials.items())}
        stages = {key: asdict(stage) for key, stage in sorted(self.stages.items())}
        content = {"trials": trials, "stages": stages, "front": self.front(), "created": self.created}
        content["models"] = self.models
        content["planned"], content["lost_donors"] = list(self.planned), sorted(self.lost_donors)
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
