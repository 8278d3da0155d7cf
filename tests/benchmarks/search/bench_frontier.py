"""Fronts, archive and Parquet at 1e4 to 1e6 operating points: medians, with hardware and versions.

    python tests/benchmarks/search/bench_frontier.py [--largest 1000000] [--repeats 5] [--seed 0]

Contenders of a row are interleaved in one run. "cloud" is a blob far behind its front, "dense" has
several thousand points on it. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import moocore
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from search.pareto.front import Archive, hypervolume, non_dominated, standings
from search.points import files as points

REFERENCE = (0.9, 1e8)


def medians(repeats: int, **contenders: Callable[[], object]) -> dict[str, float]:
    """Milliseconds of each, interleaved so that a noisy minute hits all of them."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            taken[name].append(1e3 * (time.perf_counter() - started))
    return {name: statistics.median(values) for name, values in taken.items()}


def cloud(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.uniform(0.05, 0.9, n), 10 ** random.uniform(5, 8, n)


def dense(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.uniform(5, 8, n)
    return 0.9 - 0.25 * (x - 5) + random.exponential(0.01, n) * (random.random(n) > 0.01), 10**x


def joined(*parts: object) -> pa.Array:
    """Texts element by element; the last part goes between."""
    return pc.call_function("binary_join_element_wise", list(parts))


def table(n: int, seed: int) -> pa.Table:
    """`n` operating points with all columns, of trials with curves of ten."""
    error, macs = cloud(n, seed)
    trial, place = np.arange(n) // 10, np.arange(n) % 10
    trials = pc.cast(pa.array(trial), pa.string())
    same = {"study": "bench", "network": "resnet-110", "dataset": "cifar10", "data_hash": "0" * 16, "phase": "joint"}
    same |= {"split": "validation", "variant": "", "code_version": "0.1.0", "checkpoint": "epoch-0027"}
    columns: dict[str, pa.Array] = {name: pa.repeat(value, n) for name, value in same.items()}
    columns |= {
        "point_id": joined(trials, "27", pc.cast(pa.array(place), pa.string()), "-"),
        "trial": trials,
        "config_id": trials,
        "method": pa.array(np.array(["skipnet", "codinet", "imta", "act"])[trial % 4]),
        "setting": joined('{"q": 0.', pc.cast(pa.array(place), pa.string()), "}", ""),
        "config": joined('{"learning_rate": 0.1, "seed": ', trials, "}", ""),
        "accuracy": pa.array(1 - error),
        "macs": pa.array(macs),
        "seconds": pa.array(np.random.default_rng(seed).random(n)),
    }
    columns["knobs"] = columns["setting"]
    whole = {"schema_version": 1, "repeat": 0, "image_size": 32, "epoch": 27, "correct": 4500, "count": 5000}
    whole |= {"macs_full": 255_000_000, "params": 1_700_000, "seed": 7}
    columns |= {name: pa.repeat(value, n) for name, value in whole.items()}
    columns |= {name: pa.repeat(value, n) for name, value in {"cost_epochs": 27.0, "macs_std": 1.5e5}.items()}
    return pa.table(columns).select(points.SCHEMA.names).cast(points.SCHEMA)


def show(what: str, n: int, **milliseconds: float) -> None:
    print(f"| {what} | {n:,} | " + ", ".join(f"{name} {value:.3g}" for name, value in milliseconds.items()) + " |")


def bench_fronts(sizes: list[int], repeats: int, seed: int) -> None:
    for shape in (cloud, dense):
        for n in sizes:
            error, macs = shape(n, seed)
            both = np.column_stack((error, macs))
            assert (non_dominated(error, macs) == moocore.is_nondominated(both)).all()
            on_front = int(non_dominated(error, macs).sum())
            times = medians(
                repeats,
                non_dominated=lambda error=error, macs=macs: non_dominated(error, macs),
                moocore=lambda both=both: moocore.is_nondominated(both),
                hypervolume=lambda error=error, macs=macs: hypervolume(error, macs, REFERENCE),
            )
            show(f"{shape.__name__}, {on_front} on the front, ms", n, **times)


def bench_archive(n: int, repeats: int, seed: int) -> None:
    for shape in (cloud, dense):
        error, macs = (values.tolist() for values in shape(n, seed))

        def one_by_one(error: list[float] = error, macs: list[float] = macs) -> Archive:
            archive = Archive(REFERENCE)
            for e, m in zip(error, macs, strict=True):
                archive.add(e, m)
            return archive

        drift = abs(one_by_one().hypervolume - hypervolume(error, macs, REFERENCE))
        microseconds = medians(repeats, add=one_by_one)["add"] / n * 1e3
        show(
            f"archive, {shape.__name__}, {len(one_by_one())} on the front, hypervolume off by {drift:.0e}, us a point",
            n,
            add=microseconds,
        )


def bench_standings(repeats: int, seed: int) -> None:
    for k in (30, 100, 1000):
        error, macs = dense(10 * k, seed)
        curves = [(error[i : i + 10], macs[i : i + 10]) for i in range(0, 10 * k, 10)]
        show(
            f"standings of {k} curves, ms",
            10 * k,
            **medians(repeats, standings=lambda c=curves: standings(c, REFERENCE)),
        )


def bench_parquet(n: int, repeats: int, seed: int, files: int = 10) -> None:
    whole = table(n, seed)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        parts = [whole.slice(i * (n // files), n // files) for i in range(files)]
        where, path = points._locate(folder, None)
        for i, part in enumerate(parts):
            points._put(part, where, path, f"{i:020d}-bench.parquet")
        write = 1e3 * (time.perf_counter() - started)

        def front(**options: object) -> np.ndarray:
            found = points.read(folder, columns=["accuracy", "macs"], **options)  # type: ignore[arg-type]
            return non_dominated(1 - found["accuracy"].to_numpy(), found["macs"].to_numpy())

        work = {
            "two columns": lambda: points.read(folder, columns=["accuracy", "macs"]),
            "two columns of one method": lambda: points.read(
                folder, columns=["accuracy", "macs"], filters=[("method", "=", "imta")]
            ),
            "load and front": front,
            "load and front of one method": lambda: front(filters=[("method", "=", "imta")]),
            "all columns": lambda: points.read(folder),
        }
        show(f"Parquet, {files} files, write, ms", n, write=write)
        show(f"Parquet, {files} files, ms", n, **medians(repeats, **work))
        merged = points.compact(folder, small_rows=n)
        assert merged is not None and len(points.read(folder)) == n // files * files
        show(f"Parquet, compacted to {Path(merged).stat().st_size / 1e6:.0f} MB, ms", n, **medians(repeats, **work))


def machine() -> str:
    """The processor, as /proc names it where there is one."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} x {model}, load {os.getloadavg()[0]:.1f}"


def main() -> None:
    """Run everything up to the largest size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    sizes = [n for n in (10_000, 100_000, 1_000_000) if n <= asked.largest]
    print(f"command: python tests/benchmarks/search/bench_frontier.py {' '.join(sys.argv[1:])}".strip())
    print(f"machine: {machine()}")
    print(
        f"versions: Python {platform.python_version()}, numpy {np.__version__}, moocore {moocore.__version__},"
        f" pyarrow {pa.__version__}; medians of {asked.repeats}, seed {asked.seed}"
    )
    print("\n| what | points | median |\n|---|---|---|")
    bench_fronts(sizes, asked.repeats, asked.seed)
    bench_archive(min(sizes[-1], 100_000), asked.repeats, asked.seed)
    bench_standings(asked.repeats, asked.seed)
    bench_parquet(sizes[-1], asked.repeats, asked.seed)


if __name__ == "__main__":
    main()
