"""Checks of every node before the first trial: whether it sees the study's folder and images; its clock, its GPUs."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cluster.resources import Node, nodes_of

ANSWER_SECONDS = 120.0
LEAVING_SECONDS = 20.0
"""Ray knows of a node's end so much later at most."""
SKEW_SECONDS = 30.0
"""Clocks may differ by so much: leases of studies are compared by them, and run out after 30 s."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node sees: whether the marker is there, what hindered an answer beside it, missing paths, its clock.

    `other`: the first file that is not as long as it should be, said with its lengths. `device`: why trials cannot use
    its GPUs.
    """

    reads: bool
    writes: str
    missing: tuple[str, ...]
    clock: float
    other: str = ""
    device: str = ""


class Marker(Protocol):
    """A file that the driver sets where a study lies, and beside which every node answers. `str`: the place."""

    def set(self) -> None:
        """Write it."""
        ...

    def answer(self, node: str) -> tuple[bool, str]:
        """Run on a node: whether it finds the marker, and what hinders it to answer."""
        ...

    def answered(self, node: str) -> bool:
        """Whether a node's answer is there."""
        ...

    def clear(self, nodes: Iterable[str]) -> None:
        """Remove it and the answers."""
        ...


class FolderMarker:
    """A marker in a folder that all nodes share."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._name = folder, f".reach-{secrets.token_hex(4)}"

    def __str__(self) -> str:
        return str(self._folder)

    def set(self) -> None:
        """Write it."""
        (self._folder / self._name).touch()

    def answer(self, node: str) -> tuple[bool, str]:
        """Run on a node: whether it finds the marker, and what hinders it to answer."""
        if not (self._folder / self._name).exists():
            return False, ""
        try:
            (self._folder / f"{self._name}-{node}").touch()
        except OSError as error:
            return True, error.strerror or str(error)
        return True, ""

    def answered(self, node: str) -> bool:
        """Whether a node's answer is there."""
        return (self._folder / f"{self._name}-{node}").exists()

    def clear(self, nodes: Iterable[str]) -> None:
        """Remove it and the answers."""
        for left in self._folder.glob(f"{self._name}*"):
            left.unlink(missing_ok=True)


def look(
    marker: Marker,
    node: str,
    paths: Sequence[str],
    files: Sequence[tuple[str, int]] = (),
    device: Callable[[], str] | None = None,
) -> Seen:
    """Run on a node: `marker` was set by the driver and is to be answered, `paths` are read by trials.

    `files` are a sample of what lies there, with lengths in bytes. `device` says why trials cannot use the node's GPUs,
    or nothing.
    """
    reads, writes = marker.answer(node)
    missing = tuple(path for path in paths if not Path(path).exists())
    other = "" if missing else next((said for path, length in files if (said := _other(path, length))), "")
    clock = time.time()
    return Seen(reads, writes, missing, clock, other, device() if device else "")


def _other(path: str, length: int) -> str:
    try:
        there = os.stat(path).st_size
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if there == length else f"{path} has {there} bytes, not {length}"


class Survey:
    """Looks from every node that may run trials; begun at once, so that others can work while the nodes do."""

    def __init__(
        self,
        ray: Any,
        nodes: Sequence[Node],
        marker: Marker,
        paths: Sequence[str] = (),
        files: Sequence[tuple[str, int]] = (),
        device: Callable[[], str] | None = None,
    ) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._ray, self._marker = ray, marker
        marker.set()
        self._asked = time.time()
        task = ray.remote(look)
        self._seen = {
            node: task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(marker, node.id[:12], list(paths), list(files), device)
            for node in nodes
        }

    def settle(self) -> None:
        """Wait for all of them; raises `ValueError` with one line for the first thing that is wrong.

        What was written for it is removed again.
        """
        ray = self._ray
        try:
            pending = list(self._seen.values())
            ready, _ = ray.wait(pending, num_returns=len(pending), timeout=ANSWER_SECONDS)
            for node, found in self._seen.items():
                if found not in ready:
                    raise ValueError(f"{_place(node)} did not answer within {ANSWER_SECONDS:.0f} s: is it overloaded?")
                try:
                    seen = ray.get(found)
                except ray.exceptions.RayError as error:
                    if self._left(node, error):
                        continue
                    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                    why = lines[-1][:160] if lines else "no reason given"
                    raise ValueError(
                        f"{_place(node)} cannot run routefront, which must be installed there as here: {why}"
                    ) from None
                fault = wrong(node, seen, str(self._marker), self._asked, time.time())
                if fault or not self._marker.answered(node.id[:12]):
                    raise ValueError(fault or _elsewhere(node, str(self._marker)))
        finally:
            self._marker.clear(node.id[:12] for node in self._seen)

    def _left(self, node: Node, error: Exception) -> bool:
        """Whether a node could not be asked because it is gone by now: the others go on without it."""
        if isinstance(error, self._ray.exceptions.RayTaskError):
            return False  # it ran there
        if isinstance(error, self._ray.exceptions.TaskUnschedulableError):
            return True  # a task that needs nothing fits every node that is there
        end = time.monotonic() + LEAVING_SECONDS
        while any(other.id == node.id for other in nodes_of(self._ray)):
            if time.monotonic() > end:
                return False
            time.sleep(0.5)
        return True


def wrong(node: Node, seen: Seen, folder: str, asked: float, answered: float) -> str:
    """One line: what hinders trials on a node; empty where nothing does. It was asked and answered at these times."""
    place = _place(node)
    if not seen.reads:
        return _elsewhere(node, folder)
    if seen.writes:
        return f"{place} cannot write the study's folder {folder}: {seen.writes}"
    if seen.missing:
        return f"{place} has no images at {seen.missing[0]}: copy them there, or name a folder that all nodes share"
    if seen.other:
        return f"{place} has other images than this machine ({seen.other}): copy them there anew"
    if seen.device:
        return f"the GPUs of {place}: {seen.device}"
    skew = max(asked - seen.clock, seen.clock - answered)
    if skew > SKEW_SECONDS:
        return f"the clock of {place} is {skew:.0f} s off: set the clocks of the nodes (chrony, ntpd)"
    return ""


def _place(node: Node) -> str:
    return f"node {node.host} ({node.id[:8]})"


def _elsewhere(node: Node, folder: str) -> str:
    return (
        f"{_place(node)} does not see the study's folder {folder}: studies on a cluster lie in a"
        " folder that all nodes share (--studies, or ROUTEFRONT_STUDIES)"
    )
