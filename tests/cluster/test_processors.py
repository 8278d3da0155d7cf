"""CPUs that may be used: affinity really set, quotas in files as kernels show them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.processors import usable_cpus

ALL = len(os.sched_getaffinity(0))


def test_affinity_decides() -> None:
    code = (
        "import os\nos.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\n"
        "from cluster.processors import usable_cpus\nprint(usable_cpus())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


@pytest.mark.parametrize(
    ("cgroup", "files", "cpus"),
    [
        ("0::/user/job", {"user/job/cpu.max": "max 100000"}, ALL),
        ("0::/user/job", {"user/job/cpu.max": "50000 100000"}, 1),
        ("0::/user/job", {"user/job/cpu.max": "max 100000", "user/cpu.max": "100000 100000"}, 1),  # of a group above
        ("0::/user/job", {"user/job/cpu.max": "10000000 100000"}, ALL),
        ("0::/../../other", {"cpu.max": "100000 100000"}, 1),  # seen from a namespace of its own
        ("3:cpuset:/\n4:cpu,cpuacct:/docker/x", {
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "100000", "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000"}, 1),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, ALL),
        ("nonsense", {}, ALL),
        (None, {}, ALL),
    ],
)  # fmt: skip
def test_quotas_of_all_groups_above_count(tmp_path: Path, cgroup: str | None, files: dict[str, str], cpus: int) -> None:
    if cgroup is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        path = tmp_path / "sys" / "fs" / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cpus(tmp_path) == cpus
