"""What takes a trial's worker away without being the trial's result, and how Ray's errors are read.

======== ===================================================================== =============
kind     what happened                                                         counted
======== ===================================================================== =============
died     the worker died, nobody knows why                                     yes
silent   it did not report within ``resources.patience``                       yes
memory   memory ran out; the trial goes on when nothing else runs              once
node     its node left the cluster                                             no
drained  its node was told to leave; the trial went on elsewhere               no
leak     the process had not given the memory of its last trial back           no
======== ===================================================================== =============

``resources.retries`` limits those that count; `MOST` ends a trial that meets any of them without end.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

DIED, SILENT, MEMORY, NODE, DRAINED, LEAK = "died", "silent", "memory", "node", "drained", "leak"
COUNTED = (DIED, SILENT)
MOST = 100

_OUT_OF_MEMORY = re.compile(r"out ?of ?memory|memory usage threshold|can't allocate memory|\bOOM\b", re.IGNORECASE)


def is_out_of_memory(text: str) -> bool:
    """Whether an error says that memory, of a host or of a GPU, ran out."""
    return _OUT_OF_MEMORY.search(text) is not None


def last_line(text: str) -> str:
    """The last line of an error that says anything."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no reason given")


def too_many(setbacks: Sequence[dict[str, Any]], kind: str, retries: int) -> bool:
    """Whether one more of this kind is more than a trial may have."""
    counted = sum(each["kind"] in COUNTED for each in setbacks)
    return (kind in COUNTED and counted >= retries) or len(setbacks) >= MOST
