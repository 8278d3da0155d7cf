"""Studies as they are stored: opening one by name, reading its state, changing its limits.

A study is a folder with its study file (`search.studies.folder`) and a journal. Reading needs no lease;
`search.study.Study` adds what writes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from search.errors import InputError
from search.journal.database import Journal, sqlite_address
from search.spec.study import StudySpec
from search.spec.toml import merge, read_toml, to_toml
from search.state.kept import Kept
from search.state.state import StudyState
from search.studies.folder import StudyFolder, bring, write_spec
from search.studies.roots import shown, stored_names, studies_root
from search.studies.trust import JOURNAL, foreign, refusal, remember, remembered, trust_networks
from spaces import own_networks
from spaces.space import nearest

if TYPE_CHECKING:
    from trainables.data.splits import Data
    from trainables.external import Measured


def journal_address(spec: StudySpec, folder: StudyFolder) -> str:
    """Where a study's journal is: the spec's database, else SQLite in the study's folder."""
    return spec.journal or sqlite_address(folder.control)


class StoredStudy:
    """A study as it is stored: its spec, its folder, its journal. Reading needs no lease.

    `stored`: the spec in the folder's study file, where that is another one (`changed`). `foreign`: the spec came out
    of the folder, so that its addresses are used only after consent (`search.studies.trust`).
    """

    def __init__(
        self, spec: StudySpec, folder: StudyFolder, stored: StudySpec | None = None, *, foreign: bool = False
    ) -> None:
        self.spec, self.folder, self.stored, self.foreign = spec, folder, stored or spec, foreign

    @classmethod
    def load(cls, name: str | Path, *, root: Path | None = None, trust: bool = False) -> Self:
        """An existing study, by name or by the path of its folder.

        With `trust` the addresses that its study file names (a database, a server of MLflow) may be used, now and
        later; without it, only where this person created the study, has named them, or has agreed before.
        """
        base = studies_root(root)
        try:
            path = Path(name) if Path(name).joinpath("study.toml").exists() else base / str(name)
            folder = StudyFolder(path.resolve())
            bring(folder)
            there = folder.spec.exists()
        except PermissionError as error:
            raise InputError(f"study {str(name)!r} cannot be read: {error.strerror}: {error.filename}") from None
        if there and not folder.spec.is_file():
            raise InputError(f"{folder.spec} is no study file: it is no regular file")
        if not there:
            known = sorted({p.parent.name for p in base.glob("*/study.toml")} | set(stored_names(base)))
            hint = nearest(str(name), known) if known else "; there is no study yet (routefront search starts one)"
            raise InputError(f"no study {str(name)!r} in {shown(base)}{hint}")
        found = cls(StudySpec.parse(read_toml(folder.spec), str(folder.spec), trusted=True), folder, foreign=True)
        if trust:
            found.agree()
        elif (keys := [key for key, _ in own_networks.written(found.spec.methods)]) and not found.untrusted(*keys):
            trust_networks(found.spec)
        return found

    def untrusted(self, *names: str) -> dict[str, str]:
        """Addresses of the study file that nobody has agreed to, where one of `names` (default: any) is among them."""
        if not self.foreign:
            return {}
        addresses = foreign(self.spec, self.folder)
        if not any(name in addresses for name in names or addresses) or remembered(self._identity, addresses):
            return {}
        return addresses

    def permit(self, *names: str) -> None:
        """Raise `UntrustedError` unless the addresses with these names in the study file may be used."""
        if addresses := self.untrusted(*names):
            raise refusal(self.spec, self.folder, addresses)

    def agree(self) -> None:
        """The person trusts the addresses that the study has now; this is remembered for the study."""
        self.foreign = False
        trust_networks(self.spec)
        if addresses := foreign(self.spec, self.folder):
            remember(self._identity, addresses)

    @property
    def _identity(self) -> str:
        """Name and time of creation, or the name alone where the journal is elsewhere and may not be asked yet."""
        if JOURNAL in foreign(self.spec, self.folder):
            return self.spec.name
        journal = Journal(journal_address(self.spec, self.folder), self.spec.name)
        try:
            first = journal.first()
        finally:
            journal.close()
        return self.spec.name if first is None else f"{self.spec.name} {first.time!r}"

    def journal(self) -> Journal:
        """The study's journal, open for reading; `UntrustedError` where its address needs consent."""
        self.permit(JOURNAL)
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
        """running, finished, failed (without an operating point), stopped, interrupted or terminated.

        Read from the lease and the newest event of a session: the journal is not folded for it.
        """
        journal = self.journal()
        try:
            if journal.held():
                return "running"
            last = journal.newest(("session", "ended"))
            return last.payload["why"] if last is not None and last.kind == "ended" else "interrupted"
        finally:
            journal.close()

    def changed(self, changes: Mapping[str, Any], origin: str) -> Self:
        """The study with other values (dotted names; None changes nothing), not written yet.

        Who drives it next writes its limits. Raises `InputError`, beginning with `origin`, for a wrong value.
        """
        spec = StudySpec.parse(merge(self.spec.model_dump(exclude_none=True), changes), origin, trusted=True)
        if changes.get("tracking.uri") is not None:
            try:
                spec.refuse_secrets()
            except ValueError as error:
                raise InputError(f"{origin}: {error}") from None
        return type(self)(spec, self.folder, self.stored, foreign=self.foreign)

    def extend(self, *, trials: int | None = None, time: float | None = None, cost: float | None = None) -> Self:
        """The study with other limits (of trials, seconds, cost, in all), written into its folder.

        A driver that is at work takes them up within seconds, a later one begins with them. Raises `InputError`
        where a limit is not one.
        """
        limits = {"budget.trials": trials, "budget.time": time, "budget.cost": cost}
        found = self.changed(limits, "extend")
        found.write()
        return found

    def write(self) -> None:
        """Write the study's file: the spec as it is now."""
        write_spec(self.folder, to_toml(self.spec.model_dump(mode="json", exclude_none=True)))
        self.stored = self.spec

    def check_data(self, state: StudyState, data: Data | Measured) -> None:
        """Raise `InputError` where the images are not those that the study began with."""
        before = state.created["data"]
        if data.hash != before["hash"] and not self.spec.methods:
            raise InputError(
                f"study {self.spec.name!r} began with trainables measured on {before['name']!r}, now they are measured"
                f" on {data.name!r}; start a study of another name"
            )
        if data.hash != before["hash"]:
            raise InputError(
                f"study {self.spec.name!r} began with other images of {before['name']!r} "
                f"(digest {before['hash'][:12]}, now {data.hash[:12]}); start a study of another name"
            )

    def reclaimable(self, state: StudyState) -> list[str]:
        """Folders, relative to the study's, that nothing needs any more: checkpoints, first stages, Ray's scratch."""
        from search.state.retention import kept_checkpoints

        keep = kept_checkpoints(state)
        found = [
            f"checkpoints/{name}"
            for name in sorted(self.folder.kept())
            if name not in keep and ((trial := name.split("/")[0]) not in state.trials or state.trials[trial].over)
        ]
        found += [f"checkpoints/stages/{key}" for key in self.folder.stored_stages() if key not in state.stages]
        return found + [f"ray/{path.name}" for path in self.folder.ray.glob("session-*")]


