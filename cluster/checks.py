"""What is looked at on every node before the first trial: the study's folder, the images, the clock."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.resources import Node

ANSWER_SECONDS = 120.0
SKEW_SECONDS = 30.0
"""Clocks may differ by so much: leases of studies are compared by them, and run out after 30 s."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a node sees: whether the marker is there and one could be written beside it, missing paths, its clock."""

    reads: bool
    writes: str
    missing: tuple[str, ...]
    clock: float


def look(marker: str, answer: str, paths: Sequence[str]) -> Seen:
    """Run on a node: `marker` was written by the driver, `answer` is to be written, `paths` are read by trials."""
    reads = Path(marker).exists()
    writes = ""
    try:
        if reads:
            Path(answer).touch()
    except OSError as error:
        writes = error.strerror or str(error)
    return Seen(reads, writes, tuple(path for path in paths if not Path(path).exists()), time.time())


def survey(ray: Any, nodes: Sequence[Node], folder: Path, paths: Sequence[str] = ()) -> None:
    """Look from every node that may run trials; raises `ValueError` with one line for the first thing that is wrong.

    What is written into `folder` for it is removed again.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    name = f".reach-{secrets.token_hex(4)}"
    marker = folder / name
    marker.touch()
    task = ray.remote(look)
    asked = time.time()
    try:
        seen = {
            node: task.options(
                num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote(str(marker), f"{marker}-{node.id[:12]}", list(paths))
            for node in nodes
        }
        ready, _ = ray.wait(list(seen.values()), num_returns=len(seen), timeout=ANSWER_SECONDS)
        for node, found in seen.items():
            if found not in ready:
                raise ValueError(
                    f"node {node.host} ({node.id[:8]}) did not answer within {ANSWER_SECONDS:.0f} s: is it overloaded?"
                )
            fault = wrong(node, ray.get(found), folder, asked, time.time())
            if fault:
                raise ValueError(fault)
            if not os.path.exists(f"{marker}-{node.id[:12]}"):
                raise ValueError(_elsewhere(node, folder))
    finally:
        for left in folder.glob(f"{name}*"):
            left.unlink(missing_ok=True)


def wrong(node: Node, seen: Seen, folder: Path, asked: float, answered: float) -> str:
    """One line: what hinders trials on a node; empty where nothing does. It was asked and answered at these times."""
    place = f"node {node.host} ({node.id[:8]})"
    if not seen.reads:
        return _elsewhere(node, folder)
    if seen.writes:
        return f"{place} cannot write the study's folder {folder}: {seen.writes}"
    if seen.missing:
        return f"{place} has no images at {seen.missing[0]}: copy them there, or name a folder that all nodes share"
    skew = max(asked - seen.clock, seen.clock - answered)
    if skew > SKEW_SECONDS:
        return f"the clock of {place} is {skew:.0f} s off: set the clocks of the nodes (chrony, ntpd)"
    return ""


def _elsewhere(node: Node, folder: Path) -> str:
    return (
        f"node {node.host} ({node.id[:8]}) does not see the study's folder {folder}: studies on a cluster lie in a"
        " folder that all nodes share (--studies, or ROUTEFRONT_STUDIES)"
    )
