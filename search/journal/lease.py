"""Whether the process that holds a lease may still live."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def alive(lease: Mapping[str, Any]) -> bool:
    """Whether the owner (host, pid) of a lease may still live; processes of other hosts are believed."""
    if lease["host"] != socket.gethostname():
        return True
    try:
        os.kill(lease["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _zombie(lease["pid"])


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False
