"""Which code a trial ran: the release and a digest of the sources that shape a result."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

VERSION = "0.1.0"


@cache
def code_version() -> str:
    """``release+digest`` over the sources of `trainables` and `spaces`, the same on every machine."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for package in ("spaces", "trainables"):
        for path in sorted((root / package).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode())
            digest.update(path.read_bytes())
    return f"{VERSION}+{digest.hexdigest()[:12]}"
