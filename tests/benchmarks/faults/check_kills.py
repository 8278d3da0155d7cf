"""Kill a study's driver at every kind of event with SIGKILL, on a real Ray; count what is lost and doubled.

    python tests/benchmarks/faults/check_kills.py [--every 4] [--trials 10] [--only before-stopping ...]

For each moment ("before" an event is written, "after" it was, "folded": when every listener heard of it, and in a
flush of operating points) one study is driven by processes that kill themselves at their N-th event,
again and again, until it is finished. Prints Markdown: kills by kind of event, what was lost or
doubled, whether the state of the last driver equals, by hash, that of an engine that only ever read the journal.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.spec.study import StudySpec
from search.study import Study
from tests.support.killing import SPEC, drive, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="events between two kills")
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=[], metavar="STUDY", help="names of the table's first column")
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    from cluster.connect import prepare_environment

    prepare_environment(local=False)
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    print("| study | killed | at | faults | minutes |\n|--|--|--|--|--|", flush=True)
    total = 0
    try:
        with tempfile.TemporaryDirectory() as root:
            for pause in (False, True):
                for when in ("before", "after", "folded", "flush"):
                    name = f"{when}-{'pausing' if pause else 'stopping'}"
                    if arguments.only and name not in arguments.only:
                        continue
                    total += _study(Path(root), name, cluster.address, when, pause, arguments)
    finally:
        cluster.shutdown()
    print(f"\n{total} kills")


def _study(root: Path, name: str, address: str, when: str, pause: bool, arguments: argparse.Namespace) -> int:
    rungs = {**SPEC["rungs"], "pause": pause}
    budget = {**SPEC["budget"], "trials": arguments.trials}
    study = Study.create(StudySpec.parse({**SPEC, "name": name, "rungs": rungs, "budget": budget}), root=root)
    kind, number, moment = ("flush", 1, "before") if when == "flush" else ("any", arguments.every, when)
    started, kills = time.monotonic(), 0
    while True:
        killed, digest = drive(root, name, address, kind, number, moment)
        if not killed:
            break
        kills += 1
        if when == "flush":
            moment = "after" if moment == "before" else "before"
            number += 1
    journal = study.journal()
    events = list(journal.events())
    journal.close()
    # the last event before each session is the one at which the driver died
    ends = Counter(a.kind for a, b in itertools.pairwise(events) if b.kind == "session")
    at = ", ".join(f"{kind} {count}" for kind, count in ends.most_common())
    found = "; ".join(faults(study, digest)) or "none"
    print(f"| {name} | {kills} | last event {at} | {found} | {(time.monotonic() - started) / 60:.1f} |", flush=True)
    return kills


if __name__ == "__main__":
    main()
