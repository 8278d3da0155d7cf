"""The folder of a study: what lies where.

Studies whose root is an address of object storage have a folder here too, a cache of what lies there under the same
names (`search.studies.roots`). Their checkpoints are fetched when they are asked for.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import InputError
from search.studies.roots import COMMAND_PATIENCE, address_of, under

if TYPE_CHECKING:
    from trainables.worker.remote import Remote


_STATE = "state.json"  # written last (`trainables.checkpoints`)
_PICTURES = (
    "budget cascades classes confidence dataflow easy-hard exit-training exits frontier gate-images gates halting kl"
    " parameters path-weights ponder routing-flow routing-training skip-ratio tsne variants"
)
_WRITTEN = {
    "": r"study\.toml|control\.db(-wal|-shm|-journal)?|stop|\.reach-?[\w-]*|\.study-\d+-\d+\.part|report\.html"
    r"|summary\.json|\.summary-\d+\.part"
    rf"|({'|'.join(_PICTURES.split())})\.png",
    "points": r"[\w.-]+\.parquet(\.tmp)?",
    "cascades": r"[\w.-]+\.parquet([\w.]*\.tmp)?",
    "tracking": r"[\w.-]+\.(json|log|part)",
    "tensorboard": r"t\d{4,}",
    "checkpoints": r"\.?t\d{4,}|\.?stages|\.?donors",
    "ray": r".+",
}
"""What a study writes, by the folder below its own that it writes it into: patterns of names."""
_log = logging.getLogger("routefront.search")


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
        """Finished first stages, by their keys (`trainables.training.stages.FOLDER`)."""
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
        from trainables.worker.remote import remote_at

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
        """Bytes of a folder or file of the study, in the storage where it lies there. Links count for nothing."""
        remote = self.remote
        if remote is not None and (found := remote.sizes(name)):
            return sum(found.values())
        path = self.path / name
        files = (p for p in [path, *path.rglob("*")] if not p.is_symlink() and p.is_file())
        return sum(p.stat().st_size for p in files) if self._inside(name) else 0

    def written(self) -> tuple[list[str], list[str]]:
        """Names, relative to the folder, of what studies write (`_WRITTEN`) and of all else that lies there."""
        remote, ours, others = self.remote, [], []

        def names(folder: str) -> list[str]:
            if remote is not None:
                return remote.names(folder)
            path = self.path / folder
            return sorted(p.name for p in path.iterdir()) if path.is_dir() and not path.is_symlink() else []

        for folder, shape in _WRITTEN.items():
            for name in names(folder):
                path, linked = self.path / folder / name, remote is None and (self.path / folder / name).is_symlink()
                if not folder and name in _WRITTEN and not linked and (remote is not None or path.is_dir()):
                    continue  # what lies in it has its own turn
                kind = ours if re.fullmatch(shape, name) and not linked else others
                kind.append(f"{folder}/{name}" if folder else name)
        return ours, others

    def remove_written(self) -> list[str]:
        """Remove what a study has written, and the folders that are empty then; returns what was left there."""
        ours, others = self.written()
        self.remove(ours)
        for folder in sorted(_WRITTEN, reverse=True):
            with contextlib.suppress(OSError):  # not empty, or not there
                (self.path / folder).rmdir()
        return others

    def remove(self, names: Iterable[str]) -> None:
        """Remove folders and files of the study by their names relative to it, here and in the storage.

        What lies behind a link, or outside the study's folder, stays; a link itself is removed as such.
        """
        names = [name for name in names if self._inside(name)]
        for name in names:
            path = self.path / name
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)
            else:
                shutil.rmtree(path, ignore_errors=True)
        remote = self.remote
        if remote is not None:
            remote.remove(names)

    def _inside(self, name: str) -> bool:
        """Whether a name leads to a place below the study's folder without following a link."""
        path = self.path / name
        if name == "" or ".." in path.parts or not path.is_relative_to(self.path):
            _log.warning("%r is no name below %s; nothing was removed there", name, self.path)
            return False
        for above in path.parents:
            if above == self.path:
                return True
            if above.is_symlink():
                _log.warning("%s is a link; what lies behind it is not the study's and stays", above)
                return False
        return False


def bring(folder: StudyFolder) -> None:
    """Write the study's file of the storage into its cache; nothing is done where the study is no cached one."""
    if folder.storage is None:
        return
    from trainables.worker.remote import StorageError

    try:
        remote = folder.remote
        text = remote.read("study.toml") if remote is not None else None
    except StorageError as error:
        raise InputError(str(error)) from None
    if text is not None:
        write_spec(folder, text, away=False)


def write_spec(folder: StudyFolder, text: str, *, away: bool = True) -> None:
    """Write the study's file, `away` in the storage first where there is one; it appears when it is whole."""
    remote = folder.remote if away else None
    if remote is not None:
        remote.write("study.toml", text)
    folder.path.mkdir(parents=True, exist_ok=True)
    part = folder.path / f".study-{os.getpid()}-{threading.get_ident()}.part"  # a driver's courier may write it, too
    part.write_text(text)
    part.replace(folder.spec)
