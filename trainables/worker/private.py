"""A folder of one's own where every user of the machine may write."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from pathlib import Path


def private_folder(path: Path) -> Path:
    """`path`, if it is a folder of this user that nobody else may enter; it is made where it is missing.

    Where another user came first, with a folder, a link or a file of that name, it is a fresh folder beside it instead.
    """
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    seen = path.lstat()
    if stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid() and not seen.st_mode & 0o077:
        return path
    return Path(tempfile.mkdtemp(prefix=f"{path.name}-", dir=path.parent))
