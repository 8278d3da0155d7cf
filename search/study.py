"""The Python entry point: create, load and launch a study, ask for its frontier, promote from it.

>>> from search import Study
>>> study = Study.create(StudySpec.read(Path("study.toml")))   # doctest: +SKIP
>>> study.launch()                                             # doctest: +SKIP
>>> study.frontier(max_macs=20e6)                              # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search.errors import InputError
from search.folder import StudyFolder
from search.front import FrontPoint, front_points
from search.journal import Journal, sqlite_address
from search.spec import StudySpec, corners, studies_root
from search.state import StudyState
from search.toml import read_toml, to_toml
from spaces.space import Space, nearest
from trainables.version import code_version

if TYPE_CHECKING:  # torch, Ray and Optuna are only needed to launch; looking at a study is quick without
    from search.driver import Driver
    from search.run import Watcher
    from trainables.data import Data
    from trainables.network import Task

_DRAIN_SECONDS = 60.0


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
        folder = StudyFolder(studies_root(root) / spec.name)
        if folder.spec.exists():
            study = cls.load(spec.name, root=root)
            _same(study.spec, spec)
            return cls(spec, folder)
        data = data or load_data(spec)
        created = {
            "spec": spec.model_dump(mode="json"),
            "reference": reference(spec.spaces(), data.task),
            "data": {
                "name": data.name,
                "hash": data.hash,
                "classes": list(data.classes),
                "task": {"classes": data.task.classes, "size": data.task.size, "channels": data.task.channels},
                "counts": [len(data.train.labels), len(data.validation.labels), len(data.test.labels)],
            },
            "code_version": code_version(),
        }
        fresh = not folder.path.exists()
        try:
            for path in (folder.points, folder.checkpoints, folder.ray):
                path.mkdir(parents=True, exist_ok=True)
            journal = Journal(cls._address(spec, folder), spec.name, create=True)
            try:
                journal.acquire()
                journal.append("created", created)
            finally:
                journal.close()
            folder.spec.write_text(to_toml(spec.model_dump(mode="json", exclude_none=True)))
        except OSError as error:
            raise InputError(f"study folder {folder.path} cannot be written: {error.strerror or error}") from None
        except InputError:
            if fresh:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        return cls(spec, folder)

    @classmethod
    def load(cls, name: str | Path, *, root: Path | None = None) -> Study:
        """An existing study, by name or by the path of its folder."""
        base = studies_root(root)
        path = Path(name) if Path(name).joinpath("study.toml").exists() else base / str(name)
        folder = StudyFolder(path.resolve())
        if not folder.spec.exists():
            known = sorted(p.parent.name for p in base.glob("*/study.toml"))
            hint = nearest(str(name), known) if known else "; there is no study yet (routefront search starts one)"
            raise InputError(f"no study {str(name)!r} in {base}{hint}")
        return cls(StudySpec.parse(read_toml(folder.spec), str(folder.spec), trusted=True), folder)

    @staticmethod
    def _address(spec: StudySpec, folder: StudyFolder) -> str:
        return spec.journal or sqlite_address(folder.control)

    def journal(self) -> Journal:
        """The study's journal, open for reading."""
        return Journal(self._address(self.spec, self.folder), self.spec.name)

    def state(self) -> StudyState:
        """The state as the journal tells it now."""
        journal = self.journal()
        try:
            return StudyState.of(journal.events())
        finally:
            journal.close()

    def status(self) -> str:
        """running, finished, stopped or interrupted."""
        journal = self.journal()
        try:
            if journal.held():
                return "running"
            return self.state().ended or "interrupted"
        finally:
            journal.close()

    # -- writing -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def driving(self) -> Iterator[Driver]:
        """Hold the lease and write: yields the driver, closed at the end whatever happens."""
        from search.driver import Driver

        journal = self.journal()
        journal.acquire()
        driver = Driver(self.folder, self.spec, journal)
        try:
            driver.replay(journal.events())
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
    ) -> str:
        """Run the study until its budget is spent; also continues an interrupted one.

        `tracking` is an MLflow address or "off"; `say` hears what a person should know. Returns
        finished, stopped or interrupted. Trials that are over are never run again, those that were
        running go on from their last checkpoint.
        """
        from search.run import run
        from search.tracking import Tracker

        with self.driving() as driver:
            if driver.exhausted and driver.state.ended:
                return "finished"  # and nothing needs to be started to see it
            data = data or load_data(self.spec)
            self.check_data(driver.state, data)
            tracker = None
            if tracking != "off":
                tracker = Tracker(tracking, self.spec.tracking.experiment, self.folder, self.spec)
                tracker.start(driver.journal.events())
                driver.listeners.append(tracker)
            try:
                why = run(driver, data, address=address, watch=watch)
                driver.end(why)
            finally:
                waiting = tracker.close(_DRAIN_SECONDS) if tracker else 0
        if waiting:
            say(f"{waiting} events have not reached {tracking} yet; the next run or resume of the study replays them")
        return why

    def check_data(self, state: StudyState, data: Data) -> None:
        """Raise `InputError` where the images are not those that the study began with."""
        before = state.created["data"]
        if data.hash != before["hash"]:
            raise InputError(
                f"study {self.spec.name!r} began with other images of {before['name']!r} "
                f"(digest {before['hash'][:12]}, now {data.hash[:12]}); start a study of another name"
            )

    # -- asking --------------------------------------------------------------------------------

    def frontier(
        self, *, max_macs: float | None = None, min_accuracy: float | None = None, method: str | None = None
    ) -> list[FrontPoint]:
        """The non-dominated operating points, cheapest first (accuracy on the validation split)."""
        return front_points(self.state(), max_macs=max_macs, min_accuracy=min_accuracy, method=method)

    def promote(
        self,
        *,
        model: str,
        uri: str,
        alias: str = "champion",
        max_macs: float | None = None,
        min_accuracy: float | None = None,
        method: str | None = None,
    ) -> dict[str, Any]:
        """Promote the most accurate operating point under a budget: see `search.promote.promote_study`."""
        from search.promote import promote_study

        budget = {"max_macs": max_macs, "min_accuracy": min_accuracy, "method": method}
        return promote_study(self, model=model, uri=uri, alias=alias, **budget)


