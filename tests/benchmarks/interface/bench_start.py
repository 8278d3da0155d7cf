"""How long commands and `import routefront` take to start, and a search to its first trained epoch.

    python tests/benchmarks/interface/bench_start.py [--repeats 5] [--search 1]

Every run is a process of its own; commands take turns, so that a busy minute hits all of them. "beyond Python" is the
median without that of a Python that does nothing. `list`, `status`, `frontier` look at a study of 24 trials, told by
hand. The limits are meant for two idle cores; the load of the machine is printed beside them. With `--search N` a study
of one small trial is searched N times, Ray is started each time, and the steps are those of its journal and its screen.
Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT))

ROUTEFRONT = ["-m", "search"]
COMMANDS: dict[str, tuple[list[str], float | None]] = {
    "python -c pass": (["-c", "pass"], None),
    "import routefront": (["-c", "import routefront"], 0.2),
    "routefront --help": ([*ROUTEFRONT, "--help"], 0.5),
    "routefront list": ([*ROUTEFRONT, "list"], 0.5),
    "routefront frontier STUDY": ([*ROUTEFRONT, "frontier", "told"], 1.0),
    "routefront status STUDY": ([*ROUTEFRONT, "status", "told"], 1.0),
    "routefront methods": ([*ROUTEFRONT, "methods"], 2.0),
    "routefront describe skipnet": ([*ROUTEFRONT, "describe", "skipnet"], 2.0),
}
"""What is started, and its limit in seconds."""


def tell(root: Path) -> None:
    """A finished study `told` of 24 trials under a root, with a curve of eight points each."""
    from search.journal.database import Journal
    from search.spec.toml import to_toml
    from search.studies.folder import StudyFolder, write_spec
    from search.studies.stored import journal_address
    from search.study import Study
    from tests.support.story import Story

    story = Story()
    spec = story.spec.model_copy(update={"name": "told"})
    story.events[0].payload["spec"]["name"] = "told"
    for number in range(24):
        trial = story.ask(number)
        for epoch in (1, 3, 9):
            curve = [(0.5 + 0.04 * i + 0.002 * number, 1e6 * (i + 1) + 1e4 * number) for i in range(8)]
            story.report(trial, epoch, curve)
            story.decide(trial, epoch, "finish" if epoch == 9 else "continue")
    story.add("ended", {"why": "finished"})
    folder = StudyFolder(root / "told")
    folder.path.mkdir(parents=True)
    write_spec(folder, to_toml(spec.model_dump(mode="json", exclude_none=True)))
    journal = Journal(journal_address(spec, folder), "told", create=True)
    journal.acquire()
    for event in story.events:
        journal.append(event.kind, event.payload, event.trial)
    journal.release()
    journal.close()
    with Study.load("told", root=root).driving():
        pass  # whoever wrote to a study keeps what `list` tells of it


def environment(root: Path) -> dict[str, str]:
    """This process's, with the studies of a root; Python keeps what it compiles."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "ROUTEFRONT_STUDIES": str(root)}


def started(words: list[str], root: Path) -> tuple[float, float]:
    """Seconds of wall time and of CPU time of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment(root), capture_output=True, text=True)
    wall = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def starts(repeats: int, root: Path) -> None:
    """The table of medians."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in COMMANDS}
    for words, _ in COMMANDS.values():
        started(words, root)  # compiles what was not compiled yet, and warms the disk's cache
    for _ in range(repeats):
        for name, (words, _) in COMMANDS.items():
            taken[name].append(started(words, root))
    medians = {name: [statistics.median(each) for each in zip(*runs, strict=True)] for name, runs in taken.items()}
    idle = medians["python -c pass"][0]
    print("| command | median s | beyond Python s | CPU s | limit s |\n|---|---|---|---|---|")
    for name, (wall, cpu) in medians.items():
        limit = COMMANDS[name][1]
        print(f"| {name} | {wall:.2f} | {max(0.0, wall - idle):.2f} | {cpu:.2f} | {'' if limit is None else limit} |")


STUDY = """
name = "start"
[data]
name = "digits"
image_size = 8
limit = 200
[budget]
trials = 1
epochs = 1
[resources]
workers = 1
[methods.static]
network = "resnet-8"
width = 0.25
batch_size = 32
"""


def search(root: Path) -> None:
    """The steps from the command to the end of the first epoch."""
    from search.study import Study

    (root / "start.toml").write_text(STUDY)
    words = [sys.executable, *ROUTEFRONT, "search", "start.toml", "--studies", str(root), "--tracking", "off"]
    began = time.time()
    screen: list[tuple[float, str]] = []
    with subprocess.Popen(words, cwd=root, env=environment(root), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        screen += [(time.time(), line.strip()) for line in process.stderr if line.strip()]
    if process.returncode:
        raise SystemExit("\n".join(line for _, line in screen))
    journal = Study.load("start", root=root).journal()
    events = list(journal.events())
    journal.close()
    first = {kind: next(event for event in events if event.kind == kind) for kind in ("created", "session", "start")}
    report = next(event for event in events if event.kind == "report")
    epoch = float(report.payload["seconds"])
    rows = [
        ("imports, images read, study created", first["created"].time),
        ("Ray started, its nodes known", first["session"].time),
        ("the trial's worker ready", first["start"].time),
        ("the first epoch begun (its report, less the seconds that it says it took)", report.time - epoch),
        ("the first epoch reported", report.time),
    ]
    print("| step | s since the command |\n|---|---|")
    for says, at in rows:
        print(f"| {says} | {at - began:.1f} |")
    print("\nOn the screen:\n")
    for at, line in screen:
        print(f"    {at - began:5.1f}  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--search", type=int, default=1, help="how many searches are started (0: none)")
    words = parser.parse_args()
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, load {load}\n")
    with tempfile.TemporaryDirectory(prefix="routefront-bench-") as scratch:
        root = Path(scratch) / "studies"
        tell(root)
        if words.repeats:
            starts(words.repeats, root)
        for number in range(words.search):
            print(f"\n## Search {number + 1}, limit 10 s to the first trained step\n")
            search(Path(scratch))
            subprocess.run(["rm", "-rf", str(Path(scratch) / "start")], check=True)


if __name__ == "__main__":
    main()
