"""The Python entry point: create, load and launch a study, ask for its frontier, promote from it.

>>> from search import Study
>>> study = Study.create(StudySpec.read(Path("study.toml")))   # doctest: +SKIP
>>> study.launch()                                             # doctest: +SKIP
>>> study.frontier(max_macs=20e6)                              # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.folder import StudyFolder
from search.front import FrontPoint
from search.journal import Journal, journal_address
from search.kept import Kept, otherwise
from search.spec import StudySpec, studies_root
from search.state import StudyState
from search.storage import bring, shown, stored_names, write_spec
from search.toml import merge, read_toml, to_toml
from spaces.space import nearest

if TYPE_CHECKING:  # torch, Ray and Optuna are only needed to launch; looking at a study is quick without
    from search.driver import Driver
    from search.run import Watcher
    from trainables.data import Data

_DRAIN_SECONDS, _HURRIED_SECONDS = 60.0, 5.0


class Study:
    """A study on disk: its spec, its folder, its journal. Reading needs no lease, launching takes it."""

    def __init__(self, spec: StudySpec, folder: StudyFolder) -> None:
        self.spec, self.folder = spec, folder

    # -- opening -------------------------------------------------------------------------------

    @classmethod
    def create(cls, spec: StudySpec, *, root: Path | None = None, data: Data | None = None) -> Study:
        """A new study, or the one of that name if it has the same spec.

        Everything that can be wrong is checked before anything is written. Raises `InputError`
        where a study of that name has another spec, data are missing, a network does not fit its
        images, or the folder cannot be written.
        """
        from search.creation import create, same

        folder = StudyFolder(studies_root(root) / spec.name)
        bring(folder)
        if folder.spec.exists():
            same(cls.load(spec.name, root=root).spec, spec)
        else:
            create(spec, folder, data or load_data(spec), root)
        return cls(spec, folder)

    @classmethod
    def load(cls, name: str | Path, *, root: Path | None = None) -> Study:
        """An existing study, by name or by the path of its folder."""
        base = studies_root(root)
        path = Path(name) if Path(name).joinpath("study.toml").exists() else base / str(name)
        folder = StudyFolder(path.resolve())
        bring(folder)
        if not folder.spec.exists():
            known = sorted({p.parent.name for p in base.glob("*/study.toml")} | set(stored_names(base)))
            hint = nearest(str(name), known) if known else "; there is no study yet (routefront search starts one)"
            raise InputError(f"no study {str(name)!r} in {shown(base)}{hint}")
        return cls(StudySpec.parse(read_toml(folder.spec), str(folder.spec), trusted=True), folder)

    @classmethod
    def spec_of(cls, values: Mapping[str, Any], origin: str, *, root: Path | None = None) -> StudySpec:
        """The spec in plain values, checked but for the methods of a study that exists: it keeps its own spaces."""
        spec = StudySpec.parse(values, origin, trusted=True)
        folder = StudyFolder(studies_root(root) / spec.name)
        bring(folder)
        return spec if folder.spec.exists() else StudySpec.parse(values, origin)

    def journal(self) -> Journal:
        """The study's journal, open for reading."""
        return Journal(journal_address(self.spec, self.folder), self.spec.name)

    def state(self) -> StudyState:
        """The state as the journal tells it now; without a driver nothing is running."""
        journal = self.journal()
        try:
            held = journal.held()  # first: what a driver that ends meanwhile wrote last is then read, too
            state = StudyState.of(journal.events())
            if not held:
                state.rest()
            return state
        finally:
            journal.close()

    def kept(self) -> Kept:
        """What the study keeps from its creation, without reading all that happened since."""
        journal = self.journal()
        try:
            return Kept.by(journal)
        finally:
            journal.close()

    def status(self) -> str:
        """running, finished, failed (without an operating point), stopped, interrupted or terminated."""
        journal = self.journal()
        try:
            if journal.held():
                return "running"
            return self.state().ended or "interrupted"
        finally:
            journal.close()

    # -- writing -------------------------------------------------------------------------------

    def extend(self, *, trials: int | None = None, time: float | None = None, cost: float | None = None) -> Study:
        """The study with other limits (of trials, seconds, cost, in all), written into its folder.

        A driver that is at work takes them up within seconds, a later one begins with them. Raises `InputError`
        where a limit is not one.
        """
        limits = {"budget.trials": trials, "budget.time": time, "budget.cost": cost}
        spec = StudySpec.parse(merge(self.spec.model_dump(exclude_none=True), limits), "extend", trusted=True)
        found = Study(spec, self.folder)
        found._write()
        return found

    def _write(self) -> None:
        write_spec(self.folder, to_toml(self.spec.model_dump(mode="json", exclude_none=True)))

    @contextlib.contextmanager
    def driving(self) -> Iterator[Driver]:
        """Hold the lease and write: yields the driver, closed at the end whatever happens."""
        from search.driver import Driver

        journal = self.journal()
        journal.acquire()
        driver = Driver(self.folder, self.spec, journal)
        try:
            driver.replay(journal.events())
            if Study.load(self.folder.path).spec.budget != self.spec.budget:  # `resume` with other limits
                self._write()
            yield driver
        finally:
            driver.release()

    def launch(
        self,
        *,
        address: str | None = None,
        data: Data | None = None,
        watch: Watcher | None = None,
        tracking: str = "off",
        say: Callable[[str], None] = lambda text: None,
        plans: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """Run the study until its budget is spent; also continues an interrupted one.

        `tracking` is an MLflow address or "off"; `say` hears what a person should know; `plans` are trials
        to run before others (the event ``plan`` of `search.state`). Returns finished, stopped, interrupted
        (by Ctrl-C), terminated (by SIGTERM), or failed where no trial has an operating point. Trials that are over
        are never run again, those that were running go on from their last checkpoint.
        """
        from search.mlflow_client import shown
        from search.run import run
        from search.tracking import Tracker

        with self.driving() as driver:
            if plans:
                driver.record("plan", {"trials": [dict(plan) for plan in plans]})
            if driver.exhausted and driver.state.ended:
                # nothing needs to be started to see it
                return "finished" if driver.state.has_points else "failed"
            if driver.state.kept.before:
                say(otherwise(self.spec.name))
            data = data or load_data(self.spec)
            self.check_data(driver.state, data)
            tracker = None
            if tracking != "off":
                tracker = Tracker(tracking, self.spec.tracking.experiment, self.folder, self.spec)
                tracker.start()
                driver.listeners.append(tracker)
            try:
                why = run(driver, data, address=address, watch=watch)
                driver.end(why)
            finally:
                waiting = tracker.close(_HURRIED_SECONDS if driver.signal else _DRAIN_SECONDS) if tracker else 0
        if waiting:
            say(
                f"{waiting} events have not reached {shown(tracking)} yet; the next session brings them, and so does:"
                f" routefront track {self.spec.name} --to {shown(tracking)}"
            )
        return why

    def check_data(self, state: StudyState, data: Data) -> None:
        """Raise `InputError` where the images are not those that the study began with."""
        before = state.created["data"]
        if data.hash != before["hash"]:
            raise InputError(
                f"study {self.spec.name!r} began with other images of {before['name']!r} "
                f"(digest {before['hash'][:12]}, now {data.hash[:12]}); start a study of another name"
            )

    def reclaimable(self) -> list[str]:
        """Folders, relative to the study's, that nothing needs any more: checkpoints, first stages, Ray's scratch."""
        from search.driver import kept_checkpoints

        state = self.state()
        keep = kept_checkpoints(state)
        found = [
            f"checkpoints/{name}"
            for name in sorted(self.folder.kept())
            if name not in keep and ((trial := name.split("/")[0]) not in state.trials or state.trials[trial].over)
        ]
        found += [f"checkpoints/stages/{key}" for key in self.folder.stored_stages() if key not in state.stages]
        return found + [f"ray/{path.name}" for path in self.folder.ray.glob("session-*")]

    # -- asking --------------------------------------------------------------------------------

    def frontier(
        self, *others: Study, method: str | None = None, latency: bool = False, sure: bool = False, **wishes: Any
    ) -> list[FrontPoint]:
        """The non-dominated operating points, cheapest first (accuracy on the validation split).

        `others`: studies of the same images, whose points take part. `wishes` are those of
        `search.query.Query`: max_macs, max_params, min_accuracy, methods, variants, networks, knobs, layers.
        `sure` adds the probability of each to be on the front, `latency` milliseconds per image measured here.
        """
        from search.fronts import ask

        asked = {**wishes, "methods": [*wishes.get("methods", ()), *([method] if method else [])]}
        points = list(ask([self, *others], sure=sure, **asked).points)
        if latency and points:
            from search.latency import measured

            points = measured([self, *others], points)
        return points

    def promote(self, *, model: str, uri: str, **options: Any) -> dict[str, Any]:
        """Promote one operating point: see `search.promote.promote_study`."""
        from search.promote import promote_study

        return promote_study(self, model=model, uri=uri, **options)

    def promote_family(self, *, model: str, uri: str, budgets: Sequence[float | str], **options: Any) -> list[Any]:
        """Promote a champion for every budget: see `search.promote.promote_family`."""
        from search.promote import promote_family

        return promote_family(self, model=model, uri=uri, budgets=budgets, **options)


def load_data(spec: StudySpec) -> Data:
    """The images of a study."""
    from trainables import data as datasets

    root = Path(spec.data.root) if spec.data.root else datasets.default_root()
    try:
        return datasets.load(spec.data.name, root=root, image_size=spec.data.image_size, limit=spec.data.limit)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None


def all_studies(root: Path | None = None) -> list[Study]:
    """Every study under a root, oldest first; folders that cannot be read are left out."""
    found = []
    for name in stored_names(studies_root(root)):
        bring(StudyFolder(studies_root(root) / name))
    for path in sorted(studies_root(root).glob("*/study.toml"), key=lambda p: p.stat().st_mtime):
        with contextlib.suppress(InputError):
            found.append(Study.load(path.parent))
    return found