def load_data(spec: StudySpec) -> Data:
    """The images of a study."""
    from trainables import data as datasets

    root = Path(spec.data.root) if spec.data.root else datasets.default_root()
    try:
        return datasets.load(spec.data.name, root=root, image_size=spec.data.image_size, limit=spec.data.limit)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None


def reference(spaces: Mapping[str, Space], task: Task) -> dict[str, float]:
    """The fixed reference point: (error of guessing, largest macs_full of the spec).

    Networks are built at every corner of every method's space. Raises `InputError`
    where one does not fit the task, for example a network too small for its images.
    """
    from trainables.registry import get_method

    largest = 0
    for name, space in spaces.items():
        method = get_method(name)
        for values in corners(space):
            try:
                network = method.build(method.configure(values), task)
            except ValueError as error:
                raise InputError(f"methods.{name}: {error}") from None
            largest = max(largest, network.macs_full)
    return {"error": 1.0 - 1.0 / task.classes, "macs": float(largest)}


def _same(old: StudySpec, new: StudySpec) -> None:
    before, after = old.fingerprint(), new.fingerprint()
    differing = sorted(_differences(before, after))
    if differing:
        raise InputError(
            f"a study named {new.name!r} exists with another spec ({', '.join(differing[:4])} differ);"
            " choose another --name, or `routefront resume` the old one"
        )


def _differences(a: Any, b: Any, at: str = "") -> Iterator[str]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {*a, *b}:
            yield from _differences(a.get(key), b.get(key), f"{at}.{key}" if at else key)
    elif a != b:
        yield at


def all_studies(root: Path | None = None) -> list[Study]:
    """Every study under a root, oldest first; folders that cannot be read are left out."""
    found = []
    for path in sorted(studies_root(root).glob("*/study.toml"), key=lambda p: p.stat().st_mtime):
        with contextlib.suppress(InputError):
            found.append(Study.load(path.parent))
    return found
