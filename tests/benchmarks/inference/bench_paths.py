"""Do parallel paths pay as one grouped computation, and does leaving paths out save time?

    python tests/benchmarks/inference/bench_paths.py [--quick] [--device cpu] [--networks basecnn resnet-20] [--json
    FILE]

Grouped against the loop over paths: forward in eval mode and a whole training step (forward, backward), per
network, routing, number of paths X and batch, with the choice that ``computation = "auto"`` makes. Peak memory
of a training step comes from fresh processes. Then the time of the pruned pass against the share of paths kept,
with gates drawn at random. One thread; contenders are interleaved; medians, and the median of the ratios of
neighbours. Times on CPUs are those that the one thread got to run, or with ``--wall`` those of the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_skip import Clock, _resident, images_of, interleaved, ratio, table

from trainables.contracts.network import Task
from trainables.networks.multipath.network import MultiPathNetwork
from trainables.registry import get_method

WAYS = ("loop", "grouped")


def build(body: str, paths: int, routing: str, computation: str, device: str) -> MultiPathNetwork:
    torch.manual_seed(0)
    method = get_method("multipath")
    config = method.configure({"network": f"{body}-{paths}", "variant": routing, "computation": computation})
    network = method.build(config, Task())
    assert isinstance(network, MultiPathNetwork)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def step(network: MultiPathNetwork, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def call() -> None:
        network.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(network(images).output, labels).backward()

    return call


def compared(
    body: str, routing: str, paths: int, batch: int, device: str, clock: Clock, repeats: int
) -> dict[str, Any]:
    """Milliseconds of one network, grouped and in a loop."""
    images = images_of(batch, device)
    labels = torch.zeros(batch, dtype=torch.long, device=device)
    row: dict[str, Any] = {"network": f"{body}-{paths}-{routing}", "batch": batch}
    networks = {way: build(body, paths, routing, way, device) for way in (*WAYS, "auto")}

    def passing(network: MultiPathNetwork) -> Callable[[], Any]:
        def call() -> None:
            with torch.no_grad():
                network.eval()(images)

        return call

    for what in ("forward", "training"):
        calls = {w: passing(n) if what == "forward" else step(n.train(), images, labels) for w, n in networks.items()}
        if what == "training":
            for network in networks.values():
                network.train()
        taken = interleaved(calls, repeats, clock)
        row |= {f"{what} {way} ms": statistics.median(taken[way]) for way in WAYS}
        row[f"{what} loop / grouped"] = ratio(taken, "loop", "grouped")
        row[f"{what} auto / best"] = ratio(taken, "auto", min(WAYS, key=lambda way: statistics.median(taken[way])))
    return row


def pruned(body: str, routing: str, paths: int, batch: int, device: str, clock: Clock, repeats: int) -> list[dict]:
    """Time and MACs of the pruned pass, as shares of the pass with all paths."""
    network, images = build(body, paths, routing, "auto", device).eval(), images_of(batch, device)
    images = images * torch.logspace(-1, 1, batch, device=device)[:, None, None, None]  # gates that differ by image
    torch.manual_seed(3)
    for name, parameter in network.named_parameters():
        if name.startswith("routers") and ".gates." in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    knobs = [{}, *({"threshold": t / paths} for t in (0.3, 0.6, 0.9)), *({"keep": k} for k in range(paths - 1, 0, -1))]
    names = [json.dumps(each) for each in knobs]
    with torch.inference_mode():
        calls = {n: (lambda k=k: network.infer(images, k)) for n, k in zip(names, knobs, strict=True)}
        calls["sweep"] = lambda: network.sweep(images, knobs)
        results = [network.infer(images, each) for each in knobs]
        taken = interleaved(calls, repeats, clock)
    ran = [i for i, unit in enumerate(network.units) if unit.kind == "path"]
    rows = []
    for name, result in zip(names, results, strict=True):
        rows.append(
            {
                "network": f"{body}-{paths}-{routing}",
                "batch": batch,
                "knobs": name,
                "paths kept": float(result.path[:, ran].mean()),
                "MACs of all": float(result.macs.mean()) / network.macs_full,
                "time of all": ratio(taken, name, names[0]),
                "ms": statistics.median(taken[name]),
            }
        )
    total = sum(statistics.median(taken[name]) for name in names)
    rows.append({**dict.fromkeys(rows[0], "-"), "knobs": "sweep of these / one by one"}
                | {"time of all": statistics.median(taken["sweep"]) / total, "ms": 0})  # fmt: skip
    return rows


def child(words: list[str], device: str) -> None:
    """MiB at the peak of one training step over what the process held before."""
    body, routing, paths, batch, way = words
    network = build(body, int(paths), routing, way, device).train()
    images = images_of(int(batch), device)
    step(network, images[:2], torch.zeros(2, dtype=torch.long, device=device))()
    before = _resident("VmRSS")
    step(network, images, torch.zeros(len(images), dtype=torch.long, device=device))()
    print(json.dumps(_resident("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="X = 2, few repeats, no batch of 256")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--networks", nargs="+", default=["basecnn", "resnet-20"])
    parser.add_argument("--routings", nargs="+", default=["cc", "cp"])
    parser.add_argument("--paths", nargs="+", type=int, default=[2, 3, 4])
    parser.add_argument("--batches", nargs="+", type=int, default=[], help="compare grouped and loop on these, no more")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.child:
        child(a.child, a.device)
        return
    clock = Clock(a.device, a.wall)
    where = torch.cuda.get_device_name() if a.device != "cpu" else platform.processor() or platform.machine()
    print(f"{where}, torch {torch.__version__}, one thread")
    counts = [2] if a.quick else a.paths
    repeats = {1: 11, 16: 3, 64: 2} if a.quick else {1: 31, 16: 9, 64: 5, 256: 3}
    if a.batches:
        repeats = {batch: 15 if batch < 16 else 5 for batch in a.batches}
    rows = [
        compared(body, routing, paths, batch, a.device, clock, n)
        for body in a.networks
        for routing in a.routings
        for paths in counts
        for batch, n in repeats.items()
    ]
    table(rows)
    if a.batches:
        return
    memory = []
    for body, routing in ((b, r) for b in a.networks for r in a.routings):
        words = [body, routing, str(counts[-1]), "64"]
        command = [sys.executable, __file__, "--device", a.device, "--child", *words]
        runs = {way: subprocess.run([*command, way], capture_output=True, text=True, check=True) for way in WAYS}
        memory.append({"peak MiB of a training step, batch 64": f"{body}-{words[2]}-{routing}"}
                      | {way: float(json.loads(run.stdout)) for way, run in runs.items()})  # fmt: skip
    table(memory)
    cut = [row for body in a.networks for b, n in list(repeats.items())[:3]
           for row in pruned(body, "cc", counts[-1], b, a.device, clock, n)]  # fmt: skip
    table(cut)
    if a.json:
        a.json.write_text(json.dumps({"computation": rows, "memory": memory, "pruning": cut}, indent=1))


if __name__ == "__main__":
    main()
