"""Setbacks: a trial loses its worker through no fault of its own. Kinds, limits, and reading Ray's errors.

======== ===================================================================== =============
kind     what happened                                                         counted
======== ===================================================================== =============
died     the worker died, nobody knows why                                     yes
silent   it did not report within ``resources.patience``                       yes
memory   memory ran out; the trial goes on with a node for itself, at the end   once
node     its node left the cluster                                             no
drained  its node was told to leave; the trial went on elsewhere               no
leak     the process had not given the memory of its last trial back           no
======== ===================================================================== =============

``resources.retries`` limits those that count; `MOST` ends a trial that meets any of them without end.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from typing import Any

DIED, SILENT, MEMORY, NODE, DRAINED, LEAK = "died", "silent", "memory", "node", "drained", "leak"
COUNTED = (DIED, SILENT)
MOST = 100
NODE_SECONDS = 30.0
"""A worker that died so long before its node left the cluster died with it: Ray tells of workers first."""

# Ray also tells of the system's OOM killer as one of many causes of any death
_OUT_OF_MEMORY = re.compile(r"running low on memory|OutOfMemoryError|MemoryError:")


def is_out_of_memory(text: str) -> bool:
    """Whether an error of Ray says that it ended a worker because the node's memory ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def last_line(text: str) -> str:
    """The beginning of the last line of an error that says anything."""
    found = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")
    return textwrap.shorten(found, 160, placeholder=" ...")


def too_many(setbacks: Sequence[dict[str, Any]], kind: str, retries: int) -> bool:
    """Whether one more of this kind is more than a trial may have."""
    counted = sum(each["kind"] in COUNTED for each in setbacks)
    return (kind in COUNTED and counted >= retries) or len(setbacks) >= MOST
