"""Studies in object storage: their root is an address, and a folder of this machine caches what lies there.

The journal of such a study is in PostgreSQL. What lies in the storage is the study's file, its operating points and its
checkpoints, under the names that they have in a folder (`search.folder`). The driver's own copies go there in
a thread of their own (`Courier`); workers push and pull checkpoints themselves (`trainables.shelf`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from search.errors import InputError

if TYPE_CHECKING:
    from search.folder import StudyFolder
    from trainables.remote import Remote

_NAME = "storage"  # the file of a cache that says of what
_LOOK_SECONDS = 10.0
_LIST_ALL = 20
_log = logging.getLogger("routefront.search")


def cache_of(address: str) -> Path:
    """The folder of this machine that caches the studies under an address; made where there is none."""
    address = address.rstrip("/")
    folder = _cache() / "routefront" / "studies" / hashlib.sha256(address.encode()).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / _NAME).write_text(address)
    except OSError as error:
        raise InputError(f"{folder}, which caches the studies of {address}, cannot be written: {error}") from None
    _address.cache_clear()
    return folder


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a container's user without a home
        return Path(tempfile.gettempdir()) / f"routefront-cache-{os.getuid()}"


def address_of(study: Path) -> str | None:
    """The address of a study whose cached folder this is; None for a folder that is the study itself."""
    root = _address(study.parent)
    if root is None:
        return None
    return under(root, study.name)


def under(address: str, name: str) -> str:
    """The address of what is called `name` below another address; its options (``?region=...``) stay."""
    place, mark, options = address.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


@functools.lru_cache(maxsize=64)
def _address(root: Path) -> str | None:
    with contextlib.suppress(OSError):
        return (root / _NAME).read_text()
    return None


def shown(root: Path) -> str:
    """A root of studies as a person knows it: the address that it caches, else the folder."""
    return _address(root) or str(root)


def stored_names(root: Path) -> list[str]:
    """The studies under the address that a folder caches; empty for a folder that caches none."""
    address = _address(root)
    if address is None:
        return []
    from search.folder import COMMAND_PATIENCE
    from trainables.remote import StorageError, remote_at

    try:
        remote = remote_at(address, COMMAND_PATIENCE)
        return [name for name in remote.names("") if remote.exists(f"{name}/study.toml")]
    except (StorageError, ValueError) as error:
        raise InputError(str(error)) from None


def bring(folder: StudyFolder) -> None:
    """Write the study's file of the storage into its cache; nothing is done where the study is no cached one."""
    if folder.storage is None:
        return
    from trainables.remote import StorageError

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