def load_subject(spec: StudySpec) -> Data | Measured:
    """The images of a study; of one that has no method, what its trainables are measured on.

    Raises `InputError` where images are missing, or a trainable cannot be imported.
    """
    if spec.methods:
        return load_data(spec)
    from trainables.external import measured

    try:
        return measured(spec.references, spec.axes)
    except ValueError as error:
        raise InputError(str(error)) from None


def load_data(spec: StudySpec) -> Data:
    """The images of a study. Raises `InputError` where they are missing, or the study has none."""
    if not spec.methods:
        raise InputError(f"study {spec.name!r} has no images: its trainables bring their own data")
    from trainables.data import datasets

    root = Path(spec.data.root) if spec.data.root else datasets.default_root()
    try:
        data = datasets.load(
            spec.data.name,
            root=root,
            image_size=spec.data.image_size,
            resize=spec.data.resize,
            limit=spec.data.limit,
        )
        return dataclasses.replace(data, merit=spec.axes.merit.name)
    except (ValueError, FileNotFoundError) as error:
        raise InputError(str(error)) from None


def all_studies(root: Path | None = None, left_out: Callable[[Path, str], None] | None = None) -> list[StoredStudy]:
    """Every study under a root, oldest first; `left_out` is told the folder of each that cannot be read, and why."""
    base, found = studies_root(root), list[tuple[float, StoredStudy]]()
    for name in stored_names(base):
        bring(StudyFolder(base / name))
    for path in sorted(base.iterdir()) if base.is_dir() else ():
        try:
            written = (path / "study.toml").stat().st_mtime
            found.append((written, StoredStudy.load(path)))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (InputError, OSError) as error:
            if left_out is not None:
                left_out(path, str(error) if isinstance(error, InputError) else error.strerror or str(error))
    return [study for _, study in sorted(found, key=lambda entry: entry[0])]
