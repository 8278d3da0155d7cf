"""Whether a network is too large for this machine, before it is built."""

from __future__ import annotations

import os
from collections.abc import Iterable
from itertools import islice

MOST_PARTS = 100_000


def require_memory(params: Iterable[int], stated: str) -> None:
    """Raise `ValueError` where training so many parameters takes more memory than the machine has.

    Weights, gradients, momentum and the copy that evaluates, four bytes each; features come on top.
    `params`: part by part, of which the first `MOST_PARTS` are read. `stated` begins the line, for example
    ``paths = 100000: basecnn with so many``.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    total = sum(islice(params, MOST_PARTS))
    if 16 * total > memory:
        raise ValueError(
            f"{stated} has at least {total:,} parameters, whose training takes "
            f"{16 * total / 2**30:,.0f} GiB; this machine has {memory / 2**30:,.0f} GiB"
        )
