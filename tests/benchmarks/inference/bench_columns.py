"""Do decisions of columns save time? A chain whose images are classified along it, and what a sweep of prices costs.

    python tests/benchmarks/inference/bench_columns.py [--quick] [--wall] [--width 1] [--parts efficiency,sweep] [--json
    FILE]

``efficiency``: the published chain of eight columns and a pool of images as many of which are classified behind
every column (the routers' biases are moved until it is so), executed in batches by the prepared network.

Exit efficiency = (MACs routed / MACs static) / (time routed / time static), where "static" is the prepared
network of the same columns and the last classifier, without routers.

``sweep``: a curve over 14 prices of computation of routers that read the price, in units of one pass through
all columns of the same network, its routers included.

One thread, contenders interleaved, medians and the median of the ratios of neighbours. Times are
those that the thread got to run (boxes are shared), or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.benchmarks.inference.bench_exits import images_of, interleaved, ratio, table
from trainables.contracts.network import RoutedNetwork, Task
from trainables.inference.evaluation import curve
from trainables.inference.prepare import prepared
from trainables.methods.decide import METHOD
from trainables.networks.columns.layers import Router
from trainables.networks.columns.network import ColumnNetwork

CLASSES, POOL = 10, 512
PARTS = ("efficiency", "sweep")


def build(name: str, **values: Any) -> ColumnNetwork:
    """A chain in eval mode whose untrained routers disagree about images."""
    torch.manual_seed(0)
    network = METHOD.build(METHOD.configure({"network": name, **values}), Task(classes=CLASSES))
    assert isinstance(network, ColumnNetwork)
    for router in network.routers.values():
        assert isinstance(router, Router)
        nn.init.normal_(router.scores.weight)
    return network.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def spread_out(network: ColumnNetwork, pool: Tensor) -> None:
    """Move the routers' biases so that as many images of the pool are classified behind every column."""
    left, features = torch.arange(len(pool)), network.pyramid(pool)
    for n in range(len(network.nodes) - 1):
        features = network.columns[n](*features)
        router = network.routers[str(n)]
        assert isinstance(router, Router)
        lead = router(features[-1].flatten(1))[left].diff(dim=1)[:, 0]  # how much going on is preferred
        leaving = len(pool) // len(network.nodes)
        first, second = lead.sort().values[leaving - 1 : leaving + 1]
        router.scores.bias[0] += (first + second) / 2
        left = left[lead > (first + second) / 2]
        features = features[-network.scales_of[n + 1] :]


def static_of(network: ColumnNetwork, width: float) -> RoutedNetwork:
    """The prepared network of the same columns with the last classifier alone."""
    static = build(f"pyramid-static-{len(network.nodes)}", width=width)
    static.load_state_dict({k: v for k, v in network.state_dict().items() if k in static.state_dict()})
    return prepared(static)


def efficiency(batch: int, width: float, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network, pool = build("pyramid", width=width), images_of(POOL)
    spread_out(network, pool)
    fast, static = prepared(network), static_of(network, width)
    exits = torch.cat([fast.infer(part, {}).exits for part in pool.split(64)])  # type: ignore[misc]
    count = len(network.exits)
    assert torch.bincount(exits, minlength=count).min() >= POOL // count - 2, "exits are to be uniform"
    if batch == 1:  # two images of every exit
        chosen = torch.cat([(exits == i).nonzero()[:2, 0] for i in range(count)])
    else:
        chosen = torch.randperm(POOL, generator=torch.Generator().manual_seed(2))[: max(batch, 256)]
    batches = [part.contiguous(memory_format=torch.channels_last) for part in pool[chosen].split(batch)]
    contenders: dict[str, Callable[[], Any]] = {
        "routed": lambda: [fast.infer(x, {}) for x in batches],
        "static": lambda: [static.infer(x, {}) for x in batches],
        "routed to the end": lambda: [fast.infer(x, {"margin": -1e9}) for x in batches],
        "routed, not prepared": lambda: [network.infer(x, {}) for x in batches],
        "eager, all columns": lambda: [network(x) for x in batches],
    }
    macs = float(torch.cat([fast.infer(x, {}).macs for x in batches]).double().mean())
    taken = interleaved(contenders, repeats, now)
    share, whole = macs / static.macs_full, network.macs_full / static.macs_full
    return {
        "batch": batch,
        "MACs ratio": share,
        "time ratio": ratio(taken, "routed", "static"),
        "efficiency": share / ratio(taken, "routed", "static"),
        "efficiency, all to the end": whole / ratio(taken, "routed to the end", "static"),
        "efficiency, not prepared": share / ratio(taken, "routed, not prepared", "static"),
        "eager / routed": ratio(taken, "eager, all columns", "routed"),
        "ms": {name: statistics.median(times) / len(chosen) for name, times in taken.items()},
    }


def one_sweep(width: float, count: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network = build("pyramid", width=width, dynamic_k_cpt=True)
    images, labels = images_of(count), torch.arange(count) % CLASSES
    fast = prepared(network)

    def through() -> list[Any]:
        return [fast.infer(part, {"margin": -1e9}) for part in images.split(128)]

    taken = interleaved({"pass": through, "sweep": lambda: curve(METHOD, network, images, labels)}, repeats, now)
    return {
        "images": count,
        "prices": len(METHOD.settings(network.config)),
        "pass ms": statistics.median(taken["pass"]),
        "sweep ms": statistics.median(taken["sweep"]),
        "passes": ratio(taken, "sweep", "pass"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    a = parser.parse_args()
    torch.set_num_threads(1)
    parts = a.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts takes some of {', '.join(PARTS)}")
    now = time.perf_counter if a.wall else time.thread_time
    where = platform.processor() or platform.machine()
    kind = "clock" if a.wall else "thread"
    print(f"pyramid, width {a.width:g}, {where}, torch {torch.__version__}, one thread, {kind} time")
    found: dict[str, Any] = {}
    with torch.inference_mode():
        if "efficiency" in parts:
            repeats = {1: 4, 16: 2, 64: 2, 256: 2} if a.quick else {1: 25, 16: 9, 64: 9, 256: 9}
            rows = [efficiency(batch, a.width, times, now) for batch, times in repeats.items()]
            found["efficiency"] = rows
            table(rows)
            table([{"ms an image": n, **{str(r["batch"]): r["ms"][n] for r in rows}} for n in rows[0]["ms"]])
        if "sweep" in parts:
            found["sweep"] = one_sweep(a.width, 1000, 2 if a.quick else 5, now)
            table([found["sweep"]])
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
