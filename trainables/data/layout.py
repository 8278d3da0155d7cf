"""How image folders are laid out: which files are images to be read, which folders are splits. The one lister of both.

Folders come from people: splits have several usual names, in any case; file managers and notebooks leave hidden folders
and thumbnails behind; large sets are put together from links.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trainables.data.errors import DataError

ROLES = {
    "train": ("train", "training", "trn"),
    "validation": ("validation", "val", "valid", "dev", "development"),
    "test": ("test", "testing", "tst"),
}
"""Usual names of the folders and files of each split; case does not matter."""
_ROLE = {name: role for role, names in ROLES.items() for name in names}
_LITTER = ("thumbs.db", "desktop.ini", "@eadir", "__macosx", "thumbnails")


def role(name: str) -> str:
    """train, validation or test; empty for a folder or file that is named like none of them."""
    return _ROLE.get(name.lower(), "")


def litter(name: str) -> bool:
    """Whether a file or folder was left by a file manager or a notebook, or is hidden: it is never read."""
    return name.startswith(".") or name.lower() in _LITTER


def walk(folder: str, below: str = "") -> Iterator[tuple[str, int]]:
    """(path below `folder`, bytes) of all files of a folder and its folders, `litter` left out, in alphabetical order.

    Links are followed. Raises `DataError` where one leads nowhere or to a folder that it lies in.
    """
    yield from _walk(folder, below, frozenset())


def _walk(folder: str, below: str, above: frozenset[tuple[int, int]]) -> Iterator[tuple[str, int]]:
    at = os.path.join(folder, below) if below else folder
    seen = os.stat(at)
    here = seen.st_dev, seen.st_ino
    if here in above:
        raise DataError(f"{at} is a link to a folder that it lies in; remove it")
    with os.scandir(at) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if litter(entry.name):
                continue
            name = f"{below}/{entry.name}" if below else entry.name
            if entry.is_dir():
                yield from _walk(folder, name, above | {here})
                continue
            try:
                yield name, entry.stat().st_size
            except FileNotFoundError:
                raise DataError(f"{entry.path} is a link that leads nowhere; remove it") from None


def files(folder: Path) -> list[Path]:
    """All files of a folder and its folders, as `walk` has them."""
    return [folder / name for name, _ in walk(str(folder))]


def class_folders(folder: Path) -> list[str]:
    """The names of the folders in a folder, in alphabetical order, `litter` left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not litter(path.name))


def splits(folder: Path) -> dict[str, Path]:
    """The folders of the splits by `role`; empty where a folder is not divided into any.

    It is divided where it has a folder of training images by name that has folders itself (else there may be a class of
    trains). Raises `DataError` where two folders have one role, or another one beside them holds files and has none:
    nothing is left out silently.
    """
    names = class_folders(folder)
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(role(name), []).append(name)
    if not any(class_folders(folder / name) for name in found.get("train", ())):
        return {}
    others = [name for name in found.pop("", []) if next(walk(str(folder), name), None)]
    for kind, several in found.items():
        if len(several) > 1:
            raise DataError(f"{folder} has several folders of {kind} images: {', '.join(several)}; keep one")
    if others:
        known = "; ".join(f"{kind}: {', '.join(usual)}" for kind, usual in ROLES.items())
        raise DataError(f"{folder / others[0]} lies beside {found['train'][0]} and is no split by its name ({known})")
    return {kind: folder / found[kind][0] for kind in ROLES if kind in found}
