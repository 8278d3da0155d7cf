"""Where a worker keeps its trial's checkpoints, and what it and the driver leave for each other beside them.

Without `storage` that is a folder which all nodes see. With it, a folder of this process alone is the
working place: every checkpoint is pushed to the storage before its report is returned, and whoever goes
on with the trial pulls it from there. Names are the same in both: ``<trial>/epoch-NNNN``, ``stages/<key>``.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path

from trainables import checkpoints
from trainables.external import ExternalTraining
from trainables.training import stages
from trainables.training.training import Training
from trainables.worker.private import private_folder
from trainables.worker.remote import Remote, StorageError, remote_at

NOTE = "left.json"
LEAVE = "leave"
"""The file beside a trial's checkpoints by which the driver asks its worker to leave."""
_LOOK_SECONDS, _LOOK_FAR_SECONDS = 1.0, 5.0
_NOTE_SECONDS = 5.0
_PREFIX = "routefront-trials"


class Shelf:
    """The place of one trial. `root`: the checkpoints of its study; `storage`: their address, where they are stored.

    `folder` is where its checkpoints are written and read here.
    """

    def __init__(self, root: str, trial: str, storage: str | None = None) -> None:
        self._storage, self._trial = storage, trial
        self._root = own_folder() if storage else Path(root)
        self.folder = self._root / trial
        self._looked = time.monotonic()
        if storage is None:
            (self.folder / LEAVE).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _remote(self) -> Remote | None:
        return remote_at(self._storage) if self._storage else None

    def newest(self) -> Path | None:
        """The newest whole checkpoint of the trial, brought here from the storage; None where there is none."""
        remote = self._remote
        if remote is None:
            return checkpoints.newest(self.folder)
        remote.remove([f"{self._trial}/{LEAVE}"])  # said to the worker before
        for name in reversed([name for name in remote.names(self._trial) if name.startswith("epoch-")]):
            folder = self.folder / name
            if remote.pull(f"{self._trial}/{name}", folder, checkpoints.STATE):
                with contextlib.suppress(checkpoints.CheckpointError):
                    checkpoints.read_record(folder)
                    return folder
                shutil.rmtree(folder)
        return None

    def keep(self, training: Training | ExternalTraining, folder: Path) -> None:
        """Write a checkpoint of a training; it is safe when this returns."""
        training.save(folder, {"trial": self._trial})
        if self._remote is not None:
            self._remote.push(folder, f"{self._trial}/{folder.name}", checkpoints.STATE)

    def drop_before(self, epoch: int, kept: bool) -> None:
        """Remove the checkpoint before an epoch's, unless it is to be `kept`, and those in the middle of this epoch.

        Of what is stored elsewhere nothing stays here.
        """
        before = checkpoints.epoch_folder(self.folder, epoch - 1)
        gone = [*self.folder.glob(f"{before.name}-*"), *([before] if before.exists() and not kept else [])]
        if self._remote is not None:
            self._remote.remove(f"{self._trial}/{path.name}" for path in gone)
        for path in gone if self._remote is None else [*gone, before]:
            shutil.rmtree(path, ignore_errors=True)

    def behind(self, training: Training, key: str) -> None:
        """Let a training go on behind a finished first stage. Raises `CheckpointError` (`training.stages.restore`)."""
        folder = self._root / stages.FOLDER / key
        if self._remote is not None:
            self._remote.pull(f"{stages.FOLDER}/{key}", folder, checkpoints.STATE)
        try:
            stages.restore(training, folder)
        finally:
            self._forget(folder)

    def at(self, name: str) -> Path:
        """Where a checkpoint of the study lies here, by its name; where it is stored elsewhere, once it was brought."""
        return self._root / name

    def bring(self, name: str) -> None:
        """Bring a checkpoint of the study here from the storage; nothing is done where it lies in the folder of all."""
        if self._remote is not None:
            self._remote.pull(name, self.at(name), checkpoints.STATE)

    def let_go(self, name: str) -> None:
        """What was brought is needed here no more."""
        self._forget(self.at(name))

    def publish(self, training: Training) -> str:
        """Store the first stage that a training has just ended; its key (`training.stages.publish`)."""
        key = stages.publish(training, self._root / stages.FOLDER, self._trial)
        if self._remote is not None:
            folder, name = self._root / stages.FOLDER / key, f"{stages.FOLDER}/{key}"
            self._remote.push(folder, name, checkpoints.STATE)
            self._forget(folder)
        return key

    def _forget(self, folder: Path) -> None:
        if self._remote is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def leaving(self) -> bool:
        """Whether the driver wants this worker to leave: looked up once a second, in a storage every five."""
        now = time.monotonic()
        if now - self._looked < (_LOOK_SECONDS if self._remote is None else _LOOK_FAR_SECONDS):
            return False
        self._looked = now
        if self._remote is None:
            return (self.folder / LEAVE).exists()
        with contextlib.suppress(StorageError):  # the checkpoint behind this epoch will wait for it
            return self._remote.exists(f"{self._trial}/{LEAVE}")
        return False

    def note(self, kind: str, why: str) -> None:
        """Leave word of why this worker ends itself; it does so a few seconds later at most, told or not."""
        text = json.dumps({"kind": kind, "why": why})
        if self._remote is None:
            with contextlib.suppress(OSError):
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / NOTE).write_text(text)
            return
        shutil.rmtree(self._root, ignore_errors=True)
        writing = threading.Thread(target=self._write_note, args=(text,), daemon=True)
        writing.start()
        writing.join(_NOTE_SECONDS)

    def _write_note(self, text: str) -> None:
        assert self._remote is not None
        with contextlib.suppress(StorageError):
            self._remote.write(f"{self._trial}/{NOTE}", text)

    def clear(self) -> None:
        """The trial is done with here: nothing of it stays on this node where it is stored elsewhere."""
        if self._remote is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def own_folder() -> Path:
    """A folder of this process for checkpoints that are stored elsewhere; those of dead processes are removed."""
    base = private_folder(Path(tempfile.gettempdir()) / f"{_PREFIX}-{os.getuid()}")
    for path in base.iterdir():
        if path.name.isdigit() and not _alive(int(path.name)):
            shutil.rmtree(path, ignore_errors=True)
    mine = base / str(os.getpid())
    if not mine.exists():
        mine.mkdir(mode=0o700)
        atexit.register(shutil.rmtree, mine, ignore_errors=True)
    return mine


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def ask_to_leave(folder: Path) -> None:
    """Ask the worker of the trial whose folder this is to keep what it has and to leave."""
    with contextlib.suppress(OSError):  # a disk that is full: its next report ends it
        folder.mkdir(parents=True, exist_ok=True)
        (folder / LEAVE).touch()


def note_of(folder: Path) -> dict[str, str] | None:
    """What the last worker of a trial said when it left, once; None where it said nothing."""
    path = folder / NOTE
    try:
        text = path.read_text()
        path.unlink()
    except (OSError, ValueError):
        return None
    return parsed_note(text)


def parsed_note(text: str) -> dict[str, str] | None:
    """The note in a file's text."""
    try:
        note = json.loads(text)
    except ValueError:
        return None
    return note if isinstance(note, dict) and {"kind", "why"} <= note.keys() else None
