"""From the frontier to the model registry: choose points, pass the gates, register them, move the aliases.

What is promoted is an operating point: a checkpoint with its knobs. Thresholds and the choice see
the validation split only; the test split is evaluated once per point, and its figures annotate.

The order is that of the journal: `promoting` is appended before the registry is touched, `promotion`
once the alias points to the version, `abandoned` where it never will. Whatever a killed process left
open is settled by the study's next promotion, by what the registry shows (`search.promotion.ledger`).
"""

from __future__ import annotations

import contextlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.cascades.front import cascade_points, find_cascade, is_cascade, point_of, within
from search.errors import InputError, RunError
from search.frontier.pool import StudyPoints
from search.frontier.query import Query
from search.promotion.calibration import own_images
from search.promotion.candidate import Candidate, candidate_of, figures_on_test
from search.promotion.cascades import cascade_candidate
from search.promotion.choice import Budget, Target, choose, family, find, own_family
from search.promotion.compare import MARGIN, check_margin
from search.promotion.compare import gate as compare_gate
from search.promotion.external import external_candidate
from search.promotion.gates import Gate, beats, champion_of, failed
from search.promotion.history import rollback
from search.promotion.ledger import Lock, answering, confirmed, holding, move_alias
from search.promotion.models import check_names, checked, client_at, load, no_registry, predict
from search.promotion.signatures import sign, signing_key
from search.promotion.versions import existing_version, folder_digest, model_code, note_promotion, register
from search.state.state import StudyState
from search.studies.trust import CODE
from search.tracking.chronicle import study_id
from search.tracking.server import shown, using
from search.units import AxesText

if TYPE_CHECKING:
    from search.engine.driver import Driver
    from search.studies.stored import StoredStudy
    from trainables.data.splits import Data
    from trainables.external import Measured

__all__ = ["choose", "find", "load", "model_code", "predict", "promote_family", "promote_study", "rollback"]


