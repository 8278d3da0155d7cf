"""A marker file in object storage: nodes that find it see the study's storage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainables.worker.remote import Remote


class StoredMarker:
    """For `cluster.survey.Survey`: a file in the storage that every node must read, and answer beside."""

    def __init__(self, address: str, name: str) -> None:
        self.address, self.name = address, name

    def __str__(self) -> str:
        return self.address

    def _remote(self) -> Remote:
        from trainables.worker.remote import remote_at

        return remote_at(self.address, 8.0)

    def set(self) -> None:
        """Write it."""
        self._remote().write(self.name, "")

    def answer(self, node: str) -> tuple[bool, str]:
        """Run on a node: whether it finds the marker, and what hinders it to answer."""
        try:
            if not self._remote().exists(self.name):
                return False, ""
            self._remote().write(f"{self.name}-{node}", "")
        except (OSError, ValueError) as error:
            return True, str(error)
        return True, ""

    def answered(self, node: str) -> bool:
        """Whether a node's answer is there."""
        return self._remote().exists(f"{self.name}-{node}")

    def clear(self, nodes: Iterable[str]) -> None:
        """Remove it and the answers."""
        self._remote().remove([self.name, *(f"{self.name}-{node}" for node in nodes)])
