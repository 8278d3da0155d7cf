"""Do exits save time? MSDNet-7 whose images leave, and what a curve of exits costs.

    python tests/benchmarks/inference/bench_exits.py [--quick] [--wall] [--parts efficiency,curve] [--json FILE]

``efficiency``: a pool of images whose exits are uniform over 7 (thresholds calibrated on the pool with
q = 1), executed in batches by the prepared network, the confidence test included.

Exit efficiency = (MACs with exits / MACs without) / (time with exits / time without), where "without" is
the same prepared network with the last exit alone: no other classifier runs, nobody leaves. Beside it
the eager network with all exits, channels first and last, and frozen TorchScript of the last exit alone.

``curve``: 40 values of q and
7 exits from one pass over a validation split, in units of that pass.

One thread, contenders interleaved, medians and the median of the ratios of neighbours. Times are
those that the thread got to run (boxes are shared), or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from trainables.contracts.network import Task
from trainables.inference.evaluation import curve, exit_logits
from trainables.inference.prepare import prepared
from trainables.methods.imta import METHOD
from trainables.networks.msdnet.exits import ExitNetwork
from trainables.networks.msdnet.network import MSDNet
from trainables.networks.msdnet.thresholds import calibrate

BODY, CLASSES = "msdnet-7", 100
POOL = 448
PARTS = ("efficiency", "curve")


def interleaved(
    contenders: dict[str, Callable[[], Any]], repeats: int, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Milliseconds of every contender, one of each in turn; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            started = now()
            call()
            if repeat:
                taken[name].append(1e3 * (now() - started))
    return taken


def ratio(taken: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def build(**values: Any) -> Any:
    torch.manual_seed(0)
    network = METHOD.build(METHOD.configure({"network": BODY, **values}), Task(classes=CLASSES))
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images_of(count: int) -> Tensor:
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return noise.contiguous(memory_format=torch.channels_last)


class LastAlone(nn.Module):
    """The static network: every stage and the last classifier."""

    def __init__(self, network: ExitNetwork) -> None:
        super().__init__()
        self.stages, self.classifier = network.stages, network.classifiers[-1]

    def forward(self, inputs: Tensor) -> Tensor:
        features = [inputs]
        for stage in self.stages:
            features = stage(*features)
        return self.classifier(features[-1])


def efficiency(batch: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network: MSDNet = build().eval()
    for module in network.modules():  # untrained exits are all equally unsure, and ties leave together
        if isinstance(module, nn.Linear):
            module.weight.data *= 40
    fast = prepared(network)
    assert isinstance(fast, MSDNet)
    pool = images_of(POOL)
    knobs = calibrate({"q": 1.0}, exit_logits(fast, pool, 64))
    exits = torch.cat([fast.infer(part, knobs).exits for part in pool.split(64)])  # type: ignore[misc]
    assert torch.bincount(exits, minlength=7).min() >= POOL // 8, "exits are to be uniform"
    if batch == 1:  # two images of every exit
        chosen = torch.cat([(exits == i).nonzero()[:2, 0] for i in range(7)])
    else:
        chosen = torch.randperm(POOL, generator=torch.Generator().manual_seed(2))[: max(batch, 256)]
    batches = [part.contiguous(memory_format=torch.channels_last) for part in pool[chosen].split(batch)]
    first = copy.deepcopy(network).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    alone = LastAlone(fast)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still a contender
        traced = torch.jit.freeze(torch.jit.trace(LastAlone(network).eval(), batches[0]))
    most = fast.at_once(pool)
    contenders: dict[str, Callable[[], Any]] = {
        "exits": lambda: [fast.infer(x, knobs) for x in batches],
        "last alone": lambda: [alone(part) for x in batches for part in x.split(most)],
        "all exits, prepared": lambda: [fast.infer(x, {}) for x in batches],
        "exits, not prepared": lambda: [network.infer(x, knobs) for x in batches],
        "eager all exits, channels first": lambda: [first(x.contiguous()) for x in batches],
        "eager all exits, channels last": lambda: [network(x) for x in batches],
        "last alone, jit frozen": lambda: [traced(x) for x in batches],
    }
    done = [fast.infer(x, knobs) for x in batches]
    macs = torch.cat([each.macs for each in done]).mean()
    without = network.macs_full - sum(unit.macs for unit in network.units[1:-1:2])
    taken = interleaved(contenders, repeats, now)
    median = {name: statistics.median(times) / len(chosen) for name, times in taken.items()}
    dense = min(("last alone", "last alone, jit frozen"), key=lambda name: median[name])
    return {
        "batch": batch,
        "MACs ratio": float(macs) / without,
        "time ratio": ratio(taken, "exits", "last alone"),
        "efficiency": float(macs) / without / ratio(taken, "exits", "last alone"),
        "efficiency, not prepared": float(macs) / without / ratio(taken, "exits, not prepared", "last alone"),
        "eager all exits / exits": ratio(taken, "eager all exits, channels first", "exits"),
        "fastest dense": dense,
        "fastest dense / exits": ratio(taken, dense, "exits"),
        "ms": median,
    }


def one_curve(count: int, repeats: int, now: Callable[[], float]) -> dict[str, Any]:
    network = build(curve_points=40).eval()
    images, labels = images_of(count), torch.arange(count) % CLASSES
    fast = prepared(network)
    contenders = {
        "pass": lambda: exit_logits(fast, images, 128),
        "curve": lambda: curve(METHOD, network, images, labels),
    }
    taken = interleaved(contenders, repeats, now)
    settings = len(METHOD.settings(network.config))
    return {
        "images": count,
        "settings": settings,
        "pass ms": statistics.median(taken["pass"]),
        "curve ms": statistics.median(taken["curve"]),
        "passes": ratio(taken, "curve", "pass"),
    }


def table(rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "ms"]
    print("\n| " + " | ".join(names) + " |\n|" + "--|" * len(names))
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repeats and small batches")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    a = parser.parse_args()
    torch.set_num_threads(1)
    parts = a.parts.split(",")
    if set(parts) - set(PARTS):
        parser.error(f"--parts takes some of {', '.join(PARTS)}")
    now = time.perf_counter if a.wall else time.thread_time
    kind = "clock" if a.wall else "thread"
    where = platform.processor() or platform.machine()
    print(f"{BODY}, {CLASSES} classes, {where}, torch {torch.__version__}, one thread, {kind} time")
    found: dict[str, Any] = {}
    if "efficiency" in parts:
        repeats = {1: 4, 16: 2} if a.quick else {1: 15, 16: 3, 64: 3, 256: 3}
        with torch.inference_mode():
            found["efficiency"] = [efficiency(batch, times, now) for batch, times in repeats.items()]
        table(found["efficiency"])
        rows = found["efficiency"]
        table([{"ms an image": n, **{str(r["batch"]): r["ms"][n] for r in rows}} for n in rows[0]["ms"]])
    if "curve" in parts:
        found["curve"] = one_curve(256 if a.quick else 1000, 2 if a.quick else 3, now)
        table([found["curve"]])
    if a.json:
        a.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
