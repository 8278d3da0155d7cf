"""Every fault that a study should survive, really injected on a cluster of three nodes; prints the table in Markdown.

    python tests/benchmarks/faults/check_faults.py [--only NAME ...] [--json FILE]

Every fault meets a study of six trials of six epochs (each epoch sleeps half a second) on a head and two
nodes of one CPU. "Faults" are what `tests.support.killing.faults` finds in the journal and the files: trials or
epochs that were lost or counted twice, a budget that was not kept, a state that differs from that of its
journal. "Seconds lost" are against the same study undisturbed, measured before and after in the same run.
PostgreSQL is Debian's package, MLflow a real server; a full disk is a tmpfs, which takes root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.support.faulty import ROOT, SPEC, Driven, Nodes, create, setbacks, worker_of
from tests.support.killing import faults
from tests.support.postgres import INSTALLED, Postgres

BUDGET = {"trials": 6, "epochs": 6}
SLOW = {"*": ("slow", 0)}
HELD = {"*": ("wait", 1)}  # behind the first epoch, until `Case.go`


class Case:
    """One fault: a cluster, a root of studies, and what is counted."""

    def __init__(self, nodes: Nodes, root: Path) -> None:
        self.nodes, self.root, self.times, self.said = nodes, root, 0, ""
        self.began = time.monotonic()

    def begin(self, name: str, ill: Any = None, **changes: Any) -> Driven:
        """A study and its driver."""
        create(self.root, name, ill or SLOW, **{"budget": BUDGET, **changes})
        return self.drive(name)

    def drive(self, name: str, tracking: str = "off") -> Driven:
        """A driver of a study that is there."""
        return Driven(self.root, name, self.nodes.address, tracking)

    def go(self, driven: Driven) -> None:
        """Let trials that wait go on."""
        (driven.study.folder.path / "go").touch()

    def finish(self, driven: Driven) -> list[str]:
        """Wait for its end; what was lost or doubled."""
        code, digest = driven.wait()
        if code != 0:
            return [f"the driver ended with {code}: {driven.said()[-300:]}"]
        return faults(driven.study, digest)


def undisturbed(case: Case) -> list[str]:
    return case.finish(case.begin("undisturbed"))


def workers(case: Case) -> list[str]:
    driven = case.begin("workers", resources={"retries": 20})
    while case.times < 8 and driven.process.poll() is None:
        pid = worker_of(driven.study)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            case.times += 1
        time.sleep(2)
    found = case.finish(driven)
    case.said = f"{setbacks(driven.study.state())['died']} deaths seen"
    return found


def node_killed(case: Case) -> list[str]:
    driven = case.begin("node-killed")
    driven.until(lambda state: state.cost_epochs >= 4)
    case.nodes.kill(case.nodes.nodes[0])
    driven.until(lambda state: len(state.nodes) == 2)
    case.nodes.add()
    case.times = 1
    found = case.finish(driven)
    state = driven.study.state()
    return found if len(state.nodes) == 3 else [*found, f"{len(state.nodes)} nodes seen, not 3"]


def node_added(case: Case) -> list[str]:
    case.nodes.kill(case.nodes.nodes[0])
    driven = case.begin("node-added", HELD)
    driven.until(lambda state: state.cost_epochs >= 1)
    joined = case.nodes.add()
    case.times = 1
    driven.until(lambda state: any(trial.node == joined.node_id for trial in state.trials.values()))
    case.go(driven)
    found = case.finish(driven)
    ran = sum(trial.node == joined.node_id for trial in driven.study.state().trials.values())
    case.said = f"{ran} trials ran on it"
    return found


def node_drained(case: Case) -> list[str]:
    static = {**SPEC["methods"]["static"], "network": "resnet-20", "batch_size": 2}
    few = {"trials": 4, "epochs": 3}  # epochs of ten seconds and more: it leaves in the middle of one
    driven = case.begin("node-drained", {}, budget=few, methods={"static": static})
    driven.until(lambda state: state.cost_epochs >= 2)
    leaving = case.nodes.nodes[0]
    command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", case.nodes.address, "--node-id"]
    command += [leaving.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([*command, "--deadline-remaining-seconds", "60"], check=True, capture_output=True)
    case.times = 1
    driven.until(lambda state: setbacks(state)["drained"] or setbacks(state)["node"])
    case.nodes.add()
    found = case.finish(driven)
    state = driven.study.state()
    case.said = "; ".join(each["why"] for trial in state.trials.values() for each in trial.setbacks)
    with contextlib.suppress(Exception):
        case.nodes.kill(leaving)
    return found if "steps of epoch" in case.said else [*found, "the epoch was not kept in its middle"]


def node_paused(case: Case) -> list[str]:
    """The raylet and all that runs under it, for a minute."""
    driven = case.begin("node-paused")
    driven.until(lambda state: state.cost_epochs >= 4)
    node = case.nodes.nodes[0]
    raylet = node.all_processes["raylet"][0].process.pid
    paused = [raylet, *_descendants(raylet)]
    for pid in paused:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGSTOP)
    case.times = 1
    time.sleep(60)
    for pid in paused:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGCONT)
    found = case.finish(driven)
    case.said = f"{dict(setbacks(driven.study.state()))}"
    case.nodes.nodes.remove(node)
    with contextlib.suppress(Exception):
        case.nodes.cluster.remove_node(node, allow_graceful=False)
    case.nodes.add()
    return found


def _descendants(pid: int) -> list[int]:
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, listed.read_text().split()):
                found += [child, *_descendants(child)]
    return found


def driver_killed(case: Case) -> list[str]:
    driven = case.begin("driver-killed")
    for part in (3, 12, 24):
        driven.until(lambda state, part=part: state.cost_epochs >= part)
        driven.kill()
        case.times += 1
        driven = case.drive("driver-killed")
    return case.finish(driven)


def head_killed(case: Case) -> list[str]:
    """The journal in PostgreSQL; the study goes on under another head."""
    server = Postgres()
    try:
        driven = case.begin("head-killed", journal=server.address)
        driven.until(lambda state: state.cost_epochs >= 6)
        case.nodes.cluster.head_node.kill_gcs_server(check_alive=False)
        case.nodes.cluster.head_node.kill_raylet(check_alive=False)
        case.times = 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            driven.process.wait(180)
        ended = driven.process.poll()
        driven.kill()
        how = "when it was told" if ended is None else f"by itself with {ended}: {driven.said().strip()[-160:]}"
        case.said = f"the driver ended {how}"
        with contextlib.suppress(Exception):
            case.nodes.shutdown()
        case.nodes = Nodes(2)
        return case.finish(case.drive("head-killed"))
    finally:
        server.close()


def postgres_away(case: Case) -> list[str]:
    server = Postgres()
    try:
        driven = case.begin("postgres-away", journal=server.address)
        driven.until(lambda state: state.cost_epochs >= 6)
        server.stop()
        time.sleep(60)
        server.start()
        case.times = 1
        return case.finish(driven)
    finally:
        server.close()


def mlflow_away(case: Case) -> list[str]:
    from tests.support.tracked import Server, lost_and_doubled

    folder = case.root / "mlflow"
    folder.mkdir()
    server = Server(folder)
    server.start()
    server.wait()
    try:
        create(case.root, "mlflow-away", SLOW, budget=BUDGET)
        driven = case.drive("mlflow-away", server.uri)
        driven.until(lambda state: state.cost_epochs >= 6)
        server.kill()
        time.sleep(60)
        server.start()
        server.wait()
        case.times = 1
        found = case.finish(driven)
        journal = driven.study.journal()
        _, waiting, _ = lost_and_doubled(server.database, [journal])
        if waiting:  # the study was over before the server was back: its driver says that, and how to bring the rest
            command = [sys.executable, "-m", "search", "track", "mlflow-away", "--studies", str(case.root)]
            subprocess.run([*command, "--to", server.uri], cwd=ROOT, check=True, capture_output=True)
            found += [] if "routefront track" in driven.said() else [f"not said: {driven.said()[-200:]}"]
        records, lost, doubled = lost_and_doubled(server.database, [journal])
        journal.close()
        case.said = f"{records} records at MLflow, {lost} lost, {doubled} doubled; {waiting} at first not there yet"
        return found + ([case.said] if lost or doubled else [])
    finally:
        server.kill()


def disk_full(case: Case) -> list[str]:
    """A tmpfs of 6 MB that fills; then it is made larger, and the study resumed."""
    place = case.root / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(place)], check=True)
    try:
        create(place, "disk-full", SLOW, budget=BUDGET)
        (place / "ballast").write_bytes(os.urandom(2 * 2**20))
        driven = Driven(place, "disk-full", case.nodes.address)
        driven.until(lambda state: state.cost_epochs >= 4)
        with contextlib.suppress(OSError), (place / "more").open("wb") as file:
            while True:
                file.write(os.urandom(65536))
                file.flush()
        case.times = 1
        code = driven.process.wait(120)
        case.said = f"exit {code}: {driven.said().strip().splitlines()[-1][:160]}"
        if code == 0:
            return ["the driver did not notice"]
        subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
        again = Driven(place, "disk-full", case.nodes.address)
        return case.finish(again)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=False)


def ills(case: Case) -> list[str]:
    """Trials that raise, hang, diverge, leak, leave children."""
    ill = {
        "t0000": ("raise", 2), "t0001": ("hang", 2), "t0002": ("nan", 2), "t0003": ("leak", 2), "t0004": ("fork", 2),
        "t0005": ("hang_always", 2),
    }  # fmt: skip
    resources = {"memory": "700MB", "patience": "12s", "retries": 2}
    driven = case.begin("ills", ill, resources=resources)
    case.times = len(ill)
    found = case.finish(driven)
    state = driven.study.state()
    case.said = "; ".join(
        f"{t.id} {t.state}{f': {t.reason[:60]}' if t.state == 'failed' else ''}" for t in state.trials.values()
    )
    expected = ["failed", "finished", "failed", "failed", "finished", "failed"]
    ended = [trial.state for trial in state.trials.values()]
    child = int((driven.study.folder.path / "t0004.ill").read_text())
    if Path(f"/proc/{child}").exists():
        found.append(f"process {child} that a trial started still lives")
    return found if ended == expected else [*found, f"ended as {ended}"]


def two_drivers(case: Case) -> list[str]:
    driven = case.begin("two-drivers")
    driven.until(lambda state: state.cost_epochs >= 3)
    second = case.drive("two-drivers")
    code = second.process.wait(120)
    case.times, case.said = 1, second.said().strip().splitlines()[-1][:160]
    found = case.finish(driven)
    return found if code != 0 and "is being written by process" in case.said else [*found, f"the second: {case.said}"]


CASES: dict[str, Callable[[Case], list[str]]] = {
    "worker killed": workers,
    "node killed, another joins": node_killed,
    "node added": node_added,
    "node drained": node_drained,
    "node paused for 60 s (SIGSTOP)": node_paused,
    "driver killed, resumed": driver_killed,
    "trials that raise, hang, diverge, leak, fork": ills,
    "two drivers at once": two_drivers,
    "disk full": disk_full,
    "MLflow away for 60 s": mlflow_away,
    "PostgreSQL away for 60 s": postgres_away,
    "head killed, resumed under a new one": head_killed,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="beginnings of names of faults")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    nodes, rows = Nodes(2), []
    chosen = {n: c for n, c in CASES.items() if not arguments.only or any(n.startswith(o) for o in arguments.only)}
    if not INSTALLED:
        print("PostgreSQL is not installed: its faults are left out")
        chosen = {n: c for n, c in chosen.items() if c not in (postgres_away, head_killed)}
    baselines: list[float] = []
    print("| fault | times | faults found | seconds | what was seen |\n|--|--|--|--|--|", flush=True)
    runs = [("undisturbed", undisturbed), *chosen.items(), ("undisturbed again", undisturbed)]
    try:
        for name, case_of in runs:
            root = Path(tempfile.mkdtemp(prefix="routefront-faults-"))
            case = Case(nodes, root)
            try:
                found = case_of(case)
            except Exception as error:  # the table says what the check itself could not do
                traceback.print_exc()
                found = [f"the check itself failed: {type(error).__name__}: {error}".splitlines()[0][:200]]
            seconds = time.monotonic() - case.began
            nodes = case.nodes
            if found:  # the next fault is to meet whole nodes
                with contextlib.suppress(Exception):
                    nodes.shutdown()
                nodes = Nodes(2)
            if case_of is undisturbed:
                baselines.append(seconds)
            rows.append({"fault": name, "times": case.times, "found": found, "seconds": seconds, "said": case.said})
            print(f"| {name} | {case.times} | {'; '.join(found) or 'none'} | {seconds:.0f} | {case.said} |", flush=True)
            shutil.rmtree(root, ignore_errors=True)
    finally:
        nodes.shutdown()
    usual = statistics.median(baselines)
    print(f"\nundisturbed: {usual:.0f} s; seconds lost = seconds - {usual:.0f} (and less what a case waits for)")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
