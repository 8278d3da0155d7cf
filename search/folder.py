"""The folder of a study: what lies where.

Studies whose root is an address of object storage have a folder here too, a cache of what lies there under the same
names (`search.storage`). Their checkpoints are fetched when they are asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import InputError
from search.storage import address_of, under

if TYPE_CHECKING:
    from trainables.remote import Remote

_STATE = "state.json"  # written last (`trainables.checkpoints`)
COMMAND_PATIENCE, DRIVER_PATIENCE = 8.0, 60.0


@dataclass(frozen=True, slots=True)
class StudyFolder:
    """Where a study lives. `patience`: seconds that a storage which does not answer is waited for."""

    path: Path
    patience: float = COMMAND_PATIENCE

    @property
    def spec(self) -> Path:
        """The study file as it was resolved."""
        return self.path / "study.toml"

    @property
    def points(self) -> Path:
        """Operating points as Parquet."""
        return self.path / "points"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints by trial and epoch."""
        return self.path / "checkpoints"

    @property
    def stages(self) -> Path:
        """Finished first stages, by their keys (`trainables.stages.FOLDER`)."""
        return self.checkpoints / "stages"

    @property
    def ray(self) -> Path:
        """Ray's scratch."""
        return self.path / "ray"

    @property
    def stop(self) -> Path:
        """A file whose presence asks the driver to stop gently."""
        return self.path / "stop"

    @property
    def control(self) -> Path:
        """The journal, where it is SQLite."""
        return self.path / "control.db"

    # -- what may lie in a storage ----------------------------------------------------------------

    @property
    def storage(self) -> str | None:
        """The address where the study lies; None where this folder is the study."""
        return address_of(self.path)

    @property
    def stored_checkpoints(self) -> str | None:
        """The address of the checkpoints; None where they lie in this folder."""
        return under(self.storage, "checkpoints") if self.storage else None

    @property
    def remote(self) -> Remote | None:
        """The storage; None where there is none. Raises `InputError` where its address is wrong."""
        address = self.storage
        if address is None:
            return None
        from trainables.remote import remote_at

        try:
            return remote_at(address, self.patience)
        except ValueError as error:
            raise InputError(str(error)) from None

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint ``trial/epoch-NNNN`` lies here; it is fetched first where it lies in the storage."""
        path, remote = self.checkpoints / name, self.remote
        if remote is not None and not (path / _STATE).is_file() and ".." not in path.parts:
            remote.pull(f"checkpoints/{name}", path, _STATE)
        return path

    def kept(self) -> set[str]:
        """Names ``trial/epoch-NNNN`` of all whole checkpoints there are."""
        remote = self.remote
        if remote is None:
            return {f"{p.parent.parent.name}/{p.parent.name}" for p in self.checkpoints.glob(f"t*/epoch-*/{_STATE}")}
        found = (name.rsplit("/", 1) for name in remote.sizes("checkpoints"))
        return {folder for folder, file in found if file == _STATE and "/epoch-" in folder}

    def kept_of(self, trial: str) -> list[str]:
        """Names of what there is of one trial's checkpoints, whole or not."""
        remote = self.remote
        if remote is None:
            found = [path.name for path in (self.checkpoints / trial).glob("epoch-*")]
        else:
            found = [name for name in remote.names(f"checkpoints/{trial}") if name.startswith("epoch-")]
        return [f"{trial}/{name}" for name in found]

    def ask_to_stop(self) -> None:
        """Ask the driver to stop gently, wherever it runs."""
        self.stop.touch()
        remote = self.remote
        if remote is not None:
            remote.write("stop", "")

    def stored_stages(self) -> list[str]:
        """Keys of the first stages there are, whole or not."""
        remote = self.remote
        return [p.name for p in self.stages.glob("*")] if remote is None else remote.names("checkpoints/stages")

    def size(self, name: str) -> int:
        """Bytes of a folder or file of the study, in the storage where it lies there."""
        remote = self.remote
        if remote is not None and (found := remote.sizes(name)):
            return sum(found.values())
        path = self.path / name
        return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())

    def remove(self, names: Iterable[str]) -> None:
        """Remove folders and files of the study by their names relative to it, here and in the storage."""
        names = list(names)
        for name in names:
            path = self.path / name
            path.unlink(missing_ok=True) if path.is_file() else shutil.rmtree(path, ignore_errors=True)
        remote = self.remote
        if remote is not None:
            remote.remove(names)
