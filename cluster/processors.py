"""How many CPUs this process may use: fewer than the machine has under taskset, Slurm, containers and their limits."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath


def usable_cpus(root: Path = Path("/")) -> int:
    """CPUs of this process's affinity (taskset, cpusets, Slurm), at most what its cgroups' quotas allow; at least 1.

    Quotas are those of ``docker --cpus`` and of limits in Kubernetes, rounded up; `root` holds ``proc`` and ``sys``.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([affinity, *(math.ceil(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each cgroup of this process, from its own up, may keep busy; those without a quota are left out."""
    with contextlib.suppress(OSError, ValueError):  # no Linux, or lines of a form to come
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            groups = PurePosixPath(path.lstrip("/"))
            for group in (groups, *groups.parents):
                if not controllers:  # version 2
                    yield from _ratio(root / "sys/fs/cgroup" / group / "cpu.max")
                elif "cpu" in controllers.split(","):
                    folder = root / "sys/fs/cgroup" / controllers / group
                    folder = folder if folder.is_dir() else root / "sys/fs/cgroup/cpu" / group
                    yield from _ratio(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")


def _ratio(*files: Path) -> Iterator[float]:
    """Quota by period, both in microseconds, in one file or in two; nothing where there is no quota."""
    with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
        quota, period = (word for file in files for word in file.read_text().split())
        if float(quota) > 0:
            yield float(quota) / float(period)
