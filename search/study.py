"""Create, load and launch a study, ask for its frontier, promote from it; `routefront` has it among the public names.

>>> from routefront import Study, StudySpec
>>> study = Study.create(StudySpec.read(Path("study.toml")))   # doctest: +SKIP
>>> study.launch()                                             # doctest: +SKIP
>>> study.frontier(max_macs=20e6)                              # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from search.errors import InputError
from search.frontier.point import FrontPoint
from search.spec.study import StudySpec
from search.state.kept import otherwise
from search.studies.folder import StudyFolder, bring
from search.studies.roots import studies_root
from search.studies.stored import StoredStudy, load_subject
from search.studies.trust import CODE

if TYPE_CHECKING:  # torch, Ray and Optuna are only needed to launch; looking at a study is quick without
    from search.engine.driver import Driver
    from search.state.state import StudyState
    from search.tune.run import Watcher
    from trainables.data.splits import Data
    from trainables.external import Measured


_DRAIN_SECONDS, _HURRIED_SECONDS = 60.0, 5.0


class Study(StoredStudy):
    """A study that can be created, launched, asked for its frontier and promoted from. Launching takes the lease.

    `left`: the state as the last `launch` left it, so that nobody has to fold the journal again; None before it.
    """

    left: StudyState | None = None

    @classmethod
    def create(cls, spec: StudySpec, *, root: Path | None = None, data: Data | Measured | None = None) -> Study:
        """A new study, or the one of that name if it has the same spec.

        Everything that can be wrong is checked before anything is written. Raises `InputError`
        where a study of that name has another spec, data are missing, a network does not fit its
        images, or the folder cannot be written. Where the spec names no methods, those that do not fit are left out.
        """
        from search.planning.creation import create, placed, same

        unnamed = "methods" not in spec.model_fields_set
        given, spec = spec, placed(spec)
        folder = StudyFolder(studies_root(root) / spec.name)
        bring(folder)
        if folder.spec.exists():
            stored = cls.load(spec.name, root=root).spec
            if unnamed:  # it goes on with the methods that it found then
                spec = spec.model_copy(update={"methods": stored.methods})
            same(placed(stored), spec)
            found = cls(spec, folder, stored)
        else:
            from search.planning.fitting import fitting
            from search.promotion.models import donor_of

            data = data or load_subject(spec)
            if unnamed and spec.methods:
                spec = spec.model_copy(update={"methods": fitting(given, cast("Data", data)).methods})
            create(spec, folder, data, root, partial(donor_of, spec, root))
            found = cls(spec, folder)
        found.agree()  # the addresses are this person's own: no later command asks
        return found

    @classmethod
    def spec_of(cls, values: Mapping[str, Any], origin: str, *, root: Path | None = None) -> StudySpec:
        """The spec in plain values, checked but for the methods of a study that exists: it keeps its own spaces."""
        spec = StudySpec.parse(values, origin, trusted=True)
        folder = StudyFolder(studies_root(root) / spec.name)
        bring(folder)
        return spec if folder.spec.exists() else StudySpec.parse(values, origin)

    def driving(self) -> AbstractContextManager[Driver]:
        """Hold the lease and write: see `search.engine.driver.driving`."""
        from search.engine.driver import driving

        return driving(self)

    def launch(
        self,
        *,
        address: str | None = None,
        data: Data | Measured | None = None,
        watch: Watcher | None = None,
        tracking: str = "off",
        say: Callable[[str], None] = lambda text: None,
        plans: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Run the study until its budget is spent; also continues an interrupted one.

        `tracking` is an MLflow address or "off"; `say` hears what a person should know; `plans` are trials
        to run before others (the event ``plan`` of `search.state.state`). Returns finished, stopped, interrupted
        (by Ctrl-C), terminated (by SIGTERM), or failed where no trial has an operating point. Trials that are over
        are never run again, those that were running go on from their last checkpoint.
        """
        from search.tracking.server import shown
        from search.tracking.tracker import Tracker
        from search.tune.run import run

        self.permit(CODE)
        with self.driving() as driver:
            self.left = driver.state
            if plans:
                driver.record("plan", {"trials": [dict(plan) for plan in plans]})
            if driver.exhausted and driver.state.ended:
                # nothing needs to be started to see it
                return "finished" if driver.state.has_points else "failed"
            if driver.state.kept.before:
                say(otherwise(self.spec.name))
            data = data or load_subject(self.spec)
            self.check_data(driver.state, data)
            if self.spec.objective.front == "cascades":
                from search.cascades.worth import Worth

                driver.worth = Worth(driver)
            tracker = None
            if tracking != "off":
                tracker = Tracker(tracking, self.spec.tracking.experiment, self.folder, self.spec)
                tracker.start()
                driver.listeners.append(tracker)
            try:
                why = run(driver, data, address=address, watch=watch, say=say)
                driver.end(why)
                if self.spec.compose and why == "finished":
                    self._compose(driver, say)
            finally:
                waiting = tracker.close(_HURRIED_SECONDS if driver.signal else _DRAIN_SECONDS) if tracker else 0
        if waiting:
            say(
                f"{waiting} events have not reached {shown(tracking)} yet; the next session brings them, and so does:"
                f" routefront track {self.spec.name} --to {shown(tracking)}"
            )
        return why

    def _compose(self, driver: Driver, say: Callable[[str], None]) -> None:
        """Compose what the study has trained; where that cannot be, say so: the study is finished all the same."""
        from search.cascades.compose import compose

        try:
            record = compose([self], driver, say=say)
            say(f"{len(record['points'])} cascades on the front: routefront frontier {self.spec.name} --with-cascades")
        except InputError as error:
            say(f"no cascades: {error}")

    def compose(self, *others: Study, **options: Any) -> dict[str, Any]:
        """Compose cascades of this study's points and of `others` of the same images.

        `options` and what is returned and raised: see `search.cascades.compose.compose`.
        """
        from search.cascades.compose import compose

        with self.driving() as driver:
            return compose([self, *others], driver, **options)

    def frontier(
        self,
        *others: Study,
        method: str | None = None,
        latency: bool = False,
        sure: bool = False,
        expected: bool = False,
        **wishes: Any,
    ) -> list[FrontPoint]:
        """The non-dominated operating points, cheapest first (accuracy on the validation split).

        `others`: studies of the same images, whose points take part. `wishes` are those of
        `search.frontier.query.Query`: max_macs, max_params, min_accuracy, methods, variants, networks, knobs, layers.
        `sure` adds the probability of each to be on the front, `expected` the accuracy to be expected of each on other
        images, `latency` milliseconds per image measured here.
        """
        from search.frontier.answer import ask

        asked = {**wishes, "methods": [*wishes.get("methods", ()), *([method] if method else [])]}
        points = list(ask([self, *others], sure=sure, expected=expected, **asked).points)
        if latency and points:
            from search.frontier.latency import measured

            points = measured([self, *others], points)
        return points

    def _repr_html_(self) -> str:
        """The study in a notebook: what became of its trials, and its frontier. It raises nothing and asks nobody."""
        from search.errors import InputError, RunError

        try:
            from search.frontier.answer import ask
            from search.frontier.notebook import front_html

            state = self.state()
            counts = ", ".join(f"{count} {name}" for name, count in state.count().items() if count)
            more = f": {self.status()}, trials: {counts or 'none yet'}"
            front = ask([self])
            title = f"study {self.spec.name}"
            return front_html(front.points, front.dataset, title, more=more, empty=front.empty, axes=front.axes)
        except (InputError, RunError, OSError) as error:
            from html import escape

            return f"<p><b>study {escape(self.spec.name)}</b>: {escape(str(error))}</p>"

    def promote(self, *, model: str, uri: str, **options: Any) -> dict[str, Any]:
        """Promote one operating point: see `search.promotion.promotion.promote_study`."""
        from search.promotion.promotion import promote_study

        return promote_study(self, model=model, uri=uri, **options)

    def promote_family(self, *, model: str, uri: str, budgets: Sequence[float | str], **options: Any) -> list[Any]:
        """Promote a champion for every budget: see `search.promotion.promotion.promote_family`."""
        from search.promotion.promotion import promote_family

        return promote_family(self, model=model, uri=uri, budgets=budgets, **options)
