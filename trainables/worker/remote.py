"""Files under an address of object storage, through pyarrow's filesystems: ``s3://``, ``gs://``, ``abfss://``,
``file://``.

Keys come from the environment or the machine's role, as the provider's own tools find them. What fails is tried
again for `patience` seconds; then, or at once where waiting cannot help (no such bucket, refused keys), it is
a `StorageError` of one line that names the address.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

_Found = TypeVar("_Found")

PATIENCE = 60.0
"""Seconds that a worker and a driver wait for a storage that does not answer: an epoch is worth more."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 8.0
_HOPELESS = re.compile(
    r"ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|No response body", re.I
)
_WITH_FOLDERS = ("local", "hdfs")  # elsewhere a folder is nothing but the beginning of a name


class StorageError(OSError):
    """A storage that does not answer or refuses; one line."""


class Remote:
    """The files under `address`; names are relative to it and have ``/`` between their parts.

    Raises `ValueError` where the address is none that pyarrow knows or carries a password, `StorageError`
    where it cannot be reached.
    """

    def __init__(self, address: str, patience: float = PATIENCE) -> None:
        self.address, self.patience = address, patience
        parts = urlsplit(address)
        if parts.password or parts.username:
            raise ValueError(f"the address {_plain(address)} carries keys; leave them to the environment")
        if parts.fragment or (parts.scheme == "file" and parts.query):
            mark, written = ("#", "%23") if parts.fragment else ("?", "%3F")
            raise ValueError(f"{address!r}: a {mark!r} in the path of an address is written {written}")
        try:
            self._files, root = self._tried(lambda: fs.FileSystem.from_uri(address))
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{address!r} is no address of a storage ({_line(error)}); write s3://BUCKET/FOLDER, gs://..., abfss://..."
            ) from None
        self._root = root.rstrip("/")

    def push(self, folder: Path, name: str, last: str) -> None:
        """Copy the files of a folder to `name`; the file called `last`, which makes it whole, comes last."""
        for path in sorted(folder.iterdir(), key=lambda path: (path.name == last, path.name)):
            self.put(path, f"{name}/{path.name}")

    def pull(self, name: str, folder: Path, last: str) -> bool:
        """Copy the files of `name` into a folder, which appears when it is whole; False where `last` is missing."""
        infos = self._list(name)
        if last not in {info.base_name for info in infos}:
            return False
        part = folder.with_name(f".{folder.name}.pulled")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        try:
            for info in infos:
                if info.type == fs.FileType.File:
                    self.get(f"{name}/{info.base_name}", part / info.base_name)
        except FileNotFoundError:  # it was removed meanwhile
            shutil.rmtree(part, ignore_errors=True)
            return False
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        return True

    def put(self, path: Path, name: str) -> None:
        """Copy a file there."""

        def copy() -> None:
            with path.open("rb") as file, self._writing(name) as there:
                shutil.copyfileobj(file, there, 1 << 22)

        self._tried(copy)

    def get(self, name: str, path: Path) -> None:
        """Copy a file here. Raises `FileNotFoundError` where there is none."""

        def copy() -> None:
            with self._files.open_input_stream(self._at(name)) as there, path.open("wb") as file:
                shutil.copyfileobj(there, file, 1 << 22)

        self._tried(copy)

    def write(self, name: str, text: str) -> None:
        """Write a small file."""

        def write() -> None:
            with self._writing(name) as there:
                there.write(text.encode())

        self._tried(write)

    def read(self, name: str) -> str | None:
        """A small file's text; None where there is none."""

        def read() -> str:
            with self._files.open_input_stream(self._at(name)) as there:
                return there.read().decode(errors="replace")

        try:
            return self._tried(read)
        except FileNotFoundError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self._tried(lambda: self._files.get_file_info(self._at(name))).type == fs.FileType.File

    def names(self, name: str) -> list[str]:
        """What lies directly under `name`, files and folders, sorted; empty where there is nothing."""
        return sorted(info.base_name for info in self._list(name))

    def sizes(self, name: str) -> dict[str, int]:
        """Bytes of every file below `name`, at any depth, by its name relative to it."""
        begin = len(self._at(name)) + 1
        return {info.path[begin:]: info.size for info in self._list(name, True) if info.type == fs.FileType.File}

    def remove(self, names: Iterable[str]) -> None:
        """Remove files and whole folders; what is not there is no error."""
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                info = self._tried(lambda at=self._at(name): self._files.get_file_info(at))
                if info.type == fs.FileType.File:
                    self._tried(lambda at=info.path: self._files.delete_file(at))
                elif info.type == fs.FileType.Directory:
                    self._tried(lambda at=info.path: self._files.delete_dir(at))

    def _list(self, name: str, deep: bool = False) -> list[fs.FileInfo]:
        selector = fs.FileSelector(self._at(name), allow_not_found=True, recursive=deep)
        return self._tried(lambda: self._files.get_file_info(selector))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _writing(self, name: str) -> pa.NativeFile:
        at = self._at(name)
        if self._files.type_name in _WITH_FOLDERS:
            self._files.create_dir(at.rpartition("/")[0], recursive=True)
        return self._files.open_output_stream(at)

    def _tried(self, do: Callable[[], _Found]) -> _Found:
        pause, limit = _FIRST_PAUSE, time.monotonic() + self.patience
        while True:
            try:
                return do()
            except FileNotFoundError:
                raise
            except (OSError, pa.ArrowIOError) as error:
                why = _line(error)
                if isinstance(error, PermissionError) or _HOPELESS.search(why) or time.monotonic() + pause > limit:
                    raise StorageError(f"the storage {_plain(self.address)} cannot be used: {why}") from None
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, 2 * pause)


@functools.cache
def remote_at(address: str, patience: float = PATIENCE) -> Remote:
    """The `Remote` of an address, one a process."""
    return Remote(address, patience)


def _plain(address: str) -> str:
    """An address without keys and options, for messages."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _line(error: BaseException) -> str:
    text = (str(error).splitlines() or [type(error).__name__])[0].partition(" (Request ID")[0]
    return text if len(text) <= 240 else text[:237] + "..."
