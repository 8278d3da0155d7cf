"""The driver, the one process that writes a study: the engine with the study's folder (points, checkpoints)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cluster.resources import ALIVE, Node
from search.engine.engine import Engine, driven, engine_at
from search.engine.shared_stages import SharedStages
from search.errors import InputError
from search.journal.database import Journal
from search.points import files as points
from search.points.rows import PointRows
from search.spec.study import StudySpec
from search.spec.toml import read_toml
from search.state.kept import Kept
from search.state.retention import kept_checkpoints
from search.state.setbacks import DIED, MEMORY, NODE, is_out_of_memory, last_line
from search.state.trial import Donor, Trial
from search.studies import summary
from search.studies.courier import Courier
from search.studies.folder import StudyFolder
from search.studies.roots import DRIVER_PATIENCE
from search.studies.stored import StoredStudy
from search.units import AxesText, machines_text
from trainables.checkpoints import STATE, CheckpointError, read_record

_FLUSH_ROWS = 500
_ALIKE = 8
FLUSH_SECONDS = 5.0
"""Operating points of a running study are at most so much older in its files than in its journal, which is asked."""
_log = logging.getLogger("routefront.search")


class Driver(Engine):
    """An engine whose journal is a database and that keeps the study's folder: points, checkpoints, stages.

    `draining`: nodes that are about to leave the cluster. `notes`: why workers were ended from here, by trial.
    `nodes` tells which nodes the cluster has now. `worth` says what cascades of a network that has just reported reach
    (`search.cascades.worth`), where the objective asks for it.
    """

    journal: Journal

    def __init__(self, folder: StudyFolder, spec: StudySpec, journal: Journal, workers: int = 1) -> None:
        kept = Kept.by(journal)
        super().__init__(
            str(folder.path),
            spec,
            journal,
            workers,
            spaces=kept.spaces,
            papers=kept.papers,
            clock=journal.now,
            background=True,
        )
        folder = replace(folder, patience=DRIVER_PATIENCE)
        self.folder = folder
        self.draining: set[str] = set()
        self.notes: dict[str, tuple[str, str]] = {}
        self.nodes: Callable[[], Sequence[Node]] = tuple
        self.worth: Callable[[Trial, Mapping[str, Any]], list[Any]] | None = None
        self.stages = SharedStages(folder, self.proposer, self.state)
        self.courier = Courier(folder)
        self._spec_text = ""
        self._judged: set[str] = set()
        self._machines = len(self.state.machines)
        self._rows: list[dict[str, Any]] = []
        self._made = PointRows(self.state)
        self._flushed = self._pruned = time.monotonic()

    def orders(self, trial: Trial, evaluate_at: list[int]) -> dict[str, Any]:
        """See `SharedStages.orders`; `donor`: the checkpoint that the trial begins with, by name.

        A trainable's worker is told its class and the study's axes instead: the class that the study file names, to
        which the person has agreed, never one that stands in the journal alone.
        """
        if trial.method in self.state.kept.trainables:
            reference = self.spec.references.get(trial.method)
            if reference is None:
                raise InputError(
                    f"the journal of study {self.spec.name!r} has a trainable {trial.method!r} that its study file does"
                    " not name: nothing of it is run"
                )
            return {"trainable": reference, "objective": self.spec.axes.record()}
        return {**self.stages.orders(trial, evaluate_at), "donor": self.state.donor_of(trial) or None}

    def values(self, trial: Trial) -> dict[str, Any]:
        """Every value of the trial's configuration: a worker adds no default of its own (`search.state.kept`)."""
        return self.state.kept.values(trial.config)

    def _waits(self, trial: Trial) -> bool:
        return self.stages.waits(trial)

    def _loss(self, trial: Trial) -> str:
        return self.stages.loss(trial)

    def _donor_loss(self, donor: Donor) -> str:
        remote = self.folder.remote
        if remote is not None:  # its worker compares it with its digests
            there = remote.exists(f"checkpoints/{donor.checkpoint}/{STATE}")
            return "" if there else f"checkpoint {donor.checkpoint} is not in {self.folder.storage}"
        try:
            read_record(self.folder.checkpoints / donor.checkpoint)
        except CheckpointError as error:
            return str(error)
        return ""

    def _together(self, trial: Trial, result: Mapping[str, Any]) -> list[Any] | None:
        if self.worth is None or not result["comparable"] or trial.repeats:
            return None
        return self.worth(trial, result)

    def _took(self, trial: Trial, epoch: int) -> None:
        self._tells_apart(trial.method)
        if len(self.state.machines) > max(1, self._machines):
            self._machines = len(self.state.machines)
            _log.warning("%s", machines_text(self.state.machines))
        self._rows += self._made.of(trial, epoch)
        if len(self._rows) >= _FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def _tells_apart(self, method: str) -> None:
        """Warn once where the first trials of a trainable all show one figure: nothing can be learnt from that."""
        if method not in self.state.kept.trainables or method in self._judged:
            return
        shown = [t for t in self.state.trials.values() if t.method == method and t.curves]
        if len(shown) < _ALIKE:
            return
        self._judged.add(method)
        if len({point["accuracy"] for t in shown for curve in t.curves.values() for point in curve}) == 1:
            axes = AxesText.of(self.state.created)
            accuracy = shown[0].curves[min(shown[0].curves)][0]["accuracy"]
            _log.warning(
                "trainables.%s: all of its first %d trials show %s %s, whatever their configuration: nothing can be"
                " learnt from that",
                method,
                len(shown),
                axes.objective.merit.name,
                axes.merit(accuracy),
            )

    def _ended(self, trial: Trial) -> None:
        if time.monotonic() - self._pruned >= FLUSH_SECONDS:  # it looks at all points of the study
            self.prune()
        if trial.state != "failed":
            self._drop_stages()

    def seen(self, nodes: Sequence[Node], workers: int) -> None:
        """Follow the cluster: what joins or leaves is an event."""
        share = self.spec.resources.cpus_per_trial, self.spec.resources.gpus_per_trial
        self.alone.fit([node.holds(*share) for node in nodes if node.state == ALIVE and node.holds(*share)], workers)
        records = [node.record() for node in nodes]
        if (records, workers) != (self.state.nodes, self.state.workers):
            self.workers = workers
            self.record("nodes", {"nodes": records, "workers": workers})

    def take_budget(self) -> None:
        """Take up other limits that were written into the study's folder since the last look (`Study.extend`)."""
        try:
            text = self.folder.spec.read_text()
            before, self._spec_text = self._spec_text, text
            if text == before:
                return
            budget = StudySpec.parse(read_toml(self.folder.spec), str(self.folder.spec), trusted=True).budget
        except FileNotFoundError:
            return
        except (InputError, OSError) as error:  # somebody's editor; the limits stay what they are
            _log.warning("the study's file cannot be read: %s", error)
            return
        limits = {name: getattr(budget, name) for name in ("trials", "time", "cost")}
        if budget != self.spec.budget.model_copy(update={"epochs": budget.epochs}):
            self.spec = self.spec.model_copy(update={"budget": self.spec.budget.model_copy(update=limits)})
            self.record("budget", limits)
            _log.warning("the study's limits are now: %s", ", ".join(f"{k} {v}" for k, v in limits.items() if v))

    def lost(self, name: str, attempt: int, error: str) -> None:
        """A trial's worker is gone: find out why, and whether the trial is tried again (`Engine.setback`)."""
        if not self.holds(name, attempt):
            return
        trial, note = self.state.trials[name], self.courier.note_of(name)
        if self.stopping:  # it was asked to leave, or would have been
            self.take_back(name)
            return
        if name in self.notes:
            kind, why = self.notes.pop(name)
        elif note is not None:
            kind, why = note["kind"], note["why"]
        elif is_out_of_memory(error):
            kind, why = MEMORY, last_line(error)
        elif trial.node and trial.node not in {node.id for node in self.nodes()}:
            kind, why = NODE, f"its node {trial.node[:8]} has left the cluster"
        else:
            kind, why = DIED, last_line(error)
        self.setback(name, kind, why)

    def flush(self) -> None:
        """Write the operating points that are not written yet."""
        with self._lock:
            if self._rows:
                points.write(self._rows, self.folder.points)
                self._rows, self._flushed = [], time.monotonic()
                self.courier.points()

    def recover_points(self) -> None:
        """Write the points of the journal that an interrupted session had not flushed."""
        with self._lock:
            table = points.read(self.folder.points, columns=["point_id"])
            written = set(table.column("point_id").to_pylist())
            for trial in self.state.trials.values():
                for epoch in trial.curves:
                    rows = self._made.of(trial, epoch)
                    self._rows += [row for row in rows if row["point_id"] not in written]
            self.flush()

    def prune(self) -> None:
        """Keep of trials that are over only the checkpoints that `kept_checkpoints` names."""
        self._pruned = time.monotonic()
        self.courier.tidy((t.id for t in self.state.trials.values() if t.over), kept_checkpoints(self.state))

    def _drop_stages(self) -> None:
        for stage in self.stages.surplus():
            why = f"not among the best {self.spec.stages.keep}"
            self.record("stage", {"key": stage.key, "action": "dropped", "why": why}, stage.trial)
            self.courier.remove_stage(stage.key)

    def end(self, why: str) -> None:
        """Say why the session ends; the points of many small files become one."""
        self.prune()
        self.flush()
        points.compact(self.folder.points)
        self.courier.points()
        self.record("ended", {"why": why})

    def release(self) -> None:
        """Give the lease back and close the journal; what was not said is found at the next start."""
        self.courier.close()
        self.journal.close()
        self.close()


@contextlib.contextmanager
def driving(study: StoredStudy) -> Iterator[Driver]:
    """Hold a study's lease and write: yields the driver, closed at the end whatever happens."""
    journal = study.journal()
    journal.acquire()
    driver = Driver(study.folder, study.spec, journal)
    try:
        driver.replay(journal.events())
        if study.stored.budget != study.spec.budget:  # `resume` with other limits
            study.write()
        with driven(driver):
            yield driver
    finally:
        driver.release()
    summary.keep(study, driver.state)


def driver_at(path: str) -> Driver:
    """The live driver of a study folder, for objects that came out of a pickle."""
    driver = engine_at(path)
    if not isinstance(driver, Driver):
        raise InputError(f"{path} is a simulation and has no folder")
    return driver