def promote_study(
    study: StoredStudy,
    *,
    model: str,
    uri: str,
    alias: str = "champion",
    max_macs: float | None = None,
    min_accuracy: float | None = None,
    cost: float | None = None,
    merit: float | None = None,
    method: str | None = None,
    point: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Promote one point: the best under a budget, or `point` by its identity.

    `cost` and `merit` are a budget in the study's own figures (`search.frontier.query.Query`): milliseconds where the
    cost is a latency. `options`: `calibrate_on` (a folder of one's own images), `max_latency` (seconds alone),
    `compare_on` (labelled class folders on which the point must be better than the champion, or not worse by more than
    `margin`), `dry_run` (nothing is written, the study may be running), `cascades` (the best cascade under the budget
    instead of a single point), `data`. Returns the record of the journal's event `promotion` with `promoted` and `why`.
    Raises `InputError` for what cannot be, `RunError` naming the gate that failed; a dry run returns instead.
    """
    cascades = options.pop("cascades", False)
    if cost is not None and (cascades or (point is not None and is_cascade(point))):
        raise InputError(f"cost {cost:g}: cascades have MACs alone; give max_macs")
    for name in ("calibrate_on", "compare_on"):
        if options.get(name) is not None and (cascades or (point is not None and is_cascade(point))):
            raise InputError(f"--{name.replace('_', '-')} takes a single operating point, not a cascade")

    def targets(promoter: Promoter) -> list[Target]:
        axes = AxesText.of(promoter.state.created).objective
        wish = Query(max_macs=max_macs, min_accuracy=min_accuracy, cost=cost, merit=merit).on_axes(axes)
        budget = Budget(wish.max_macs, wish.min_accuracy)
        if axes.timing is not None:  # MACs are counted, whatever was searched for
            budget = Budget(max_macs, wish.min_accuracy, cost)
        if point is not None and is_cascade(point):
            composition, record = find_cascade(promoter.state, point)
            return [Target(alias, budget, point_of(study.spec.name, composition, record))]
        if point is not None:
            return [Target(alias, budget, find(promoter.state, point))]
        if cascades:
            found = within(cascade_points(promoter.state), budget.max_macs, budget.min_accuracy)
            return [Target(alias, budget, found)]
        return [Target(alias, budget, choose(StudyPoints(study, promoter.state), budget, method))]

    check_names(model, alias)
    (outcome,) = _promote(study, model, uri, targets, **options)
    if not outcome["promoted"] and not options.get("dry_run"):
        raise RunError(f"point {outcome['point_id']} is not promoted: {outcome['why']}")
    return outcome


def promote_family(
    study: StoredStudy,
    *,
    model: str,
    uri: str,
    budgets: Sequence[float | str],
    alias: str = "champion",
    method: str | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """A champion for every budget of MACs, cheapest first: aliases ``champion-5M``, ``champion-10M``, ...

    A point that is best under two budgets is one version with two aliases. An alias whose gates fail
    stays where it is; `RunError` where all fail. Options and result, one for each, as in `promote_study`.
    """
    axes = study.spec.axes
    in_macs = axes.usual or axes.timing is not None
    wishes = family(alias, budgets) if in_macs else own_family(alias, budgets, axes)

    def targets(promoter: Promoter) -> list[Target]:
        source = StudyPoints(study, promoter.state)
        return [Target(name, budget, choose(source, budget, method)) for name, budget in wishes.items()]

    for name in wishes:
        check_names(model, name)
    outcomes = _promote(study, model, uri, targets, **options)
    if not options.get("dry_run") and not any(outcome["promoted"] for outcome in outcomes):
        raise RunError("; ".join(f"{o['alias']} stays: point {o['point_id']}: {o['why']}" for o in outcomes))
    return outcomes


def _promote(
    study: StoredStudy,
    model: str,
    uri: str,
    targets: Any,
    *,
    calibrate_on: Path | None = None,
    max_latency: float | None = None,
    compare_on: Path | None = None,
    margin: float = MARGIN,
    dry_run: bool = False,
    data: Data | None = None,
) -> list[dict[str, Any]]:
    from search.studies.stored import load_subject

    check_margin(margin)
    signing_key()  # refused before anything is measured
    absent = dry_run and no_registry(uri)
    client = None if absent else client_at(uri, must_exist=dry_run)
    with _opened(study, dry_run) as (state, driver):
        promoter = Promoter(study, state, driver, client, model, uri)
        chosen = targets(promoter)
        external = {each.point.method for each in chosen} & set(state.created.get("trainables", {}))
        if external or not study.spec.methods:
            study.permit(CODE)
        subject = data or load_subject(study.spec)
        study.check_data(state, subject)
        for name, given in (("calibrate_on", calibrate_on), ("compare_on", compare_on)):
            if given is not None and external:
                raise InputError(
                    f"--{name.replace('_', '-')} takes images, and {', '.join(sorted(external))} is a trainable"
                )
        own = own_images(calibrate_on, images_of(subject)) if calibrate_on is not None else None
        promoter.settle()
        identity = promoter.identity()
        candidates: dict[Any, Candidate] = {}
        plans: list[_Plan] = []
        for target in chosen:
            key = (target.point.point_id, target.budget if own else None)
            if key in candidates:
                pass
            elif target.point.method in external:
                candidates[key] = external_candidate(study, state, identity, subject, target, max_latency)
            elif target.point.kind == "cascade":
                candidates[key] = cascade_candidate(study, state, identity, images_of(subject), target, max_latency)
            else:
                images = images_of(subject)
                candidates[key] = candidate_of(study.folder, state, identity, images, target, own, max_latency)
            with answering(uri):
                plans.append(promoter.plan(target, candidates[key], compare_on, margin))
        if dry_run:
            return [plan.outcome() for plan in plans]
        with answering(uri):
            return promoter.carry_out(plans, subject)


def images_of(subject: Data | Measured) -> Data:
    """The images of a study that has methods."""
    from trainables.data.splits import Data

    assert isinstance(subject, Data), "a study whose points are networks has images"
    return subject


@contextlib.contextmanager
def _opened(study: StoredStudy, dry_run: bool) -> Iterator[tuple[StudyState, Driver | None]]:
    if dry_run:
        yield study.state(), None
        return
    from search.engine.driver import driving

    with driving(study) as driver:
        yield driver.state, driver


class _Plan:
    """A target, its candidate, and whether the alias may move."""

    def __init__(
        self,
        target: Target,
        candidate: Candidate,
        champion: Gate,
        version: str | None,
        model: str,
        compared: Gate | None = None,
    ) -> None:
        self.target, self.candidate, self.champion, self.model = target, candidate, champion, model
        self.compared = compared
        self.champion_version = version
        self.id = secrets.token_hex(6)
        self.version: str | None = None
        self.previous: str | None = None
        self.tracking = ""

    @property
    def gates(self) -> list[Gate]:
        asked = [] if self.compared is None else [self.compared]
        return [*self.candidate.gates, self.champion, *asked, self.candidate.test_gate()]

    @property
    def why(self) -> str:
        gate = failed(self.gates)
        return f"gate {gate.name}: {gate.says}" if gate else ""

    def record(self) -> dict[str, Any]:
        """The payload of `promoting` and `promotion`."""
        return {
            "id": self.id,
            "model": self.model,
            "version": self.version,
            "alias": self.target.alias,
            "previous": self.previous,
            "budget": self.target.budget.record(),
            **self.candidate.record(),
            "gates": [gate.record() for gate in self.gates],
            "tracking": self.tracking,
        }

    def outcome(self, promoted: bool = False) -> dict[str, Any]:
        return {**self.record(), "promoted": promoted, "why": self.why}


class Promoter:
    """One promotion out of one study: what is asked of the registry and written to the journal."""

    def __init__(
        self, study: StoredStudy, state: StudyState, driver: Driver | None, client: Any, model: str, uri: str
    ) -> None:
        self.study, self.state, self.driver = study, state, driver
        self.client, self.model, self.uri = client, model, uri

    def identity(self) -> str:
        """The study's identity in MLflow."""
        journal = self.driver.journal if self.driver else self.study.journal()
        try:
            created = journal.first()
            assert created is not None, "the journal of a study that has points has a first event"
            return study_id(created)
        finally:
            if self.driver is None:
                journal.close()

    def settle(self) -> None:
        """Finish or abandon what an earlier promotion of this study left half done in this registry."""
        if self.driver is None:
            return
        for intent in self.state.half_promoted():
            if intent["tracking"] != shown(self.uri):
                continue
            with answering(self.uri):
                move = confirmed(self.client, intent["model"], intent["alias"], intent["id"])
            if move is None:
                self._write("abandoned", {"id": intent["id"], "why": "its process ended before the alias moved"})
            else:
                self._write("promotion", {**intent, "version": move["version"], "previous": move["previous"]})

    def _write(self, kind: str, payload: Mapping[str, Any]) -> None:
        assert self.driver is not None
        self.driver.record(kind, payload)

    def plan(
        self, target: Target, candidate: Candidate, compare_on: Path | None = None, margin: float = MARGIN
    ) -> _Plan:
        """The gates of a target, the champion's included, and `compare` where labelled images are given."""
        champion = champion_of(self.client, self.model, target.alias)
        gate = beats(champion, candidate.evidence.tags(), target.budget)
        version, compared = champion.version if champion else None, None
        if compare_on is not None:
            evidence, name = candidate.evidence, None if version is None else f"{self.model}/{version}"
            network, data = evidence.network, evidence.data
            compared = compare_gate(name, network, data, evidence.knobs, compare_on, self.uri, margin)
        return _Plan(target, candidate, gate, version, self.model, compared)

    def carry_out(self, plans: list[_Plan], data: Any) -> list[dict[str, Any]]:
        """Register what passes, move the aliases under the lock, write the journal; what became of each."""
        passing = [plan for plan in plans if failed(plan.gates) is None]
        outcomes = {plan.id: self._stands(plan) or plan.outcome() for plan in plans}
        moving = [plan for plan in passing if not outcomes[plan.id]["promoted"]]
        for plan in moving:
            plan.tracking = shown(self.uri)
            plan.candidate.evidence.test = figures_on_test(self.state, plan.candidate, data)
            self._write("promoting", plan.record())
        for plan in moving:
            plan.version = self._version(plan.candidate)
        if moving:
            with holding(self.client, self.model) as lock:
                for plan in moving:
                    outcomes[plan.id] = self._move(lock, plan)
        return [outcomes[plan.id] for plan in plans]

    def _stands(self, plan: _Plan) -> dict[str, Any] | None:
        """The promotion that stands already: the alias points to this very point and the journal knows."""
        mine = (self.model, plan.target.alias, plan.champion_version, plan.target.point.point_id, shown(self.uri))
        for line in reversed(self.state.promotions):
            names = ("model", "alias", "version", "point_id", "tracking")
            same = tuple(line.get(name) for name in names) == mine and plan.champion.passed
            if same and "gates" in line and line["knobs"] == plan.candidate.evidence.knobs:
                return {**line, "promoted": True, "why": "it is the champion already"}
        return None

    def _version(self, candidate: Candidate) -> str:
        evidence = candidate.evidence
        found = existing_version(self.client, self.model, evidence)
        if found is not None:
            self._sign(found)
            return found
        experiment = self.study.spec.tracking.experiment
        return register(self.client, self.uri, experiment, self.model, evidence, self.study.folder, model_code())

    def _sign(self, version: str) -> None:
        """Sign a version that an earlier promotion stored, where there is a key now and none had signed it."""
        if signing_key() is None:
            return
        found = self.client.get_model_version(self.model, version)
        with tempfile.TemporaryDirectory(prefix="routefront-") as scratch, using(self.uri) as mlflow:
            folder = checked(mlflow, self.model, found, Path(scratch), signed=False)
            sign(self.client, found, folder, folder_digest(folder))

    def _move(self, lock: Lock, plan: _Plan) -> dict[str, Any]:
        """Move one alias, if the champion is still the one that was beaten, or is beaten as well."""
        assert plan.version is not None
        alias, tags = plan.target.alias, plan.candidate.evidence.tags()
        champion = champion_of(self.client, self.model, alias)
        if (champion.version if champion else None) != plan.champion_version:
            plan.champion = beats(champion, tags, plan.target.budget)
            if plan.compared is not None:
                says = "the champion changed while this point was compared with the one before: promote again"
                plan.compared = Gate("compare", False, says, plan.compared.evidence)
            if failed(plan.gates) is not None:
                self._write("abandoned", {"id": plan.id, "why": plan.why})
                return plan.outcome()
        note_promotion(self.client, self.model, plan.version, alias, plan.record())
        name = self.study.spec.name
        plan.previous = move_alias(
            self.client, lock, self.model, alias, plan.version, "promote", identity=plan.id, study=name
        )
        self._write("promotion", plan.record())
        return plan.outcome(promoted=True)
