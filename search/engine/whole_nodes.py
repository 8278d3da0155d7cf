"""Trials that ran out of memory are tried again with a whole node each, when no other trials are left to run.

Every such trial asks Ray for all the CPUs (and GPUs) that trials could take on one of the largest nodes, so
that no two of them meet on one; at most as many run at once as there are such nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from search.state.trial import Trial


class Alone:
    """`single`: how many of them may run at once. `whole`: trials that would share the node that one gets."""

    def __init__(self) -> None:
        self.single, self.whole = 1, 1
        self._given: dict[str, int] = {}

    def fit(self, rooms: Sequence[int], workers: int) -> None:
        """The nodes have room for so many trials each; `workers` run at once on all of them.

        Where the study takes only a part of them, one trial at a time stands in for all others.
        """
        self.whole = min(max(rooms, default=1), workers) or 1
        self.single = rooms.count(self.whole) if workers >= sum(rooms) else 1
        self.single = max(1, min(self.single, workers))

    def give(self, name: str) -> int:
        """Trials' worth of a node that a trial gets which is handed out now."""
        self._given[name] = self.whole
        return self.whole

    def homeless(self, trials: Mapping[str, Trial]) -> list[str]:
        """Trials that were given more than any node has now, and are not over."""
        return [name for name, given in self._given.items() if given > self.whole and not trials[name].over]

    def forget(self, name: str) -> None:
        """A trial is to be handed out again."""
        self._given.pop(name, None)
