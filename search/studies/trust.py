"""Whether addresses that a study's folder names may be used: only those that the person gave or agreed to.

A study's folder may come from a stranger, and its study file names places: a database for the journal, a server of
MLflow. Who opens them shows its user and password. It may also name code: the classes of its trainables, an installed
sampler, files of Python that networks come from. It runs where a network is built, or by who goes on with the study; of
a network's file the digest is a part of what is agreed to. So an address out of a folder is used only where it is
local to the study, or the person has named it itself (in the environment), or has agreed to it for this study. What was
agreed to, and every study that the person creates, is remembered in the person's own state folder
(``$XDG_STATE_HOME/routefront/trust``): one file a study and set of addresses, believed where it belongs to this user
and nobody else could write it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError

from search.errors import InputError
from search.redaction import redacted
from search.spec.study import StudySpec
from search.studies.folder import StudyFolder
from spaces import own_networks

JOURNAL, TRACKING, CODE = "journal", "tracking.uri", "code"
TRUSTED = "ROUTEFRONT_TRUST"
"""The variable of the environment that lists, divided by spaces, addresses that the person trusts in any study."""


class UntrustedError(InputError):
    """A study's folder names an address that nobody has agreed to."""


def foreign(spec: StudySpec, folder: StudyFolder) -> dict[str, str]:
    """The addresses of a study that lead out of its folder and that the environment does not name, by their names."""
    found = {}
    journal, own = spec.journal, folder.path.resolve()
    if journal is None and not folder.control.resolve().is_relative_to(own):
        journal = f"sqlite:///{folder.control.resolve()}"  # a link leads out of the study
    if journal is not None and not (_file_in(journal, own) or _unnamed(journal) or journal in _named()):
        found[JOURNAL] = journal
    uri = spec.tracking.uri
    if uri and uri != "off" and not _file_in(uri, own) and uri.rstrip("/") not in _named():
        beside = f"sqlite:///{own.parent / 'mlflow.db'}"  # `search.tracking.server.default_uri`
        if uri != beside:
            found[TRACKING] = uri
    if code := [*spec.references.values(), *([spec.sampler.name] if ":" in spec.sampler.name else [])]:
        found[CODE] = " ".join(code)
    found |= _own_networks(spec)
    return found


def _own_networks(spec: StudySpec) -> dict[str, str]:
    """Files of Python that the study's networks come from, with the digests of what they say now."""
    found: dict[str, list[str]] = {}
    for key, network in own_networks.written(spec.methods):
        try:
            said = f"SHA-256 {own_networks.digest(own_networks.read(network))[:16]}"
        except ValueError:
            said = "not readable here"
        found.setdefault(key, []).append(f"{network} ({said})")
    return {key: ", ".join(several) for key, several in found.items()}


def trust_networks(spec: StudySpec) -> None:
    """Let this process run the files that the study's networks come from, where they can be read."""
    for _, network in own_networks.written(spec.methods):
        with contextlib.suppress(ValueError):  # building the network says what is wrong
            own_networks.trust_network(network)


def _named() -> set[str]:
    """Addresses that the environment names."""
    words = [*os.environ.get(TRUSTED, "").split(), os.environ.get("MLFLOW_TRACKING_URI", "")]
    return {word for each in words if each for word in (each, each.rstrip("/"))}


def _url(address: str) -> sa.URL | None:
    with contextlib.suppress(ArgumentError, ValueError):
        return sa.make_url(address)
    return None


def _file_in(address: str, folder: Path) -> bool:
    """Whether an address is that of an SQLite file below a folder, with no link that leads out of it."""
    url = _url(address)
    if url is None or url.drivername not in ("sqlite", "sqlite+pysqlite") or url.query or not url.database:
        return False
    return not url.database.startswith("file:") and Path(url.database).resolve().is_relative_to(folder)


def _unnamed(address: str) -> bool:
    """Whether an address names no server: libpq then takes that of the person's own variables (PGHOST, PGSERVICE)."""
    url = _url(address)
    if url is None or url.get_backend_name() != "postgresql" or url.host or url.query:
        return False
    # libpq reads a name with one of these signs as more than a name
    return not any(sign in (url.database or "") for sign in "=:/")


def refusal(spec: StudySpec, folder: StudyFolder, addresses: Mapping[str, str]) -> UntrustedError:
    """What is said where nobody can be asked, in one line."""
    if all(name.startswith("methods.") for name in addresses):
        return UntrustedError(
            f"study {spec.name!r} builds networks from {listed(addresses)}, to which nobody has agreed here as they are"
            f" now; read them, and: routefront status {shlex.quote(str(folder.path))} --trust"
        )
    return UntrustedError(
        f"the folder of study {spec.name!r} names {listed(addresses)}, and this study was not made here; if you trust"
        f" who made it: routefront status {shlex.quote(str(folder.path))} --trust"
    )


def listed(addresses: Mapping[str, str]) -> str:
    """``journal = postgresql://host/x and tracking.uri = http://host``, without passwords."""
    return " and ".join(f"{name} = {redacted(address)}" for name, address in addresses.items())


# -- what was agreed to ----------------------------------------------------------------------------


def remembered(identity: str, addresses: Mapping[str, str]) -> bool:
    """Whether this person has agreed to these addresses of this study, or has created it."""
    folder = _folder()
    return folder is not None and _own(folder, stat.S_ISDIR) and _own(folder / _key(identity, addresses), stat.S_ISREG)


def remember(identity: str, addresses: Mapping[str, str]) -> None:
    """Remember consent; where there is no state folder that can be written, the next command asks again."""
    folder = _folder()
    if folder is None or not addresses:
        return
    note = {"study": identity, **{name: redacted(address) for name, address in addresses.items()}}
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = folder / _key(identity, addresses)
        if _own(folder, stat.S_ISDIR) and not _own(path, stat.S_ISREG):
            path.unlink(missing_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with open(handle, "w") as file:
                file.write(json.dumps(note, indent=1))


def _key(identity: str, addresses: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps([identity, sorted(addresses.items())]).encode()).hexdigest()


def _folder() -> Path | None:
    given = os.environ.get("XDG_STATE_HOME")
    try:
        state = Path(given) if given else Path.home() / ".local" / "state"
    except RuntimeError:  # a container's user without a home
        return None
    return state / "routefront" / "trust" if state.is_absolute() else None


def _own(path: Path, kind: Callable[[int], bool]) -> bool:
    """Whether a path is no link, of that kind, this user's, and can be written by nobody else."""
    try:
        seen = path.lstat()
    except OSError:
        return False
    return kind(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o022
