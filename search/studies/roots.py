"""Where studies lie: a folder, or an address of object storage that a folder of this machine caches.

A root of studies may be an address such as ``s3://BUCKET/FOLDER``. The journal of such a study is in PostgreSQL. What
lies in the storage is the study's file, its operating points and its checkpoints, under the names that they have in
a folder (`search.studies.folder`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import tempfile
from pathlib import Path

from search.errors import InputError

COMMAND_PATIENCE, DRIVER_PATIENCE = 8.0, 60.0

_NAME = "storage"  # the file of a cache that says of what


def cache_of(address: str) -> Path:
    """The folder of this machine that caches the studies under an address; made where there is none."""
    address = address.rstrip("/")
    folder = _cached(address)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / _NAME).write_text(address)
    except OSError as error:
        raise InputError(f"{folder}, which caches the studies of {address}, cannot be written: {error}") from None
    _address.cache_clear()
    return folder


def _cached(address: str) -> Path:
    return _cache() / "routefront" / "studies" / hashlib.sha256(address.encode()).hexdigest()[:16]


def _cache() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a container's user without a home
        from trainables.worker.private import private_folder

        return private_folder(Path(tempfile.gettempdir()) / f"routefront-cache-{os.getuid()}")


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
    """The address that a folder caches: a file says it, which counts only where `cache_of` writes such files."""
    with contextlib.suppress(OSError, ValueError):
        note = root / _NAME
        if note.is_file() and (address := note.read_text()) and root.resolve() == _cached(address).resolve():
            return address
    return None


def shown(root: Path) -> str:
    """A root of studies as a person knows it: the address that it caches, else the folder."""
    return _address(root) or str(root)


def stored_names(root: Path) -> list[str]:
    """The studies under the address that a folder caches; empty for a folder that caches none."""
    address = _address(root)
    if address is None:
        return []
    from trainables.worker.remote import StorageError, remote_at

    try:
        remote = remote_at(address, COMMAND_PATIENCE)
        return [name for name in remote.names("") if remote.exists(f"{name}/study.toml")]
    except (StorageError, ValueError) as error:
        raise InputError(str(error)) from None


def studies_root(given: Path | None = None) -> Path:
    """Where study folders lie: `given`, else ``$ROUTEFRONT_STUDIES``, else ``./studies``.

    The variable may hold an address of object storage; the folder that caches it is returned (`search.studies.roots`).
    """
    return given.resolve() if given is not None else root_of(os.environ.get("ROUTEFRONT_STUDIES", "studies"))


def root_of(text: str) -> Path:
    """The folder of studies that a person names: a path, or an address such as ``s3://BUCKET/FOLDER``."""
    return cache_of(text) if "://" in text else Path(text).resolve()
