"""Does skipping save time? Prepared networks against their own dense pass and against the fastest dense engine.

    python tests/benchmarks/inference/bench_skip.py [--quick] [--device cpu] [--wall] [--compiled] [--float32]
        [--json FILE]

ResNet-110 with a linear and with a recurrent router, half of the blocks skipped at random for every
image. The decisions are drawn (they replace the limits that P(run) must reach), while routers answer
every gate in the skipping and in the dense pass alike.

Skip efficiency = (MACs ratio skipping / dense) / (time ratio skipping / dense), same engine, same
type. One thread; contenders are interleaved; medians, and the median of the ratios of neighbours.
Times on CPUs are those that the one thread got to run (boxes are shared), or with ``--wall`` those
of the clock. Beside it: dense engines without routers, the masked forward that computes everything
(in the authors' layout, channels first, and in ours), bfloat16, the cost of a curve of nine settings
with logits of the gates drawn from N(0, 1.5) (unsure) and N(0, 6) (sure), the peak of memory in fresh
processes. ``--float32`` leaves bfloat16 out: a CPU without instructions for it takes ten times as long.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
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

from trainables.contracts.network import Inference, RoutedNetwork, Task
from trainables.inference.prepare import prepared
from trainables.networks.gated.network import THRESHOLDS, GatedResNet
from trainables.registry import get_method

BODY = "resnet-110"
CURVE = [{"threshold": t} for t in THRESHOLDS[:-2]]
WAYS = ("eager", "prepared")


class Clock:
    """Milliseconds of one call."""

    def __init__(self, device: str, wall: bool) -> None:
        self.device = device
        self.now = time.perf_counter if wall or device != "cpu" else time.thread_time

    def __call__(self, call: Callable[[], Any]) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize()
        started = self.now()
        call()
        if self.device != "cpu":
            torch.cuda.synchronize()
        return 1e3 * (self.now() - started)


def interleaved(contenders: dict[str, Callable[[], Any]], repeats: int, clock: Clock) -> dict[str, list[float]]:
    """Times of every contender, one of each in turn; the first round warms up."""
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(repeats + 1):
        for name, call in contenders.items():
            spent = clock(call)
            if repeat:
                taken[name].append(spent)
    return taken


def ratio(taken: dict[str, list[float]], one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(taken[one], taken[other], strict=True))


def build(name: str, device: str, **values: Any) -> Any:
    torch.manual_seed(0)
    method = get_method(name)
    network = method.build(method.configure({"network": BODY, **values}), Task())
    return network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]


def images_of(count: int, device: str) -> Tensor:
    noise = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return noise.to(device).contiguous(memory_format=torch.channels_last)


def under(network: GatedResNet, images: Tensor, run: Tensor) -> Callable[[], Inference]:
    """The hard pass with given decisions (B, G), routers running."""
    limits = torch.where(run, -1.0, 2.0)

    def call() -> Inference:
        network.limits = lambda inputs, knobs: limits  # type: ignore[method-assign]
        return network.infer(images, {})

    return call


def dense_engines(device: str, images: Tensor, compiled: bool) -> dict[str, Callable[[], Any]]:
    """The same body without gates, by every means at hand."""
    static = build("static", device)
    fast = prepared(static)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = static

        def forward(self, inputs: Tensor) -> Tensor:
            return self.network._logits(inputs)

    plain = Logits().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, and still a contender
        traced = torch.jit.freeze(torch.jit.trace(plain, images))
    engines: dict[str, Callable[[], Any]] = {
        "dense, eager channels-last": lambda: plain(images),
        "dense, jit frozen": lambda: traced(images),
        "dense, prepared": lambda: fast.infer(images, {}),
    }
    if compiled:
        fixed = torch.compile(plain, dynamic=False, options={"freezing": True})
        engines["dense, compiled and frozen"] = lambda: fixed(images)
    return engines


def skipping(
    gate: str, batch: int, repeats: int, device: str, clock: Clock, compiled: bool, narrow_too: bool
) -> dict[str, Any]:
    network: GatedResNet = build("skipnet", device, gate=gate, shortcut="A")
    images = images_of(batch, device)
    half = torch.rand(batch, network.gates, generator=torch.Generator().manual_seed(2)).to(device) < 0.5
    everything = torch.ones_like(half)
    masks = half.to(images.dtype)
    first, first_images = copy.deepcopy(network).to(memory_format=torch.contiguous_format), images.contiguous()  # type: ignore[call-overload]
    fast, narrow = prepared(network), prepared(network, dtype=torch.bfloat16)
    assert isinstance(fast, GatedResNet) and isinstance(narrow, GatedResNet)
    contenders: dict[str, Callable[[], Any]] = {
        "skip": under(fast, images, half),
        "all": under(fast, images, everything),
        "skip, not prepared": under(network, images, half),
        "masked, channels first": lambda: first(first_images, decisions=masks),
        "masked, channels last": lambda: network(images, decisions=masks),
        **dense_engines(device, images, compiled),
    }
    if narrow_too:
        contenders["skip bfloat16"] = under(narrow, images, half)
        contenders["all bfloat16"] = under(narrow, images, everything)
    macs = float(contenders["skip"]().macs.mean() / contenders["all"]().macs.mean())
    taken = interleaved(contenders, repeats, clock)
    median = {name: statistics.median(times) for name, times in taken.items()}
    fastest = min((name for name in contenders if name.startswith("dense")), key=lambda name: median[name])
    row: dict[str, Any] = {
        "router": gate,
        "batch": batch,
        "macs ratio": macs,
        "efficiency": macs / ratio(taken, "skip", "all"),
        "masked / skip": ratio(taken, "masked, channels first", "skip"),
        "masked channels last / skip": ratio(taken, "masked, channels last", "skip"),
        "fastest dense": fastest,
        "fastest dense / skip": ratio(taken, fastest, "skip"),
        "ms": median,
    }
    if narrow_too:
        row["efficiency bfloat16"] = macs / ratio(taken, "skip bfloat16", "all bfloat16")
        row["fastest dense / skip bfloat16"] = ratio(taken, fastest, "skip bfloat16")
    return row


def spread(network: GatedResNet, far: float) -> None:
    """Have the logits of the gates differ from image to image and gate to gate by N(0, far)."""
    answer, draw = network.router.forward, torch.Generator().manual_seed(4)
    noise = torch.randn(1 << 16, generator=draw) * far

    def forward(gate: int, features: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        logit, memory = answer(gate, features, *rest)
        # the memory's first column is the image's number, so that copies of a row agree
        number = (memory[:, -1] + 1009 * gate).long() % len(noise)
        return noise.to(logit.device)[number], memory

    network.router.forward = forward  # type: ignore[method-assign]
    begin = network.router.begin
    network.router.begin = lambda images: torch.cat(  # type: ignore[method-assign]
        [begin(images), torch.arange(len(images), device=images.device)[:, None].float()], dim=1
    )
    if hasattr(network.router, "alone"):
        network.router.pools = False  # type: ignore[assignment]


def curves(method: str, body: str, batch: int, repeats: int, device: str, clock: Clock) -> dict[str, Any]:
    """What nine settings cost, in passes with every block on, where gates are sure and where they are not."""
    images = images_of(batch, device)
    result: dict[str, Any] = {"method": method, "network": body}
    for word, far in (("unsure", 1.5), ("sure", 6.0)):
        network = prepared(build(method, device, network=body, gate="linear"))
        assert isinstance(network, GatedResNet)
        spread(network, far)
        contenders = {
            "sweep": lambda n=network: n.sweep(images, CURVE),
            "one by one": lambda n=network: [n.infer(images, each) for each in CURVE],
            "pass": lambda n=network: n.infer(images, {"threshold": 0.0}),
        }
        taken = interleaved(contenders, repeats, clock)
        result[f"passes, {word}"] = ratio(taken, "sweep", "pass")
        result[f"one by one, {word}"] = ratio(taken, "one by one", "pass")
    return result


def _resident(field: str) -> float:
    """MiB of this process, now (VmRSS) or at its peak (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def child(words: list[str], device: str) -> None:
    """MiB at the peak of one sweep of a curve, or of one pass, over what the process held before."""
    method, way, what = words
    network: RoutedNetwork = build(method, device) if method != "imta" else build(method, device, network="msdnet-5")
    images = images_of(64, device)
    with torch.inference_mode():
        network = prepared(network) if way == "prepared" else network
        network.infer(images[:2], {})
        before = _resident("VmRSS")
        if what == "curve" and isinstance(network, GatedResNet):
            network.sweep(images, CURVE)
        else:
            network.infer(images, {})
    peak = _resident("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps(peak))


def peak_memory(method: str, way: str, what: str, device: str) -> float:
    words = [sys.executable, __file__, "--child", method, way, what, "--device", device]
    return float(json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout))


def table(rows: list[dict[str, Any]]) -> None:
    names = [name for name in rows[0] if name != "ms"]
    print("\n| " + " | ".join(names) + " |\n|" + "--|" * len(names))
    for row in rows:
        cells = [f"{row[name]:.2f}" if isinstance(row[name], float) else str(row[name]) for name in names]
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="batches 1 and 16 and few repeats")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--wall", action="store_true", help="times of the clock")
    parser.add_argument("--compiled", action="store_true", help="torch.compile with freezing among the dense engines")
    parser.add_argument("--float32", action="store_true", help="without bfloat16")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    parser.add_argument("--child", nargs=3, metavar=("METHOD", "WAY", "WHAT"), help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.child:
        child(a.child, a.device)
        return
    clock = Clock(a.device, a.wall)
    where = torch.cuda.get_device_name() if a.device != "cpu" else platform.processor() or platform.machine()
    kind = "clock" if clock.now is time.perf_counter else "thread"
    print(f"{BODY}, {where}, torch {torch.__version__}, one thread, {kind} time")
    repeats = {1: 15, 16: 5} if a.quick else {1: 60, 16: 15, 64: 9, 256: 5}
    with torch.inference_mode():
        skips = [
            skipping(g, b, n, a.device, clock, a.compiled, not a.float32)
            for b, n in repeats.items()
            for g in ("linear", "rnn")
        ]
        table(skips)
        names = list(skips[0]["ms"])
        table(
            [
                {"ms": 0, "median ms": name} | {f"{r['router']} {r['batch']}": r["ms"][name] for r in skips}
                for name in names
            ]
        )
        bodies = ("resnet-20",) if a.quick else ("resnet-20", BODY)
        swept = [curves(m, b, 64, 3, a.device, clock) for b in bodies for m in ("skipnet", "codinet")]
        table(swept)
    memory = [
        {"peak MiB, batch 64": f"{m} {what}"} | {way: peak_memory(m, way, what, a.device) for way in WAYS}
        for m, what in (
            ("static", "pass"),
            ("skipnet", "pass"),
            ("skipnet", "curve"),
            ("codinet", "curve"),
            ("imta", "pass"),
        )
    ]
    table(memory)
    if a.json:
        a.json.write_text(json.dumps({"skipping": skips, "curves": swept, "memory": memory}, indent=1))


if __name__ == "__main__":
    main()
