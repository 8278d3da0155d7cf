"""Questions to a million operating points, and how sure a front is: medians, with hardware and versions.

    python tests/benchmarks/search/bench_points.py [--points 1000000] [--repeats 5] [--seed 0]

A study's folder with so many points is built as a driver leaves it (a journal that ended in good order,
Parquet of ten files), asked, compacted and asked again; files are warm. "front" ends with the members'
configurations, knobs and all. `bench_frontier.py` measures the layers below. Prints a Markdown table of
medians of wall time and, in brackets, of processor time, which a busy machine changes less.
"""

from __future__ import annotations

import argparse
import itertools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from bench_frontier import REFERENCE, cloud, dense, machine, table

from search.frontier.answer import answer
from search.frontier.pool import opened
from search.frontier.query import Query
from search.pareto.confidence import membership, near_front
from search.pareto.front import Archive, non_dominated
from search.points import files as points
from tests.support.kept_study import keep
from tests.support.story import Story


def medians(repeats: int, **contenders: Callable[[], object]) -> dict[str, tuple[float, float]]:
    """Milliseconds of each, wall and processor, interleaved so that a noisy minute hits all of them."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            wall, used = time.perf_counter(), time.process_time()
            work()
            taken[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - used)))
    return {name: (statistics.median(w for w, _ in t), statistics.median(c for _, c in t)) for name, t in taken.items()}


def show(what: str, n: int, **times: tuple[float, float]) -> None:
    told = ", ".join(f"{name} {wall:.3g} ({used:.3g})" for name, (wall, used) in times.items())
    print(f"| {what} | {n:,} | {told} |", flush=True)


def study_of(root: Path, whole: pa.Table, files: int) -> Any:
    """A finished study whose Parquet files hold a table."""
    story = Story()
    story.add("ended", {"why": "finished"})
    study = keep(story, root, "bench")
    where, path = points._locate(study.folder.points, None)
    size = -(-len(whole) // files)
    for i in range(files):
        part = whole.slice(i * size, size)
        if len(part):
            points._put(part, where, path, f"{i:020d}-bench.parquet")
    return study


def bench_questions(n: int, repeats: int, seed: int) -> None:
    with tempfile.TemporaryDirectory() as root:
        study = study_of(Path(root), table(n, seed), 10)

        def ask(sure: bool = False, **wishes: Any) -> Any:
            return answer(opened([study]), Query(**wishes), sure=sure)

        work = {
            "front": ask,
            "front of one method": lambda: ask(methods=["imta"]),
            "best under a budget": lambda: ask(max_macs=2e6),
            "three layers": lambda: ask(layers=3),
            "front with P(front)": lambda: ask(sure=True),
        }
        show("questions, 10 files, ms", n, **medians(repeats, **work))
        points.compact(study.folder.points, small_rows=n)
        show("questions, compacted, ms", n, **medians(repeats, **work))
        filtered = {
            "method and epoch": lambda: points.read(
                study.folder.points, columns=["accuracy", "macs"], filters=[("method", "=", "imta"), ("epoch", "=", 27)]
            ),
            "under a budget": lambda: points.read(
                study.folder.points, columns=["accuracy", "macs"], filters=[("macs", "<=", 2e5)]
            ),
        }
        show("filtered rows of two columns, ms", n, **medians(repeats, **filtered))


def bench_new_points(n: int, repeats: int, seed: int) -> None:
    """One more point for a front that has seen n."""
    for shape in (cloud, dense):
        archive = Archive(REFERENCE)
        error, macs = shape(n, seed)
        archive.extend(error, macs)
        fresh = [values.tolist() for values in shape(100_000, seed + 1)]
        ways = itertools.cycle(list(zip(*fresh, strict=True)))

        def add(archive: Archive = archive, ways: Any = ways) -> None:
            for _ in range(100_000):
                archive.add(*next(ways))

        wall, used = medians(repeats, one=add)["one"]
        taken = wall / 100, used / 100  # of 100,000 points, in microseconds
        show(f"one new point, {shape.__name__}, {len(archive)} on the front, us", n, add=taken)


def bench_small_files(repeats: int, seed: int) -> None:
    """300 files of ten rows against what compacting makes of them."""
    whole = table(3_000, seed)
    with tempfile.TemporaryDirectory() as root:
        study = study_of(Path(root), whole, 300)
        folder = study.folder.points

        def read() -> Any:
            return points.read(folder)

        def front() -> Any:
            return answer(opened([study]), Query())

        show("300 files of 10 rows, ms", 3_000, **medians(repeats, read=read, front=front))
        taken = medians(1, compact=lambda: points.compact(folder))
        show("compacted, ms", 3_000, **taken, **medians(repeats, read=read, front=front))


def bench_membership(n: int, repeats: int, seed: int) -> None:
    error, macs = dense(n, seed)
    count = np.full(n, 5_000)
    correct = np.round((1 - error) * count).astype(int)
    front = np.flatnonzero(non_dominated(error, macs))
    near = near_front(error, macs, count, front)
    random = np.random.default_rng(seed)
    bits = [random.random(5_000) < right / 5_000 if k % 8 == 0 else None for k, right in enumerate(correct[near])]
    work = {
        "near the front": lambda: near_front(error, macs, count, front),
        "1,000 draws from counts": lambda: membership(correct[near], count[near], macs[near]),
        "1,000 draws, an eighth from images": lambda: membership(correct[near], count[near], macs[near], bits=bits),
    }
    show(f"membership of {len(near):,} points near {len(front):,} on the front, ms", n, **medians(repeats, **work))


def main() -> None:
    """Run everything at the size that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    print(f"command: python tests/benchmarks/search/bench_points.py {' '.join(sys.argv[1:])}".strip())
    print(f"machine: {machine()}")
    versions = f"Python {platform.python_version()}, numpy {np.__version__}, pyarrow {pa.__version__}"
    print(f"versions: {versions}; medians of {asked.repeats}, seed {asked.seed}")
    print("\n| what | points | median |\n|---|---|---|")
    bench_questions(asked.points, asked.repeats, asked.seed)
    bench_new_points(asked.points, asked.repeats, asked.seed)
    bench_small_files(asked.repeats, asked.seed)
    bench_membership(min(asked.points, 100_000), asked.repeats, asked.seed)


if __name__ == "__main__":
    main()