class Courier:
    """What a driver has to do in the storage, one after the other in a thread; with no storage at once, here.

    What fails is logged and not tried again by itself: `gc` finds checkpoints that were to go, the next flush brings
    operating points, and workers bring checkpoints themselves.
    """

    def __init__(self, folder: StudyFolder) -> None:
        self._folder, self._listed = folder, set[str]()
        self._held: set[str] = set()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closing, self._spec_text = False, ""
        self._asked: dict[str, float] = {}
        if folder.storage is not None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="courier")
            self._thread.start()

    def _run(self) -> None:
        look, away = time.monotonic(), False
        while not (away and self._closing):
            work: Callable[[], None] | None = self._look
            if time.monotonic() < look:
                try:
                    work = self._work.get(timeout=max(0.0, look - time.monotonic()))
                except queue.Empty:
                    continue
            else:
                look = time.monotonic() + _LOOK_SECONDS
            if work is None:
                return
            try:
                work()
                away = False
            except OSError as error:
                away = True
                _log.warning("%s", error)

    def _do(self, work: Callable[[], None]) -> None:
        self._work.put(work) if self._thread is not None else work()

    def close(self) -> None:
        """Wait until everything is done, unless the storage is away."""
        if self._thread is not None:
            self._closing = True
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def tidy(self, over: Iterable[str], keep: set[str]) -> None:
        """Remove every checkpoint of trials that are over which is not to be kept. `over` names all of them."""
        new = set(over) - self._listed
        self._listed |= new
        self._do(lambda: self._tidy(new, keep))

    def _tidy(self, new: set[str], keep: set[str]) -> None:
        if len(new) > _LIST_ALL:
            self._held |= {name for name in self._folder.kept() if name.split("/")[0] in new}
        else:
            self._held |= {name for trial in new for name in self._folder.kept_of(trial)}
        gone, self._held = self._held - keep, self._held & keep
        self._folder.remove(f"checkpoints/{name}" for name in sorted(gone))

    def remove_stage(self, key: str) -> None:
        """Remove a stored first stage."""
        self._do(lambda: self._folder.remove([f"checkpoints/stages/{key}"]))

    def points(self) -> None:
        """Let the operating points of the storage be those that are here."""
        if self._thread is not None:
            self._do(self._points)

    def _points(self) -> None:
        remote = self._remote()
        here = {path.name: path for path in self._folder.points.glob("*.parquet")}
        there = set(remote.names("points"))
        for name in sorted(here.keys() - there):
            with contextlib.suppress(FileNotFoundError):  # merged meanwhile
                remote.put(here[name], f"points/{name}")
        remote.remove(f"points/{name}" for name in sorted(there - here.keys()))

    def ask_to_leave(self, trial: str) -> None:
        """Ask the worker of a trial to leave; called again and again while it is to."""
        from trainables.shelf import LEAVE, ask_to_leave

        if self._thread is None:
            ask_to_leave(self._folder.checkpoints / trial)
            return
        now = time.monotonic()
        if now - self._asked.get(trial, -_LOOK_SECONDS) >= _LOOK_SECONDS:
            self._asked[trial] = now
            self._do(lambda: self._remote().write(f"checkpoints/{trial}/{LEAVE}", ""))

    def note_of(self, trial: str) -> dict[str, str] | None:
        """What the last worker of a trial said when it left, once; None where it said nothing."""
        from trainables.shelf import NOTE, note_of, parsed_note

        self._asked.pop(trial, None)
        if self._thread is None:
            return note_of(self._folder.checkpoints / trial)
        name = f"checkpoints/{trial}/{NOTE}"
        with contextlib.suppress(OSError):
            text = self._remote().read(name)
            if text is not None:
                self._do(lambda: self._remote().remove([name]))
                return parsed_note(text)
        return None

    def _remote(self) -> Remote:
        remote = self._folder.remote
        assert remote is not None
        return remote

    def _look(self) -> None:
        """Take up what another machine wrote: a request to stop, other limits."""
        remote = self._remote()
        if remote.exists("stop"):
            self._folder.stop.touch()
        text = remote.read("study.toml")
        if text is not None and text != self._spec_text:
            self._spec_text = text
            write_spec(self._folder, text, away=False)


class StoredMarker:
    """For `cluster.checks.Survey`: a file in the storage that every node must read, and answer beside."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name

    def __str__(self) -> str:
        return self.address

    def _remote(self) -> Remote:
        from trainables.remote import remote_at

        return remote_at(self.address, 8.0)

    def set(self) -> None:
        """Write it."""
        self._remote().write(self.name, "")

    def answer(self, node: str) -> tuple[bool, str]:
        """Run on a node: whether it finds the marker, and what hinders it to answer."""
        try:
            if not self._remote().exists(self.name):
                return False, ""
            self._remote().write(f"{self.name}-{node}", "")
        except (OSError, ValueError) as error:
            return True, str(error)
        return True, ""

    def answered(self, node: str) -> bool:
        """Whether a node's answer is there."""
        return self._remote().exists(f"{self.name}-{node}")

    def clear(self, nodes: Iterable[str]) -> None:
        """Remove it and the answers."""
        self._remote().remove([self.name, *(f"{self.name}-{node}" for node in nodes)])
